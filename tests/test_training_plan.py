"""How a recipe runs on a host, from recorded facts alone: precision, processes, arithmetic, DeepSpeed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from swarmctl.cli.job_view import Pace, words
from swarmctl.errors import Unfit
from swarmctl.facts import parse_facts
from swarmctl.fleet.convertible import Convertible, convertible, read_source, table
from swarmctl.fleet.recipes import read_recipe
from swarmctl.inventory import Limits
from swarmctl.jobs.progress import diverged
from swarmctl.recipe import Own
from swarmctl.runtimes.llamacpp_build import LLAMACPP
from swarmctl.shipped import shipped_model
from swarmctl.training.deepspeed import deepspeed_config
from swarmctl.training.plan import Load, fitting, spec_of
from swarmctl.training.precision import precision
from swarmctl.training.shape import shape_of

FACTS = Path(__file__).parent / "facts"
#: Llama 3 8B, from its published config.json
LLAMA = shape_of({"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
                  "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
                  "vocab_size": 128256, "dtype": "bfloat16"}, 16_060_522_496)
LOAD = Load(2048, 0, 1_000_000, 0)


def host(name):
    return parse_facts((FACTS / f"{name}.txt").read_text())


def cpu(**changes):
    seen = host("debian-x86-bash")
    return replace(seen, gpus=(), cpu=replace(seen.cpu, features=()), **changes)


def fit(recipe, seen, load=LOAD, shape=LLAMA, **own):
    made = read_recipe(recipe)
    return fitting(replace(made, own=replace(made.own, **own)), shape, load, seen, Limits())


def test_precision_follows_the_hardware():
    recipe = read_recipe("dpo-lora")
    gpus = host("nvidia-two-gpus")
    old = replace(gpus, gpus=tuple(replace(gpu, arch="7.5") for gpu in gpus.gpus))
    modern = replace(cpu(), cpu=replace(cpu().cpu, features=("avx512_bf16",)))
    found = [precision(recipe, seen)[0] for seen in (gpus, old, cpu(), modern)]
    assert found == ["bf16", "fp16", "fp32", "bf16"]
    assert precision(read_recipe("tiny-dpo"), modern) == ("fp32", "the recipe says so")


def test_what_the_hardware_cannot_do_is_refused():
    gpus = host("nvidia-two-gpus")
    old = replace(gpus, gpus=tuple(replace(gpu, arch="7.5") for gpu in gpus.gpus))
    with pytest.raises(Unfit, match="older than Ampere"):
        precision(read_recipe("dpo-lora", ["bf16=true"]), old)
    with pytest.raises(Unfit, match="there is no GPU here"):
        precision(read_recipe("dpo-lora", ["fp16=true"]), cpu())
    with pytest.raises(Unfit, match="needs an NVIDIA GPU"):
        fit("dpo-qlora", cpu())
    with pytest.raises(Unfit, match="need as many GPUs"):
        fit("dpo-lora", gpus, processes=3)


def test_a_gpu_that_is_lost_does_not_count():
    assert fit("dpo-lora", host("nvidia-one-lost")).processes == 1
    assert fit("dpo-lora", host("nvidia-two-gpus")).processes == 2


def test_the_shape_of_a_model_is_read_from_its_config():
    assert LLAMA.parameters == 8_030_261_248
    assert LLAMA.lora(16) == 41_943_040  # what PEFT itself prints for r 16 on all linear layers of Llama 3 8B
    config = json.loads((shipped_model("small") / "config.json").read_text())
    size = (shipped_model("small") / "model.safetensors").stat().st_size
    shape = shape_of(config, size)
    assert shape.lora(16) == 48_640  # what the job's own result says is trainable
    assert abs(shape.parameters - 205_200) < 1000


def test_sixteen_bits_do_not_fit_a_small_gpu_and_four_do():
    gpus = host("nvidia-two-gpus")
    one = replace(gpus, gpus=(replace(gpus.gpus[0], memory=16 << 30, memory_free=16 << 30),))
    lora, qlora = fit("dpo-lora", one), fit("dpo-qlora", one)
    assert not lora.memory.fits
    parts = {part.name: part.size for part in qlora.memory.parts}
    assert parts["weights"] == int(8_030_261_248 * 0.57)
    assert parts["reference model"] == 0
    assert parts["optimiser"] == 41_943_040 * 8
    assert parts["logits"] == 2 * 2048 * 128256 * 12
    assert qlora.memory.needs < lora.memory.needs


def test_each_process_gets_its_share_of_a_machine():
    one, two = fit("tiny-dpo", cpu(), processes=1), fit("tiny-dpo", cpu(), processes=2)
    assert two.memory.has == one.memory.has // 2
    assert "for each of 2 processes" in two.memory.of
    spec = spec_of(read_recipe("tiny-dpo"), two, run="r", model="/m")
    assert (spec.processes, spec.stages, spec.precision) == (2, ("dpo", "merge"), "fp32")


def test_deepspeed_is_configured_from_recipe_and_facts():
    gpus = host("nvidia-two-gpus")
    assert deepspeed_config(Own(), "bf16", gpus) is None
    two = deepspeed_config(Own(deepspeed="zero2", offload="cpu"), "bf16", gpus)
    assert two["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert (two["bf16"]["enabled"], two["fp16"]["enabled"]) == (True, False)
    fast = replace(gpus, disk=replace(gpus.disk, rotational=False))
    three = deepspeed_config(Own(deepspeed="zero3", offload="nvme"), "fp16", fast)["zero_optimization"]
    assert three["offload_param"]["nvme_path"] == f"{gpus.data_dir}/offload"
    assert three["stage3_gather_16bit_weights_on_model_save"] is True
    slow = replace(gpus, disk=replace(gpus.disk, rotational=True))
    with pytest.raises(Unfit, match="a rotating disk"):
        deepspeed_config(Own(deepspeed="zero3", offload="nvme"), "bf16", slow)
    with pytest.raises(Unfit, match="memory only"):
        deepspeed_config(Own(deepspeed="zero2", offload="nvme"), "bf16", fast)


@pytest.mark.parametrize(("losses", "why"), [
    ([0.7, 0.6, 0.5], None), ([0.7, float("nan")], "became nan"), ([0.7, float("inf")], "became inf"),
    ([0.7, 0.6, 9.0, 10.0, 12.0], "exploded: 0.7 at first, now 12"), ([0.7, 9.0, 0.6, 9.0], None),
    ([0.001, 0.4, 0.4, 0.4, 0.4], None), ([], None)])
def test_a_run_is_given_up_when_its_loss_says_so(losses, why):
    found = diverged(losses)
    assert found is None if why is None else why in found


def test_what_ships_of_the_converter_is_what_its_pinned_source_says():
    assert table()["llamacpp"] == LLAMACPP, "python -m swarmctl.fleet.convertible FOLDER writes it anew"
    assert convertible().problem("LlamaForCausalLM", None) is None
    source = os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC")
    if not source:
        pytest.skip("SWARMCTL_TEST_LLAMACPP_SRC names no source of llama.cpp to compare with")
    assert read_source(Path(source)) == table()


def test_what_the_converter_does_not_know_is_named():
    known = Convertible(frozenset({"LlamaForCausalLM"}), "text", frozenset({"a" * 64}))
    assert known.problem("LlamaForCausalLM", None) is None
    assert known.problem("LlamaForCausalLM", "a" * 64) is None
    assert "does not recognise its BPE tokenizer" in known.problem("LlamaForCausalLM", "b" * 64)
    assert "knows no OddForCausalLM" in known.problem("OddForCausalLM", None)


def test_speed_and_time_left_are_reckoned_from_the_records():
    pace = Pace()
    first = {"at": "2026-11-23T10:00:00Z", "stage": "dpo", "step": 1, "steps": 21, "loss": 0.7, "tokens": 100}
    later = {**first, "at": "2026-11-23T10:00:10Z", "step": 11, "tokens": 1100, "reward_margin": 0.25,
             "memory_bytes": 2_000_000_000}
    assert pace.add(first) == (None, None)
    assert pace.add(later) == (100.0, 10.0)
    assert words(later, 100.0, 10.0) == (
        "step 11/21  loss 0.7  margin 0.25  100 tok/s  2.0 GB  0 min 10 s left")
    assert pace.add({"at": "2026-11-23T10:00:11Z", "stage": "dpo", "event": "resumed"}) == (None, None)
    assert pace.add(later) == (None, None), "what came before a resume says nothing of the pace"
