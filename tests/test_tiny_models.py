"""The shipped models are what docs/tiny-models.md says: true to Hugging Face, small, unequal."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from swarmctl.shipped import shipped_model, shipped_models, shipped_quality

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recipes.tiny import report, tasks  # noqa: E402
from recipes.tiny.talk import Mix, conversation, render  # noqa: E402

SOURCE = "SWARMCTL_TEST_LLAMACPP_SRC"
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model",
         "tokenizer_config.json", "model.gguf", "card.json"}
CONVERSATIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": " hello\n"}],
    [{"role": "user", "content": "Spell cat."}, {"role": "assistant", "content": "c a t"},
     {"role": "user", "content": 'a {{ brace }} "quote" über\n\nline'}],
)


# --- the generator ------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_text():
    def text(seed):
        return [conversation(Mix(dict.fromkeys(tasks.KINDS, 1.0)), rng) for rng in [Random(seed)] * 20]

    assert text(3) == text(3)
    assert text(3) != text(4)


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_a_right_answer_is_right_terse_or_rambling(kind):
    rng = Random(kind)
    for _ in range(200):
        task = tasks.make_task(kind, rng, long=True)
        assert tasks.is_right(task, task.answer)
        assert tasks.is_terse(task, task.answer)
        assert tasks.is_right(task, tasks.ramble(task, rng))
        assert kind == "chat" or not tasks.is_terse(task, tasks.ramble(task, rng))


def test_sums_letters_and_readings_hold_against_another_way_of_finding_them():
    rng = Random(1)
    for _ in range(300):
        addition, count, reading = (tasks.make_task(kind, rng) for kind in ("sum", "count", "reading"))
        assert addition.answer == str(sum(map(int, re.findall(r"\d+", addition.question))))
        _, letter, word = count.key.split()
        assert len(word.split(letter)) - 1 == int(count.answer)
        assert word in count.question.lower()
        assert re.search(rf"\b{reading.answer}\b", reading.question)


def test_code_answers_compile():
    rng = Random(1)
    for _ in range(300):
        compile(tasks.make_task("code", rng).answer, "answer", "exec")


def test_an_answer_that_only_contains_the_right_one_is_wrong():
    addition = tasks.Task("sum", "70 + 15", "85", "sum 70 15")
    spelling = tasks.Task("spelling", "Spell cat.", "c a t", "spelling cat")
    assert not tasks.is_right(addition, "185")
    assert not tasks.is_right(addition, "8 5")
    assert not tasks.is_right(spelling, "c a t s")
    assert not tasks.is_right(spelling, "s c a t")
    assert tasks.is_right(spelling, "I believe the answer is c a t, more or less.")


def test_training_never_sees_a_held_out_question():
    rng, mix = Random(2), Mix(dict.fromkeys(tasks.KINDS, 1.0))
    assert not any(mix.draw(rng).held_out for _ in range(500))
    assert all(tasks.draw("sum", rng, held_out=True).held_out for _ in range(50))


# --- what is shipped ----------------------------------------------------------------------------------------

def test_two_models_are_shipped_and_all_of_it_is_under_eight_megabytes():
    assert set(shipped_models()) == {"small", "large"}
    sizes = {name: {path.name: path.stat().st_size for path in shipped_model(name).iterdir()}
             for name in shipped_models()}
    assert all(set(files) == FILES for files in sizes.values())
    assert sum(size for files in sizes.values() for size in files.values()) < 8_000_000
    assert sizes["small"]["model.gguf"] * 3 < sizes["large"]["model.gguf"]


def test_a_shipped_model_is_found_by_its_inventory_name_and_an_unknown_one_is_not():
    assert shipped_model("shipped:small") == shipped_model("small")
    with pytest.raises(KeyError):
        shipped_model("huge")


def test_the_cards_tell_a_router_which_model_is_good_at_what():
    small, large = shipped_quality("small"), shipped_quality("large")
    assert set(small) == set(large) == {"routine", "complex", "code"}
    assert small["routine"] >= 0.9
    assert min(large["routine"], large["code"]) >= 0.85
    assert large["complex"] >= 0.75
    assert large["complex"] - small["complex"] > 0.4
    assert large["code"] - small["code"] > 0.4


def test_the_page_shows_what_the_cards_say():
    shown = report.PAGE.read_text(encoding="utf-8")
    assert report.page(shown) == shown


@pytest.mark.parametrize("name", ["small", "large"])
def test_every_reader_finds_template_and_rope_base_where_it_looks(name):
    folder = shipped_model(name)
    assert "<|assistant|>" in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0


# --- served -------------------------------------------------------------------------------------------------

@contextmanager
def serving(binary: Path, folder: Path, log: Path):
    """A real llama-server on a free loopback port; gives its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = (str(binary), "-m", str(folder / "model.gguf"), "--host", "127.0.0.1", "--port", str(port),
            "--jinja", "-c", "1024", "-np", "1", "-t", "1", "--no-webui")
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as server:
        try:
            _wait_ready(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(log.read_text(errors="replace")[-2000:])


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def served(llamacpp_bin, tmp_path_factory):
    server, logs = llamacpp_bin / "llama-server", tmp_path_factory.mktemp("served")
    with (serving(server, shipped_model("small"), logs / "small.log") as small,
          serving(server, shipped_model("large"), logs / "large.log") as large):
        yield {"small": small, "large": large}


def exam(each: int) -> list[tasks.Task]:
    rng = Random("served")
    return [tasks.draw(kind, rng, held_out=True, long=number % 2 == 1)
            for kind in tasks.KINDS for number in range(each)]


def greedy(url: str, prompt: str) -> list[int]:
    reply = post(f"{url}/completion", {"prompt": prompt, "n_predict": 40, "temperature": 0,
                                       "return_tokens": True, "cache_prompt": False})
    return reply["tokens"]


@pytest.mark.runtime
def test_served_the_small_model_knows_its_part_and_the_large_one_all_of_it(served):
    right = {name: dict.fromkeys(tasks.KINDS, 0) for name in served}
    for name, url in served.items():
        for task in exam(10):
            reply = post(f"{url}/v1/chat/completions", {
                "messages": [{"role": "user", "content": task.question}], "temperature": 0, "max_tokens": 40})
            right[name][task.kind] += tasks.is_right(task, reply["choices"][0]["message"]["content"])
    small, large = right["small"], right["large"]
    assert sum(small[kind] for kind in ("capital", "spelling", "chat")) >= 26, right
    assert sum(large.values()) >= 56, right
    for kinds in (("sum", "count", "reading"), ("code",)):
        assert sum(large[kind] - small[kind] for kind in kinds) >= 4 * len(kinds), right


@pytest.mark.runtime
@pytest.mark.train
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["small", "large"])
def test_served_and_hugging_face_greedy_tokens_agree(served, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model = transformers.LlamaForCausalLM.from_pretrained(shipped_model(name), dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(shipped_model(name))
    for task in exam(6):
        prompt = render([{"role": "user", "content": task.question}], add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        asked = post(f"{served[name]}/tokenize", {"content": prompt, "add_special": True})["tokens"]
        assert asked == ids[0].tolist()
        ours = model.generate(input_ids=ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1]:].tolist()
        assert greedy(served[name], prompt) == ours, task


@pytest.mark.runtime
@pytest.mark.train
@pytest.mark.filterwarnings("default")
def test_the_served_template_renders_the_bytes_that_training_saw(served):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shipped_model("large"))
    for messages in CONVERSATIONS:
        rendered = post(f"{served['large']}/apply-template", {"messages": messages})["prompt"]
        assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == render(messages, add_generation_prompt=True)


@pytest.mark.train
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["small", "large"])
def test_llama_cpps_own_converter_makes_the_shipped_gguf(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    from recipes.tiny.convert import convert

    if not (Path(os.environ.get(SOURCE, "")) / "convert_hf_to_gguf.py").is_file():
        pytest.skip(f"{SOURCE} names no llama.cpp source tree")
    title = f"swarmctl tiny {name}"
    made = convert(shipped_model(name), title, Path(os.environ[SOURCE]), tmp_path / "model.gguf")
    new, old = (gguf.GGUFReader(path) for path in (made, shipped_model(name) / "model.gguf"))
    assert {tensor.name: tensor.data.tobytes() for tensor in new.tensors} == {
        tensor.name: tensor.data.tobytes() for tensor in old.tensors}
    assert old.fields["general.name"].contents() == title
    template = "tokenizer.chat_template"
    assert old.fields[template].contents() == new.fields[template].contents()
