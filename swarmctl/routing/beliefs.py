"""How likely each model answers this very prompt well, and how sure that is.

Three things are joined. The first guess (`quality.first_guess`), ratings counted by model and category, and
what `fitting` learned of prompts like this one. Without fitted weights it is exactly the first guess and the
counts, a Beta distribution; with them, ratings that came after the fit still count at once.

Weights are collapsed so that predicting takes plain Python and well under a millisecond: at most LANDMARKS
prompts stand for all, and each model has one coefficient for each of them.
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from math import dist, exp, sqrt
from operator import mul
from typing import TYPE_CHECKING, Any

from swarmctl.routing.quality import PRIOR_WEIGHT, first_guess, quality

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Category
    from swarmctl.routing.features import Features

VERSION = 1
#: 95 % of a normal distribution.
SPREAD = 1.96
#: How fast likeness of two vectors fades: exp(-SHARPNESS (1 - cosine)); of length one, they lie
#: sqrt(2 (1 - cosine)) apart.
SHARPNESS = 8.0
#: Likeness of counts and likeness of vectors, as parts of one kernel.
SURFACE_PART, VECTOR_PART = 2 / 3, 1 / 3
#: No prompt is certain.
LEAST, MOST = 0.01, 0.99


@dataclass(frozen=True, slots=True)
class Belief:
    """The expected share of good answers, its 95 % interval, and the ratings behind it. `why` is for a
    person."""

    mean: float
    low: float
    high: float
    ratings: float
    why: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of one model. `level` is the expected share of good answers to the mean prompt, by
    category; `counted` the ratings that were in it; `slope` what one standard deviation of length adds;
    `weights` one for each landmark. The variance at a prompt is `spread` less what `known` explains."""

    digest: str
    level: Mapping[str, float]
    level_variance: Mapping[str, float]
    counted: Mapping[str, tuple[float, float]]
    slope: float
    weights: Sequence[float]
    spread: float
    known: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Head:
    """One way to look at a prompt: by counts alone, or by counts and a vector (`embedder` names what makes
    it). `centre` and `scale` standardise counts; `axes` turn a vector into fewer numbers."""

    embedder: str
    centre: Sequence[float]
    scale: Sequence[float]
    axes: Sequence[Sequence[float]]
    landmarks: Sequence[Sequence[float]]
    vectors: Sequence[Sequence[float]]
    models: Mapping[str, Learned]

    def standardised(self, features: Features) -> list[float]:
        """The counts, in standard deviations from the mean prompt."""
        return [max(-4.0, min(4.0, (value - middle) / spread)) for value, middle, spread
                in zip(features.surface, self.centre, self.scale, strict=True)]

    def likeness(self, features: Features) -> tuple[list[float], float]:
        """How like the prompt is to each landmark, 0 to 1, and its length in standard deviations."""
        point = self.standardised(features)
        surface = [exp(-dist(point, other) ** 2 / (2 * len(point))) for other in self.landmarks]
        if not self.axes or features.vector is None:
            return surface, point[0]
        seen = project(features.vector, self.axes)
        return [SURFACE_PART * one + VECTOR_PART * exp(-SHARPNESS / 2 * dist(seen, other) ** 2)
                for one, other in zip(surface, self.vectors, strict=True)], point[0]


@dataclass(frozen=True, slots=True)
class Weights:
    """All that was learned: a version, when, from how many ratings, and a head with vectors and one
    without."""

    version: str
    at: str
    ratings: int
    until: str
    heads: tuple[Head, ...] = field(default_factory=tuple)

    def head(self, features: Features) -> Head | None:
        """The head that sees most of this prompt."""
        fits = [one for one in self.heads if not one.embedder or (
            one.embedder == features.embedder and features.vector is not None)]
        return max(fits, key=lambda one: bool(one.embedder), default=None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What weights make of one prompt, once for all candidates."""

    head: Head
    likeness: Sequence[float]
    length: float
    nearest: float


def see(weights: Weights | None, features: Features | None) -> Seen | None:
    """Look at a prompt once; None where nothing was learned."""
    head = weights.head(features) if weights and features else None
    if head is None or features is None:
        return None
    likeness, length = head.likeness(features)
    return Seen(head, likeness, length, max(likeness, default=0.0))


def known_as(model: str, digest: str) -> str:
    """Under which name a model's weights are learned: a release is judged by itself."""
    return f"{model}@{digest[:16]}"


def believe(model: str, parameters: int, prior: Mapping[str, float], good: float, bad: float,
            category: Category, seen: Seen | None = None) -> Belief:
    """What to expect of a model, by the name that it is `known_as`. `good` and `bad` count its ratings in
    this category."""
    guess = first_guess(parameters, category, prior)
    learned = seen.head.models.get(model) if seen else None
    if seen is None or learned is None or category not in learned.level:
        return _counted(guess, good, bad)
    before_good, before_bad = learned.counted.get(category, (0.0, 0.0))
    fresh_good, fresh_bad = max(0.0, good - before_good), max(0.0, bad - before_bad)
    weight = PRIOR_WEIGHT + before_good + before_bad
    fitted = _within(learned.level[category] + learned.slope * seen.length
                     + sum(map(mul, learned.weights, seen.likeness)))
    mean = (fitted * weight + fresh_good) / (weight + fresh_good + fresh_bad)
    explained = sum(sum(map(mul, row, seen.likeness)) ** 2 for row in learned.known)
    variance = max(0.0, learned.spread - explained) + learned.level_variance.get(category, 0.0)
    shrink = weight / (weight + fresh_good + fresh_bad)
    return _belief(mean, sqrt(variance * shrink), good + bad,
                   _why(guess, learned.level[category], fitted, fresh_good + fresh_bad, good + bad, seen))


def _counted(guess: float, good: float, bad: float) -> Belief:
    known = quality(guess, good, bad)
    spread = sqrt(known.mean * (1 - known.mean) / (PRIOR_WEIGHT + good + bad + 1))
    why = f"first guess {guess:.0%}" + (f", then {good + bad:g} ratings" if good + bad else "")
    return Belief(known.mean, max(0.0, known.mean - SPREAD * spread),
                  min(1.0, known.mean + SPREAD * spread), known.ratings, why)


def _belief(mean: float, deviation: float, ratings: float, why: str) -> Belief:
    return Belief(mean, max(0.0, mean - SPREAD * deviation), min(1.0, mean + SPREAD * deviation), ratings,
                  why)


def _why(guess: float, level: float, fitted: float, fresh: float, ratings: float, seen: Seen) -> str:
    like = "much like" if seen.nearest > 0.8 else "somewhat like" if seen.nearest > 0.5 else "unlike"
    said = f"first guess {guess:.0%}, by ratings {level:.0%}, this prompt {fitted:.0%} ({like} rated ones)"
    return f"{said}; {ratings:g} ratings" + (f", {fresh:g} of them new" if fresh else "")


def _within(value: float) -> float:
    return min(MOST, max(LEAST, value))


def project(vector: Sequence[float], axes: Sequence[Sequence[float]]) -> list[float]:
    """A vector in fewer numbers, of length one again."""
    seen = [sum(map(mul, vector, axis)) for axis in axes]
    length = sqrt(sum(map(mul, seen, seen))) or 1.0
    return [value / length for value in seen]


def to_record(weights: Weights) -> dict[str, Any]:
    """As kept in data/routing/<version>.json: rows of numbers are float32 in base64, quick to read."""
    return {"format": VERSION, "version": weights.version, "at": weights.at, "ratings": weights.ratings,
            "until": weights.until, "heads": [_head_record(head) for head in weights.heads]}


def from_record(raw: Mapping[str, Any]) -> Weights:
    """The weights of a record. Raises ValueError, TypeError, KeyError or AttributeError where it is none."""
    if raw["format"] != VERSION:
        raise ValueError(raw["format"])
    return Weights(str(raw["version"]), str(raw["at"]), int(raw["ratings"]), str(raw["until"]),
                   tuple(_head(one) for one in raw["heads"]))


def _head_record(head: Head) -> dict[str, Any]:
    return {"embedder": head.embedder, "centre": list(head.centre), "scale": list(head.scale),
            "axes": _packed(head.axes), "landmarks": _packed(head.landmarks),
            "vectors": _packed(head.vectors),
            "models": {name: {
                "digest": one.digest, "level": dict(one.level), "level_variance": dict(one.level_variance),
                "counted": {key: list(pair) for key, pair in one.counted.items()}, "slope": one.slope,
                "weights": _packed([one.weights]), "spread": one.spread, "known": _packed(one.known)}
                for name, one in head.models.items()}}


def _head(raw: Mapping[str, Any]) -> Head:
    models = {str(name): Learned(
        str(one["digest"]), {str(key): float(value) for key, value in one["level"].items()},
        {str(key): float(value) for key, value in one["level_variance"].items()},
        {str(key): (float(good), float(bad)) for key, (good, bad) in one["counted"].items()},
        float(one["slope"]), _unpacked(one["weights"])[0], float(one["spread"]), _unpacked(one["known"]))
        for name, one in raw["models"].items()}
    return Head(str(raw["embedder"]), list(map(float, raw["centre"])), list(map(float, raw["scale"])),
                _unpacked(raw["axes"]), _unpacked(raw["landmarks"]), _unpacked(raw["vectors"]), models)


def _packed(rows: Sequence[Sequence[float]]) -> list[Any]:
    width = len(rows[0]) if len(rows) else 0
    flat = array("f", [value for row in rows for value in row])
    return [len(rows), width, b64encode(flat.tobytes()).decode()]


def _unpacked(raw: Sequence[Any]) -> list[list[float]]:
    count, width, text = raw
    flat = array("f")
    flat.frombytes(b64decode(text, validate=True))
    if len(flat) != count * width:
        raise ValueError("rows are torn")
    return [list(flat[row * width:(row + 1) * width]) for row in range(count)]
