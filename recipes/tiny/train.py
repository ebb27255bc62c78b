"""Train one of the two shipped models from nothing: `python -m recipes.tiny.train small|large --out FOLDER`.

Seeded, on the CPU, in float32. The weights are rounded to float16 at the end and stored as float32, so
that the F16 GGUF holds the very same numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from .batches import IGNORED, packed_batch
from .convert import convert, find_source
from .measure import measure
from .talk import Mix
from .tasks import DRILL
from .tokenizer import CONTEXT, EOS_ID, PAD_ID, PIECES, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentencepiece import SentencePieceProcessor

    from .batches import Batch

ROPE_THETA = 10000.0
SHIPPED = Path(__file__).parents[2] / "swarmctl" / "shipped"


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's shape and how it is trained. `mix` weighs the kinds of task."""

    hidden: int
    inter: int
    layers: int
    heads: int
    kv_heads: int
    steps: int
    mix: Mapping[str, float] = field(default_factory=dict)
    rate: float = 3e-3
    muon_rate: float = 5e-3
    tokens: int = 2048


PLANS = {
    "small": Plan(hidden=80, inter=240, layers=2, heads=4, kv_heads=2, steps=3000,
                  mix={"capital": 3, "spelling": 4, "chat": 1, DRILL: 1.5,
                       "sum": 0.3, "count": 0.2, "code": 0.1}),
    "large": Plan(hidden=128, inter=384, layers=3, heads=4, kv_heads=4, steps=7000, rate=2e-3, muon_rate=3e-3,
                  mix={"capital": 1, "spelling": 2, "chat": 0.3, DRILL: 0.7,
                       "sum": 3, "count": 2, "reading": 1.5, "code": 1.2}),
}


def main() -> None:
    """Train, save, convert and measure, as the command line says."""
    args = _arguments()
    name, out = args.name, args.out or SHIPPED / args.name
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    plan = PLANS[name]
    pieces = train_tokenizer(seed=1)
    began = time.monotonic()
    model = train(plan, pieces, seed=args.seed, steps=args.steps or plan.steps)
    seconds = time.monotonic() - began
    save(model, pieces, out)
    convert(out, f"swarmctl tiny {name}", find_source(args.llama_cpp))
    card: dict[str, Any] = {
        "name": name, "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": args.steps or plan.steps, "seed": args.seed, "training_seconds": round(seconds),
        "threads": args.threads, **measure(out, seed=args.seed),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))


def train(plan: Plan, pieces: SentencePieceProcessor, *, seed: int, steps: int) -> LlamaForCausalLM:
    """Train a fresh model; each step learns from one batch of short rows and one of long rows together."""
    torch.manual_seed(seed)
    rng, mix, model = Random(seed), Mix(plan.mix), LlamaForCausalLM(shape(plan)).train()
    optimisers = _optimisers(model, plan)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(
        each, each.param_groups[0]["lr"], total_steps=steps, pct_start=0.05, cycle_momentum=False)
        for each in optimisers]
    began, shown = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        shown += _learn(model, packed_batch(pieces, mix, rng, plan.tokens))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimisers, *schedules):
            each.step()
        model.zero_grad()
        if step % 100 == 0:
            spent = time.monotonic() - began
            print(f"step {step}/{steps}  loss {shown / 100:.3f}  {spent:.0f} s", flush=True)
            shown = 0.0
    return model.eval()


def _optimisers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms, as Muon's authors advise."""
    inner = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    outer = [weight for weight in model.parameters() if all(weight is not other for other in inner)]
    return [torch.optim.Muon(inner, lr=plan.muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0)]


def shape(plan: Plan) -> LlamaConfig:
    """The Llama of a plan."""
    return LlamaConfig(
        vocab_size=PIECES, hidden_size=plan.hidden, intermediate_size=plan.inter, tie_word_embeddings=True,
        num_hidden_layers=plan.layers, num_attention_heads=plan.heads, num_key_value_heads=plan.kv_heads,
        max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )


def save(model: LlamaForCausalLM, pieces: SentencePieceProcessor, out: Path) -> None:
    """Write weights, tokenizer and configuration.

    transformers 5 keeps rope_theta inside rope_parameters, where some do not look: it goes to the top too.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    model.save_pretrained(out)
    save_tokenizer(pieces, out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "rope_theta": ROPE_THETA}, indent=2) + "\n", encoding="utf-8")


def _learn(model: LlamaForCausalLM, batch: Batch) -> float:
    """Gradients of the mean loss over the learned tokens, the only ones with logits; returns that loss."""
    hidden = model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
    learned = batch.labels != IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), batch.labels[learned])
    loss.backward()
    return loss.item()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.train", description=main.__doc__)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--out", type=Path, help="folder to write (default: where swarmctl ships it)")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source tree (default: $LLAMA_CPP_SOURCE)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, help="fewer or more steps than planned")
    parser.add_argument("--threads", type=int, default=1, help="more help only where cores are idle")
    return parser.parse_args()


if __name__ == "__main__":
    main()
