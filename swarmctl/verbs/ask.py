"""`ask`: one question, one answer, from the cheapest host and model that is likely to answer well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.dispatch.question import Answered, Asked, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.answer import Sink
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import Chunk
    from swarmctl.routing.category import Categorised
    from swarmctl.routing.cost import Route


def ask(swarm: Swarm, asked: Asked, sink: Sink, *, terminal: str, clock: Callable[[], float],
        routed: Callable[[Route, Categorised], None] | None = None,
        waiting: Callable[[int, float], None] | None = None,
        watch: Callable[[Chunk], None] | None = None) -> Answered:
    """Ask the swarm; see dispatch.question.put for what is raised."""
    return put(swarm, asked, sink, terminal=terminal, clock=clock, routed=routed, waiting=waiting,
               watch=watch)
