"""Where a question that waits for a slot is best answered, with what is at work everywhere now. Pure: the
queue of `ask` and the simulator of bench/load.py decide with these very lines.

A full server that many wait for costs more than one's own wait: whoever lines up there holds all up that
come behind, each for its answer's time over the slots. Counting that (a marginal cost, Pigou 1920) sends
short questions to slow hosts as soon as the line is long: over eight unequal hosts at 95 % load it halved the
95th percentile (docs/load.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.routing.cost import expected_queue, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.routing.cost import Price


@dataclass(frozen=True, slots=True)
class Place:
    """`best` is the cheapest place to all; its queue is 0 where it can be taken now. `wanted` are those that
    would be cheaper than that if they were free: they are waited for. `prices` are all, as they stand now."""

    best: Price
    wanted: tuple[Price, ...]
    prices: tuple[Price, ...]


def best_place(prices: Sequence[Price], lines: Sequence[tuple[int, int]], behind: int = 0) -> Place:
    """Choose among prices with, for each, the answers that its server gives now, and the questions ahead of
    ours that want it. `behind` is how many wait after ours."""
    now = tuple(at_work(price, busy, ahead) for price, (busy, ahead) in zip(prices, lines, strict=True))
    to_all = [replace(price, queue=price.queue + _held_up(price, behind)) for price in now]
    first = in_order(to_all)[0][0]
    best = next(price for price in now if price.candidate is first.candidate)
    return Place(best, tuple(price for price in now if price.total - price.queue <= first.total), now)


def at_work(price: Price, busy: int, ahead: int) -> Price:
    """The price with so many answers under way at its server, and so many questions before this one."""
    service = price.candidate.habits.service_seconds or price.prefill + price.decode
    return replace(price, busy=busy, queue=expected_queue(busy + ahead, price.slots, service))


def _held_up(price: Price, behind: int) -> float:
    """The seconds that those behind wait longer, all together, if ours lines up at this server."""
    return behind * (price.prefill + price.decode) / max(1, price.slots) if price.queue else 0.0
