"""The swarm's models as Ollama lists them: /api/tags, /api/show, /api/ps; and what it cannot be asked here.

Models are the inventory's and the operator's, not a client's: what would pull, make, copy or delete one is
refused, with the command of swarmctl that does it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from swarmctl.gateway import reading
from swarmctl.gateway.surface import Look
from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.fleet.snapshot import HostEntry, Served
    from swarmctl.gateway.surface import Wanted

#: the version whose API is spoken
VERSION = "0.33.0"
#: for `expires_at`: what is served stays in memory until somebody says otherwise
NEVER = "9999-12-31T23:59:59Z"
AUTO: Mapping[str, str] = {
    "auto": "the cheapest machine and model that are likely to answer well",
    "auto:fast": "the quickest, whatever its answers are rated",
    "auto:best": "the best, whatever it takes"}
#: how Ollama rounds a count of weights: unit, letter, decimals
UNITS = ((1_000_000_000, "B", 1), (1_000_000, "M", 2), (1_000, "K", 0))


def tags(swarm: Swarm, _wanted: Wanted) -> Mapping[str, Any]:
    """Every model that is served anywhere, and the names that leave the choice to the swarm."""
    served = [_tagged(name, found, swarm.fleet.written) for name, found in _by_name(swarm).items()]
    return {"models": [*(_auto(name, swarm.fleet.written) for name in AUTO), *served]}


def running(swarm: Swarm, _wanted: Wanted) -> Mapping[str, Any]:
    """What llama.cpp's servers hold in memory. What an Ollama holds changes with every question, and is not
    asked here."""
    found = ((name, [pair for pair in pairs if pair[1].runtime == "llamacpp"])
             for name, pairs in _by_name(swarm).items())
    return {"models": [_running(name, *pairs[0]) for name, pairs in found if pairs]}


def show(swarm: Swarm, wanted: Wanted) -> Mapping[str, Any]:
    """One model, as far as the swarm knows it without asking its host."""
    name = reading.text(wanted.body, "model") or reading.text(wanted.body, "name")
    if not name:
        raise BadRequest("model is required", param="model")
    name = name.removesuffix(":latest")
    if name in AUTO:
        return {"modelfile": f"# swarmctl: {AUTO[name]}\n", "parameters": "", "template": "", "system": "",
                "details": _details(), "model_info": {}, "capabilities": ["completion", "tools"],
                "modified_at": swarm.fleet.written}
    pairs = _by_name(swarm).get(name)
    if not pairs:
        raise BadRequest(f"model '{name}' not found", param="model", status=404)
    hosts, served = ", ".join(host.name for host, _ in pairs), pairs[0][1]
    return {"modelfile": f"# served by swarmctl on {hosts}\nFROM {name}\n", "parameters": "", "template": "",
            "system": "", "details": _details(served), "model_info": _info(pairs), "modified_at":
            swarm.fleet.written, "capabilities": _capabilities(served)}


def version(_swarm: Swarm, _wanted: Wanted) -> Mapping[str, Any]:
    """The version of Ollama whose API this is."""
    return {"version": VERSION}


def alive(_swarm: Swarm, _wanted: Wanted) -> str:
    """What clients look for."""
    return "Ollama is running"


def _refused(what: str, command: str) -> Callable[[Swarm, Wanted], Mapping[str, Any]]:
    def answer(_swarm: Swarm, _wanted: Wanted) -> Mapping[str, Any]:
        raise BadRequest(f"this gateway {what}; on the controller, `{command}` does", status=501)
    return answer


def _by_name(swarm: Swarm) -> dict[str, list[tuple[HostEntry, Served]]]:
    """Who serves each model, those first that are no canary."""
    found: dict[str, list[tuple[HostEntry, Served]]] = {}
    for host, served in sorted(_everything(swarm), key=lambda pair: pair[1].canary):
        found.setdefault(served.model.removesuffix(":latest"), []).append((host, served))
    return found


def _everything(swarm: Swarm) -> Iterator[tuple[HostEntry, Served]]:
    for host in swarm.fleet.hosts:
        for served in host.served:
            yield host, served


def _tagged(name: str, pairs: list[tuple[HostEntry, Served]], written: str) -> dict[str, Any]:
    served = pairs[0][1]
    details = _details(served) | {"context_length": max(one.context for _, one in pairs)}
    return _named(name) | {"modified_at": written, "size": served.size, "digest": _digest(served.digest),
                           "details": details, "capabilities": _capabilities(served)}


def _auto(name: str, written: str) -> dict[str, Any]:
    return _named(name) | {"modified_at": written, "size": 0, "digest": _digest(name), "details": _details(),
                           "capabilities": ["completion", "tools"]}


def _running(name: str, host: HostEntry, served: Served) -> dict[str, Any]:
    return _named(name) | {"size": served.size, "digest": _digest(served.digest), "details": _details(served),
                           "expires_at": NEVER, "size_vram": served.size if host.gpus else 0,
                           "context_length": served.context}


def _named(name: str) -> dict[str, Any]:
    """Clients look names up with a tag, and `latest` is the one that says nothing."""
    full = name if ":" in name else f"{name}:latest"
    return {"name": full, "model": full}


def _details(served: Served | None = None) -> dict[str, Any]:
    """What a model is. Its family is not known without its file."""
    return {"parent_model": "", "format": "gguf" if served else "", "family": "", "families": [],
            "parameter_size": _rounded(served.parameters) if served else "",
            "quantization_level": served.quantisation if served else ""}


def _info(pairs: list[tuple[HostEntry, Served]]) -> dict[str, Any]:
    """Clients look for a key that ends in .context_length."""
    return {"general.architecture": "swarm", "general.parameter_count": pairs[0][1].parameters,
            "swarm.context_length": max(served.context for _, served in pairs)}


def _capabilities(served: Served) -> list[str]:
    """Whether a model's template knows tools is seen when it is asked; one without says so then."""
    return ["embedding"] if served.embedding else ["completion", "tools"]


def _rounded(parameters: int) -> str:
    """A count as Ollama writes it: 4B, 4.1B, 722K."""
    for unit, letter, decimals in UNITS:
        if parameters >= unit:
            value = parameters / unit
            return f"{value:.0f}{letter}" if value == int(value) else f"{value:.{decimals}f}{letter}"
    return str(parameters)


def _digest(text: str) -> str:
    """Sixty-four hexadecimal digits, which clients cut and compare."""
    bare = text.removeprefix("sha256:")
    return bare if len(bare) == 64 else hashlib.sha256(bare.encode()).hexdigest()


LOOKS = (
    Look("GET", "/", alive), Look("HEAD", "/", alive),
    Look("GET", "/api/version", version), Look("HEAD", "/api/version", version),
    Look("GET", "/api/tags", tags), Look("HEAD", "/api/tags", tags),
    Look("GET", "/api/ps", running), Look("POST", "/api/show", show),
    Look("POST", "/api/pull", _refused("fetches no models", "swarmctl models pull")),
    Look("POST", "/api/push", _refused("uploads no models", "swarmctl models push")),
    Look("POST", "/api/create", _refused("makes no models", "swarmctl deploy")),
    Look("POST", "/api/copy", _refused("copies no models", "swarmctl models copy")),
    Look("DELETE", "/api/delete", _refused("removes no models", "swarmctl models remove")),
    Look("HEAD", "/api/blobs/{digest}", _refused("takes no files", "swarmctl models push")),
    Look("POST", "/api/blobs/{digest}", _refused("takes no files", "swarmctl models push")),
)
