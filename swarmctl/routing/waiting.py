"""Where a question that waits for a slot is best answered, with what is at work everywhere now. Pure: the
queue of `ask` and the simulator of bench/load.py decide with these very lines.

A full server that many wait for costs more than one's own wait: whoever lines up there holds all up that
come behind, each for its answer's time over the slots. Counting that (a marginal cost, Pigou 1920) sends
short questions to slow hosts as soon as the line is long: over eight unequal hosts at 95 % load it halved the
95th percentile (docs/load.md).

Turns come in the order in which answers would end if nobody had to wait, so that a short question is not long
behind a long one, and nobody is overtaken for longer than the own answer takes. Where a server still holds a
question's conversation it counts as earlier by some seconds: what need not be read again is time for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.routing.cost import expected_queue, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmctl.routing.cost import Price

#: What a step of priority is worth, in seconds of having come earlier.
AGEING = 10.0
#: The priority of what nobody waits for: shadows and evaluations come after everything that a person asks.
LAST = -10
#: Who lines up also holds up those who will come while the line lasts: so many for each that stands in it.
STILL_TO_COME = 2.0
#: So many seconds earlier for each second of reading that a cache saves, and at most so many.
EARLIER_A_SECOND, EARLIEST = 20.0, 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """`best` is the cheapest place to all; its queue is 0 where it can be taken now. `wanted` are those that
    would be cheaper than that if they were free: they are waited for. `prices` are all, as they stand now."""

    best: Price
    wanted: tuple[Price, ...]
    prices: tuple[Price, ...]


@dataclass(frozen=True, slots=True)
class Waiter:
    """A question in line: its turn, and for each server that it wants the seconds by which it counts as
    earlier there. One that wants nothing has not said yet, and counts as wanting everything."""

    turn: float
    wants: Mapping[str, float]


def turn(asked: float, priority: int, prices: Iterable[Price]) -> float:
    """When it is the turn of a question, on the clock of `asked`: the least comes first."""
    return asked - AGEING * priority + min(price.prefill + price.decode for price in prices)


def earlier(price: Price) -> float:
    """The seconds by which a question counts as earlier where its conversation is still in the cache."""
    habits = price.candidate.habits
    saved = price.cached_tokens * habits.cache_share / max(habits.prefill_speed, 1e-6)
    return min(EARLIEST, EARLIER_A_SECOND * saved)


def before(server: str, mine: Waiter, line: Iterable[Waiter]) -> int:
    """How many in line are to be given a server's slot before us."""
    ours = mine.turn - mine.wants.get(server, 0.0)
    return sum(one.turn - one.wants.get(server, 0.0) < ours for one in line
               if not one.wants or server in one.wants)


def best_place(prices: Sequence[Price], lines: Sequence[tuple[int, int]], behind: int = 0) -> Place:
    """Choose among prices with, for each, the answers that its server gives now, and the questions ahead of
    ours that want it. `behind` is how many wait after ours."""
    now = tuple(at_work(price, busy, ahead) for price, (busy, ahead) in zip(prices, lines, strict=True))
    to_all = [replace(price, queue=price.queue + _to_others(price, behind)) for price in now]
    first = in_order(to_all)[0][0]
    best = next(price for price in now if price.candidate is first.candidate)
    return Place(best, tuple(price for price in now if price.total - price.queue <= first.total), now)


def at_work(price: Price, busy: int, ahead: int) -> Price:
    """The price with so many answers under way at its server, and so many questions before this one."""
    service = price.candidate.habits.service_seconds or price.prefill + price.decode
    return replace(price, busy=busy, queue=expected_queue(busy + ahead, price.slots, service))


def _to_others(price: Price, behind: int) -> float:
    """The seconds that others wait longer, all together: at this server while our prompt is read, and in the
    line behind us if we line up there."""
    reading = price.prefill * min(price.busy, price.slots - 1)
    if not price.queue:
        return reading
    return reading + STILL_TO_COME * behind * (price.prefill + price.decode) / max(1, price.slots)
