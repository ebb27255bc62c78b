"""A Hugging Face folder on its way into Ollamas, which make a model of its safetensors files themselves.

The small files go through the tunnel first and are tried out with weights that are none: an Ollama which does
not know the architecture says so before a byte of weights has moved. Weights travel as any blob does. What
was made is looked at, because Ollama makes a model of a tokenizer that it does not know, too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.errors import RequestRejected, ServerUnavailable, SwarmError
from swarmctl.fleet.blobs import Blob, forget, hand_over, make_model, passing_path
from swarmctl.fleet.sharing import Brought
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.hf_folder import CONFIG, mistaken, unfit_for_ollama

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from swarmctl.fleet.blobs import Place
    from swarmctl.fleet.holdings import OllamaStock
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.sharing import Sharing
    from swarmctl.runtimes.base import Endpoint
    from swarmctl.runtimes.hf_folder import HfFolder

#: a safetensors file whose header is empty: no Ollama makes a model of it
NO_WEIGHTS = bytes(8)
SMALL_LIMIT = 600.0


class NotForOllama(SwarmError):
    """This server's own converter does not know the model; a GGUF of it may well work."""


@dataclass(frozen=True, slots=True)
class Part:
    """A weights file of the folder."""

    blob: Blob
    here: Path


@dataclass(frozen=True, slots=True)
class FolderCargo:
    """The folder, its weights, and its small files as they are sent."""

    folder: HfFolder
    weights: tuple[Part, ...]
    small: Mapping[str, bytes]

    def bring(self, to: Place, ollama: OllamaStock, sharing: Sharing, tell: Teller) -> Brought:
        """Bring all files to a host. Raises NotForOllama before any weights move, DiskFull, RemoteErrors."""
        why = unfit_for_ollama(self.folder)
        if why:
            raise _not_for(to.remote.host, why)
        files = _send(ollama.endpoint, self.small, tell)
        _try_out(to.remote.host, ollama.endpoint, files, tell)
        came = [sharing.bring(part.blob, place, tell, here=part.here)
                for part, place in zip(self.weights, self.places(to), strict=True)
                if not ollama_models.has_blob(ollama.endpoint, part.blob.sha256)]
        if not came:
            return Brought(0, "")
        return Brought(sum(one.sent for one in came), ", ".join(dict.fromkeys(one.way for one in came)),
                       all(one.straight for one in came),
                       "; ".join(dict.fromkeys(one.why for one in came if one.why)))

    def make(self, at: Place, ollama: OllamaStock, tag: str, recipe: Mapping[str, Any] | None,
             tell: Teller) -> None:
        """Have Ollama make the model of what has arrived, and look at what it made. Raises NotForOllama,
        and keeps no model then that is silently another one."""
        files = {part.blob.name: part.blob.sha256 for part in self.weights}
        for part, place in zip(self.weights, self.places(at), strict=True):
            hand_over(place, ollama.port, ollama.endpoint, part.blob, tell)
            forget(place)
        files |= {name: sha256(content).hexdigest() for name, content in self.small.items()}
        make_model(at.remote.host, ollama.endpoint, tag, files, recipe=recipe, tell=tell)
        why = mistaken(self.folder, ollama_models.metadata(ollama.endpoint, tag))
        if why:
            ollama_models.delete(ollama.endpoint, tag)
            raise _not_for(at.remote.host, why)

    def places(self, at: Place) -> tuple[Place, ...]:
        """Where the weights wait on a host."""
        return tuple(replace(at, path=passing_path(at.data_dir, part.blob.sha256)) for part in self.weights)


def _send(endpoint: Endpoint, small: Mapping[str, bytes], tell: Teller) -> dict[str, str]:
    files = {}
    for name, content in small.items():
        files[name] = sha256(content).hexdigest()
        if not ollama_models.has_blob(endpoint, files[name]):
            tell(f"sending {name}")
            ollama_models.send_blob(endpoint, files[name], len(content), iter((content,)),
                                    timeout=SMALL_LIMIT)
    return files


def _try_out(host: str, endpoint: Endpoint, files: dict[str, str], tell: Teller) -> None:
    """Ask for a model without weights: which words it is refused with tells whether the rest would do."""
    _send(endpoint, {"model.safetensors": NO_WEIGHTS}, tell)
    name = f"swarmctl-trial:{files[CONFIG][:12]}"
    try:
        ollama_models.create(endpoint, name, {**files, "model.safetensors": sha256(NO_WEIGHTS).hexdigest()})
    except (RequestRejected, ServerUnavailable) as exc:
        if "EOF" in exc.message:
            return  # it came as far as the weights
        raise _not_for(host, exc.message) from exc
    with suppress(SwarmError):
        ollama_models.delete(endpoint, name)


def _not_for(host: str, why: str) -> NotForOllama:
    return NotForOllama(f"its Ollama cannot convert this folder: {why}", host=host,
                        hint="convert to GGUF first; swarmctl does so by itself where it runs beside torch "
                             "and transformers")
