"""Which wanted models fit a host, and what each costs it: weights, key-value cache, headroom. Pure.

llama.cpp's share is `llamacpp_fit`'s, server after server: they all stay in memory. Ollama loads on demand
into what they leave, so each of its models must fit alone, and two that do not fit together evict each other.
As everywhere in plans, the arithmetic is over what a host has, not over what happens to be free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.inventory import LlamaCppWish, OllamaWish, placed_on
from swarmctl.runtimes.llamacpp_build import choose_build
from swarmctl.runtimes.llamacpp_fit import (
    CONTEXTS,
    CPU_OVERHEAD,
    GPU_OVERHEAD,
    Room,
    fit,
    kv_bytes,
    room,
)
from swarmctl.runtimes.llamacpp_serve import context_of, parallel_of
from swarmctl.runtimes.ollama_names import full_name, tag_name
from swarmctl.runtimes.ollama_serve import shape_of, usable_gpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from swarmctl.facts import Facts, Gpu
    from swarmctl.inventory import Placement
    from swarmctl.runtimes.base import ModelFile, Want

#: Ollama's own default where nobody names a context (it takes more on GPUs of 24 GB and above)
OLLAMA_CONTEXT = 4096
#: Ollama's default of models in memory at once, for each GPU; on a CPU for the machine
OLLAMA_LOADED = 3


@dataclass(frozen=True, slots=True)
class Share:
    """One wanted model's share of a host, in bytes. `fits` is None where its size is not known yet.

    `needs` is `weights` + `cache` + `headroom`; `has` what was left for it. `where` says what holds it, or
    why nothing can. `evicts` names the models that leave Ollama's memory when this one is loaded.
    """

    host: str
    runtime: str
    model: str
    context: int
    parallel: int
    weights: int
    cache: int
    headroom: int
    has: int
    fits: bool | None
    where: str
    evicts: tuple[str, ...] = ()

    @property
    def needs(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache + self.headroom

    @property
    def arithmetic(self) -> str:
        """The sum as a person checks it."""
        sign = "≤" if self.needs <= self.has else ">"
        return (f"weights {size_text(self.weights)} + cache {size_text(self.cache)} "
                f"({self.parallel} of {self.context} tokens) + headroom {size_text(self.headroom)} "
                f"= {size_text(self.needs)} {sign} {size_text(self.has)}")


def place(want: Want, seen: Facts) -> tuple[Share, ...]:
    """The share of every model wanted on a host, llama.cpp's first, in the inventory's order."""
    build = choose_build((want.host.llamacpp or LlamaCppWish()).backend, seen)
    space = room(seen, want.host.limits, build.backend.gpus)
    shares: list[Share] = []
    for placement, _ in placed_on(want.host, "llamacpp"):
        parallel = parallel_of(want, placement, seen, build)
        share, space = _resident(want, placement, parallel, space)
        shares.append(share)
    return (*shares, *_on_demand(want, seen, _for_ollama(want, seen, space)))


def refusal(shares: Sequence[Share]) -> SwarmError | None:
    """The error that names every model which cannot fit, with its sum; None where all do."""
    bad = [share for share in shares if share.fits is False]
    if not bad:
        return None
    return SwarmError("; ".join(f"model {share.model} does not fit: {share.arithmetic} ({share.where})"
                                for share in bad), host=bad[0].host,
                      hint="give it a smaller context or parallel, a smaller quantisation, or another host")


def size_text(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _resident(want: Want, placement: Placement, parallel: int, space: Room) -> tuple[Share, Room]:
    """A llama.cpp server's share, which is its own for as long as it runs."""
    model = want.models[placement.model]
    wished = context_of(want, placement, model)
    has = _total(space)
    try:
        placed, left = fit(model, space, context=wished, parallel=parallel)
    except SwarmError:
        tokens = wished or _smallest(model)
        cache = kv_bytes(model, tokens, parallel, "f16")
        overhead = max(1, len(space.gpus)) * (GPU_OVERHEAD if space.gpus else CPU_OVERHEAD)
        return Share(want.host.name, "llamacpp", model.name, tokens, parallel, model.loaded, cache,
                     overhead + model.loaded // 20, has, False, _holders(space)), space
    cache = kv_bytes(model, placed.context, parallel, placed.cache_type)
    rest = max(0, has - _total(left) - model.loaded - cache)
    return Share(want.host.name, "llamacpp", model.name, placed.context, parallel, model.loaded, cache, rest,
                 has, True, placed.note), left


def _smallest(model: ModelFile) -> int:
    return min((tokens for tokens in CONTEXTS if tokens <= model.context_train),
               default=model.context_train)


def _for_ollama(want: Want, seen: Facts, left: Room) -> Room:
    """What llama.cpp leaves, and the GPUs that its build cannot use and Ollama can."""
    taken = {id(gpu): free for gpu, free in left.gpus}
    whole = room(seen, want.host.limits, usable_gpus(seen))
    return Room(left.memory, tuple((gpu, taken.get(id(gpu), free)) for gpu, free in whole.gpus))


def _on_demand(want: Want, seen: Facts, space: Room) -> tuple[Share, ...]:
    """Ollama's models: each alone in what llama.cpp leaves, and which of them push each other out."""
    placements = [placement for placement, _ in placed_on(want.host, "ollama")]
    manner = _manner(want, seen, space)
    alone = [_alone(want, seen, placement, manner, space) for placement in placements]
    resident = {tag: size for tag, size in _strangers(want, seen).items() if size}
    return tuple(_with_evictions(share, alone, resident, _fast(space), manner.most) for share in alone)


@dataclass(frozen=True, slots=True)
class _Manner:
    """How an Ollama runs its models: `context` is None where each has its own, `most` may be loaded at
    once."""

    context: int | None
    parallel: int
    cache_type: str
    most: int


def _manner(want: Want, seen: Facts, space: Room) -> _Manner:
    """As `up` would set it; of an Ollama that is not ours only its own defaults are known."""
    wish = want.host.ollama or OllamaWish()
    usual = _Manner(None, 1, "f16", OLLAMA_LOADED * max(1, len(space.gpus)))
    theirs = wish.manage == "adopt" or (wish.manage == "auto" and any(
        one.port == wish.port and one.mode != "own" for one in seen.ollamas))
    if theirs:
        return usual
    try:
        shape = shape_of(want, seen, space)
    except SwarmError:
        found = usual
    else:
        found = _Manner(shape.context, shape.parallel, shape.cache_type, shape.together)
    return _Manner(_number(wish.env, "OLLAMA_CONTEXT_LENGTH") or found.context,
                   _number(wish.env, "OLLAMA_NUM_PARALLEL") or found.parallel, found.cache_type,
                   _number(wish.env, "OLLAMA_MAX_LOADED_MODELS") or found.most)


def _alone(want: Want, seen: Facts, placement: Placement, manner: _Manner, space: Room) -> Share:
    model = want.models.get(placement.model)
    named = context_of(want, placement, model) if model else placement.context
    tokens, parallel = manner.context or named or OLLAMA_CONTEXT, manner.parallel
    tokens = min(tokens, model.context_train) if model else tokens
    weights = model.loaded if model else _pulled_size(want, seen, placement.model)
    if weights is None:
        return Share(want.host.name, "ollama", placement.model, tokens, parallel, 0, 0, 0, _total(space),
                     None, "its size is known once it is pulled")
    # a pulled model's header is not here to be read: a tenth is a guess, and the headroom has to forgive it
    cache = kv_bytes(model, tokens, parallel, manner.cache_type) if model else weights // 10
    headroom = weights // 50 + (GPU_OVERHEAD * len(space.gpus) if space.gpus else CPU_OVERHEAD)
    needs, fast, total = weights + cache + headroom, _fast(space), _total(space)
    return Share(want.host.name, "ollama", placement.model, tokens, parallel, weights, cache, headroom,
                 fast if needs <= fast else total, needs <= total, _held(space, needs, fast, total))


def _held(space: Room, needs: int, fast: int, total: int) -> str:
    if any(free is None for _, free in space.gpus):
        return "the GPU does not tell its memory"
    if needs <= fast:
        return "on the GPU" if space.gpus else "in RAM"
    return f"{fast / needs:.0%} on the GPU, the rest in RAM and slow" if needs <= total else _holders(space)


def _pulled_size(want: Want, seen: Facts, name: str) -> int | None:
    wish = want.wishes.get(name)
    if wish is None or wish.pulled is None:
        return None
    known = {model.name: model.size for ollama in seen.ollamas for model in ollama.models}
    return known.get(full_name(wish.pulled))


def _strangers(want: Want, seen: Facts) -> dict[str, int]:
    """What an Ollama holds in memory and the inventory does not want here."""
    names = {tag_name(name, model.sha256) for name, model in want.models.items()}
    names |= {full_name(wish.pulled) for wish in want.wishes.values() if wish.pulled}
    return {loaded.name: loaded.size for ollama in seen.ollamas for loaded in ollama.loaded
            if loaded.name not in names}


def _with_evictions(share: Share, others: Sequence[Share], resident: Mapping[str, int], capacity: int,
                    most: int) -> Share:
    if share.fits is not True:
        return share
    names = list(_pushed_out(share, others, resident, capacity, most))
    return replace(share, evicts=tuple(names))


def _pushed_out(share: Share, others: Sequence[Share], resident: Mapping[str, int], capacity: int,
                most: int) -> Iterator[str]:
    """Pairs that do not fit together; with more models than may be loaded at once, any other one."""
    crowded = sum(other.fits is True for other in others) > most
    for other in others:
        if other.model != share.model and other.fits and (
                crowded or share.needs + other.needs > capacity):
            yield other.model
    for name, size in resident.items():
        if share.needs + size > capacity:
            yield name


def _number(env: Mapping[str, Any], key: str) -> int | None:
    text = str(env.get(key, ""))
    return int(text) if text.isdigit() and int(text) > 0 else None


def _fast(space: Room) -> int:
    """The memory that models are quick in: the GPUs', else RAM."""
    return sum(free or 0 for _, free in space.gpus) if space.gpus else space.memory


def _total(space: Room) -> int:
    return space.memory + sum(free or 0 for _, free in space.gpus)


def _holders(space: Room) -> str:
    gpus = ", ".join(_gpu_text(gpu, free) for gpu, free in space.gpus)
    return f"{size_text(space.memory)} of RAM" + (f" and {gpus}" if gpus else "") + " are left for it"


def _gpu_text(gpu: Gpu, free: int | None) -> str:
    return f"{size_text(free)} on {gpu.name}" if free is not None else gpu.name
