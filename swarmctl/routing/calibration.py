"""Fit the curves of `routing.confidence` on rated answers. Pure; numpy, and only when it fits.

MAP logistic regression by Newton's method, level upon level: all models, then each model, then each of its
categories, every level pulled towards the one above it. What a curve is worth is measured on answers it was
not fitted on (FOLDS folds): the mean gain in log-likelihood over the belief before the answer, which is how
much better calibrated one is for having heard the model's confidence.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.routing.confidence import STAGES, WHOLE, Curve, Curves, Trail, clamp, follow, log_odds, rising

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: A level counts as this many ratings against the one below it.
PRIOR = 12.0
FOLDS = 5
#: Fewer ratings of a model than this are no curve of its own.
FEWEST = 20
#: One-sided: a model whose confidence says nothing is taken for one that speaks once in twenty.
CERTAIN = 1.645
ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer that was rated: the model's digest, the category, what the router believed before it, how
    likely its tokens were, and how good it was found (0 to 1)."""

    digest: str
    category: str
    before: float
    trail: Trail
    good: float


def fit(heard: Sequence[Heard]) -> Curves:
    """The curves of all models that were rated. No curve at all below FEWEST ratings."""
    if len(heard) < FEWEST:
        return Curves()
    rows = _Rows(heard)
    everyone = list(range(len(heard)))
    pooled = _curve(rows, everyone, ())
    models: dict[str, Mapping[str, Curve]] = {}
    for digest, own in _by(heard, everyone, "digest").items():
        if len(own) >= FEWEST:
            models[digest] = {"": _curve(rows, own, (everyone,)),
                              **{category: _curve(rows, some, (everyone, own), judged=own)
                                 for category, some in _by(heard, own, "category").items()}}
    return Curves(pooled, models)


class _Rows:
    """The samples as arrays: signals at every stage, log-odds before, outcomes."""

    def __init__(self, heard: Sequence[Heard]) -> None:
        import numpy as np

        self.x = [np.array([follow(one.trail.beginning[:tokens]).signals() for one in heard])
                  for tokens in STAGES]
        self.x.append(np.array([one.trail.signals() for one in heard]))
        self.before = np.array([log_odds(one.before) for one in heard])
        self.good = np.array([one.good for one in heard])


def _curve(rows: _Rows, own: list[int], above: tuple[list[int], ...],
           judged: list[int] | None = None) -> Curve:
    """Fit the curve of some answers beneath the levels above them. `judged` are those that its worth is
    measured on."""
    weights = tuple(tuple(float(w) for w in _levels(rows, stage, (*above, own)))
                    for stage in range(WHOLE + 1))
    told, gain, low = _worth(rows, (*above, judged or own))
    return Curve(weights, told, len(own), gain, low)


def _levels(rows: _Rows, stage: int, levels: tuple[list[int], ...]) -> Any:  # noqa: ANN401  an array
    import numpy as np

    weights = np.zeros(rows.x[stage].shape[1])
    for own in levels:
        weights = _newton(rows.x[stage][own], rows.before[own], rows.good[own], weights)
    return weights


def _newton(x: Any, before: Any, good: Any, centre: Any) -> Any:  # noqa: ANN401  arrays
    """The most likely weights, pulled towards the centre as strongly as PRIOR answers of middling surprise
    would."""
    import numpy as np

    pull = PRIOR / 4
    weights = centre.copy()
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(before + x @ weights, -30, 30)))
        slope = x.T @ (good - p) - pull * (weights - centre)
        bend = (x * (p * (1 - p))[:, None]).T @ x + pull * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _worth(rows: _Rows, levels: tuple[list[int], ...]) -> tuple[tuple[float, ...], float, float]:
    """On answers left out of the fit: information at each stage, and the whole answer's gain with its lower
    end."""
    import numpy as np

    own = levels[-1]
    told = []
    for stage in range(WHOLE + 1):
        found = np.zeros(len(own))
        for fold in range(FOLDS):
            kept = tuple([i for i in level if i % FOLDS != fold] for level in levels)
            left = [place for place, i in enumerate(own) if i % FOLDS == fold]
            weights = _levels(rows, stage, kept)
            found[left] = rows.x[stage][[own[place] for place in left]] @ weights
        told.append(np.clip(found, clamp(-99), clamp(99)))
    good = rows.good[own]
    apart = [_mean(one, good) - _mean(one, 1 - good) for one in told]
    gains = _likelihood(rows.before[own] + told[-1], good) - _likelihood(rows.before[own], good)
    error = float(gains.std(ddof=1)) / len(own) ** 0.5 if len(own) > 1 else float("inf")
    return rising(apart), float(gains.mean()), float(gains.mean()) - CERTAIN * error


def _mean(values: Any, weight: Any) -> float:  # noqa: ANN401  arrays
    return float((values * weight).sum() / weight.sum()) if weight.sum() > 0 else 0.0


def _likelihood(odds: Any, good: Any) -> Any:  # noqa: ANN401  arrays
    import numpy as np

    return good * -np.logaddexp(0, -odds) + (1 - good) * -np.logaddexp(0, odds)


def _by(heard: Sequence[Heard], some: list[int], key: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in some:
        groups[getattr(heard[i], key)].append(i)
    return groups
