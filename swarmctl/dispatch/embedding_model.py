"""Which model makes vectors: one that is served, or sentence-transformers in this process. Vectors of two
models cannot be compared, so it is always one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.dispatch.swarm import read_swarm
from swarmctl.dispatch.vectors import Lane, server_lanes
from swarmctl.errors import SwarmError, UsageError
from swarmctl.runtimes.in_process import DEFAULT_MODEL, INSTALL, InProcess, installed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Model:
    """What makes the vectors: one model, wherever it is. `digest` is the sha256 of its weights' file."""

    name: str
    digest: str
    lanes: tuple[Lane, ...]

    @property
    def where(self) -> str:
        """Where, as a person reads it."""
        return ", ".join(dict.fromkeys(lane.where for lane in self.lanes))


def find_model(paths: Paths, inventory: Path, *, model: str | None, host: str | None, in_process: bool,
               say: Callable[[str], None]) -> Model:
    """The embedding model that is meant: served, or here in this process.

    Raises UsageError for a model or host that makes no vectors, and where several models could be meant;
    SwarmError where nothing makes vectors.
    """
    if in_process:
        return _here(model)
    swarm = read_swarm(paths, inventory, say)
    lanes = server_lanes(paths, swarm.fleet) if swarm else ()
    found = [lane for lane in lanes
             if model in (None, lane.served.model) and host in (None, lane.entry.name)]
    if found:
        names = dict.fromkeys(lane.served.model for lane in found)
        if len({lane.served.digest for lane in found}) > 1:
            raise UsageError(f"several embedding models are served: {', '.join(names)}",
                             hint="say --model: vectors of two models cannot be compared")
        return Model(next(iter(names)), found[0].served.digest, tuple(found))
    if lanes or host:
        wanted = " on ".join(name for name in (model or "an embedding model", host) if name)
        served = ", ".join(sorted({f"{lane.served.model} on {lane.entry.name}" for lane in lanes}))
        raise UsageError(f"nobody embeds with {wanted}", hint=f"served: {served or 'no embedding model'}")
    if not installed():
        raise SwarmError("no embedding model is served, and sentence-transformers is not installed here",
                         hint="place a model with `embedding: true` in the inventory and `swarmctl up`, or\n"
                              f"{INSTALL}")
    say(f"no embedding model is served: {model or DEFAULT_MODEL} embeds in this process")
    return _here(model)


def _here(model: str | None) -> Model:
    loaded = InProcess(model or DEFAULT_MODEL)
    return Model(loaded.name, loaded.digest, (loaded,))
