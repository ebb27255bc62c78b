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
from swarmctl.dispatch.attempt import attempt, refuses_here, remember_failure, remember_success
from swarmctl.dispatch.breakers import note_first_word
from swarmctl.dispatch.hedge import Race, rivals
from swarmctl.errors import (
    Busy,
    RemoteError,
    RequestRejected,
    ServerError,
    ServerFull,
    ServerUnavailable,
    StreamBroken,
)
from swarmctl.exchange import Attempt, Message, Timings
from swarmctl.runtimes.http import TunnelDown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from swarmctl.dispatch.admission import Admitted, Terms
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import ChatRequest, Chunk, Finish, ToolCall
    from swarmctl.routing.cost import Candidate, Price, Route

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
    """How it ended. `price` is that of the candidate that answered, or of the last one tried; `refused` where
    every one of them understood the request and cannot do it."""

    price: Price
    answer: str
    finish: Finish
    timings: Timings
    attempts: tuple[Attempt, ...]
    error: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    thought: str = ""
    company: int = 0
    refused: bool = False


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
    begun: tuple[str, ...] = ()
    refused, asked = True, time.monotonic()
    while True:
        try:
            admitted = _in_line(swarm, _first_tier(route, left), terms, asked, begun, attempts)
        except Busy as exc:
            if not attempts:
                raise
            return Outcome(left[0], "", "error", Timings(), tuple(attempts), exc.message)
        run = _Run(swarm, admitted, _first_tier(route, left), ask, sink, watch, clock, terms, begun)
        try:
            outcome = run.stream()
        except Cancelled as exc:
            raise Cancelled(replace(exc.outcome, attempts=(*attempts, *exc.outcome.attempts))) from exc
        except (RemoteError, ServerError) as exc:
            if not refuses_here(exc):
                raise
            refused = refused and isinstance(exc, RequestRejected)
            candidate = run.price.candidate
            attempts += (*run.beside, Attempt(candidate.host, candidate.model, _why(exc), run.tokens))
            left = _left(left, (candidate, *run.failed), exc)
            if terms.resume and (alike := _alike(left, candidate)) and (onward := _onward(ask, run)):
                ask, left, begun = onward, alike, (*begun, *run.pieces)
                continue
            sink.failed(attempts[-1], _first_tier(route, left)[0] if left else None)
        else:
            return replace(outcome, attempts=(*attempts, *outcome.attempts))
        if not left:
            return Outcome(run.price, "", "error", Timings(), tuple(attempts), attempts[-1].error,
                           refused=refused)


def _in_line(swarm: Swarm, prices: Sequence[Price], terms: Terms, asked: float, begun: Sequence[str],
             attempts: Sequence[Attempt]) -> Admitted:
    """See admit. Raises Cancelled where it is cut short, with what was said before."""
    try:
        return admit(swarm, prices, terms, asked)
    except KeyboardInterrupt as exc:
        waited = Timings(queue_seconds=time.monotonic() - asked)
        raise Cancelled(Outcome(prices[0], "".join(begun), "cancelled", waited, tuple(attempts))) from exc


def _alike(left: Sequence[Price], broken: Candidate) -> list[Price]:
    """Those who serve the very weights of one who broke off."""
    return [price for price in left if (price.candidate.digest, price.candidate.template)
            == (broken.digest, broken.template)]


def _onward(ask: ChatRequest, run: _Run) -> ChatRequest | None:
    """The request that goes on from what was said; None where the rest would not fit it: a grammar begins
    anew, and a call or a thought cannot be begun for a model."""
    if not run.pieces or run.calls or any(run.thoughts) or ask.schema or ask.tools or ask.raw:
        return None
    said, messages = "".join(run.pieces), ask.messages
    if messages[-1].role == "assistant":
        said, messages = messages[-1].content + said, messages[:-1]
    return replace(ask, messages=(*messages, Message("assistant", said)),
                   max_tokens=max(1, ask.max_tokens - run.tokens) if ask.max_tokens else None)


def _first_tier(route: Route, left: Sequence[Price]) -> Sequence[Price]:
    """Those that may be asked now: stand-ins only once nobody else is left."""
    stand_ins = {_key(price.candidate) for price in route.prices[len(route.prices) - route.stand_ins:]}
    return [price for price in left if _key(price.candidate) not in stand_ins] or left


def _left(left: Sequence[Price], tried: Sequence[Candidate], exc: Exception) -> list[Price]:
    """Who may still be asked: a host whose own queue is full is asked nothing more, whatever the model."""
    gone = {_key(candidate) for candidate in tried}
    full = tried[0].host if isinstance(exc, ServerFull) else None
    return [price for price in left if _key(price.candidate) not in gone and price.candidate.host != full]


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.host, candidate.server


class _Run:
    """One attempt on one candidate, or on another beside it where its first token is late (see hedge)."""

    def __init__(self, swarm: Swarm, admitted: Admitted, left: Sequence[Price], ask: ChatRequest, sink: Sink,
                 watch: Callable[[Chunk], None] | None, clock: Callable[[], float], terms: Terms,
                 begun: tuple[str, ...]) -> None:
        self.swarm = swarm
        self.admitted = admitted
        self.terms = terms
        self.begun = begun
        self.others = rivals(swarm, admitted.price, left)
        self.ask = ask
        self.sink = sink
        self.watch = watch
        self.clock = clock
        self.tokens = 0
        self.pieces: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[ToolCall] = []
        self.began = self.started = time.monotonic()
        self.first: float | None = None
        self.failed: Sequence[Candidate] = ()
        self.beside: Sequence[Attempt] = ()

    @property
    def price(self) -> Price:
        """Of who answers."""
        return self.admitted.price

    def stream(self) -> Outcome:
        """Stream the answer; what the server did is remembered of it."""
        with self.admitted:
            try:
                outcome = self._stream()
            except (RemoteError, ServerError) as exc:
                remember_failure(self.swarm, self.price.candidate, exc, self.clock(),
                                 time.monotonic() - self.started)
                raise
        remember_success(self.swarm, self.price.candidate)
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
        if not self.others:
            yield from attempt(self.swarm, self.price, self.ask)
            return
        race = Race(self.swarm, self.admitted, self.others, self.ask)
        self.failed, self.beside = race.failed, race.attempts
        try:
            with closing(race.stream()) as chunks:
                for chunk in chunks:
                    self.admitted, self.started = race.admitted, race.began
                    yield chunk
        finally:
            self.admitted = race.admitted

    def _take(self, chunk: Chunk) -> None:
        if not (chunk.text or chunk.tool_calls or chunk.thought):
            return
        if self.first is None:
            self.first = time.monotonic() - self.started
            if self.admitted.leave.probes:
                note_first_word(self.swarm.paths, self.price.candidate)
            if self.terms.speaks:
                self.terms.speaks(self.price)
        self.tokens += 1
        self.thoughts.append(chunk.thought)
        if chunk.text:
            self.pieces.append(chunk.text)
            self.sink.text(chunk.text)
        for call in chunk.tool_calls:
            self.calls.append(call)
            self.sink.call(call)

    def _outcome(self, finish: Finish, timings: Timings) -> Outcome:
        late = self.started - self.began if self.beside else 0.0
        waited = self.admitted.waited + late
        timed = replace(timings, first_token_seconds=self.first, queue_seconds=waited or None,
                        total_seconds=time.monotonic() - self.started)
        return Outcome(self.price, "".join((*self.begun, *self.pieces)), finish, timed, tuple(self.beside),
                       tool_calls=tuple(self.calls), thought="".join(self.thoughts),
                       company=self.admitted.slot.company)


def _why(exc: RemoteError | ServerError) -> str:
    if isinstance(exc, ServerUnavailable) and not isinstance(exc, TunnelDown):
        return exc.message
    return f"{exc.message} ({exc.hint})" if exc.hint else exc.message
