"""Hugging Face folders pushed to a real Ollama and to llama.cpp hosts: the same answers as the GGUF that
ships, and every known way to be silently wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_models import SMALL, Swarm, mixed, needs_ollama, ollamas, swarm  # noqa: F401  fixtures

from swarmctl.errors import DiskFull, SwarmError, UsageError
from swarmctl.fleet import gguf_make
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.store import Store
from swarmctl.runtimes.hf_folder import as_sent, read_folder, tensors
from swarmctl.shipped import shipped_model

SHIPPED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.model",
           "tokenizer_config.json")
PROMPT = "<|user|>What is the capital of France?\n<|assistant|>"


@pytest.fixture(scope="module")
def can_convert(tmp_path_factory):
    """llama.cpp's converter and a Python that runs it; the cache folder in which the former is kept."""
    for name in gguf_make.NEEDED:
        pytest.importorskip(name)
    source = Path(os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC", ""))
    if not (source / "convert_hf_to_gguf.py").is_file():
        pytest.skip("SWARMCTL_TEST_LLAMACPP_SRC names no llama.cpp source")
    return source


@pytest.fixture
def converting(can_convert, monkeypatch):
    monkeypatch.setattr(gguf_make, "converter", lambda _store, _note: can_convert)


def folder_of(to, which="small", **config):
    """A copy of a shipped folder, with its config changed: None takes a key away."""
    to.mkdir(parents=True)
    for name in SHIPPED:
        shutil.copy(shipped_model(which) / name, to / name)
    raw = json.loads((to / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps({key: value for key, value in raw.items()
                                                if value is not None}))
    return to


def everything(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def ollama_says(server, model, prompt=PROMPT):
    """Greedy text, and the log-probability of every token in it."""
    said = json.loads(server.call("/api/generate", {
        "model": model, "prompt": prompt, "raw": True, "stream": False, "logprobs": True,
        "options": {"num_predict": 12, "num_thread": 1, "temperature": 0}}))
    return said["response"], [one["logprob"] for one in said["logprobs"]]


def metadata(server, model):
    return json.loads(server.call("/api/show", {"model": model}))["model_info"]


def transformers_say(folder, prompt):
    """The same by the library that made the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids, logprobs = tokenizer(prompt, return_tensors="pt")["input_ids"], []
    begin = ids.shape[1]
    with torch.no_grad():
        for _ in range(12):
            scores = model(ids).logits[0, -1].log_softmax(-1)
            best = int(scores.argmax())
            if best == tokenizer.eos_token_id:
                break
            logprobs.append(float(scores[best]))
            ids = torch.cat((ids, torch.tensor([[best]])), dim=1)
    return tokenizer.decode(ids[0, begin:]), logprobs


def given_gguf(server, which):
    weights = (shipped_model(which) / "model.gguf").read_bytes()
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    server.call(f"/api/blobs/{digest}", weights)
    server.call("/api/create", {"model": f"gguf-{which}", "files": {"m.gguf": digest}, "stream": False})
    return f"gguf-{which}"


@contextmanager
def llama_server(binaries, gguf):
    (port,) = free_ports(1)
    argv = (binaries / "llama-server", "--model", gguf, "--port", str(port), "--threads", "1", "--ctx-size",
            "512", "--parallel", "1", "--no-webui")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


def llamacpp_says(binaries, gguf):
    with llama_server(binaries, gguf) as port:
        body = json.dumps({"prompt": PROMPT, "n_predict": 12, "temperature": 0, "n_probs": 1,
                           "cache_prompt": False}).encode()
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body,
                                     {"Content-Type": "application/json"})
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(ask, timeout=60) as reply:
                    said = json.loads(reply.read())
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
    return said["content"], [one["logprob"] for one in said["completion_probabilities"]]


# --- Ollama takes the folder itself

@needs_ollama
def test_a_folder_becomes_a_model_with_the_log_probabilities_of_transformers(mixed, ollamas, tmp_path):  # noqa: F811
    folder, server = bpe(tmp_path / "bpe"), ollamas["spinoza"]
    before = everything(folder)
    (moved,) = mixed.push(folder, "spinoza")
    assert (moved.state, moved.runtime, moved.error) == ("moved", "ollama", None)
    assert moved.sent == (folder / "model.safetensors").stat().st_size
    text, logprobs = ollama_says(server, moved.name, "the house of the bear")
    expected, theirs = transformers_say(folder, "the house of the bear")
    assert text == expected
    assert logprobs == pytest.approx(theirs, abs=0.05)
    assert everything(folder) == before
    (again,) = mixed.push(folder, "spinoza")
    assert (again.state, again.sent) == ("there", 0)
    assert not list((mixed.lab.host("spinoza").data_dir / "incoming").glob("*"))
    (row,) = [row for row in mixed.rows("spinoza")["spinoza"] if row.holding.tag == moved.name]
    assert row.holding.ours


@needs_ollama
def test_a_rope_theta_that_only_rope_parameters_names_reaches_the_model(mixed, ollamas, tmp_path):  # noqa: F811
    folder, server = bpe(tmp_path / "theta", theta=300.0), ollamas["spinoza"]
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    (moved,) = mixed.push(folder, "spinoza")
    assert metadata(server, moved.name)["llama.rope.freq_base"] == 300
    text, logprobs = ollama_says(server, moved.name, "the house of the bear")
    expected, theirs = transformers_say(folder, "the house of the bear")
    assert (text, logprobs) == (expected, pytest.approx(theirs, abs=0.05))


@needs_ollama
def test_a_chat_template_that_only_its_own_file_has_reaches_the_model(mixed, ollamas, tmp_path):  # noqa: F811
    folder, server = bpe(tmp_path / "template"), ollamas["spinoza"]
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}the house of the {{ message['content'] }}{% endfor %}")
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    before = everything(folder)
    (moved,) = mixed.push(folder, "spinoza")
    said = json.loads(server.call("/api/chat", {
        "model": moved.name, "messages": [{"role": "user", "content": "bear"}], "stream": False,
        "options": {"num_predict": 12, "num_thread": 1, "temperature": 0}}))
    assert said["message"]["content"].strip() == transformers_say(folder, "the house of the bear")[0].strip()
    assert everything(folder) == before


@needs_ollama
def test_shards_become_one_model_and_leave_this_machine_once(mixed, ollamas, tmp_path):  # noqa: F811
    whole = bpe(tmp_path / "whole")
    moved = mixed.push(sharded(whole, tmp_path / "shards"), "spinoza", "calisota")
    assert [(one.state, one.error) for one in moved] == [("moved", None)] * 2
    assert sum(one.sent for one in moved) > 0
    for one in moved:
        assert ollama_says(ollamas[one.host], one.name, "a bear")[0] == transformers_say(whole, "a bear")[0]


# --- what Ollama would get wrong

@needs_ollama
@pytest.mark.parametrize("which", ["small", "large"])
def test_a_tokenizer_that_ollama_reads_wrong_gets_there_as_a_gguf(mixed, ollamas, which, tmp_path,  # noqa: F811
                                                                  converting):
    """Its converter turns the shipped models' symbols into plain text and adds spaces: another answer."""
    folder, server = folder_of(tmp_path / which, which), ollamas["spinoza"]
    (moved,) = mixed.push(folder, "spinoza")
    assert (moved.state, moved.error) == ("moved", None)
    text, logprobs = ollama_says(server, moved.name)
    expected, theirs = ollama_says(server, given_gguf(server, which))
    assert (text, logprobs) == (expected, pytest.approx(theirs, abs=0.05))


@needs_ollama
def test_a_tokenizer_that_ollama_does_not_know_leaves_no_model_there(mixed, ollamas, tmp_path,  # noqa: F811
                                                                     monkeypatch):
    monkeypatch.setattr(gguf_make, "NEEDED", ("a_torch_that_is_not_there",))
    (moved,) = mixed.push(bpe(tmp_path / "odd", words=r"\p{L}+|\s+|[^\s\p{L}]"), "spinoza")
    assert "it does not know how this tokenizer cuts text into words; and to GGUF" in str(moved.error)
    assert json.loads(ollamas["spinoza"].call("/api/tags"))["models"] == []


@needs_ollama
def test_what_ollama_cannot_convert_gets_there_as_a_gguf(mixed, ollamas, tmp_path, converting):  # noqa: F811
    folder = qwen3(tmp_path / "qwen3")
    (moved,) = mixed.push(folder, "spinoza")
    assert (moved.state, moved.error) == ("moved", None)
    assert metadata(ollamas["spinoza"], moved.name)["general.architecture"] == "qwen3"
    assert mixed.push(folder, "spinoza")[0].sent == 0


@needs_ollama
def test_what_neither_can_convert_is_told_with_both_reasons_before_weights_move(mixed, tmp_path,  # noqa: F811
                                                                                monkeypatch):
    monkeypatch.setattr(gguf_make, "NEEDED", ("a_torch_that_is_not_there",))
    folder = bpe(tmp_path / "odd")
    config = (folder / "config.json").read_text().replace("LlamaForCausalLM", "OddForCausalLM")
    (folder / "config.json").write_text(config)
    (moved,) = mixed.push(folder, "spinoza")
    assert 'unsupported architecture "OddForCausalLM"' in str(moved.error)
    assert "needs a_torch_that_is_not_there beside swarmctl" in str(moved.error)
    assert "-m pip install torch transformers" in moved.error.hint
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert not list(mixed.lab.host("spinoza").data_dir.rglob(f"*{digest}*"))


# --- a GGUF is made of it

@pytest.mark.parametrize("which", ["small", "large"])
def test_the_gguf_made_of_a_folder_answers_as_the_one_that_ships(swarm, llamacpp_bin, which, tmp_path,  # noqa: F811
                                                                 converting):
    moved = swarm.push(folder_of(tmp_path / which, which), "worlock", "spinoza")
    assert [one.state for one in moved] == ["moved", "moved"]
    (blob,) = (swarm.lab.host("worlock").data_dir / "blobs").glob("sha256-*")
    text, logprobs = llamacpp_says(llamacpp_bin, blob)
    expected, theirs = llamacpp_says(llamacpp_bin, shipped_model(which) / "model.gguf")
    assert text == expected
    assert logprobs == pytest.approx(theirs, abs=0.01)
    began = time.monotonic()
    again = swarm.push(tmp_path / which, "worlock", "spinoza")
    assert [one.sent for one in again] == [0, 0]
    assert time.monotonic() - began < 5, "it was converted once"


def test_quantize_makes_a_smaller_one(swarm, llamacpp_bin, tmp_path, converting):  # noqa: F811
    store = Store.of(swarm.paths)
    place = store.root / "runtimes" / "cpu-test"
    place.mkdir(parents=True)
    (place / "bin").symlink_to(llamacpp_bin)
    (place / ".complete").touch()
    try:
        (moved,) = swarm.push(folder_of(tmp_path / "large", "large"), "worlock", quantise="Q8_0")
        (plain,) = swarm.push(tmp_path / "large", "worlock")
    finally:
        shutil.rmtree(place)
    assert (moved.state, plain.state) == ("moved", "moved")
    assert moved.sent < 0.7 * plain.sent


def test_a_type_that_does_not_exist_is_refused(swarm, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match="the converter writes no q3"):
        swarm.push(folder_of(tmp_path / "m"), "worlock", outtype="q3")
    with pytest.raises(UsageError, match="a GGUF is pushed as it is"):
        swarm.push(SMALL, "worlock", quantise="Q4_K_M")


def test_a_disk_too_small_here_is_refused_with_numbers(swarm, tmp_path, monkeypatch, converting):  # noqa: F811
    monkeypatch.setattr(gguf_make, "SPARE", 1 << 60)
    with pytest.raises(DiskFull, match=r"converting m needs [\d,]+ MB at .*, where [\d,]+ MB are free"):
        swarm.push(folder_of(tmp_path / "m", max_position_embeddings=77), "worlock")


def test_what_the_converter_does_not_know_is_told_in_its_words(tmp_path, converting):
    folder = read_folder(folder_of(tmp_path / "m", architectures=["OddForCausalLM"]))
    with pytest.raises(SwarmError, match="OddForCausalLM is not supported"):
        gguf_make.make_gguf(folder, "m", Store(tmp_path / "store"))
    assert not list((tmp_path / "store" / "converted").glob("*"))


# --- folders that are not whole

def test_a_safetensors_file_that_is_cut_off_is_refused_with_both_sizes(tmp_path):
    folder = folder_of(tmp_path / "m")
    os.truncate(folder / "model.safetensors", 800_000)
    with pytest.raises(SwarmError, match=r"model.safetensors has 800,000 bytes, .* speaks of 822,872"):
        read_folder(folder)


@pytest.mark.parametrize(("content", "why"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    (b"", "no safetensors file"),
    (b"\xff" * 100, "no safetensors file"),
    (struct.pack("<Q", 50) + b"{", "its header cannot be read"),
    (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
    (struct.pack("<Q", 9) + b'{"a": {}}', "its header cannot be read"),
])
def test_garbage_is_no_safetensors_file(tmp_path, content, why):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SwarmError, match=why):
        tensors(tmp_path / "x")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = folder_of(tmp_path / "m")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(SwarmError, match="has no tokenizer"):
        read_folder(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = sharded(folder_of(tmp_path / "whole"), tmp_path / "m")
    assert len(read_folder(folder).weights) == 2
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SwarmError, match=r"lacks model-00002-of-00002.safetensors, 1 of the 2 files"):
        read_folder(folder)


def test_an_index_of_another_model_is_found_out(tmp_path):
    folder = sharded(folder_of(tmp_path / "whole"), tmp_path / "m")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.99.x"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SwarmError, match=r"does not hold model.layers.99.x"):
        read_folder(folder)


@pytest.mark.parametrize(("files", "why"), [
    ({}, "without config.json"),
    ({"adapter_config.json": "{}"}, "holds a LoRA adapter"),
    ({"config.json": "{"}, "config.json is not JSON"),
    ({"config.json": "[]"}, "holds no JSON object"),
    ({"config.json": "{}"}, "names no architecture"),
    ({"config.json": '{"architectures": ["A"]}'}, "has no model.safetensors"),
    ({"config.json": '{"architectures": ["A"]}', "pytorch_model.bin": "x"}, "only pytorch_model.bin"),
    ({"config.json": '{"architectures": ["A"]}', "a.safetensors": "", "b.safetensors": ""}, "several"),
])
def test_what_is_no_model_folder_is_told_as_what_it_is(tmp_path, files, why):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SwarmError, match=why):
        read_folder(tmp_path)


# --- the copy that is sent

def test_the_copy_says_where_transformers_4_had_it_and_nothing_else_changes(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0, "low_freq_factor": 1.0}
    folder = folder_of(tmp_path / "m", rope_theta=None, rope_parameters=rope)
    sent = json.loads(as_sent(read_folder(folder))["config.json"])
    was = json.loads((folder / "config.json").read_text())
    assert {key: value for key, value in sent.items() if key not in was} == {
        "rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", "type": "llama3", "factor": 8.0,
                                            "low_freq_factor": 1.0}}
    assert {key: sent[key] for key in was} == was


def test_each_kind_of_layer_keeps_its_own_theta(tmp_path):
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    folder = folder_of(tmp_path / "m", rope_theta=None, rope_parameters=rope)
    sent = json.loads(as_sent(read_folder(folder))["config.json"])
    assert (sent["rope_theta"], sent["rope_local_base_freq"]) == (1e6, 1e4)
    assert "rope_scaling" not in sent


def test_what_needs_no_change_is_sent_as_it_is(tmp_path):
    folder = folder_of(tmp_path / "m")
    assert as_sent(read_folder(folder)) == {name: (folder / name).read_bytes() for name in SHIPPED
                                            if name != "model.safetensors"}


#: how Llama 3 cuts text into words before BPE
LLAMA_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def bpe(to, theta=10000.0, words=LLAMA_WORDS):
    """A tiny Llama with random weights, as transformers 5 writes one, and a BPE tokenizer of our own."""
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"],
                                             show_progress=False)
    raw.train_from_iterator(["the house of the bear is a house of the sea"] * 50, trainer)
    raw.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A",
                                                                  special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(to)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(raw.get_vocab()), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        bos_token_id=0, eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False)).save_pretrained(to)
    return to


def sharded(whole, to):
    """A model in two files with an index, as transformers writes large ones."""
    shutil.copytree(whole, to)
    raw = (to / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    header.pop("__metadata__", None)
    names, parts = sorted(header), {}
    for number, chosen in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        entries, body = {}, b""
        for name in chosen:
            begin, end = header[name]["data_offsets"]
            entries[name] = header[name] | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[begin:end]
            parts[name] = file
        text = json.dumps(entries).encode()
        (to / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
    (to / "model.safetensors").unlink()
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return to


def qwen3(to):
    """A tiny Qwen3 with random weights and the shipped tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
                         max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    Qwen3ForCausalLM(config).save_pretrained(to)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(shipped_model("small") / name, to / name)
    return to
