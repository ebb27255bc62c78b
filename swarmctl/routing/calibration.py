"""Fit the curves of `routing.confidence` on rated answers. Pure; numpy, and only when it fits.

MAP logistic regression by Newton's method, level upon level: all models, then each model, then each of its
categories, every level pulled towards the one above it. A level counts all of its answers, those that the
next one counts again among them; giving each answer to one level alone shrank too much (on 150 answers of the
tiny models it gained .07 nats a new answer against .09). What a curve is worth is measured on answers it was
not fitted on (FOLDS folds): the mean gain in log-likelihood over the belief before the answer, which is how
much better calibrated one is for having heard the model's confidence. That gain also chooses what a model's
whole answers are judged by: the probabilities of their tokens, their text, or both.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.routing.confidence import (
    SIGNALS,
    STAGES,
    SUREST,
    WHOLE,
    Curve,
    Curves,
    Trail,
    follow,
    log_odds,
    rising,
)
from swarmctl.routing.signs import SIGNS

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
#: What whole answers may be judged by, as columns of signals and signs. The shift is in all.
BY: Mapping[str, tuple[int, ...]] = {
    "probabilities": tuple(range(len(SIGNALS))),
    "text": (0, *range(len(SIGNALS), len(SIGNALS) + len(SIGNS))),
    "both": tuple(range(len(SIGNALS) + len(SIGNS))),
}


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer that was rated: the model's digest, the category, what the router believed before it, how
    likely its tokens were, the signs of its text, how good it was found (0 to 1), how much that counts."""

    digest: str
    category: str
    before: float
    trail: Trail
    signs: tuple[float, ...]
    good: float
    weight: float = 1.0


def fit(heard: Sequence[Heard]) -> Curves:
    """The curves of all models that were rated. No curve at all below FEWEST ratings."""
    if len(heard) < FEWEST:
        return Curves()
    rows = _Rows(heard)
    everyone = list(range(len(heard)))
    pooled = _curve(rows, (everyone,))
    models: dict[str, Mapping[str, Curve]] = {}
    for digest, own in _by(heard, everyone, "digest").items():
        if len(own) >= FEWEST:
            whole = _curve(rows, (everyone, own))
            models[digest] = {"": whole, **{category: _within(rows, (everyone, own, some), whole)
                                            for category, some in _by(heard, own, "category").items()}}
    return Curves(pooled, models)


def weights_of(x: Any, before: Any, good: Any, centre: Any, counts: Any) -> Any:  # noqa: ANN401  arrays
    """The most likely weights of a logistic curve for outcomes `good` (n), which count `counts` (n), given
    signals `x` (n, d) and the log-odds `before` (n), pulled towards `centre` (d) as strongly as PRIOR answers
    would be of signals of unit size."""
    import numpy as np

    pull = PRIOR / 4
    weights = centre.copy()
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(before + x @ weights, -30, 30)))
        slope = x.T @ (counts * (good - p)) - pull * (weights - centre)
        bend = (x * (counts * p * (1 - p))[:, None]).T @ x + pull * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    return weights


class _Rows:
    """The samples as arrays: signals at every stage, those of the whole with the signs behind, log-odds
    before, outcomes."""

    def __init__(self, heard: Sequence[Heard]) -> None:
        import numpy as np

        self.x = [np.array([follow(one.trail.beginning[:tokens]).signals() for one in heard])
                  for tokens in STAGES]
        self.x.append(np.array([(*one.trail.signals(), *one.signs) for one in heard]))
        self.before = np.array([log_odds(one.before) for one in heard])
        self.good = np.array([one.good for one in heard])
        self.counts = np.array([one.weight for one in heard])


def _within(rows: _Rows, levels: tuple[list[int], ...], whole: Curve) -> Curve:
    """The curve of a category of a model whose own is `whole`. Few ratings cannot prove that it speaks: where
    they do not speak against it, the model's word stands; what it tells lies between its own and the
    model's."""
    own = _curve(rows, levels, whole.by)
    part = own.ratings / (own.ratings + FEWEST)
    told = [part * here + (1 - part) * there
            for here, there in zip(own.information, whole.information, strict=True)]
    low = max(own.gain_low, whole.gain_low) if own.gain > 0 else min(own.gain_low, 0.0)
    return replace(own, information=rising(told), gain_low=low)


def _curve(rows: _Rows, levels: tuple[list[int], ...], by: str = "") -> Curve:
    """Fit the curve of the last of the levels; `by` is what whole answers are to be judged by."""
    judged = levels[-1]
    likelier = {one: _gains(rows, levels, judged, BY[one]) for one in ([by] if by else BY)}
    by = max(likelier, key=lambda name: float(likelier[name].mean()))
    gains = likelier[by]
    error = float(gains.std(ddof=1)) / len(judged) ** 0.5 if len(judged) > 1 else 1.0
    used = [BY["probabilities"]] * WHOLE + [BY[by]]
    told = [_apart(_left_out(rows, stage, levels, judged, used[stage]), rows.good[judged])
            for stage in range(WHOLE + 1)]
    weights = tuple(tuple(float(w) for w in _levels(rows, stage, levels, used[stage]))
                    for stage in range(WHOLE + 1))
    return Curve(weights, rising(told), len(judged), float(gains.mean()),
                 float(gains.mean()) - CERTAIN * error, by)


def _levels(rows: _Rows, stage: int, levels: tuple[list[int], ...], columns: tuple[int, ...]) -> Any:  # noqa: ANN401
    """The weights of the last level, level upon level; 0 for what is not among the columns."""
    import numpy as np

    some = list(columns)
    weights = np.zeros(len(some))
    for own in levels:
        weights = weights_of(rows.x[stage][own][:, some], rows.before[own], rows.good[own], weights,
                             rows.counts[own])
    whole = np.zeros(rows.x[stage].shape[1])
    whole[some] = weights
    return whole


def _left_out(rows: _Rows, stage: int, levels: tuple[list[int], ...], judged: list[int],
              columns: tuple[int, ...]) -> Any:  # noqa: ANN401  an array
    """The evidence of each judged answer, by a curve that was fitted without it."""
    import numpy as np

    found = np.zeros(len(judged))
    for fold in range(FOLDS):
        kept = tuple([i for i in level if i % FOLDS != fold] for level in levels)
        left = [place for place, i in enumerate(judged) if i % FOLDS == fold]
        found[left] = rows.x[stage][[judged[place] for place in left]] @ _levels(rows, stage, kept, columns)
    return np.clip(found, -SUREST, SUREST)


def _gains(rows: _Rows, levels: tuple[list[int], ...], judged: list[int], columns: tuple[int, ...]) -> Any:  # noqa: ANN401
    """How much likelier each judged answer's outcome is with the evidence than without, in nats."""
    import numpy as np

    odds, good = rows.before[judged], rows.good[judged]

    def likelihood(odds: Any) -> Any:  # noqa: ANN401
        return good * -np.logaddexp(0, -odds) + (1 - good) * -np.logaddexp(0, odds)

    return likelihood(odds + _left_out(rows, WHOLE, levels, judged, columns)) - likelihood(odds)


def _apart(evidence: Any, good: Any) -> float:  # noqa: ANN401  arrays
    """How far good answers lie from bad ones, on average."""
    right, wrong = good.sum(), (1 - good).sum()
    if not right or not wrong:
        return 0.0
    return float((evidence * good).sum() / right - (evidence * (1 - good)).sum() / wrong)


def _by(heard: Sequence[Heard], some: list[int], key: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in some:
        groups[getattr(heard[i], key)].append(i)
    return groups
