"""How sure a model is of its own answer, and what that has meant in this swarm so far.

A model's own probabilities are no probabilities of being right: one model's 90 % is right four times of five,
another's says nothing. So they are evidence, and a curve per model, fitted on ratings, weighs it:

    log-odds(good) = log-odds(good | the question) + w(question) · signals(probabilities of the tokens so far)

The first term is what the router believed before it asked; it is a signal too, so that a belief which was too
timid, or too sure, is put right. w = 0, "says nothing", is where every fit starts: the curve of all models is
pulled towards it, the curve of one model towards the one of all, its curve for a category towards the model's
own (ridge; each level counts as PRIOR ratings). The logistic curve is Platt's (Advances in Large Margin
Classifiers, 1999), with more than one signal. One curve each for the question alone, for the first 1, 2, 4 …
tokens and for the whole answer, because the same figure means more of a long answer than of a short one.

A model that knows when it misspells does not therefore know when it miscounts: the weights differ from one
sort of question to another, w(question) = w + Σ w_k sort_k(question). Sorts are a few questions that stand
for all (`Sorts`), and how like them a question is.

Answers that escalate are rated in nobody's favour and leave a gap in the ratings. As it depends on the very
signals that the curve takes in, it widens the uncertainty there and does not bend the curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import dist, exp, log, log1p
from operator import mul
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Category
    from swarmctl.routing.features import Features

#: Tokens after which the curve changes; after the last of them it stays.
STAGES = (1, 2, 4, 8, 16, 32, 64)
#: After the curves of the stages stands that of the whole answer, and then that of the question alone.
WHOLE = len(STAGES)
ASKED = WHOLE + 1
#: Names of the signals, in the order of a curve's weights; the first weight is the curve's shift.
SIGNALS = ("shift", "believed", "whole", "least", "first", "length")
#: Those of the question alone.
OF_QUESTION = 2
#: From about this log-probability on, a token was no matter of course.
WAVERED = 0.1
#: No belief is surer than this, in log-odds (99.75 %).
SUREST = 6.0


@dataclass(frozen=True, slots=True)
class Sorts:
    """How a question is sorted: its counts in standard deviations (`centre`, `scale`), how like that is to
    each of a few `landmarks`, and `back`, which makes independent numbers of it."""

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    back: tuple[tuple[float, ...], ...]

    def of(self, features: Features) -> tuple[float, ...]:
        """A question, as so many numbers as there are landmarks."""
        point = [max(-4.0, min(4.0, (value - middle) / spread)) for value, middle, spread
                 in zip(features.surface, self.centre, self.scale, strict=True)]
        near = [exp(-dist(point, other) ** 2 / (2 * len(point))) for other in self.landmarks]
        return tuple(sum(map(mul, near, column)) for column in zip(*self.back, strict=True))


@dataclass(frozen=True, slots=True)
class Curve:
    """What one model's probabilities mean: weights of the signals at each stage, then for whole answers, with
    the signs of their text behind, then for the question alone; 0 where one is not used. `by` is what was
    found to say the most of whole answers: probabilities, text, or both. `sorted` are what is added to the
    weights by the sort of question: for each stage, as many rows as there are sorts.

    `information` is how far good and bad answers lie apart by each stage, beyond what the question told
    (difference of the mean log-odds); `gain` what the curve tells of an answer it was not fitted on (nats,
    mean, with the lower end of its interval).
    """

    weights: tuple[tuple[float, ...], ...]
    information: tuple[float, ...]
    ratings: int = 0
    gain: float = 0.0
    gain_low: float = 0.0
    by: str = "probabilities"
    sorted: tuple[tuple[tuple[float, ...], ...], ...] = ()

    @property
    def speaks(self) -> bool:
        """Whether the model's confidence says anything: the interval of the gain leaves out zero."""
        return self.gain_low > 0.0

    def at(self, sort: Sequence[float]) -> Curve:
        """The curve as it is for one question, of that sort."""
        weights = tuple(
            tuple(w + sum(map(mul, sort, more)) for w, *more in zip(plain, *rows, strict=True))
            for plain, rows in zip(self.weights, self.sorted, strict=True))
        return replace(self, weights=weights, sorted=())


@dataclass(frozen=True, slots=True)
class Curves:
    """Of every model and category; `pooled` is that of all models together."""

    pooled: Curve | None = None
    models: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    sorts: Sorts | None = None

    def of(self, digest: str, category: Category, features: Features | None = None) -> Curve | None:
        """The curve of a model (by its digest), or of all where it has none, for a question with these
        features; None where there is neither."""
        own = self.models.get(digest, {})
        found = own.get(category) or own.get("") or self.pooled
        if found is None or self.sorts is None or features is None or not found.sorted:
            return found
        return found.at(self.sorts.of(features))


@dataclass(slots=True)
class Trail:
    """The log-probabilities of an answer's tokens, as they come. `beginning` keeps those that stages need."""

    tokens: int = 0
    total: float = 0.0
    first: float = 0.0
    least: float = 0.0
    beginning: list[float] = field(default_factory=list)

    def add(self, logprob: float) -> None:
        """One token more."""
        if self.tokens == 0:
            self.first = logprob
        else:
            self.least = min(self.least, logprob)
        self.tokens += 1
        self.total += logprob
        if self.tokens <= STAGES[-1]:
            self.beginning.append(logprob)

    def signals(self, before: float) -> tuple[float, ...]:
        """What the tokens so far amount to, as SIGNALS, each of about unit size.

        The log-odds of what was believed `before`; the likelihood of all of it; of the least likely token
        after the first; of the first, which often only chooses how to begin; and how much there is.
        """
        return (1.0, log_odds(before) / 2, _sure(self.total), _sure(self.least), exp(self.first),
                log1p(self.tokens) / 4)


def _sure(logprob: float) -> float:
    """A log-probability on a scale that tells 99 % from 90 % as well as 50 % from 10 %."""
    return -0.6 * log1p(-logprob / WAVERED)


def follow(logprobs: Sequence[float]) -> Trail:
    """The trail of these tokens."""
    trail = Trail()
    for logprob in logprobs:
        trail.add(logprob)
    return trail


def stage_of(tokens: int, *, whole: bool = False) -> int:
    """The stage of an answer with so many tokens so far."""
    if whole or not tokens:
        return WHOLE if whole else ASKED
    return max(i for i, least in enumerate(STAGES) if least <= tokens)


def believe(curve: Curve, before: float, trail: Trail, signs: Sequence[float] | None = None) -> float:
    """The share of good answers among those that went like this one, where `before` was it for the question.
    `signs` are those of the text, once it is whole. Before the first token it is the question that tells."""
    stage = stage_of(trail.tokens, whole=signs is not None)
    found = (*trail.signals(before), *(signs or ()))
    told = found[:OF_QUESTION] if stage == ASKED else found
    return probability(log_odds(before) + weigh(curve.weights[stage], told))


def weigh(weights: Sequence[float], found: Sequence[float]) -> float:
    """The log-odds that signals add, bounded."""
    return clamp(sum(w * x for w, x in zip(weights, found, strict=True)))


def log_odds(share: float) -> float:
    """Of a probability, bounded."""
    share = min(max(share, 1e-9), 1 - 1e-9)
    return clamp(log(share / (1 - share)))


def probability(odds: float) -> float:
    """Of log-odds."""
    return 1 / (1 + exp(-clamp(odds)))


def clamp(odds: float) -> float:
    """Bound log-odds."""
    return min(max(odds, -SUREST), SUREST)


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """Nothing that was learned is forgotten: the running maximum, from zero."""
    return tuple(accumulate((max(0.0, value) for value in values), max))
