"""Runs turns: the synchronous ask path in a bounded pool of threads, its events handed to asyncio one by one.

A thread is never ahead of its reader by more than AHEAD events, so a slow client slows its own server alone.
With its first piece it stands aside until that is on its way. Closing the events of a turn hangs up on the
server at once, and the exchange is recorded as cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from swarmctl.dispatch.question import SERVED, put
from swarmctl.errors import Busy, StreamBroken
from swarmctl.gateway.previous import gone_on
from swarmctl.gateway.resident import LEANINGS
from swarmctl.gateway.turn import Called, Finished, Piece, Restarted, Routed, Thought
from swarmctl.runtimes.http import Hangup, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from swarmctl.exchange import Attempt, Chunk, Token, ToolCall
    from swarmctl.gateway.resident import Resident
    from swarmctl.gateway.turn import Event, Turn
    from swarmctl.routing.category import Categorised
    from swarmctl.routing.cost import Price, Route

T = TypeVar("T")

#: Events that a thread may be ahead of its reader.
AHEAD = 64
#: Threads for health, feedback and metrics.
ASIDE = 8
#: Seconds that a thread leaves Python's lock to the loop for its first piece. Going on with the second
#: kept the first back for 0.1 to 0.2 ms (medians of 400 requests in turn).
STAND_ASIDE = 0.005
#: What is said to come back in where every thread is at work.
BUSY_SECONDS = 2.0


class Engine:
    """The pool. `at_once` turns run at a time; one more is Busy, because the ask path has its own queue."""

    def __init__(self, resident: Resident, clock: Callable[[], float], at_once: int) -> None:
        self.resident = resident
        self.clock = clock
        self.at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="swarmctl-turn")
        self._aside = ThreadPoolExecutor(ASIDE, thread_name_prefix="swarmctl-aside")
        self._running: set[_Bridge | _Errand] = set()

    @property
    def running(self) -> int:
        """Turns whose threads are at work, those of clients that are gone included."""
        return len(self._running)

    async def run(self, turn: Turn, *, terminal: str, identity: str,
                  priority: int = 0) -> AsyncGenerator[Event, None]:
        """The events of a turn. Raises what `dispatch.question.put` raises, and Busy."""
        self._refuse_when_full()
        bridge = _Bridge(asyncio.get_running_loop(), turn, self._running.discard)
        self._running.add(bridge)
        work = _Work(self.resident, turn, terminal, identity, priority, self.clock)
        self._pool.submit(bridge.work, work)
        try:
            while (event := await bridge.get()) is not None:
                yield event
        finally:
            bridge.hang_up()

    async def apart(self, work: Callable[[], T]) -> T:
        """Run what is not a turn, and would make the loop wait, in threads of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    async def claiming(self, work: Callable[[], T]) -> T:
        """Run what claims slots as turns do, counted with them and in their threads; to cancel it is to hang
        up on it. Raises what it raises, and Busy."""
        self._refuse_when_full()
        errand = _Errand(Hangup())
        self._running.add(errand)
        future = asyncio.get_running_loop().run_in_executor(self._pool, errand.work, work)
        future.add_done_callback(partial(self._ended, errand))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            errand.hang_up()
            raise

    def _ended(self, errand: _Errand, future: asyncio.Future[Any]) -> None:
        """Nobody may be left who would look at how it ended."""
        self._running.discard(errand)
        if not future.cancelled():
            future.exception()

    def _refuse_when_full(self) -> None:
        if len(self._running) >= self.at_once:
            raise Busy("too many requests are under way", retry_after=BUSY_SECONDS)

    def hang_up(self) -> int:
        """Cancel every turn that is under way; how many there were."""
        turns = tuple(self._running)
        for bridge in turns:
            bridge.hang_up()
        return len(turns)

    async def settle(self, seconds: float) -> bool:
        """Wait until every thread has recorded its exchange; False where some have not in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return not self._running

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._aside.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Work:
    resident: Resident
    turn: Turn
    terminal: str
    identity: str
    priority: int
    clock: Callable[[], float]

    def run(self, bridge: _Bridge) -> Finished:
        name = self.turn.model
        asked = replace(self.turn.asked, via=SERVED, model=None if name in LEANINGS else name,
                        priority=self.priority)
        if self.turn.continues is not None:
            asked = gone_on(self.resident.paths.journal, asked, self.turn.continues, self.terminal)
        answered = put(self.resident.leaning(name), asked, bridge, terminal=self.terminal, clock=self.clock,
                       routed=bridge.routed, watch=bridge.watch, identity=self.identity,
                       speaks=bridge.speaks, resume=self.turn.stream)
        return Finished(answered)


class _Errand:
    """What is no turn and claims slots all the same."""

    def __init__(self, hangup: Hangup) -> None:
        self._hangup = hangup
        self.hang_up = hangup.now

    def work(self, work: Callable[[], T]) -> T:
        """What the thread does."""
        with until(self._hangup):
            try:
                self._hangup.check()
                return work()
            except KeyboardInterrupt as exc:
                raise StreamBroken("it was cancelled") from exc


class _Bridge:
    """One turn: a sink on the thread's side, a queue on the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn, over: Callable[[_Bridge], None]) -> None:
        self._loop = loop
        self._alternatives = (turn.asked.top_logprobs or 0) if turn.asked.logprobs else -1
        self._over = over
        self._hangup = Hangup()
        self._room = threading.Semaphore(AHEAD)
        self._taken = False
        self._sent = threading.Event()
        self._stood = False
        self._events: deque[Event | BaseException] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._tokens: list[Token] = []
        self._route: Route | None = None

    def work(self, work: _Work) -> None:
        """What the thread does."""
        end: Event | BaseException
        try:
            with until(self._hangup):
                end = work.run(self)
        except BaseException as exc:  # noqa: BLE001  handed to whoever reads the events
            end = exc
        self._hand(end)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._over, self)

    async def get(self) -> Event | None:
        """The next event; None after the last. Raises what the turn raised. To ask for it is to be done with
        the one before."""
        if self._taken:
            self._sent.set()
        while not self._events:
            if self._ended:
                return None
            self._ready.clear()
            if not self._events:
                await self._ready.wait()
        event = self._events.popleft()
        self._taken = not isinstance(event, Routed)
        if self._taken:
            self._room.release()
        if isinstance(event, BaseException):
            self._ended = True
            raise StreamBroken("it was cancelled") if isinstance(event, KeyboardInterrupt) else event
        self._ended = isinstance(event, Finished)
        return event

    def hang_up(self) -> None:
        """End the turn from the loop's side. Nothing happens where it has ended."""
        self._hangup.now()
        self._room.release()

    def routed(self, route: Route, _: Categorised) -> None:
        """The route is known. Nothing is done about it before the first piece, so nobody is woken."""
        self._route = route
        self._events.append(Routed(route))

    def speaks(self, price: Price) -> None:
        """Who answers is known: not always the first of the route, which may have been busy or slow."""
        if self._route is not None and price.candidate is not self._route.chosen.candidate:
            self._route = replace(self._route, prices=(price,))
            self._events.append(Routed(self._route))

    def watch(self, chunk: Chunk) -> None:
        """See a chunk before the sink: its thoughts, and its tokens, which go with its text where the client
        wants them (the ask path may want them for itself)."""
        if chunk.thought:
            self._give(Thought(chunk.thought))
        if self._alternatives >= 0:
            self._tokens.extend(replace(one, top=one.top[:self._alternatives]) for one in chunk.tokens)

    def text(self, piece: str) -> None:
        """See Sink.text."""
        tokens, self._tokens = tuple(self._tokens), []
        self._give(Piece(piece, tokens=tokens))

    def call(self, call: ToolCall) -> None:
        """See Sink.call."""
        self._give(Called(call))

    def failed(self, attempt: Attempt, following: Price | None) -> None:  # noqa: ARG002
        """See Sink.failed."""
        self._tokens = []
        if attempt.tokens:
            self._give(Restarted(attempt))

    def _give(self, event: Event) -> None:
        """Hand an event over, once there is room. Raises HungUp where nobody wants it."""
        self._room.acquire()
        self._hangup.check()
        self._hand(event)
        if not self._stood:
            self._stood = True
            self._sent.wait(STAND_ASIDE)

    def _hand(self, event: Event | BaseException) -> None:
        self._events.append(event)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ready.set)
