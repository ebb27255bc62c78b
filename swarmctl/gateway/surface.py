"""What an API is to the gateway: its routes, each with pure functions between bodies and turns.

A surface module ends with one `SURFACE = Surface(...)`, and app.SURFACES lists it. The app does the rest for
all of them alike: keys, limits, bounds, headers, streams, logs. Nothing here touches network, disk or thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from swarmctl.errors import (
    Busy,
    LedgerError,
    PromptTooLong,
    RemoteError,
    RequestRejected,
    ServerError,
    UsageError,
    VectorsOnly,
)
from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping, Sequence

    from swarmctl.dispatch.question import Answered
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.errors import SwarmError
    from swarmctl.gateway.turn import Event, Turn, Whole

@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a turn before its first piece. `id` is the exchange's, `model` and `host` those that
    answer (`turn.model` is what the client called it), `at` seconds since 1970."""

    id: str
    at: float
    model: str
    host: str
    turn: Turn


class Stream(Protocol):
    """One turn's events as the API's bytes. Made once for each streamed answer."""

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" where the API has none for it. Finished closes the stream."""
        ...

    def failed(self, exc: SwarmError) -> bytes:
        """The last bytes of a stream that broke after its head was sent."""
        ...


@dataclass(frozen=True, slots=True)
class Talk:
    """A POST that the ask path answers. `parse` raises BadRequest; where it gives a mapping, that is the
    answer, and nothing is asked."""

    path: str
    parse: Callable[[Mapping[str, Any]], Turn | Mapping[str, Any]]
    stream: Callable[[Meta], Stream]
    whole: Callable[[Meta, Answered, Whole], Mapping[str, Any]]
    media: str = "text/event-stream"


@dataclass(frozen=True, slots=True)
class ToEmbed:
    """Texts to be embedded. `model` as the client called it; auto is the one that is served. `extra` is what
    the answer needs to know of the body."""

    texts: tuple[str, ...]
    model: str = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Their vectors, in order."""

    vectors: Sequence[array[float]]
    model: str
    host: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Embed:
    """A POST that an embedding model answers. `parse` raises BadRequest."""

    path: str
    parse: Callable[[Mapping[str, Any]], ToEmbed]
    whole: Callable[[ToEmbed, Vectors], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Look is asked: path parameters, query, the body of a POST."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """A request that the swarm's description alone answers; no model is asked. `path` as starlette's routes
    ({name}, {name:path}); raises BadRequest. A str answer is sent as plain text."""

    method: Literal["GET", "POST", "HEAD", "DELETE"]
    path: str
    answer: Callable[[Swarm, Wanted], Mapping[str, Any] | str]


@dataclass(frozen=True, slots=True)
class Surface:
    """An API. Paths that no route knows are answered in the shape of the surface whose `prefix` of theirs is
    the longest. `error` is any failure in its own shape: HTTP status and body. `key` finds the API key in the
    (lower-case) headers, where this API does not send it as `Authorization: Bearer`."""

    name: str
    prefix: str
    error: Callable[[SwarmError], tuple[int, Mapping[str, Any]]]
    talks: tuple[Talk, ...] = ()
    embeds: tuple[Embed, ...] = ()
    looks: tuple[Look, ...] = ()
    key: Callable[[Mapping[str, str]], str | None] | None = None


def status_of(exc: SwarmError) -> int:
    """The HTTP status of a failure, in every API: 4xx for what the client did wrong, 429 for Busy, 5xx for
    what the swarm cannot do. The gateway's own refusals (no key, too large) are BadRequest too."""
    if isinstance(exc, BadRequest):
        return exc.status
    if isinstance(exc, Busy):
        return 429
    if isinstance(exc, VectorsOnly | RequestRejected | PromptTooLong):
        return 400
    if isinstance(exc, UsageError):
        return 404
    if isinstance(exc, LedgerError):
        return 500
    return 502 if isinstance(exc, ServerError | RemoteError) else 503


def told(exc: SwarmError) -> str:
    """A failure in one line: what failed, and what to do about it."""
    hint = "; ".join((exc.hint or "").splitlines()).replace(":; ", ": ")
    return f"{exc} ({hint})" if hint else str(exc)
