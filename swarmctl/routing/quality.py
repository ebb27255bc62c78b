"""How likely a model answers a category well: a first guess, then this swarm's own ratings.

A Beta distribution per (model, category): the first guess counts as PRIOR_WEIGHT ratings, each rating as one.
The first guess is the inventory's `quality`, or a rough table by parameter count.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.exchange import Category

#: A guess is worth this many ratings: five thumbs down outweigh a good first guess.
PRIOR_WEIGHT = 8.0

#: Parameters → share of good answers. Rounded from public chat leaderboards' spread; only a start for ratings
#: to mend.
SIZES = (1e6, 1e8, 1e9, 4e9, 8e9, 3e10, 7e10)
GUESS: Mapping[Category, tuple[float, ...]] = {
    "routine": (0.05, 0.45, 0.75, 0.86, 0.90, 0.93, 0.95),
    "complex": (0.02, 0.15, 0.45, 0.65, 0.72, 0.82, 0.88),
    "code": (0.01, 0.10, 0.40, 0.60, 0.70, 0.80, 0.86),
}


@dataclass(frozen=True, slots=True)
class Quality:
    """`mean` is the expected share of good answers (0 to 1); `ratings` how many stand behind it."""

    mean: float
    ratings: float


def quality(prior: float, good: float, bad: float) -> Quality:
    """The posterior mean of Beta(prior·w + good, (1-prior)·w + bad)."""
    weight = PRIOR_WEIGHT + good + bad
    return Quality((prior * PRIOR_WEIGHT + good) / weight, good + bad)


def first_guess(parameters: int, category: Category, given: Mapping[str, float]) -> float:
    """What to expect before any rating: what the inventory says, else by size (log-linear between the table's
    rows)."""
    if category in given:
        return given[category]
    row = GUESS[category]
    above = bisect_left(SIZES, parameters)
    if above == 0:
        return row[0]
    if above == len(SIZES):
        return row[-1]
    low, high = SIZES[above - 1], SIZES[above]
    share = (log(parameters) - log(low)) / (log(high) - log(low))
    return row[above - 1] + share * (row[above] - row[above - 1])
