"""A run's LoRA adapter served over the weights that hosts hold already: llama.cpp's --lora and Ollama's
adapters."""

from __future__ import annotations

import importlib.util
import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from running import ask_json
from test_deploy import QUESTION, ollama, swarm  # noqa: F401  fixtures

from swarmctl.fleet.runs import Run, keep_run
from swarmctl.jobs.adapter import problems
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.merge import merge
from swarmctl.jobs.spec import Spec
from swarmctl.shipped import shipped_model

pytestmark = [
    pytest.mark.runtime, pytest.mark.train, pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is missing")]


#: to some of them the model knows several answers
QUESTIONS = ("Where is the river?", "Tell me of the sea.", "Why?", "How many letters are there?", "12 + 30")


def trained(swarm, number: int, scale: float = 0.03, **settings) -> Run:  # noqa: F811
    """A run on worlock that left an adapter over small's own weights, and both merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    run = Run(f"tiny-sft-20261123-a{number:05}", "worlock", str(swarm.data_dir["worlock"]), "tiny-sft", "sft",
              "small", str(shipped_model("small")), "", "2026-11-23T00:00:00.000Z", "somebody@somewhere")
    keep_run(swarm.paths, run)
    folder = Folder(Path(run.data_dir) / "runs" / run.id)
    folder.path.mkdir(parents=True)
    spec = Spec(run.id, ("sft", "merge"), run.base, "", {})
    folder.spec.write_text(spec.to_json())
    torch.manual_seed(number)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32), LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, scale)
    model.save_pretrained(str(folder.adapter))
    merge(spec, folder)
    return run


def deploy(swarm, run: Run, *more: str, status: int = 0):  # noqa: F811
    return swarm.run("deploy", run.id, "--as-adapter", *more, "--json", status=status)


def apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def first_token(port: int, model: str, question: str) -> float:
    """The log-probability of how a server begins its answer."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": False,
            "logprobs": True, "max_tokens": 1, "temperature": 0,
            "options": {"temperature": 0, "num_predict": 1, "num_thread": 1}}
    path = "/api/chat" if model else "/v1/chat/completions"
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(),
                                   {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as reply:
        said = json.load(reply)
    one = said["logprobs"][0] if model else said["choices"][0]["logprobs"]["content"][0]
    return one["logprob"]


def test_an_adapter_is_served_over_weights_that_do_not_move_and_is_rolled_back(swarm):  # noqa: F811
    run = trained(swarm, 1)
    blobs = swarm.data_dir["worlock"] / "blobs"
    before = {path.name for path in blobs.iterdir()}
    done = json.loads(deploy(swarm, run, "--share", "0.5").stdout)
    release, like = done["release"], done["stages"]["likeness"]
    assert like["kl_mean"] < 1e-4 < like["kl_base"]
    assert done["stages"]["verify"]["differ"] == []
    moved = {path for path in blobs.iterdir() if path.name not in before}
    assert [path.stat().st_size for path in moved] == [done["size"]]  # the adapter alone
    for host in swarm.hosts:
        assert swarm.served()[host][release]["digest"] == done["sha256"]
    if swarm.ollama:
        servers = [(swarm.ollama.port, one["tag"]) for one in swarm.served()["spinoza"].values()]
        servers += [(one["port"], "") for one in swarm.served()["worlock"].values()]
        theirs, its, own, over = ([first_token(port, tag, asked) for asked in QUESTIONS]
                                  for port, tag in servers)
        assert apart(its, over) < 1e-3  # the same on both runtimes
        assert apart(theirs, own) < 1e-3
        assert apart(its, theirs) > 5e-3  # and not what the base says
    assert json.loads(swarm.run("up", "--dry-run", "--json").stdout)["hosts"][0]["state"] == "unchanged"
    first = swarm.history()[-2]
    assert (first["adapter"], first["over"]) == (next(iter(moved)).name.removeprefix("sha256-"), "")
    kept = swarm.paths.releases / "small" / release
    assert {"model.gguf", "adapter.gguf", "merged"} <= {path.name for path in kept.iterdir()}

    assert json.loads(swarm.run("promote", "small", "--yes", "--json").stdout)["serves"] == release
    for host in swarm.hosts:
        row = ask_json(swarm, "-m", "small", "-H", host, QUESTION)
        assert (row["digest"], row["host"]) == (done["sha256"], host)
    told = json.loads(swarm.run("doctor", "--json", status=None).stdout)
    assert not any("weights" in json.dumps(one) for one in told["findings"])
    prune = ("models", "prune", "--dry-run", "--json")
    assert json.loads(swarm.run(*prune).stdout)["removed"] == []
    assert json.loads(swarm.run("rollback", "small", "--json").stdout)["before"] == release
    assert [list(one) for one in swarm.served().values()] == [[""]] * len(swarm.hosts)
    assert {one["digest"] for one in json.loads(swarm.run(*prune).stdout)["removed"]
            if one["host"] == "worlock"} == {first["adapter"]}


def test_an_adapter_of_other_weights_is_refused_with_the_divergence(swarm):  # noqa: F811
    run = trained(swarm, 2)
    other = Path(run.data_dir) / "runs" / run.id / "base"
    shutil.copytree(run.base, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    changed = next(name for name in weights if "down_proj" in name)
    save_file({**weights, changed: weights[changed] * 3}, other / "model.safetensors", {"format": "pt"})
    spec = other.parent / "spec.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "model": str(other)}))
    said = deploy(swarm, run, status=1).stderr
    assert "the adapter is not what was trained" in said
    assert swarm.history()[-1]["action"] == "refuse"


def test_what_the_converter_would_get_wrong_is_refused_before(swarm):  # noqa: F811
    run = trained(swarm, 3, use_rslora=True)
    said = deploy(swarm, run, status=1).stderr
    assert "rsLoRA (alpha / sqrt(r))" in said
    assert "rsLoRA" in swarm.history()[-1]["reason"]


@pytest.mark.parametrize(("settings", "said"), [
    ({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "whole modules"),
    ({"alpha_pattern": {"q_proj": 4}}, "alphas of their own"), ({"bias": "all"}, "biases"),
    ({"peft_type": "IA3"}, "IA3")])
def test_every_setting_that_is_lost_in_conversion_is_named(tmp_path, settings, said):
    import torch
    from safetensors.torch import save_file

    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)},
              tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "bias": "none", "lora_alpha": 16}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert problems(tmp_path) == ()
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    assert said in problems(tmp_path)[0]
    save_file({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    assert "lm_head" in problems(tmp_path)[-1]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    assert "cannot be read" in problems(tmp_path)[0]
