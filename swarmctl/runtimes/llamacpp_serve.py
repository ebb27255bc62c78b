"""How llama-server is started: its argv and environment from facts and wishes. Pure, tested as data.

Option names are those of llama.cpp's common/arg.cpp. Overrides go host, then model, then placement; the last
one wins.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError
from swarmctl.inventory import LlamaCppWish, placed_on
from swarmctl.runtimes.llamacpp_fit import MIB, Fit, Room, fit, room
from swarmctl.steps import ServerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.facts import Facts
    from swarmctl.inventory import Host, Placement
    from swarmctl.runtimes.base import ModelFile, Want
    from swarmctl.runtimes.llamacpp_build import Build

RUNTIME_FOLDER = "runtimes/llamacpp"
#: short and old names of options that we set ourselves, so that an override replaces instead of repeating
ALIASES = {
    "t": "threads", "tb": "threads-batch", "c": "ctx-size", "np": "parallel", "ngl": "n-gpu-layers",
    "gpu-layers": "n-gpu-layers", "fa": "flash-attn", "ctk": "cache-type-k", "ctv": "cache-type-v",
    "m": "model", "a": "alias", "cram": "cache-ram", "webui": "ui", "no-webui": "no-ui", "sm": "split-mode",
    "kvu": "kv-unified", "no-kvu": "no-kv-unified",
}
#: what an override may not touch, and where it is said instead
FIXED = {
    "host": "servers listen on loopback and are reached through SSH only",
    "port": "say `port:` in llamacpp or in the host's model",
    "model": "say `source:` in the model", "alias": "it is the model's name in the inventory",
    "ctx-size": "say `context:`, tokens per conversation", "parallel": "say `parallel:`",
    "api-key": "the SSH connection is the guard", "api-key-file": "the SSH connection is the guard",
    "ssl-key-file": "the SSH connection is the guard", "ssl-cert-file": "the SSH connection is the guard",
    "api-prefix": "swarmctl speaks to the root", "reuse-port": "one server a port",
}
#: weights that are worth a thread, by rule of thumb: llama.cpp's threads meet at a barrier for every tensor
#: (docs/runtimes.md has the measurement at the small end)
WEIGHTS_PER_THREAD = 25_000_000
#: tokens an embedding model is given a text where nobody said: an encoder's memory grows with their square
EMBEDDING_CONTEXT = 2048
#: llama-server's own default of --ubatch-size, below which short texts would not share a pass
SMALLEST_BATCH = 512


def server_specs(want: Want, facts: Facts, build: Build) -> tuple[tuple[ServerSpec, str], ...]:
    """Every server wanted on a host, in the inventory's order, each with a word on how it fits.

    Raises SwarmError where a model cannot fit or an override cannot be.
    """
    ports = [port for _, port in placed_on(want.host, "llamacpp")]
    return tuple((_spec(want, placement, port, facts, build, placed), placed.note)
                 for (placement, placed, _), port in zip(_fits(want, facts, build), ports, strict=True))


def room_left(want: Want, facts: Facts, build: Build) -> Room:
    """What llama.cpp's servers leave of a host's memory. Raises SwarmError where a model does not fit."""
    whole = room(facts, want.host.limits, build.backend.gpus)
    return next((left for *_, left in reversed(_fits(want, facts, build))), whole)


def _fits(want: Want, facts: Facts, build: Build) -> list[tuple[Placement, Fit, Room]]:
    """Each placement, how it fits, and what remains then."""
    space = room(facts, want.host.limits, build.backend.gpus)
    found = []
    for placement, _ in placed_on(want.host, "llamacpp"):
        model = want.models[placement.model]
        placed, space = fit(model, space, context=context_of(want, placement, model),
                            parallel=parallel_of(want, placement, facts, build))
        found.append((placement, placed, space))
    return found


def threads(facts: Facts, limit: int | None, model: ModelFile, fitted: Fit) -> int:
    """CPU threads for a server: physical cores, less for a model too small to feed them.

    llama.cpp's workers meet at a barrier for every tensor and spin while they wait, so on a crowded machine
    each thread too many costs more than it brings. With all layers on a GPU, the CPU only feeds it.
    """
    cores = max(1, min(facts.cpu.cores, facts.cpu.threads))
    most = min(cores, limit) if limit else cores
    if fitted.gpu_layers == "all":
        return min(most, 4)
    return max(1, min(most, 1 + model.parameters // WEIGHTS_PER_THREAD))


def context_of(want: Want, placement: Placement, model: ModelFile) -> int | None:
    """Tokens per conversation that somebody named for a placement, or None."""
    wished = want.wishes.get(placement.model)
    named = placement.context or (wished.context if wished else None)
    if named is None and want.embeds(placement.model):
        return min(model.context_train, EMBEDDING_CONTEXT)
    return named


def parallel_of(want: Want, placement: Placement, facts: Facts, build: Build) -> int:
    """Conversations at once: as named, else what the host is good for, within its limit."""
    wished = want.wishes.get(placement.model)
    named = placement.parallel or (wished.parallel if wished else None)
    default = 4 if build.backend.gpus else max(1, min(2, facts.cpu.cores))
    limit = want.host.limits.parallel
    found = named or default
    return min(found, limit) if limit else found


def _spec(want: Want, placement: Placement, port: int, facts: Facts, build: Build, placed: Fit) -> ServerSpec:
    model = want.models[placement.model]
    home = facts.data_dir.rstrip("/")
    embedding = _for_embedding(model, placed) if want.embeds(placement.model) else {}
    if model.adapter and {"lora", "lora-scaled"} & set(_overrides(want, placement)):
        raise SwarmError(f"model {placement.model} is a LoRA adapter, and a flag names another",
                         hint="take `lora` out of its flags")
    flags = {**_from_facts(want.host, facts, model, placed, port), **embedding, **_overrides(want, placement)}
    argv = (f"{home}/{RUNTIME_FOLDER}/{build.key}/bin/llama-server", *_rendered(flags))
    spec = ServerSpec(
        name=server_name(placement.model), model=placement.model, sha256=model.digest, argv=argv,
        env=_environment(placed, build), port=port, context=placed.context, parallel=placed.parallel,
        mode="systemd" if facts.systemd_user else "own", digest="")
    return replace(spec, digest=_digest(spec, want.host))


def server_name(model: str) -> str:
    """A folder and unit name for a model's server: a readable part and, where that lost something, a hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", model).strip(".-")[:48]
    return plain if plain == model else f"{plain}-{sha256(model.encode()).hexdigest()[:8]}"


def _from_facts(host: Host, facts: Facts, model: ModelFile, placed: Fit, port: int) -> dict[str, Any]:
    count = threads(facts, host.limits.threads, model, placed)
    flags: dict[str, Any] = {
        "model": f"{facts.data_dir.rstrip('/')}/blobs/sha256-{model.sha256}",
        "alias": model.name,
        "host": "127.0.0.1",
        "port": port,
        # Each slot has a context of its own (ctx-size / parallel): no conversation can starve another.
        "ctx-size": placed.context * placed.parallel,
        "parallel": placed.parallel,
        "no-kv-unified": True,
        "threads": count,
        "threads-batch": count,
        "n-gpu-layers": placed.gpu_layers,
        "flash-attn": "on" if placed.cache_type != "f16" else "auto",
        "cache-type-k": placed.cache_type,
        "cache-type-v": placed.cache_type,
        # The default of 8 GiB for prompts of idle conversations would sink a small machine.
        "cache-ram": min(2048, facts.memory // 20 // MIB),
        "fit": "on" if placed.gpu_layers == "auto" else "off",
        "jinja": True,
        "metrics": True,
        "slots": True,
        "no-ui": True,
        "offline": True,
        # The default lets any web page in a browser on that machine talk to the model.
        "cors-origins": "localhost",
        "log-timestamps": True,
        "log-prefix": True,
        "log-colors": "off",
    }
    if model.adapter:
        flags["lora"] = f"{facts.data_dir.rstrip('/')}/blobs/sha256-{model.adapter.sha256}"
    if placed.gpus and len(placed.gpus) == 1 and placed.gpu_layers == "all":
        flags["split-mode"] = "none"
    return flags


def _for_embedding(model: ModelFile, placed: Fit) -> dict[str, Any]:
    """What differs for a model that makes vectors: it answers no chat, keeps no prompts, and reads a text in
    one pass, so a batch must hold as much as a context."""
    batch = max(SMALLEST_BATCH, placed.context)
    return {"embeddings": True, "pooling": model.pooling or "mean", "batch-size": batch, "ubatch-size": batch,
            "cache-ram": 0, "jinja": False}


def _environment(placed: Fit, build: Build) -> dict[str, str]:
    """Show a server only its GPUs, by id where the driver gives one."""
    ids = [gpu.uuid for gpu in placed.gpus if gpu.uuid]
    if len(ids) != len(placed.gpus) or not ids:
        return {}
    if build.backend.name == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(ids)}
    if build.backend.name == "rocm":
        return {"ROCR_VISIBLE_DEVICES": ",".join(ids)}
    return {}


def _overrides(want: Want, placement: Placement) -> dict[str, Any]:
    wished = want.wishes.get(placement.model)
    merged: dict[str, Any] = {}
    of_host = (want.host.llamacpp or LlamaCppWish()).flags
    for flags in (of_host, wished.flags if wished else {}, placement.flags):
        merged.update({_canonical(key): value for key, value in flags.items()})
    for key in merged:
        if key in FIXED:
            raise SwarmError(f"flag {key} of model {placement.model} cannot be overridden: {FIXED[key]}")
    # `ui: true` undoes our `no-ui`, and the other way round
    opposite = {key.removeprefix("no-") if key.startswith("no-") else f"no-{key}": False for key in merged}
    return {**opposite, **merged}


def _canonical(key: str) -> str:
    plain = key.lstrip("-").replace("_", "-")
    return ALIASES.get(plain, plain)


def _rendered(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """As llama-server's argv: a true value is the bare option, a false or absent one leaves the option
    out."""
    parts: list[str] = []
    for key, value in flags.items():
        if value is False or value is None:
            continue
        parts.append(f"--{key}")
        if value is not True:
            parts.append(",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
    return tuple(parts)


def _digest(spec: ServerSpec, host: Host) -> str:
    memory = host.limits.memory if spec.mode == "systemd" else None
    everything = [spec.name, spec.model, spec.sha256, spec.argv, sorted(spec.env.items()), spec.port,
                  spec.context, spec.parallel, spec.mode, memory]
    return sha256(json.dumps(everything).encode()).hexdigest()
