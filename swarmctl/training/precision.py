"""What to compute in, from the host's hardware: bf16 where it is native, fp16 on older GPUs, fp32
elsewhere. Pure.

TRL defaults to bf16 everywhere, which older GPUs refuse and which processors without AVX-512-BF16 or AMX do
many times slower than fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.errors import Unfit

if TYPE_CHECKING:
    from swarmctl.facts import Facts, Gpu
    from swarmctl.recipe import Recipe

AMPERE = 8.0
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def gpus_for_training(seen: Facts) -> tuple[Gpu, ...]:
    """The host's GPUs that torch could use: NVIDIA's and AMD's that work."""
    return tuple(gpu for gpu in seen.gpus if gpu.vendor in ("nvidia", "amd") and not gpu.problem)


def precision(recipe: Recipe, seen: Facts) -> tuple[str, str]:
    """(bf16, fp16 or fp32, why). A recipe that names one is obeyed, and refused where it cannot be."""
    gpus = gpus_for_training(seen)
    native, why = _native(seen, gpus)
    said = _said(recipe)
    if said is None:
        return native, why
    if said == "bf16" and native == "fp16":
        raise Unfit(f"the recipe asks for bf16, and {why}", host=seen.hostname,
                    hint="leave bf16 out of the recipe: the host's hardware decides")
    if said == "fp16" and not gpus:
        raise Unfit("the recipe asks for fp16, and there is no GPU here", host=seen.hostname,
                    hint="leave fp16 out of the recipe: the host's hardware decides")
    return said, "the recipe says so"


def _said(recipe: Recipe) -> str | None:
    """What a recipe asks for. `bf16: false` alone asks for plain fp32."""
    for name in ("bf16", "fp16"):
        if recipe.keys.get(name):
            return name
    return "fp32" if recipe.keys.get("bf16") is False else None


def _native(seen: Facts, gpus: tuple[Gpu, ...]) -> tuple[str, str]:
    if gpus:
        old = next((gpu for gpu in gpus if gpu.vendor == "nvidia" and not _ampere(gpu)), None)
        return ("fp16", f"{old.name} is older than Ampere") if old else (
            "bf16", f"{gpus[0].name} computes in it")
    known = next((name for name in CPU_BF16 if name in seen.cpu.features), None)
    return ("bf16", f"the processor has {known}") if known else (
        "fp32", "no GPU, and no bf16 in the processor")


def _ampere(gpu: Gpu) -> bool:
    try:
        return float(gpu.arch or 0) >= AMPERE
    except ValueError:
        return False
