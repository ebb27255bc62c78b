"""How good a trained folder is: held-out tasks of every kind, asked greedily and sampled at temperature 1."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from .talk import render
from .tasks import KINDS, Task, draw, is_right, is_terse

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

EACH = 200
BATCH = 50
LONGEST_ANSWER = 48


def measure(folder: Path, *, seed: int, each: int = EACH) -> dict[str, Any]:
    """Shares of right and of terse and right answers, by kind and by category, greedy and sampled.

    A category's share is the plain mean over its kinds. Readings are asked with notes of up to 300 tokens.
    """
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    kinds: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        tasks = exam(kind, seed, each)
        greedy, sampled = answers(model, tokenizer, tasks), answers(model, tokenizer, tasks, seed=seed)
        kinds[kind] = {
            "greedy_right": _share(is_right, tasks, greedy),
            "greedy_terse": _share(is_terse, tasks, greedy),
            "sampled_right": _share(is_right, tasks, sampled),
            "sampled_terse": _share(is_terse, tasks, sampled),
        }
    return {"measured_on": each, "kinds": kinds, "categories": _by_category(kinds)}


def exam(kind: str, seed: int, each: int) -> list[Task]:
    """Held-out tasks of a kind; half the readings are long."""
    rng = Random(f"exam {seed} {kind}")
    return [draw(kind, rng, held_out=True, long=number % 2 == 1) for number in range(each)]


@torch.no_grad()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tasks: list[Task], *,
            seed: int | None = None) -> list[str]:
    """The model's answers: greedy, or sampled at temperature 1 with a seed."""
    torch.manual_seed(seed or 0)
    style = {"do_sample": True, "temperature": 1.0, "top_k": 0} if seed is not None else {"do_sample": False}
    found: list[str] = []
    for start in range(0, len(tasks), BATCH):
        asked = [render([{"role": "user", "content": task.question}], add_generation_prompt=True)
                 for task in tasks[start:start + BATCH]]
        batch = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                             max_new_tokens=LONGEST_ANSWER, **style)
        found += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    return found


def _share(judge: Callable[[Task, str], bool], tasks: list[Task], replies: list[str]) -> float:
    return round(sum(judge(task, reply) for task, reply in zip(tasks, replies, strict=True)) / len(tasks), 3)


def _by_category(kinds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for category in dict.fromkeys(KINDS.values()):
        rows = [shares for kind, shares in kinds.items() if KINDS[kind] == category]
        found[category] = {key: round(sum(row[key] for row in rows) / len(rows), 3) for key in rows[0]}
    return found


def main() -> None:
    """Measure a trained folder."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.measure", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--each", type=int, default=EACH)
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, seed=args.seed, each=args.each), indent=2))


if __name__ == "__main__":
    main()
