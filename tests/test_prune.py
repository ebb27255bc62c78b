"""Pruning as a recipe: layers and channels go, a short training brings answers back, a server serves it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from test_tiny_models import post, serving

from recipes.tiny.tasks import draw, is_right
from swarmctl.errors import RecipeError
from swarmctl.facts import parse_facts
from swarmctl.fleet.recipes import key_table, read_recipe
from swarmctl.inventory import Limits
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.spec import JobError, Spec
from swarmctl.recipe import Own, parse_recipe
from swarmctl.shipped import shipped_model
from swarmctl.training.plan import Load, fitting, spec_of
from swarmctl.training.shape import shape_of

ROOT = Path(__file__).parent.parent
KINDS = ("capital", "spelling", "sum", "code")
needs_trl = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "trl", "peft", "datasets", "pyarrow")),
    reason="torch, trl, peft, datasets and pyarrow are not installed")


def terse_answers(count, held_out=False):
    rng = Random("prune")
    for number in range(count):
        task = draw(KINDS[number % len(KINDS)], rng, held_out=held_out)
        yield {"prompt": [{"role": "user", "content": task.question}],
               "completion": [{"role": "assistant", "content": task.answer}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("prune") / "data"
    folder.mkdir()
    for rows, name in ((terse_answers(400), "train"), (terse_answers(64, held_out=True), "heldout")):
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / f"{name}.parquet")
    return folder


def planned(recipe):
    """The job of a recipe, on a host that was recorded once."""
    seen = replace(parse_facts((ROOT / "tests/facts/debian-x86-bash.txt").read_text()), gpus=())
    config = json.loads((shipped_model("large") / "config.json").read_text())
    fit = fitting(recipe, shape_of(config, 2_500_000), Load(128, 0, 1000, 0), seen, Limits(threads=1))
    return replace(spec_of(recipe, fit, run="r", model=str(shipped_model("large"))), precision="fp32"), fit


@pytest.fixture(scope="module")
def job(data):
    """One whole job of the lab's recipe, as a host runs it."""
    folder = Folder(data.parent)
    spec, _ = planned(read_recipe("tiny-prune"))
    folder.spec.write_text(spec.to_json())
    done = subprocess.run([sys.executable, "-m", "swarmctl.jobs", "spec.json"], cwd=folder.path, text=True,
                          capture_output=True, timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@needs_trl
@pytest.mark.train
@pytest.mark.slow
class TestPruning:
    """The shipped large model loses a layer of three and a quarter of its channels."""

    def test_what_went_and_what_came_back_is_measured(self, job):
        stages = job.result()["stages"]
        assert list(stages) == ["prune", "sft", "merge", "compare"]
        pruned, recovered = stages["prune"], stages["compare"]["recovered"]
        before, after = pruned["before"], pruned["after"]
        assert (len(pruned["layers_dropped"]), pruned["ffn_width"]) == (1, 288)
        assert after["parameters"] < 0.75 * before["parameters"]
        assert recovered["parameters"] == after["parameters"] == stages["merge"]["parameters"]
        assert after["bytes"] == 4 * after["parameters"]
        assert before["perplexity"] < recovered["perplexity"] < after["perplexity"] / 2
        told = [json.loads(line) for line in job.progress.read_text().splitlines()]
        assert any(line["stage"] == "compare" and "perplexity" in line.get("event", "") for line in told)

    @pytest.mark.filterwarnings("default")
    def test_the_result_loads_and_is_an_ordinary_smaller_model(self, job):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(job.merged)
        assert (len(model.model.layers), model.config.intermediate_size) == (2, 288)
        assert AutoTokenizer.from_pretrained(job.merged).chat_template

    @pytest.mark.runtime
    def test_it_converts_and_answers_through_a_server(self, job, llamacpp_bin, tmp_path):
        from swarmctl.jobs.gguf import convert

        source = Path(os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC", ""))
        if not (source / "convert_hf_to_gguf.py").is_file():
            pytest.skip("SWARMCTL_TEST_LLAMACPP_SRC names no llama.cpp source tree")
        made = convert(job.merged, tmp_path / "model.gguf", source, name="pruned")
        assert made.stat().st_size < 0.8 * (shipped_model("large") / "model.gguf").stat().st_size
        rng, right = Random("asked"), 0
        with serving(llamacpp_bin / "llama-server", tmp_path, tmp_path / "log") as url:
            for number in range(20):
                task = draw(KINDS[number % 2], rng, held_out=False)
                reply = post(f"{url}/v1/chat/completions", {
                    "messages": [{"role": "user", "content": task.question}], "temperature": 0,
                    "max_tokens": 40})["choices"][0]
                assert reply["finish_reason"] == "stop"
                right += is_right(task, reply["message"]["content"])
        assert right >= 10

    @pytest.mark.filterwarnings("default")
    def test_sparsity_sets_zeros_and_leaves_the_size(self, data, tmp_path):
        found = pruned(data, tmp_path, {"sparsity": 0.3})
        before, after = found["before"], found["after"]
        assert (before["parameters"], before["bytes"]) == (after["parameters"], after["bytes"])
        assert before["zeros"] < 0.01
        assert 0.2 < after["zeros"] <= 0.3  # embeddings keep all of theirs

    @pytest.mark.filterwarnings("default")
    @pytest.mark.parametrize(("wish", "said"), [
        ({"layers": 3}, "prune.layers is 3, and the model has 3 layers: at least one must stay"),
        ({"layers": 0.99}, "at least one must stay"),
        ({"ffn": 1.0}, "prune.ffn is 1: it is a share from 0 to below 1"),
        ({"sparsity": 1.0}, "prune.sparsity is 1: it is a share"),
    ])
    def test_too_much_is_refused_before_anything_is_measured(self, data, tmp_path, wish, said):
        with pytest.raises(JobError, match=said):
            pruned(data, tmp_path, wish)
        assert not (tmp_path / "out").exists()

    @pytest.mark.filterwarnings("default")
    def test_another_architecture_is_refused_by_its_name(self, data, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel

        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=640)).save_pretrained(
            tmp_path / "gpt2")
        with pytest.raises(JobError, match="GPT2LMHeadModel has no gated feed-forward layers"):
            pruned(data, tmp_path, {"layers": 1}, model=tmp_path / "gpt2")


def pruned(data, folder, wish, model=None):
    from swarmctl.jobs.prune import prune

    (folder / "data").symlink_to(data)
    return prune(Spec("r", ("prune",), str(model or shipped_model("large")), "data", {}, threads=1,
                      more={"prune": wish}), Folder(folder))


def test_a_recipe_that_prunes_has_two_stages_more_and_room_on_the_disk():
    recipe = read_recipe("tiny-prune")
    spec, fit = planned(recipe)
    assert spec.stages == ("prune", "sft", "merge", "compare")
    assert spec.more == {"prune": {"layers": 1, "ffn": 0.25}}
    plain, without = planned(replace(recipe, own=Own()))
    assert (plain.stages, plain.more) == (("sft", "merge"), {})
    assert [part.name for part in fit.disk.parts if part not in without.disk.parts] == ["pruned model"]


@pytest.mark.parametrize(("prune", "said"), [
    ("{}", "`prune` takes nothing away"),
    ("{layers: 0}", "`prune` takes nothing away"),
    ("{layers: 1.5}", "neither a count nor a share"),
    ("{ffn: 1}", "a share from 0 to 0.95"),
    ("{sparsity: -0.1}", "a share from 0 to 0.95"),
    ("{layer: 1}", "did you mean layers?"),
    ("4", "expected a mapping of what is pruned"),
    ("{layers: 1}, hosts: [worlock, calisota]", "`prune` works on one host"),
])
def test_a_wish_that_makes_no_sense_is_refused_with_its_line(prune, said):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"trainer: sft\nswarmctl: {{prune: {prune}}}\n", "r.yaml", "r", key_table())
    assert str(caught.value).startswith("r.yaml:2: ")
    assert said in str(caught.value)
