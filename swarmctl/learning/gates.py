"""Whether a new release may replace the old one: statistics of few votes and few prompts, honest about what
is not known.

Votes may be looked at after each one, so they are judged by an e-process, whose evidence stays valid however
often it is read. Graded answers come in pairs (both releases, the same prompt) and in groups (prompts that
are versions of each other), so their mean difference gets an interval from a paired bootstrap over groups.
Inconclusive keeps the champion. Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Decision = Literal["promote", "rollback", "keep"]

#: 20 to 1: under no difference such evidence is ever reached with a chance of at most 1/20 (Ville).
ENOUGH = 20.0
RESAMPLES = 4000
#: How much worse a release may be at what it was not trained for, and still be called no worse.
MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Votes:
    """Decisive votes in their order, and the strongest evidence they ever gave: `better` that the new one
    wins more than half of them, `worse` that it wins fewer. `at` is how many votes it took until one of the
    two was enough, None where neither is."""

    wins: int
    losses: int
    ties: int
    better: float
    worse: float
    at: int | None

    @property
    def verdict(self) -> Decision:
        """What the votes alone say: the direction whose evidence was enough, else keep."""
        if self.at is None:
            return "keep"
        return "promote" if self.better >= ENOUGH > self.worse else "rollback"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference (new minus old, on a scale where 1 is all right and 0 none) with a 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int
    groups: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate decides, and every reason in a person's words."""

    decision: Decision
    reasons: tuple[str, ...]


@lru_cache(maxsize=1 << 15)
def evidence(wins: int, losses: int) -> float:
    """How many times likelier these votes are if the new one wins more often than not, averaged over every
    chance of winning between 1/2 and 1, than under no difference.

    The e-value of a uniform mixture: the integral of 2 p^wins (1-p)^losses over (1/2, 1), over 2^-n
    (Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023).
    """
    n = wins + losses
    log_beta = math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(n + 2)
    return math.exp((n + 1) * math.log(2) + log_beta + _log_at_most(wins, n + 1))


def votes(outcomes: Iterable[bool | None]) -> Votes:
    """Judge votes in the order in which they came: True for the new one, False for the old, None for a tie.

    The first direction to reach ENOUGH stands: what comes after the decision does not unmake it.
    """
    wins = losses = ties = 0
    better = worse = 1.0
    at: int | None = None
    for outcome in outcomes:
        if outcome is None:
            ties += 1
            continue
        wins, losses = wins + outcome, losses + (not outcome)
        if at is None:
            better, worse = max(better, evidence(wins, losses)), max(worse, evidence(losses, wins))
            at = wins + losses if max(better, worse) >= ENOUGH else None
    return Votes(wins, losses, ties, better, worse, at)


def side_by_side(new: Sequence[float], old: Sequence[float]) -> tuple[bool | None, ...]:
    """Votes out of separate ratings of two releases: the k-th rating of one against the k-th of the other.

    Under no difference the pairs are exchangeable, so the order's sign is a fair coin. Ratings without a
    partner wait for one.
    """
    return tuple(None if a == b else a > b for a, b in zip(new, old, strict=False))


def paired(differences: Sequence[float], groups: Sequence[str], *, resamples: int = RESAMPLES,
           seed: int = 0) -> Interval:
    """The mean of per-prompt differences with a bootstrap over whole groups: prompts of one group are not
    independent, so they are drawn together (after Miller, "Adding error bars to evals", arXiv:2411.00640).

    The interval is the wider of the bootstrap's percentiles and the clustered standard error with Student's
    quantile: percentiles alone are too narrow for few groups. Raises ValueError where there is nothing.
    """
    sums = _by_group(differences, groups)
    mean = sum(differences) / len(differences)
    if len(sums) < 2:
        return Interval(mean, -1.0, 1.0, len(differences), len(sums))
    drawn = sorted(_resampled(sums, resamples, random.Random(seed)))  # noqa: S311  no secret
    wide = _student(len(sums) - 1) * _clustered_error(sums, mean)
    low = min(drawn[int(0.025 * resamples)], mean - wide)
    high = max(drawn[math.ceil(0.975 * resamples) - 1], mean + wide)
    return Interval(mean, max(low, -1.0), min(high, 1.0), len(differences), len(sums))


def decide(quality: Interval | Votes | None, capability: Interval | None, *, name: str = "held-out prompts",
           margin: float = MARGIN) -> Judgement:
    """One measure of quality and the capability set, and what follows: a significant loss in either means
    rollback, a significant gain in quality with capability no worse by more than `margin` means promote, and
    all else keeps the champion."""
    reasons = (_of_quality(quality, name), _of_capability(capability, margin))
    said = [decision for decision, _ in reasons]
    text = tuple(reason for _, reason in reasons)
    if "rollback" in said:
        return Judgement("rollback", text)
    return Judgement("promote" if said == ["promote", "promote"] else "keep", text)


def summary(judgement: Judgement) -> Mapping[str, object]:
    """The judgement as it is recorded."""
    return {"decision": judgement.decision, "reasons": list(judgement.reasons)}


def _of_quality(quality: Interval | Votes | None, name: str) -> tuple[Decision, str]:
    if quality is None:
        return "keep", f"{name}: nothing was measured"
    if isinstance(quality, Votes):
        odds = max(quality.better, quality.worse)
        text = (f"{name}: {quality.wins} won, {quality.losses} lost, {quality.ties} tied; "
                f"evidence {odds:.3g} to 1, {ENOUGH:g} are needed")
        return quality.verdict, text
    text = f"{name}: {_said(quality)}"
    if quality.low > 0:
        return "promote", f"{text}: better"
    return ("rollback", f"{text}: worse") if quality.high < 0 else ("keep", f"{text}: no clear difference")


def _of_capability(capability: Interval | None, margin: float) -> tuple[Decision, str]:
    if capability is None:
        return "keep", "capability: nothing was measured"
    text = f"capability: {_said(capability)}"
    if capability.high < 0:
        return "rollback", f"{text}: something was lost"
    if capability.low < -margin:
        return "keep", f"{text}: a loss of more than {margin:.0%} cannot be ruled out"
    return "promote", f"{text}: no worse"


def _said(interval: Interval) -> str:
    return (f"{interval.mean:+.1%} ({interval.low:+.1%} to {interval.high:+.1%}, {interval.prompts} prompts "
            f"in {interval.groups} groups)")


def _log_at_most(k: int, n: int) -> float:
    """log P(Binomial(n, 1/2) <= k)."""
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms)) - n * math.log(2)


def _by_group(differences: Sequence[float], groups: Sequence[str]) -> tuple[tuple[float, int], ...]:
    """The sum and count of each group."""
    if not differences:
        raise ValueError("no differences")
    found: dict[str, tuple[float, int]] = {}
    for difference, group in zip(differences, groups, strict=True):
        total, count = found.get(group, (0.0, 0))
        found[group] = (total + difference, count + 1)
    return tuple(found.values())


def _resampled(sums: Sequence[tuple[float, int]], resamples: int, rng: random.Random) -> list[float]:
    means = []
    for _ in range(resamples):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    return means


def _clustered_error(sums: Sequence[tuple[float, int]], mean: float) -> float:
    count, clusters = sum(n for _, n in sums), len(sums)
    squares = sum((total - n * mean) ** 2 for total, n in sums)
    return math.sqrt(squares * clusters / (clusters - 1)) / count


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5);
    exact for one and two degrees of freedom, where the expansion is poor."""
    if freedom <= 2:
        return (12.706, 4.303)[freedom - 1]
    x, v = 1.959964, float(freedom)
    return (x + (x**3 + x) / (4 * v) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * v**2)
            + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * v**3))
