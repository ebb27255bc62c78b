"""Texts to vectors for a client, over the servers of one embedding model, as `swarmctl embed` does it."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from swarmctl.dispatch.admission import Terms
from swarmctl.dispatch.vectors import embed_all, server_lanes
from swarmctl.dispatch.vectors_in_line import LaneInLine
from swarmctl.errors import SwarmError, UsageError
from swarmctl.gateway.resident import LEANINGS
from swarmctl.gateway.surface import Vectors
from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.dispatch.vectors import ServerLane
    from swarmctl.gateway.surface import ToEmbed

#: Texts and characters of one batch to a server.
BATCH_TEXTS, BATCH_CHARACTERS = 64, 64_000


def embed(swarm: Swarm, asked: ToEmbed, priority: int, read: Callable[[int], None]) -> Vectors:
    """Embed all texts, or none; `read` is told of each batch's tokens once it is done.

    Raises BadRequest for a text that is refused, UsageError for a model that makes no vectors,
    ServerUnavailable or NoCandidate where all its servers failed, Busy where the line is full.
    """
    lanes = _lanes(swarm, asked.model)
    began, tokens = time.monotonic(), 0
    vectors: list[array[float]] = []
    batches = tuple(_batches(asked.texts))
    with closing(LaneInLine(swarm, lanes, Terms(priority), len(batches))) as lane:
        for done in embed_all((lane,), batches, _lost):
            read(done.tokens)
            vectors += [_vector(result, len(vectors) + place) for place, result in enumerate(done.results)]
            tokens += done.tokens
        return Vectors(vectors, lanes[0].served.model, lane.where, tokens, time.monotonic() - began)


def _lanes(swarm: Swarm, model: str) -> Sequence[ServerLane]:
    lanes = server_lanes(swarm.paths, swarm.fleet)
    wanted = [one for one in lanes if model in LEANINGS or one.served.model.removesuffix(":latest") == model]
    names = sorted({one.served.model for one in wanted})
    if len(names) == 1:
        return wanted
    if names:
        raise UsageError(f"several embedding models are served: {', '.join(names)}",
                         hint="name one: vectors of two models cannot be compared")
    served = ", ".join(sorted({one.served.model for one in lanes})) or "no embedding model"
    raise UsageError(f"nobody embeds with {model}", hint=f"served: {served}")


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_TEXTS or size + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _vector(result: array[float] | str, place: int) -> array[float]:
    if isinstance(result, str):
        raise BadRequest(f"text {place} cannot be embedded: {result}", param="input")
    return result


def _lost(_: str, __: SwarmError) -> None:
    """A server that failed; the others take over, and if none is left its failure is raised."""
