"""A second request where the first token is late: to an idle host that answers as well, and whoever speaks
first is listened to. The other's stream is closed at once, which stops its server's work.

Late is later than nineteen of twenty first tokens of that host (routing.latency). Where nobody is idle then,
it is looked again while the first is silent. A budget (hedge_budget) keeps second requests few.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from swarmctl.dispatch import queue
from swarmctl.dispatch.admission import take
from swarmctl.dispatch.attempt import attempt, refuses_here, remember_failure
from swarmctl.dispatch.habits import learn
from swarmctl.dispatch.hedge_budget import pay, pay_in
from swarmctl.dispatch.probe import look
from swarmctl.errors import RemoteError, ServerError
from swarmctl.exchange import Attempt, Timings
from swarmctl.routing.latency import forecast
from swarmctl.runtimes.http import beneath, until

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from swarmctl.dispatch.admission import Admitted
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import ChatRequest, Chunk
    from swarmctl.routing.cost import Candidate, Price, Standing

#: No first token is late before so many seconds.
SOONEST = 0.25
#: An answer is as good as another whose risk is at most so many seconds lower.
AS_GOOD = 0.5
#: So many idle hosts are looked at for a second request.
CONSIDERED = 2
#: Seconds after which it is looked again whether somebody is idle.
AGAIN = 1.0


def rivals(swarm: Swarm, first: Price, left: Sequence[Price]) -> tuple[Price, ...]:
    """Who might be asked beside `first`, the cheapest first; nobody where hedging is switched off."""
    if not swarm.fleet.routing.hedge:
        return ()
    found = [price for price in left if price.candidate.host != first.candidate.host
             and price.risk <= first.risk + AS_GOOD and not price.load and not price.connect]
    return tuple(sorted(found, key=lambda price: price.total)[:CONSIDERED])


class Race:
    """One attempt, and a second beside it where the first is late. `admitted` is who answers, and
    `began` when it was asked; `failed` who was tried in vain, `attempts` what is recorded of them and of who
    was slower."""

    def __init__(self, swarm: Swarm, admitted: Admitted, others: Sequence[Price], ask: ChatRequest) -> None:
        self.swarm = swarm
        self.admitted = admitted
        self.began = time.monotonic()
        self.failed: list[Candidate] = []
        self.attempts: list[Attempt] = []
        self._others = others
        self._ask = ask
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._lanes: list[_Lane] = []
        self._looking = False

    def stream(self) -> Generator[Chunk]:
        """The answer of whoever speaks first. Raises what its attempt raises."""
        pay_in(self.swarm.paths)
        try:
            self._start(self.admitted)
            lane, event = self._first()
            self.admitted, self.began = lane.admitted, lane.began
            for other in self._lanes:
                if other is not lane:
                    self._beaten(other, lane)
            while event.chunk is not None:
                yield event.chunk
                event = self._next(lane)
            if event.failure is not None:
                raise event.failure
        finally:
            for one in self._lanes:
                one.end()

    def _first(self) -> tuple[_Lane, _Event]:
        """The first word of anybody, or the failure of the last who might have said one."""
        patience: float | None = max(SOONEST, forecast(self.admitted.price).first.p95)
        while True:
            try:
                event = self._events.get(timeout=patience)
            except Empty:
                patience = AGAIN if len(self._lanes) == 1 else None
                self._look_for_the_idle()
                continue
            if event.lane is None:
                self._looking = False
                self._hedge(event.standings)
                continue
            running = [one for one in self._lanes if one.admitted.price.candidate not in self.failed]
            failure = event.failure
            if not isinstance(failure, RemoteError | ServerError) or not refuses_here(failure) \
                    or len(running) < 2:
                return event.lane, event
            self._gave_up(event.lane, failure)

    def _next(self, lane: _Lane) -> _Event:
        while True:
            event = self._events.get()
            if event.lane is lane:
                return event

    def _look_for_the_idle(self) -> None:
        """In a thread, because a first token may come while one of the others is silent; not while questions
        wait for a slot."""
        if self._looking or len(self._lanes) > 1 or not queue.empty(self.swarm.paths):
            return
        self._looking = True
        Thread(target=self._look, name="swarmctl-hedge", daemon=True).start()

    def _look(self) -> None:
        found = look(self.swarm, [price.candidate for price in self._others], time.time())
        self._events.put(_Event(None, standings=found))

    def _hedge(self, standings: Mapping[tuple[str, str], Standing]) -> None:
        """Ask the first that is idle, where the budget allows it."""
        for price in self._others:
            standing = standings[price.candidate.host, price.candidate.server]
            if standing.out or standing.busy or not (standing.warm and standing.loaded):
                continue
            admitted = take(self.swarm.paths, price)
            if admitted is None:
                continue
            if admitted.leave.probes or admitted.slot.company or not pay(self.swarm.paths):
                admitted.close()
                continue
            self._start(admitted)
            return

    def _start(self, admitted: Admitted) -> None:
        self._lanes.append(_Lane(self.swarm, admitted, self._ask, self._events))

    def _beaten(self, loser: _Lane, winner: _Lane) -> None:
        """Hang up on who was slower. That it was at least so slow is learned too: else only its quick first
        tokens would ever count."""
        loser.end()
        candidate, by = loser.admitted.price.candidate, winner.admitted.price.candidate
        if candidate in self.failed:
            return
        took = time.monotonic() - loser.began
        self.attempts.append(Attempt(candidate.host, candidate.model,
                                     f"hedged: no token after {took:.1f} s, {by.host} was first",
                                     hedged=True))
        if loser is self._lanes[0]:
            with suppress(OSError):
                learn(self.swarm.paths, loser.admitted.price, category="routine", characters=0,
                      finish="cancelled", timings=Timings(first_token_seconds=took),
                      memory=self.swarm.learned)

    def _gave_up(self, lane: _Lane, exc: RemoteError | ServerError) -> None:
        candidate = lane.admitted.price.candidate
        self.failed.append(candidate)
        self.attempts.append(Attempt(candidate.host, candidate.model, exc.message))
        remember_failure(self.swarm, candidate, exc, time.time(), time.monotonic() - lane.began)
        lane.end()


@dataclass(frozen=True, slots=True)
class _Event:
    """What a lane said or how it failed; neither where it has ended. Without a lane: how others stand."""

    lane: _Lane | None
    chunk: Chunk | None = None
    failure: BaseException | None = None
    standings: Mapping[tuple[str, str], Standing] = field(default_factory=dict)


class _Lane:
    """A thread that reads one attempt, and can be hung up on."""

    def __init__(self, swarm: Swarm, admitted: Admitted, ask: ChatRequest,
                 events: SimpleQueue[_Event]) -> None:
        self.admitted = admitted
        self.began = time.monotonic()
        self._work = (swarm, ask)
        self._events = events
        self._hangup, self._part = beneath()
        Thread(target=self._read, name="swarmctl-attempt", daemon=True).start()

    def end(self) -> None:
        """Close its stream, and free its slot."""
        self._hangup.now()
        self._part()
        self.admitted.close()

    def _read(self) -> None:
        swarm, ask = self._work
        try:
            with until(self._hangup), closing(attempt(swarm, self.admitted.price, ask)) as chunks:
                for chunk in chunks:
                    self._events.put(_Event(self, chunk))
        except BaseException as exc:  # noqa: BLE001  raised where the events are read
            self._events.put(_Event(self, failure=exc))
        else:
            self._events.put(_Event(self))
