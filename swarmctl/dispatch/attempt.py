"""One attempt: a request to one candidate, through its tunnel, as a stream of chunks; and what is remembered
of how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.dispatch.breakers import note_failure, note_success
from swarmctl.dispatch.marks import clear_mark, mark_down
from swarmctl.errors import ContextExceeded, RemoteError, RequestRejected, Unsupported
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.errors import ServerError
    from swarmctl.exchange import ChatRequest, Chunk
    from swarmctl.routing.cost import Candidate, Price

CONNECT_TIMEOUT = 5.0
FIRST_TOKEN_PATIENCE = 30.0
TOKEN_PATIENCE = 30.0


def attempt(swarm: Swarm, price: Price, ask: ChatRequest) -> Generator[Chunk]:
    """Stream from a candidate; a tunnel found cold is opened, once. Raises RemoteError and ServerError."""
    try:
        yield from _chunks(swarm, price, ask)
    except TunnelDown:
        if swarm.host(price.candidate.host).ssh == "local":
            raise
        swarm.open(price.candidate)
        yield from _chunks(swarm, price, ask)


def refuses_here(exc: Exception) -> bool:
    """Whether another candidate may do what this one did not. A request that is refused for what it is would
    be refused everywhere."""
    return not isinstance(exc, RequestRejected) or isinstance(exc, ContextExceeded | Unsupported)


def remember_failure(swarm: Swarm, candidate: Candidate, exc: RemoteError | ServerError, now: float,
                     cost: float) -> None:
    """A host that could not be reached is marked; of a server that failed after `cost` seconds its breaker is
    told."""
    if swarm.seen is not None:
        swarm.seen.pop((candidate.host, candidate.server), None)
    if isinstance(exc, RemoteError):
        mark_down(swarm.paths, candidate.host, exc.message, now,
                  verify=swarm.host(candidate.host).intermittent)
    else:
        note_failure(swarm.paths, candidate, exc, now, cost)


def remember_success(swarm: Swarm, candidate: Candidate) -> None:
    """The host is there, and its server answers."""
    clear_mark(swarm.paths, candidate.host)
    note_success(swarm.paths, candidate)


def _chunks(swarm: Swarm, price: Price, ask: ChatRequest) -> Iterator[Chunk]:
    seconds_a_token = 1 / max(price.candidate.habits.decode_speed, 1e-3)
    return runtime(price.candidate.runtime).chat(
        swarm.endpoint(price.candidate), ask, connect_timeout=CONNECT_TIMEOUT,
        first_token_timeout=FIRST_TOKEN_PATIENCE + 4 * price.wait,
        token_timeout=max(TOKEN_PATIENCE, 50 * seconds_a_token))
