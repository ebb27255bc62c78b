"""How often answers were liked, with how sure one can be of it. Pure.

The interval is Wilson's score interval (Wilson 1927; Brown, Cai & DasGupta 2001 recommend it for few votes).
A score between -1 and 1 counts as a part of a vote, as in routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from swarmctl.learning.labels import standing

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from swarmctl.learning.labels import Answer, Labels

Key = TypeVar("Key", bound="Hashable")

#: The standard normal quantile of a two-sided interval of 95 %.
Z = 1.959964


@dataclass(frozen=True, slots=True)
class Approval:
    """`good` of `votes` were good; the true share lies between `low` and `high` with a confidence of 95 %."""

    good: float
    votes: float
    low: float
    high: float

    @property
    def share(self) -> float | None:
        """Good of all, 0 to 1; None without votes."""
        return self.good / self.votes if self.votes else None


def wilson(good: float, votes: float, z: float = Z) -> Approval:
    """Wilson's interval of `good` out of `votes`. Without votes it is all of [0, 1]."""
    if votes <= 0:
        return Approval(0.0, 0.0, 0.0, 1.0)
    share, spread = good / votes, z * z / votes
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(max(0.0, share * (1 - share) / votes + spread / (4 * votes)))
    return Approval(good, votes, max(0.0, middle - half), min(1.0, middle + half))


def approval_by(labels: Labels, key: Callable[[Answer], Key | None]) -> dict[Key, Approval]:
    """Approval of each key that an answer has: its model, its digest, its topic …; None is left out."""
    def scored() -> Iterable[tuple[Key, float]]:
        for vote in standing(labels.votes).values():
            answer = labels.answers.get(vote.exchange)
            found = key(answer) if answer is not None else None
            if found is not None and vote.score is not None:
                yield found, (1 + vote.score) / 2

    return approvals(scored())


def approvals(votes: Iterable[tuple[Key, float]]) -> dict[Key, Approval]:
    """Approval of each key, from votes as (key, goodness from 0 to 1)."""
    sums: dict[Key, tuple[float, float]] = {}
    for key, good in votes:
        before = sums.get(key, (0.0, 0.0))
        sums[key] = (before[0] + good, before[1] + 1)
    return {key: wilson(*counted) for key, counted in sums.items()}
