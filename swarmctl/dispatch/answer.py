"""Try the candidates in their order until one answers, and tell a sink everything as it happens.

Before the first token a failure moves on to the next candidate; after it, the answer starts again elsewhere
and the sink is told, so that a person sees where. A host that cannot be reached is marked, so that the next
question does not wait for it too.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from swarmctl.dispatch.admission import TERMS, admit
from swarmctl.dispatch.breakers import note_failure, note_success
from swarmctl.dispatch.marks import clear_mark, mark_down
from swarmctl.errors import (
    Busy,
    ContextExceeded,
    RemoteError,
    RequestRejected,
    ServerError,
    ServerFull,
    ServerUnavailable,
    StreamBroken,
    Unsupported,
)
from swarmctl.exchange import Attempt, Timings
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from swarmctl.dispatch.admission import Admitted, Terms
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import ChatRequest, Chunk, Finish, ToolCall
    from swarmctl.routing.cost import Candidate, Price, Route

CONNECT_TIMEOUT = 5.0
FIRST_TOKEN_PATIENCE = 30.0
TOKEN_PATIENCE = 30.0


class Sink(Protocol):
    """Where an answer goes as it comes."""

    def text(self, piece: str) -> None:
        """A piece of the answer."""
        ...

    def call(self, call: ToolCall) -> None:
        """A call that the model asks for."""
        ...

    def failed(self, attempt: Attempt, following: Price | None) -> None:
        """A candidate failed; `following` is tried next. With `attempt.tokens`, part of an answer was
        shown."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `price` is that of the candidate that answered, or of the last one tried."""

    price: Price
    answer: str
    finish: Finish
    timings: Timings
    attempts: tuple[Attempt, ...]
    error: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    thought: str = ""
    company: int = 0


class Cancelled(KeyboardInterrupt):
    """Ctrl-C while an answer came; carries what had come."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def answer(swarm: Swarm, route: Route, ask: ChatRequest, sink: Sink,
           clock: Callable[[], float] = time.time, *, watch: Callable[[Chunk], None] | None = None,
           terms: Terms = TERMS) -> Outcome:
    """Answer a request. `watch` sees every chunk before the sink does; what it raises closes the stream,
    which stops the server's work, and goes on to the caller. `terms` say how it waits for a slot.

    Raises Cancelled on Ctrl-C, with the outcome so far; RequestRejected where every host would refuse; Busy
    where no slot came free; any other failure of all candidates ends in an Outcome with finish `error`.
    """
    attempts: list[Attempt] = []
    left = list(route.prices)
    while True:
        try:
            admitted = admit(swarm, _first_tier(route, left), terms)
        except Busy as exc:
            if not attempts:
                raise
            return Outcome(left[0], "", "error", Timings(), tuple(attempts), exc.message)
        price = admitted.price
        run = _Run(swarm, admitted, ask, sink, tuple(attempts), watch, clock)
        try:
            outcome = run.stream()
        except (RemoteError, ServerError) as exc:
            if isinstance(exc, RequestRejected) and not isinstance(exc, ContextExceeded | Unsupported):
                raise
            attempts.append(Attempt(price.candidate.host, price.candidate.model, _why(exc), run.tokens))
            left = _left(left, price.candidate, exc)
            sink.failed(attempts[-1], _first_tier(route, left)[0] if left else None)
        else:
            return outcome
        if not left:
            return Outcome(price, "", "error", Timings(), tuple(attempts), attempts[-1].error)


def _first_tier(route: Route, left: Sequence[Price]) -> Sequence[Price]:
    """Those that may be asked now: stand-ins only once nobody else is left."""
    stand_ins = {_key(price.candidate) for price in route.prices[len(route.prices) - route.stand_ins:]}
    return [price for price in left if _key(price.candidate) not in stand_ins] or left


def _left(left: Sequence[Price], tried: Candidate, exc: Exception) -> list[Price]:
    """Who may still be asked: a host whose own queue is full is asked nothing more, whatever the model."""
    return [price for price in left if _key(price.candidate) != _key(tried)
            and not (isinstance(exc, ServerFull) and price.candidate.host == tried.host)]


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.host, candidate.server


class _Run:
    """One attempt on one candidate."""

    def __init__(self, swarm: Swarm, admitted: Admitted, ask: ChatRequest, sink: Sink,
                 attempts: tuple[Attempt, ...], watch: Callable[[Chunk], None] | None,
                 clock: Callable[[], float]) -> None:
        self.swarm = swarm
        self.price = admitted.price
        self.admitted = admitted
        self.ask = ask
        self.sink = sink
        self.attempts = attempts
        self.watch = watch
        self.clock = clock
        self.tokens = 0
        self.pieces: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[ToolCall] = []
        self.started = time.monotonic()
        self.first: float | None = None

    def stream(self) -> Outcome:
        """Stream the answer; what the server did is remembered of it."""
        host = self.price.candidate.host
        with self.admitted:
            try:
                outcome = self._stream()
            except RemoteError as exc:
                mark_down(self.swarm.paths, host, exc.message, self.clock(),
                          verify=self.swarm.host(host).intermittent)
                raise
            except ServerError as exc:
                note_failure(self.swarm.paths, self.price.candidate, exc, self.clock(),
                             time.monotonic() - self.started)
                raise
        clear_mark(self.swarm.paths, host)
        note_success(self.swarm.paths, self.price.candidate)
        return outcome

    def _stream(self) -> Outcome:
        last: Chunk | None = None
        try:
            with closing(self._chunks()) as chunks:
                for last in chunks:
                    if self.watch:
                        self.watch(last)
                    self._take(last)
        except KeyboardInterrupt as exc:
            raise Cancelled(self._outcome("cancelled", Timings())) from exc
        if last is None or last.finish is None:
            raise StreamBroken("the stream ended without its closing record")
        return self._outcome(last.finish, last.timings or Timings())

    def _chunks(self) -> Generator[Chunk]:
        """Stream from the candidate; a tunnel found cold is opened, once."""
        try:
            yield from self._attempt()
        except TunnelDown:
            if self.swarm.host(self.price.candidate.host).ssh == "local":
                raise
            self.swarm.open(self.price.candidate)
            yield from self._attempt()

    def _attempt(self) -> Iterator[Chunk]:
        seconds_a_token = 1 / max(self.price.candidate.habits.decode_speed, 1e-3)
        return runtime(self.price.candidate.runtime).chat(
            self.swarm.endpoint(self.price.candidate), self.ask, connect_timeout=CONNECT_TIMEOUT,
            first_token_timeout=FIRST_TOKEN_PATIENCE + 4 * self.price.wait,
            token_timeout=max(TOKEN_PATIENCE, 50 * seconds_a_token))

    def _take(self, chunk: Chunk) -> None:
        if not (chunk.text or chunk.tool_calls or chunk.thought):
            return
        if self.first is None:
            self.first = time.monotonic() - self.started
        self.tokens += 1
        self.thoughts.append(chunk.thought)
        if chunk.text:
            self.pieces.append(chunk.text)
            self.sink.text(chunk.text)
        for call in chunk.tool_calls:
            self.calls.append(call)
            self.sink.call(call)

    def _outcome(self, finish: Finish, timings: Timings) -> Outcome:
        timed = replace(timings, first_token_seconds=self.first, queue_seconds=self.admitted.waited or None,
                        total_seconds=time.monotonic() - self.started)
        return Outcome(self.price, "".join(self.pieces), finish, timed, self.attempts,
                       tool_calls=tuple(self.calls), thought="".join(self.thoughts),
                       company=self.admitted.slot.company)


def _why(exc: RemoteError | ServerError) -> str:
    if isinstance(exc, ServerUnavailable) and not isinstance(exc, TunnelDown):
        return exc.message
    return f"{exc.message} ({exc.hint})" if exc.hint else exc.message
