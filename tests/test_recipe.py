"""Recipes: TRL's own names, checked before anything starts; what is wrong is said with its line and mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swarmctl.errors import RecipeError
from swarmctl.fleet.recipes import key_table, read_recipe, shipped_recipes
from swarmctl.recipe import parse_recipe, with_keys
from swarmctl.recipe_keys import GONE, OURS

ROOT = Path(__file__).parent.parent


def parse(text):
    return parse_recipe(text, "r.yaml", "r", key_table())


def problems(text):
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.train
def test_the_table_of_keys_is_the_installed_trls():
    pytest.importorskip("trl", reason="trl is not installed")
    done = subprocess.run([sys.executable, "-m", "swarmctl.jobs.keys"], capture_output=True, text=True,
                          cwd=ROOT, timeout=240, check=True)
    assert json.loads(done.stdout) == key_table(), "python -m swarmctl.jobs.keys >swarmctl/recipes/keys.json"


def test_every_shipped_recipe_is_right_and_reachable_by_name_and_by_path():
    names = [name for name, what in shipped_recipes() if what]
    assert {"sft-lora", "dpo-lora", "dpo-qlora", "kto-lora", "code-sft", "tiny-dpo"} <= set(names)
    for name in names:
        assert read_recipe(name) == read_recipe(str(ROOT / "recipes" / f"{name}.yaml"))


@pytest.mark.parametrize(("line", "said"), [
    ("learning_rat: 1e-5", "r.yaml:2: learning_rat: unknown key; did you mean learning_rate?"),
    ("torch_dtype: bfloat16", "TRL has this no more; write `dtype`"),
    ("warmup_ratio: 0.1", "write `warmup_steps` as a share below 1"),
    ("learning_rate: fast", 'expected a number, found "fast"'),
    ("bf16: yes", 'expected true or false, found "yes"'),
    ("lora_r: 8.5", "expected a whole number, found 8.5"),
    ("lr_scheduler_type: cosin", "did you mean cosine?"),
    ("desirable_weight: 2", "not a key of the dpo trainer; it belongs to kto"),
    ("push_to_hub: true", "swarmctl uploads nothing"),
    ("output_dir: /tmp/x", "a folder of its own"),
    ("deepspeed: zero2.json", "write swarmctl: {deepspeed: zero2}"),
    ("checkpoint_minutes: 3", "it belongs under `swarmctl`"),
    ("load_in_4bit: true", "add use_peft: true"),
    ("lora_r: 8", "has no effect without use_peft: true"),
    ("max_length: 0", "must be at least 1"),
    ("num_train_epochs: 0", "must be above 0"),
    ("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", "1 weights for 2 of `loss_type`"),
    ("swarmctl: {offload: cpu}", "`offload` needs `deepspeed"),
    ("swarmctl: {inference: stop}", "one of keep, drain"),
    ("use_peft: true\nlora_target_modules: [q_proj, lm_head]", "lm_head cannot be trained"),
    ("seed: 1\nseed: 2", "written twice"),
    ("? [a]\n: 1", "a key must be a plain word"),
])
def test_a_mistake_names_its_line_and_what_would_be_right(line, said):
    assert said in problems(f"trainer: dpo\n{line}\n")


def test_all_mistakes_are_said_at_once():
    assert problems("trainer: kto\nbeta: x\nfoo: 1\nlearning_rate: no\n").count("r.yaml:") == 3


@pytest.mark.parametrize("text", ["", "- a\n", "beta: 0.1\n", "trainer: ddpo\n", "trainer: {a: b}\n", "\t\n",
                                  "a: &x *x\n"])
def test_garbage_is_refused_and_never_crashes(text):
    assert "r.yaml" in problems(text)


def test_kto_asks_for_batches_of_two_in_their_order():
    assert "at least 2" in problems("trainer: kto\nper_device_train_batch_size: 1\n")
    assert "sequential" in problems("trainer: kto\ntrain_sampling_strategy: random\n")


def test_values_have_the_types_that_trl_wants():
    keys = parse("trainer: dpo\nuse_peft: true\nlora_target_modules: all-linear\nlearning_rate: 5e-6\n"
                 "max_length: null\nnum_train_epochs: 2\nmodel_init_kwargs: {use_cache: false}\n").keys
    assert keys == {"use_peft": True, "lora_target_modules": ["all-linear"], "learning_rate": 5e-6,
                    "max_length": None, "num_train_epochs": 2.0, "model_init_kwargs": {"use_cache": False}}


def test_a_key_may_be_set_over_a_recipe_and_is_checked_like_the_rest():
    recipe = read_recipe("tiny-dpo", ["learning_rate=1e-3", "loss_type=[sigmoid]", "loss_weights=null"])
    found = [recipe.keys[key] for key in ("learning_rate", "loss_type", "lora_r")]
    assert found == [1e-3, ["sigmoid"], 16]
    with pytest.raises(RecipeError, match="did you mean learning_rate"):
        with_keys(recipe, ["learning_rte=1"], key_table())
    with pytest.raises(RecipeError, match=r"^--set: learning_rte: "):  # no line, as there is no file
        with_keys(recipe, ["learning_rte=1"], key_table())
    with pytest.raises(RecipeError, match="no KEY=VALUE"):
        with_keys(recipe, ["learning_rate"], key_table())


def test_what_trl_has_dropped_is_not_in_its_table():
    there = {key for keys in key_table()["trainers"].values() for key in keys}
    assert not set(GONE) & there
    assert not set(OURS) - there


def test_a_missing_recipe_names_those_that_ship(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read_recipe("dpo-lorra")
    assert "tiny-dpo" in (caught.value.hint or "")
    with pytest.raises(RecipeError, match="there is no recipe at"):
        read_recipe(str(tmp_path / "mine.yaml"))
