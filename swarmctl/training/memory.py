"""Whether a training fits, as arithmetic a person can follow: memory of the GPU or the machine, and disk.
Pure.

Activations after Korthikanti et al. 2022 (arXiv:2205.05198, eq. 2 without the attention scores, which fused
attention does not keep): 34 · tokens · hidden bytes a layer in 16 bits; with gradient checkpointing one
layer's, and two bytes of each layer's input. An estimate, on the safe side for short rows: every row is
taken to be as long as the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from swarmctl.recipe import Recipe
    from swarmctl.training.shape import ModelShape

#: bytes of a weight while it trains; 4-bit with its constants (QLoRA, arXiv:2305.14314)
WIDTH = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
FOUR_BIT, EIGHT_BIT = 0.57, 1.06
#: the process itself: Python, torch and, on a GPU, CUDA's context and kernels
OVERHEAD = 1 << 30
#: logits in 32 bits, their gradient and the softmax
LOGITS = 3 * 4
CHECKPOINTS = 3  # two are kept while the third is written


@dataclass(frozen=True, slots=True)
class Part:
    """One summand: what it is, its bytes and how they come about."""

    name: str
    size: int
    how: str


@dataclass(frozen=True, slots=True)
class Sum:
    """What is needed, summand by summand, of what there is. `of` says of what."""

    of: str
    parts: tuple[Part, ...]
    has: int

    @property
    def needs(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needs <= self.has


def memory_needed(recipe: Recipe, shape: ModelShape, precision: str, longest: int, *, of: str,
                  has: int) -> Sum:
    """Bytes that one training process takes. `longest` is the longest row in tokens, cut to max_length."""
    keys, adapter = recipe.keys, bool(recipe.keys.get("use_peft"))
    width, said = _width(keys, precision, adapter)
    trained = shape.lora(int(keys.get("lora_r", 16))) if adapter else shape.parameters
    optimiser = 2 if "8bit" in str(keys.get("optim", "")) else 8
    rows = int(keys.get("per_device_train_batch_size", 8)) * (2 if recipe.trainer == "dpo" else 1)
    tokens = rows * min(longest, keys.get("max_length") or longest)
    parts = [
        Part("weights", int(shape.parameters * width), f"{shape.parameters:,} parameters x {said}"),
        Part("gradients", trained * 4, f"{trained:,} trained x 4 bytes"),
        Part("optimiser", trained * optimiser, f"{trained:,} trained x {optimiser} bytes"),
        _activations(keys, shape, tokens, precision),
        Part("logits", tokens * shape.vocabulary * LOGITS,
             f"{tokens:,} tokens x {shape.vocabulary:,} words x {LOGITS} bytes"),
    ]
    if recipe.trainer in ("dpo", "kto"):
        free = adapter or bool(keys.get("precompute_ref_log_probs"))
        how = ("the base without its adapter" if adapter else "computed once before training") if free else (
            "a second copy of the weights")
        parts.append(Part("reference model", 0 if free else int(shape.parameters * width), how))
    parts.append(Part("the process itself", OVERHEAD, "Python, torch, kernels"))
    return Sum(of, tuple(parts), has)


def disk_needed(recipe: Recipe, shape: ModelShape, *, weights: int, dataset: int, environment: int,
                has: int) -> Sum:
    """Bytes on the host's disk. `weights` are those still to be sent; GGUFs are what `deploy` makes there."""
    adapter = bool(recipe.keys.get("use_peft"))
    trained = shape.lora(int(recipe.keys.get("lora_r", 16))) if adapter else shape.parameters
    merged = shape.parameters * shape.stored
    pruned = (Part("pruned model", merged, "at most as large as the base"),) if recipe.own.prune else ()
    return Sum("disk", (
        Part("base weights", weights, "sent once, kept for the next run" if weights else "there already"),
        Part("dataset", 3 * dataset, "as sent, and as the trainer unpacks it"),
        Part("checkpoints", CHECKPOINTS * trained * 12, f"{CHECKPOINTS} x {trained:,} trained x 12 bytes"),
        Part("adapter" if adapter else "trained weights", trained * 4, f"{trained:,} x 4 bytes"),
        *pruned,
        Part("merged model", 2 * merged, f"{shape.parameters:,} x {shape.stored} bytes, twice over"),
        Part("GGUF", shape.parameters * 3, "in 16 bits and quantised, for deploy"),
        Part("training environment", environment, "made once" if environment else "there already"),
    ), has)


def _width(keys: Mapping[str, Any], precision: str, adapter: bool) -> tuple[float, str]:
    if keys.get("load_in_4bit"):
        return FOUR_BIT, f"{FOUR_BIT} bytes (4 bits and their constants)"
    if keys.get("load_in_8bit"):
        return EIGHT_BIT, f"{EIGHT_BIT} bytes (8 bits)"
    width = WIDTH[precision] if adapter else 4.0
    return width, f"{width:g} bytes"


def _activations(keys: Mapping[str, Any], shape: ModelShape, tokens: int, precision: str) -> Part:
    wide = 2 if precision == "fp32" else 1
    layer = 34 * tokens * shape.hidden * wide
    if keys.get("gradient_checkpointing", True):
        kept = 2 * wide * tokens * shape.hidden * shape.layers
        return Part("activations", layer + kept, f"{tokens:,} tokens, one layer's at a time (checkpointing)")
    return Part("activations", layer * shape.layers, f"{tokens:,} tokens x {shape.layers} layers")
