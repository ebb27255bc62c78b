"""A question's way to a slot: its first candidate's where one is free, else the queue, until the best place
to be answered is free.

While it waits, the prices are made again with what is at work everywhere now, so a question goes where it is
cheapest to be answered and not to where it first lined up; a slow host that is free is taken when it is
cheaper than waiting for the quick one. Waiting is a look at two files' times every few hundredths of a
second; only what changed, or a second gone by, is a reason to look closer.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.dispatch import queue
from swarmctl.dispatch.breakers import Pass, leave
from swarmctl.dispatch.probe import look
from swarmctl.dispatch.slots import Slot, claim, claimed, freed_at
from swarmctl.errors import Busy
from swarmctl.fleet.standing import read_aside
from swarmctl.routing.waiting import Waiter, before, best_place, earlier, turn
from swarmctl.runtimes.http import check_hangup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate, Price, Standing

#: Seconds between two looks at the files' times, for who is near the front: jittered, so that waiters do not
#: march in step.
POLL = (0.015, 0.035)
#: So many of the first in line look closer at each change; the others only as time goes by.
NEAR = 8
#: Seconds after which a waiter looks closer unasked, and asks the servers again what others do there: the
#: first in line; the others later.
RECHECK, PER_RANK, LOOK_AGAIN = 0.25, 0.01, 1.0
#: So many of the cheapest are waited for, and so many of them asked again.
CONSIDERED, ASKED_AGAIN = 16, 4
#: A wait shorter than this is not worth a word.
NOTICEABLE = 0.5
SHORTEST_RETRY, LONGEST_RETRY = 1.0, 600.0


@dataclass(frozen=True, slots=True)
class Terms:
    """How a question is asked. A higher `priority` comes earlier in the queue; `waiting` is told once where
    it has to wait: how many are ahead of it, and for about how many seconds. `speaks` is told who answers,
    with the first word of each attempt. With `resume`, an answer that breaks goes on elsewhere from what was
    said, where the very same weights are served, instead of beginning again."""

    priority: int = 0
    waiting: Callable[[int, float], None] | None = None
    speaks: Callable[[Price], None] | None = None
    resume: bool = False


TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Admitted:
    """A candidate with one of its slots and its breaker's leave, both given back at the end of a `with`, and
    the seconds that it was waited for."""

    price: Price
    slot: Slot
    leave: Pass
    waited: float = 0.0

    def __enter__(self) -> Admitted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give both back; once more does nothing."""
        self.slot.close()
        self.leave.close()


def admit(swarm: Swarm, prices: Sequence[Price], terms: Terms, asked: float | None = None) -> Admitted:
    """Claim a slot of the first candidate, or wait for the best. One that failed elsewhere keeps the place of
    when it was `asked` (time.monotonic). Raises Busy where the queue is full or the wait too long, HungUp
    where whoever asks is gone."""
    first = prices[0]
    if queue.empty(swarm.paths) and (admitted := take(swarm.paths, first)):
        return admitted
    try:
        came = time.monotonic() if asked is None else asked
        ticket = queue.Ticket(swarm.paths, turn(came, terms.priority, prices))
    except OSError:  # a full disk does not keep a question from being asked
        return Admitted(first, Slot(None, "", 0), Pass())
    with ticket:
        return _Wait(swarm, prices, terms, ticket).until_admitted()


def take(paths: Paths, price: Price, *, anyway: bool = False) -> Admitted | None:
    """A slot of this very candidate, where one is free and its breaker lets us, or is to be ignored
    (`anyway`). Never waits."""
    allowed = leave(paths, price.candidate, time.time()) or (Pass() if anyway else None)
    if allowed is None:
        return None
    slot = claim(paths, price.candidate, price.slots, price.others)
    if slot is None:
        allowed.close()
        return None
    return Admitted(price, slot, allowed)


class _Wait:
    """One question in line."""

    def __init__(self, swarm: Swarm, prices: Sequence[Price], terms: Terms, ticket: queue.Ticket) -> None:
        self.swarm = swarm
        self.terms = terms
        self.ticket = ticket
        self.prices = sorted(prices, key=_free_price)[:CONSIDERED]
        self.rank = 0
        self.expected = 0.0
        self.began = self.looked = time.monotonic()
        self.told = False

    def until_admitted(self) -> Admitted:
        policy = self.swarm.fleet.routing
        signs, due, woken = (0, 0), 0.0, False
        while True:
            now, seen = time.monotonic(), self._signs()
            if woken or now >= due or (seen != signs and self.rank < NEAR):
                signs, due = seen, now + RECHECK + PER_RANK * self.rank
                if admitted := self._try(now):
                    return admitted
                self._refuse_when_full(policy.queue)
            if now - self.began >= policy.queue_seconds:
                raise self._busy(f"no slot became free within {policy.queue_seconds:.0f} s")
            self._tell(now)
            check_hangup()
            pause = random.uniform(*POLL) * (1 + self.rank / NEAR)  # noqa: S311  jitter, no secret
            woken = self.ticket.sleep(pause)

    def _try(self, now: float) -> Admitted | None:
        """Claim the slot of the cheapest candidate, if it is free and nobody ahead wants it."""
        if now - self.looked >= LOOK_AGAIN * (1 + self.rank):
            self._look_again()
        line, self.rank, behind = self.ticket.line()  # after the look, which may take long
        allowed = [price for price in self.prices if self._allowed(price)]
        asked = allowed or self.prices
        mine = Waiter(self.ticket.turn, {queue.name_of(price.candidate): earlier(price) for price in asked})
        place = best_place(asked, [self._line(price, mine, line) for price in asked], behind)
        self.expected = min(price.queue for price in place.prices)
        if not place.best.queue and (admitted := take(self.swarm.paths, place.best, anyway=not allowed)):
            return replace(admitted, waited=time.monotonic() - self.began)
        self.ticket.wants({name: mine.wants[name]
                           for name in (queue.name_of(price.candidate) for price in place.wanted)})
        return None

    def _allowed(self, price: Price) -> bool:
        """Whether its breaker lets anybody ask; where none does, all are ignored, as marks are."""
        allowed = leave(self.swarm.paths, price.candidate, time.time())
        if allowed:
            allowed.close()
        return allowed is not None

    def _line(self, price: Price, mine: Waiter, line: Sequence[Waiter]) -> tuple[int, int]:
        """What its server is doing, and how many before us want it."""
        busy = claimed(self.swarm.paths, price.candidate, price.slots) + price.others
        return busy, before(queue.name_of(price.candidate), mine, line)

    def _look_again(self) -> None:
        """What others do at the servers, which of them still answer, and which hosts a person set aside."""
        self.looked = time.monotonic()
        hosts = {price.candidate.host for price in self.prices}
        aside = {host for host in hosts if read_aside(self.swarm.paths, host)}
        left = [price for price in self.prices if price.candidate.host not in aside] or self.prices
        front = sorted(left, key=_free_price)[:ASKED_AGAIN]
        seen = look(self.swarm, [price.candidate for price in front], time.time())
        up = {key: standing for key, standing in seen.items() if not standing.out}
        self.prices = [_standing(price, up.get(_key(price.candidate))) for price in left
                       if _key(price.candidate) in up or _key(price.candidate) not in seen] or left

    def _refuse_when_full(self, bound: int) -> None:
        if self.rank >= bound:
            raise self._busy(f"every slot is taken, and {bound} questions wait already")

    def _busy(self, message: str) -> Busy:
        after = min(max(self.expected, SHORTEST_RETRY), LONGEST_RETRY)
        return Busy(message, retry_after=after, hint=f"ask again in about {after:.0f} s; --priority comes "
                                                     "earlier, and more slots or hosts help all")

    def _tell(self, now: float) -> None:
        if not self.told and self.terms.waiting and now - self.began >= NOTICEABLE:
            self.told = True
            self.terms.waiting(self.rank, self.expected)

    def _signs(self) -> tuple[int, int]:
        try:
            line = os.stat(f"{self.swarm.paths.state}/queue").st_mtime_ns  # noqa: PTH116
        except OSError:
            line = 0
        return freed_at(self.swarm.paths), line


def _free_price(price: Price) -> float:
    """What it would cost with a slot free."""
    return price.total - price.queue


def _standing(price: Price, standing: Standing | None) -> Price:
    if standing is None:
        return price
    return replace(price, slots=standing.slots or price.slots, others=standing.others)


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.host, candidate.server
