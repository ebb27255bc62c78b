"""How Ollama is run on a host: its command and environment from facts and wishes. Pure, tested as data.

One server holds all models of a host and evicts by itself, so each model must fit alone; what fits together
decides how many stay loaded and for how long. The variables are those of Ollama's envconfig/config.go.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError
from swarmctl.facts.ollama import OWN
from swarmctl.inventory import OllamaWish, placed_on
from swarmctl.runtimes.llamacpp_fit import fit, room
from swarmctl.runtimes.llamacpp_serve import threads
from swarmctl.steps import ServerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.facts import Facts, Gpu
    from swarmctl.inventory import Placement
    from swarmctl.runtimes.base import ModelFile, Want
    from swarmctl.runtimes.llamacpp_fit import Fit, Room

#: the release that is installed where the inventory names none
OLLAMA = "0.33.0"
RUNTIME_FOLDER = "runtimes/ollama"
#: Ollama's own default where GPUs are small or missing
DEFAULT_CONTEXT = 4096
GPUS = ("nvidia", "amd", "apple")


@dataclass(frozen=True, slots=True)
class Shape:
    """How the models of an Ollama lie in a host's memory. `fits` has those whose size is known, by model;
    `together` is how many can be loaded at once, `note` says what would be evicted."""

    fits: Mapping[str, Fit]
    context: int
    parallel: int
    cache_type: str
    together: int
    note: str


def server_spec(want: Want, facts: Facts, version: str, shape: Shape) -> ServerSpec:
    """Swarmctl's own Ollama on a host."""
    home = facts.data_dir.rstrip("/")
    port = (want.host.ollama or OllamaWish()).port
    spec = ServerSpec(
        name=OWN, model="", sha256="", argv=(f"{home}/{RUNTIME_FOLDER}/{version}/bin/ollama", "serve"),
        env=environment(want, facts, shape), port=port, context=shape.context, parallel=shape.parallel,
        mode="systemd" if facts.systemd_user else "own", digest="")
    memory = want.host.limits.memory if spec.mode == "systemd" else None
    everything = [spec.name, spec.argv, sorted(spec.env.items()), spec.port, spec.context, spec.parallel,
                  spec.mode, memory]
    return replace(spec, digest=sha256(json.dumps(everything).encode()).hexdigest())


def environment(want: Want, facts: Facts, shape: Shape) -> dict[str, str]:
    """The environment of an own Ollama: what facts say, then what the inventory does."""
    wish, home = want.host.ollama or OllamaWish(), facts.data_dir.rstrip("/")
    # A canary comes and goes without a restart: there is always room for one in this number.
    canaries = sum(one.canary for one in want.wishes.values())
    env: dict[str, Any] = {
        "HOME": f"{home}/ollama",  # its key and history stay in our folder too
        "OLLAMA_HOST": f"127.0.0.1:{wish.port}",
        "OLLAMA_MODELS": f"{home}/ollama/models",
        "OLLAMA_NO_CLOUD": 1,
        "OLLAMA_CONTEXT_LENGTH": shape.context,
        "OLLAMA_NUM_PARALLEL": shape.parallel,
        "OLLAMA_MAX_LOADED_MODELS": max(1, shape.together - canaries) + 1,
        # What fits together stays; otherwise a model leaves before the memory is wanted by another program.
        "OLLAMA_KEEP_ALIVE": "-1" if shape.together >= len(placed_on(want.host, "ollama")) else "10m",
        "OLLAMA_LOAD_TIMEOUT": "15m",
    }
    if usable_gpus(facts):
        env["OLLAMA_FLASH_ATTENTION"] = 1
    if shape.cache_type != "f16":
        env["OLLAMA_KV_CACHE_TYPE"] = shape.cache_type
    return {key: _text(value) for key, value in {**env, **wish.env}.items() if value is not False}


def shape_of(want: Want, facts: Facts, taken: Room | None = None) -> Shape:
    """Fit every model alone, then count how many fit together, or may be together by the inventory's own
    OLLAMA_MAX_LOADED_MODELS. `taken` is the room that llama.cpp's servers leave.

    Raises SwarmError, with the numbers, where one does not fit even alone.
    """
    space = taken or room(facts, want.host.limits, usable_gpus(facts))
    placements = [placement for placement, _ in placed_on(want.host, "ollama")]
    known = [(placement, want.models[placement.model]) for placement in placements
             if placement.model in want.models]
    parallel = _parallel(want, placements, facts)
    context = _context(want, placements)
    fits, left, together, evicted = {}, space, 0, []
    most = _most_loaded(want)
    for _, model in known:
        alone, _ = fit(model, space, context=_capped(context, model), parallel=parallel)
        fits[model.name] = alone
        beside = _beside(model, left, alone)
        if beside is None or together == most:
            evicted.append(model.name)
        else:
            left, together = beside, together + 1
    shared = context or min((one.context for one in fits.values()), default=DEFAULT_CONTEXT)
    cache = "q8_0" if any(one.cache_type == "q8_0" for one in fits.values()) else "f16"
    unknown = len(placements) - len(known)
    why = "not all fit at once" if most is None else f"at most {most} may be loaded"
    note = f"loading {', '.join(evicted)} evicts another model, as {why}" if evicted else ""
    return Shape(fits, shared, parallel, cache, max(1, together + (0 if evicted else unknown)), note)


def parameters(want: Want, facts: Facts, placement: Placement, fitted: Fit, *,
               adopted: bool) -> dict[str, int]:
    """What a model is made with. Ollama's own count of threads can starve a small or crowded machine; the
    context of an Ollama that is not ours can only be said here."""
    model = want.models[placement.model]
    found: dict[str, int] = {}
    if not usable_gpus(facts):
        found["num_thread"] = threads(facts, want.host.limits.threads, model, fitted)
    context = _context(want, [placement])
    if adopted and context is not None:
        found["num_ctx"] = _capped(context, model) or context
    return found


def served_context(want: Want, placement: Placement, shape: Shape, *, adopted: bool) -> int:
    """Tokens a conversation with a model may hold."""
    wished = _context(want, [placement])
    found = (wished or DEFAULT_CONTEXT) if adopted else shape.context
    model = want.models.get(placement.model)
    return min(found, model.context_train) if model else found


def _most_loaded(want: Want) -> int | None:
    """How many models the inventory lets be loaded at once; None where it leaves that to memory."""
    said = (want.host.ollama or OllamaWish()).env.get("OLLAMA_MAX_LOADED_MODELS")
    return int(str(said)) if str(said).isdigit() and int(str(said)) > 0 else None


def _beside(model: ModelFile, left: Room, alone: Fit) -> Room | None:
    """What remains beside a model and those before it; None where it would not be wholly where it is
    alone."""
    try:
        placed, rest = fit(model, left, context=alone.context, parallel=alone.parallel)
    except SwarmError:
        return None
    return rest if placed.gpu_layers == alone.gpu_layers else None


def _context(want: Want, placements: list[Placement]) -> int | None:
    """The largest context that anybody wishes for."""
    wished = [placement.context or (want.wishes[placement.model].context
                                    if placement.model in want.wishes else None) for placement in placements]
    return max((one for one in wished if one), default=None)


def _capped(context: int | None, model: ModelFile) -> int | None:
    return min(context, model.context_train) if context is not None else None


def _parallel(want: Want, placements: list[Placement], facts: Facts) -> int:
    wished = [placement.parallel or (want.wishes[placement.model].parallel
                                     if placement.model in want.wishes else None) for placement in placements]
    default = 4 if usable_gpus(facts) else max(1, min(2, facts.cpu.cores))
    found = max((one for one in wished if one), default=default)
    limit = want.host.limits.parallel
    return min(found, limit) if limit else found


def usable_gpus(facts: Facts) -> list[Gpu]:
    """The GPUs that Ollama's archive has libraries for."""
    return [gpu for gpu in facts.gpus if gpu.vendor in GPUS and not gpu.problem]


def _text(value: Any) -> str:  # noqa: ANN401  a scalar of the inventory
    return "1" if value is True else str(value)
