"""Fit the curves of `routing.confidence` on rated answers. Pure; numpy, and only when it fits.

MAP logistic regression by Newton's method, level upon level: all models, then each model, then each of its
categories, every level pulled towards the one above it. A level counts all of its answers, those that the
next one counts again among them; giving each answer to one level alone shrank too much (on 150 answers of the
tiny models it gained .07 nats a new answer against .09). What a curve is worth is measured on answers it was
not fitted on (FOLDS folds): the mean gain in log-likelihood over what the question alone tells, which is how
much better calibrated one is for having heard the model's confidence. That gain also chooses what a model's
whole answers are judged by: the probabilities of their tokens, their text, or both.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.routing.confidence import (
    ASKED,
    OF_QUESTION,
    SIGNALS,
    STAGES,
    SUREST,
    WHOLE,
    Curve,
    Curves,
    Sorts,
    Trail,
    follow,
    log_odds,
    rising,
)
from swarmctl.routing.fitting import Look, pivoted
from swarmctl.routing.signs import SIGNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.routing.features import Features

#: A level counts as this many ratings against the one below it, and what is of one sort of question alone.
PRIOR, SORT_PRIOR = 12.0, 4.0
#: Questions that stand for all: one for each hundred answers, within these.
SORTS, ANSWERS_EACH = (8, 16), 100
FOLDS = 5
#: Fewer ratings of a model than this are no curve of its own.
FEWEST = 20
#: One-sided: a model whose confidence says nothing is taken for one that speaks once in twenty.
CERTAIN = 1.645
ROUNDS = 25
#: What whole answers may be judged by, as columns of signals and signs. What the question tells is in all.
BY: Mapping[str, tuple[int, ...]] = {
    "probabilities": tuple(range(len(SIGNALS))),
    "text": (*range(OF_QUESTION), *range(len(SIGNALS), len(SIGNALS) + len(SIGNS))),
    "both": tuple(range(len(SIGNALS) + len(SIGNS))),
}


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer that was rated: the model's digest, the category, what the router believed before it, how
    likely its tokens were, the signs of its text, how good it was found (0 to 1), how much that counts, and
    its question's features. Where one has none, questions are not told apart."""

    digest: str
    category: str
    before: float
    trail: Trail
    signs: tuple[float, ...]
    good: float
    weight: float = 1.0
    features: Features | None = None


def fit(heard: Sequence[Heard]) -> Curves:
    """The curves of all models that were rated. No curve at all below FEWEST ratings."""
    if len(heard) < FEWEST:
        return Curves()
    rows = Rows(heard)
    everyone = list(range(len(heard)))
    pooled = _curve(rows, (everyone,))
    models: dict[str, Mapping[str, Curve]] = {}
    for digest, own in _by(heard, everyone, "digest").items():
        if len(own) >= FEWEST:
            whole = _curve(rows, (everyone, own))
            models[digest] = {"": whole, **{category: _within(rows, (everyone, own, some), whole)
                                            for category, some in _by(heard, own, "category").items()}}
    return Curves(pooled, models, rows.sorts)


def weights_of(x: Any, before: Any, good: Any, centre: Any, counts: Any, pull: Any) -> Any:  # noqa: ANN401
    """The most likely weights of a logistic curve for outcomes `good` (n), which count `counts` (n), given
    signals `x` (n, d) and the log-odds `before` (n), pulled towards `centre` (d) by `pull` (d): a quarter of
    as many answers with signals of unit size."""
    import numpy as np

    weights = centre.copy()
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(before + x @ weights, -30, 30)))
        slope = x.T @ (counts * (good - p)) - pull * (weights - centre)
        bend = (x * (counts * p * (1 - p))[:, None]).T @ x + np.diag(pull)
        step = np.linalg.solve(bend, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    return weights


class Rows:
    """The samples as arrays: signals at every stage, those of the whole with the signs behind, those of the
    question alone; how each question is sorted; log-odds before, outcomes. Answers to one question are in one
    fold."""

    def __init__(self, heard: Sequence[Heard]) -> None:
        import numpy as np

        self.sorts, self.sort = _sorted(heard)
        stages = [[follow(one.trail.beginning[:tokens]).signals(one.before) for one in heard]
                  for tokens in STAGES]
        whole = [(*one.trail.signals(one.before), *one.signs) for one in heard]
        raw = [np.array(rows) for rows in (*stages, whole, [row[:OF_QUESTION] for row in whole])]
        self.middle = [np.r_[0.0, rows.mean(0)[1:]] for rows in raw]
        self.x = [rows - middle for rows, middle in zip(raw, self.middle, strict=True)]
        self.before = np.array([log_odds(one.before) for one in heard])
        self.good = np.array([one.good for one in heard])
        self.counts = np.array([one.weight for one in heard])
        places: dict[object, int] = {}
        for i, one in enumerate(heard):
            places.setdefault(one.features or i, len(places))
        self.fold = np.array([places[one.features or i] % FOLDS for i, one in enumerate(heard)])

    def design(self, stage: int, some: Sequence[int], columns: Sequence[int]) -> Any:  # noqa: ANN401
        """The signals, plain and then by each sort."""
        import numpy as np

        plain = self.x[stage][some][:, list(columns)]
        return np.hstack([plain, *(plain * sort[:, None] for sort in self.sort[some].T)])

    def pull(self, width: int) -> Any:  # noqa: ANN401
        """How strongly each column of a design is pulled."""
        import numpy as np

        return np.r_[np.full(width, PRIOR), np.full(width * self.sort.shape[1], SORT_PRIOR)] / 4

    def spread(self, stage: int, columns: Sequence[int], weights: Any) -> Any:  # noqa: ANN401
        """Weights of a design as rows, plain and by sort, of all signals as they come: 0 for what is not
        among the columns."""
        import numpy as np

        rows = np.zeros((1 + self.sort.shape[1], self.x[stage].shape[1]))
        rows[:, list(columns)] = weights.reshape(len(rows), -1)
        rows[:, 0] -= rows @ self.middle[stage]
        return rows.round(4)  # read by every question


def _sorted(heard: Sequence[Heard]) -> tuple[Sorts | None, Any]:
    """The few questions that stand for all, and how like them each is (answers, sorts)."""
    import numpy as np

    known = [one.features for one in heard if one.features]
    if len(known) < len(heard):
        return None, np.zeros((len(heard), 0))
    look = Look.of(known, vectors=False)
    chosen, factor = pivoted(look, min(max(len(heard) // ANSWERS_EACH, SORTS[0]), SORTS[1]))
    back = np.linalg.inv(factor[chosen]).T
    rows = [[tuple(map(float, row)) for row in many] for many in (look.points[chosen], back)]
    return Sorts(tuple(look.centre.tolist()), tuple(look.scale.tolist()), *map(tuple, rows)), factor


def _within(rows: Rows, levels: tuple[list[int], ...], whole: Curve) -> Curve:
    """The curve of a category of a model whose own is `whole`. Few ratings cannot prove that it speaks: where
    they do not speak against it, the model's word stands; what it tells lies between its own and the
    model's."""
    own = _curve(rows, levels, whole.by)
    part = own.ratings / (own.ratings + FEWEST)
    told = [part * here + (1 - part) * there
            for here, there in zip(own.information, whole.information, strict=True)]
    low = max(own.gain_low, whole.gain_low) if own.gain > 0 else min(own.gain_low, 0.0)
    return replace(own, information=rising(told), gain_low=low)


def _curve(rows: Rows, levels: tuple[list[int], ...], by: str = "") -> Curve:
    """Fit the curve of the last of the levels; `by` is what whole answers are to be judged by."""
    judged = levels[-1]
    likelier = {one: _gains(rows, levels, judged, BY[one]) for one in ([by] if by else BY)}
    by = max(likelier, key=lambda name: float(likelier[name].mean()))
    gains = likelier[by]
    error = float(gains.std(ddof=1)) / len(judged) ** 0.5 if len(judged) > 1 else 1.0
    used = [BY["probabilities"]] * WHOLE + [BY[by], tuple(range(OF_QUESTION))]
    known = left_out(rows, ASKED, levels, judged, used[ASKED])
    told = [_apart(left_out(rows, stage, levels, judged, used[stage]) - known, rows.good[judged])
            for stage in range(WHOLE + 1)]
    found = [rows.spread(stage, used[stage], _levels(rows, stage, levels, used[stage])).tolist()
             for stage in range(ASKED + 1)]
    return Curve(tuple(tuple(stage[0]) for stage in found), rising(told), len(judged), float(gains.mean()),
                 float(gains.mean()) - CERTAIN * error, by,
                 tuple(tuple(map(tuple, stage[1:])) for stage in found))


def _levels(rows: Rows, stage: int, levels: tuple[list[int], ...], columns: Sequence[int]) -> Any:  # noqa: ANN401
    """The weights of the last level, level upon level."""
    import numpy as np

    pull = rows.pull(len(columns))
    weights = np.zeros(len(pull))
    for own in levels:
        weights = weights_of(rows.design(stage, own, columns), rows.before[own], rows.good[own], weights,
                             rows.counts[own], pull)
    return weights


def left_out(rows: Rows, stage: int, levels: tuple[list[int], ...], judged: list[int],
              columns: Sequence[int]) -> Any:  # noqa: ANN401  an array
    """The evidence of each judged answer, by a curve that was fitted without it."""
    import numpy as np

    found = np.zeros(len(judged))
    for fold in range(FOLDS):
        kept = tuple([i for i in level if rows.fold[i] != fold] for level in levels)
        left = [place for place, i in enumerate(judged) if rows.fold[i] == fold]
        out = rows.design(stage, [judged[place] for place in left], columns)
        found[left] = out @ _levels(rows, stage, kept, columns)
    return np.clip(found, -SUREST, SUREST)


def _gains(rows: Rows, levels: tuple[list[int], ...], judged: list[int], columns: tuple[int, ...]) -> Any:  # noqa: ANN401
    """How much likelier each judged answer's outcome is with the evidence than without, in nats: than by the
    belief before, or by what the question alone makes of it, whichever is the better."""
    import numpy as np

    odds, good = rows.before[judged], rows.good[judged]

    def likelihood(evidence: Any) -> Any:  # noqa: ANN401
        said = odds + evidence
        return good * -np.logaddexp(0, -said) + (1 - good) * -np.logaddexp(0, said)

    asked = likelihood(left_out(rows, ASKED, levels, judged, range(OF_QUESTION)))
    without = max(asked, likelihood(0.0), key=lambda found: float(found.mean()))
    return likelihood(left_out(rows, WHOLE, levels, judged, columns)) - without


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
