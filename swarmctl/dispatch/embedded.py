"""A question's vector, where a served embedding model can give one at once.

Only the model whose vectors the router learned from counts, and only where its tunnel is warm: a vector makes
the belief a little sharper, and is worth no wait. What is needed for it is imported only where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.dispatch.reach import endpoint
from swarmctl.errors import ServerError
from swarmctl.fleet.standing import read_aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.fleet.snapshot import HostEntry, Served
    from swarmctl.routing.beliefs import Seen

#: Seconds that a vector may take.
PATIENCE = 0.05


def seen(swarm: Swarm, text: str) -> Seen | None:
    """What the learned weights make of a question; None where nothing was learned."""
    if swarm.weights is None:
        return None
    from swarmctl.routing.beliefs import see
    from swarmctl.routing.features import read_features

    wanted = {head.embedder for head in swarm.weights.heads if head.embedder}
    vector, embedder = _vector(swarm, text, wanted) if wanted else (None, "")
    return see(swarm.weights, read_features(text, vector, embedder))


def _vector(swarm: Swarm, text: str, wanted: set[str]) -> tuple[Sequence[float] | None, str]:
    from swarmctl.ledger.topic_store import to_embed
    from swarmctl.runtimes.named import embedder

    for entry, served in _servers(swarm, wanted):
        where = endpoint(swarm.paths, entry, served.port, served.called)
        try:
            found = embedder(served.runtime).embed(where, [to_embed(text)], connect_timeout=PATIENCE,
                                                   timeout=PATIENCE)
        except ServerError:
            continue  # cold, busy, or too long for it: the counts alone will do
        return list(found.vectors[0]), served.digest
    return None, ""


def _servers(swarm: Swarm, wanted: set[str]) -> list[tuple[HostEntry, Served]]:
    """The first server of such a model: looking further would take longer than it is worth."""
    found = ((entry, served) for entry in swarm.fleet.hosts for served in entry.served
             if served.embedding and served.digest in wanted and not read_aside(swarm.paths, entry.name))
    return [one for one in (next(found, None),) if one]
