"""The journal replayed: how well the router believed what was then said of each answer, fitted only on what
was known before it.

Only answers that were given could be rated, so this is no experiment. Calibration is judged on every rating,
by the model that answered; which model is the better one only on prompts where several were rated (compared,
shadowed, asked twice), and that is said beside the numbers. Intervals are bootstraps over prompts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.evaluation.learned import learn
from swarmctl.ledger.routers import weight_of
from swarmctl.routing.beliefs import believe, known_as, see
from swarmctl.routing.features import read_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from swarmctl.evaluation.learned import Known, Vectors
    from swarmctl.ledger.routers import Opinion
    from swarmctl.routing.beliefs import Belief, Weights

    Array = Any

#: Fits of a replay; before each, so many of the ratings are known.
STEPS = 8
#: Ratings before the first fit, and the fewest to be replayed at all.
BEGIN, FEWEST = 10, 20
BINS = 10
BOOTSTRAPS = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Brier score (0 is best) and expected calibration error of one way to believe."""

    brier: Interval
    ece: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it. `gain` is the heuristic's Brier score less the learned one's. Of `pairs` prompts
    several models were rated: `better` is how much better (share of good answers) the learned choice was
    there than the heuristic's, `regret` how much worse than the best, `moved` the share of them where the two
    choose differently."""

    ratings: int
    prompts: int
    heuristic: Calibration
    learned: Calibration
    gain: Interval
    pairs: int
    better: Interval | None
    regret: Interval | None
    moved: float


@dataclass(frozen=True, slots=True)
class _Told:
    """One rating, and what both believed just before it."""

    opinion: Opinion
    heuristic: float
    learned: float


def replay(opinions: Sequence[Opinion], served: Sequence[Known], vectors: Vectors,
           progress: Callable[[int, int], None]) -> Replayed | None:
    """Replay ratings of served models, oldest first; None where they are fewer than FEWEST. `progress` is
    told the step and how many there are."""
    models = {one.model for one in served}
    known = [one for one in opinions if one.model in models]
    if len(known) < FEWEST:
        return None
    told = list(_told(known, served, vectors, progress))
    groups = _by_prompt(told)
    choices = [one for one in (_choice(group) for group in groups) if one]
    return Replayed(
        len(told), len(groups), _calibration(told, groups, lambda one: one.heuristic),
        _calibration(told, groups, lambda one: one.learned),
        _interval([[_square(one.opinion, one.heuristic) - _square(one.opinion, one.learned) for one in group]
                   for group in groups]),
        len(choices), _interval([[better] for better, _, _ in choices]) if choices else None,
        _interval([[regret] for _, regret, _ in choices]) if choices else None,
        sum(moved for _, _, moved in choices) / len(choices) if choices else 0.0)


def _told(opinions: Sequence[Opinion], served: Sequence[Known], vectors: Vectors,
          progress: Callable[[int, int], None]) -> Iterator[_Told]:
    size = -(-(len(opinions) - BEGIN) // STEPS)
    by_model: dict[str, Known] = {}
    for weights_served in served:
        by_model.setdefault(weights_served.model, weights_served)
    for step in range(STEPS):
        begin = BEGIN + step * size
        block = opinions[begin:begin + size]
        if not block:
            return
        progress(step + 1, STEPS)
        before = opinions[:begin]
        weights = learn(before, served, vectors, version="replay", at="")
        counts = _counts(before, by_model)
        for one in block:
            to = next((known for known in served if (known.model, known.digest) == (one.model, one.digest)),
                      by_model[one.model])
            plain, fitted = _both(one, to, weights, counts, vectors)
            yield _Told(one, plain.mean, fitted.mean)


def _both(one: Opinion, to: Known, weights: Weights, counts: Mapping[tuple[str, str], tuple[float, float]],
          vectors: Vectors) -> tuple[Belief, Belief]:
    good, bad = counts.get((to.model, one.category), (0.0, 0.0))
    vector = vectors.of(one.question)
    seen = see(weights, read_features(one.question, vector, vectors.embedder if vector else ""))
    name = known_as(to.model, to.digest)
    plain = believe(name, to.parameters, to.prior, good, bad, one.category)
    return plain, believe(name, to.parameters, to.prior, good, bad, one.category, seen)


def _counts(opinions: Sequence[Opinion],
            by_model: Mapping[str, Known]) -> dict[tuple[str, str], tuple[float, float]]:
    found: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for one in opinions:
        part = one.weight * weight_of(one.digest, by_model[one.model].digest)
        good, bad = found[one.model, one.category]
        found[one.model, one.category] = (good + part * one.good, bad + part * (1 - one.good))
    return found


def _by_prompt(told: Sequence[_Told]) -> list[list[_Told]]:
    groups: dict[str, list[_Told]] = defaultdict(list)
    for one in told:
        groups[one.opinion.question].append(one)
    return list(groups.values())


def _choice(group: Sequence[_Told]) -> tuple[float, float, bool] | None:
    """How much better the learned choice was than the heuristic's, how much worse than the best, and whether
    it was another one; None where fewer than two models were rated."""
    latest = {one.opinion.model: one for one in group}
    if len(latest) < 2:
        return None
    plain = max(latest.values(), key=lambda one: one.heuristic)
    fitted = max(latest.values(), key=lambda one: one.learned)
    best = max(one.opinion.good for one in latest.values())
    return fitted.opinion.good - plain.opinion.good, best - fitted.opinion.good, fitted is not plain


def _square(opinion: Opinion, believed: float) -> float:
    return (believed - opinion.good) ** 2


def _calibration(told: Sequence[_Told], groups: Sequence[Sequence[_Told]],
                 believed: Callable[[_Told], float]) -> Calibration:
    brier = _interval([[_square(one.opinion, believed(one)) for one in group] for group in groups])
    ranked = sorted(told, key=believed)
    size = -(-len(ranked) // BINS)
    bins = [ranked[start:start + size] for start in range(0, len(ranked), size)]
    gaps = (abs(sum(believed(one) - one.opinion.good for one in several)) for several in bins)
    return Calibration(brier, sum(gaps) / len(told))


def _interval(groups: Sequence[Sequence[float]]) -> Interval:
    """The mean over all values, and its bootstrap over groups."""
    import numpy as np

    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (BOOTSTRAPS, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))
