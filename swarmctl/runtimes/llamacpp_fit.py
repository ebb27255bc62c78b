"""How a model fits into a host: context, cache type and GPU layers from bytes counted before anything starts.
Pure.

All arithmetic uses what a host *has*, never what happens to be free: a plan made while servers run must be
the plan that was made before they ran. What the desktop and other programs take is covered by the reserves
below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.facts import Facts, Gpu
    from swarmctl.inventory import Limits
    from swarmctl.runtimes.base import ModelFile

MIB = 1 << 20
#: llama.cpp pads each slot's context to this many tokens (src/llama-context.cpp, GGML_PAD)
CONTEXT_STEP = 256
#: what is tried, largest first, where nobody named a context
CONTEXTS = (8192, 4096, 2048)
#: bytes relative to F16: a q8_0 block holds 32 values in 34 bytes
CACHE_SCALE = {"f16": 1.0, "q8_0": 34 / 64}
#: a CUDA or HIP context and its compute buffers
GPU_OVERHEAD = 400 * MIB
CPU_OVERHEAD = 64 * MIB


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for model servers: bytes of RAM, and of each GPU's memory (None where a GPU will not
    tell)."""

    memory: int
    gpus: tuple[tuple[Gpu, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """One server's share of a host.

    `gpu_layers` is "all", "auto" (the GPU's memory is unknown) or a number. `gpus` are those it uses; `note`
    says what had to give, for the plan's reason.
    """

    context: int
    parallel: int
    cache_type: str
    gpu_layers: str | int
    gpus: tuple[Gpu, ...]
    note: str


def room(facts: Facts, limits: Limits, gpus: Sequence[Gpu]) -> Room:
    """What swarmctl may take of a host: all but a reserve for the system, or what `limits.memory` says."""
    reserve = max(512 * MIB, facts.memory // 10)
    memory = limits.memory if limits.memory is not None else max(facts.memory - reserve, facts.memory // 2)
    return Room(min(memory, facts.memory), tuple((gpu, _usable(gpu, facts)) for gpu in gpus))


def fit(model: ModelFile, space: Room, *, context: int | None, parallel: int) -> tuple[Fit, Room]:
    """Place a model; the room that is left comes back with it. Raises SwarmError, with the numbers, where it
    cannot.

    Preference: wholly on one GPU, then over all GPUs, with an F16 cache and then a q8_0 one; then as many
    layers as fit, the rest in RAM; without a GPU, in RAM.
    """
    if not space.gpus:
        return _in_memory(model, space, context, parallel)
    if any(free is None for _, free in space.gpus):
        return _unknown_gpu(model, space, context, parallel)
    for tokens in _contexts(model, context):
        for cache in CACHE_SCALE:
            found = _on_gpus(model, space, tokens, parallel, cache)
            if found:
                return found
    return _split(model, space, context, parallel)


def kv_bytes(model: ModelFile, tokens: int, parallel: int, cache: str) -> int:
    """Bytes of the key-value cache for `parallel` conversations of `tokens` tokens."""
    padded = -(-tokens // CONTEXT_STEP) * CONTEXT_STEP
    return int(model.kv_bytes_per_token * padded * parallel * CACHE_SCALE[cache])


def _contexts(model: ModelFile, context: int | None) -> tuple[int, ...]:
    if context is not None:
        return (context,)
    return tuple(tokens for tokens in CONTEXTS if tokens <= model.context_train) or (model.context_train,)


def _in_memory(model: ModelFile, space: Room, context: int | None, parallel: int) -> tuple[Fit, Room]:
    needs = 0
    for tokens in _contexts(model, context):
        needs = int(model.loaded * 1.05) + kv_bytes(model, tokens, parallel, "f16") + CPU_OVERHEAD
        if needs <= space.memory:
            return Fit(tokens, parallel, "f16", 0, (), "in RAM"), Room(space.memory - needs, space.gpus)
    raise _too_large(model, needs, space, parallel)


def _unknown_gpu(model: ModelFile, space: Room, context: int | None, parallel: int) -> tuple[Fit, Room]:
    """Leave the layers to llama-server's own probing; RAM must hold the model in the worst case."""
    placed, left = _in_memory(model, Room(space.memory), context, parallel)
    note = "the GPU does not tell its memory, so llama-server chooses the layers"
    return Fit(placed.context, parallel, "f16", "auto", tuple(gpu for gpu, _ in space.gpus), note), \
        Room(left.memory, space.gpus)


def _on_gpus(model: ModelFile, space: Room, tokens: int, parallel: int,
             cache: str) -> tuple[Fit, Room] | None:
    needs = int(model.loaded * 1.02) + kv_bytes(model, tokens, parallel, cache)
    note = "" if cache == "f16" else f"{cache} cache, as F16 does not fit"
    single = sorted((free, index) for index, (_, free) in enumerate(space.gpus)
                    if free is not None and free >= needs + GPU_OVERHEAD)
    if single:
        index = single[0][1]
        gpu = space.gpus[index][0]
        return Fit(tokens, parallel, cache, "all", (gpu,), _said(f"wholly on {gpu.name}", note)), \
            _take(space, {index: needs + GPU_OVERHEAD})
    total = sum(max((free or 0) - GPU_OVERHEAD, 0) for _, free in space.gpus)
    if len(space.gpus) < 2 or total < needs:
        return None
    gpus = tuple(gpu for gpu, _ in space.gpus)
    share = {index: GPU_OVERHEAD + needs * max((free or 0) - GPU_OVERHEAD, 0) // total
             for index, (_, free) in enumerate(space.gpus)}
    said = _said(f"over {len(gpus)} GPUs", note)
    return Fit(tokens, parallel, cache, "all", gpus, said), _take(space, share)


def _split(model: ModelFile, space: Room, context: int | None, parallel: int) -> tuple[Fit, Room]:
    """Give the GPUs as many layers as fit, the rest to RAM."""
    tokens = _contexts(model, context)[-1]
    needs = int(model.loaded * 1.02) + kv_bytes(model, tokens, parallel, "f16")
    layer = max(needs // (model.layers + 1), 1)
    total = sum(max((free or 0) - GPU_OVERHEAD, 0) for _, free in space.gpus)
    layers = min(total // layer, model.layers)
    rest = needs - layers * layer + CPU_OVERHEAD
    if rest > space.memory:
        raise _too_large(model, needs, space, parallel)
    gpus = tuple(gpu for gpu, _ in space.gpus) if layers else ()
    note = f"{layers} of {model.layers} layers fit on the GPU, the rest in RAM"
    used = {index: GPU_OVERHEAD + layers * layer * max((free or 0) - GPU_OVERHEAD, 0) // max(total, 1)
            for index, (_, free) in enumerate(space.gpus)} if layers else {}
    left = _take(space, used)
    return Fit(tokens, parallel, "f16", layers, gpus, note), Room(left.memory - rest, left.gpus)


def _take(space: Room, used: dict[int, int]) -> Room:
    gpus = tuple((gpu, None if free is None else max(free - used.get(index, 0), 0))
                 for index, (gpu, free) in enumerate(space.gpus))
    return Room(space.memory, gpus)


def _usable(gpu: Gpu, facts: Facts) -> int | None:
    """A GPU's memory without a reserve for the desktop. Apple shares RAM; two thirds may be wired for the
    GPU."""
    memory = gpu.memory if gpu.memory is not None or gpu.vendor != "apple" else facts.memory * 2 // 3
    return None if memory is None else max(memory - max(512 * MIB, memory * 6 // 100), 0)


def _said(first: str, second: str) -> str:
    return f"{first}, {second}" if second else first


def _too_large(model: ModelFile, needs: int, space: Room, parallel: int) -> SwarmError:
    gpus = sum(free or 0 for _, free in space.gpus)
    has = f"{_gb(space.memory)} of RAM" + (f" and {_gb(gpus)} of GPU memory" if space.gpus else "")
    return SwarmError(
        f"model {model.name} does not fit: it needs {_gb(needs)} (weights {_gb(model.loaded)}, "
        f"{parallel} conversations), and what is left here is {has}",
        hint="give it a smaller context or parallel, a smaller quantisation, or another host")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
