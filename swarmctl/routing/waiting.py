"""Where a question that waits for a slot is best answered, with what is at work everywhere now. Pure: the
queue of `ask` and the simulator of bench/load.py decide with these very lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.routing.cost import expected_queue, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.routing.cost import Price


@dataclass(frozen=True, slots=True)
class Place:
    """`best` is the cheapest place; its queue is 0 where it can be taken now. `wanted` are those that would
    be cheaper than that if they were free: they are waited for. `prices` are all, as they stand now."""

    best: Price
    wanted: tuple[Price, ...]
    prices: tuple[Price, ...]


def best_place(prices: Sequence[Price], lines: Sequence[tuple[int, int]]) -> Place:
    """Choose among prices with, for each, the answers that its server gives now, and the questions ahead of
    ours that want it."""
    now = tuple(at_work(price, busy, ahead) for price, (busy, ahead) in zip(prices, lines, strict=True))
    best = in_order(now)[0][0]
    return Place(best, tuple(price for price in now if price.total - price.queue <= best.total), now)


def at_work(price: Price, busy: int, ahead: int) -> Price:
    """The price with so many answers under way at its server, and so many questions before this one."""
    service = price.candidate.habits.service_seconds or price.prefill + price.decode
    return replace(price, busy=busy, queue=expected_queue(busy + ahead, price.slots, service))
