"""Learning what prompts each model answers well, from every rating: a Gaussian process, collapsed.

    share of good answers = first guess + model + model's category - length + difficulty + the model's own

`difficulty` is common to all models, so that each learns from what others made of prompts like this one; it
weighs more on a model that is less often right. `the model's own` is what a stronger model gains. Two answers
to one prompt share its luck (COMMON_LUCK), so that a pair tells of the gain what two single ratings do not.
How much there is to learn is not known beforehand: several strengths are fitted, and each counts by its
evidence (Bayesian model averaging), so that few ratings stay near the first guess.

The process stands on at most LANDMARKS prompts, drawn by randomly pivoted Cholesky (Chen and others,
arXiv:2207.06503); its weights are then summed into one coefficient a landmark and model. The draw is always
the same for the same ratings. numpy is imported when fitting begins.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import CATEGORIES
from swarmctl.routing.beliefs import SHARPNESS, SURFACE_PART, VECTOR_PART, Head, Learned
from swarmctl.routing.features import FLOORS
from swarmctl.routing.quality import PRIOR_WEIGHT, first_guess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Category
    from swarmctl.routing.features import Features

    Array = Any  # numpy.ndarray: numpy is not imported here

LANDMARKS = 320
#: Columns of the regression, which bound its time: with many models, fewer landmarks.
COLUMNS = 1600
#: A vector's axes, by principal components.
AXES = 64
#: How much of a rating's luck is the prompt's: the residual correlation of two models on one prompt.
COMMON_LUCK = 0.35
#: A model as small as a tenth of the largest loses so much with each standard deviation of length.
LENGTH = 0.06
LENGTH_VARIANCE = 0.0002
#: Variances of difficulty and of each model's own, how much of what a model's ratings say is of their
#: category alone, and how likely that is held beforehand.
STRENGTHS = ((0.0005, 0.0001, 0.02, 0.4), (0.002, 0.0005, 0.02, 0.3), (0.01, 0.004, 0.02, 0.23),
             (0.02, 0.03, 0.02, 0.05), (0.0005, 0.0001, 0.5, 0.01), (0.01, 0.004, 0.5, 0.01))
#: How many directions of the covariance are kept for the interval.
KNOWN = 12
#: A prompt that is explained but for so much by others stands for nothing of its own.
EXPLAINED = 1e-3


@dataclass(frozen=True, slots=True)
class Rated:
    """A rating: of which prompt (by its place), which model, how good (0 to 1), and how much it counts."""

    prompt: int
    model: str
    category: Category
    score: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Model:
    """What was known of a model before any rating. `digest` is that of the weights that serve now."""

    parameters: int
    prior: Mapping[str, float]
    digest: str = ""


def fit(rated: Sequence[Rated], prompts: Sequence[Features], models: Mapping[str, Model], *,
        vectors: bool = False) -> Head:
    """Fit one head. With `vectors`, prompts without one must not be among them.

    Raises ValueError where there is nothing to fit.
    """
    names = tuple(sorted({one.model for one in rated} & models.keys()))
    rows = tuple(one for one in rated if one.model in names)
    if not rows:
        raise ValueError("no rating of a known model")
    look = Look.of(prompts, vectors)
    chosen, factor = pivoted(look, min(LANDMARKS, COLUMNS // (len(names) + 1)))
    problem = _Problem(rows, names, models, look, factor)
    return _collapsed(problem, look, chosen, factor, prompts[0].embedder if vectors else "")


@dataclass(frozen=True, slots=True)
class Look:
    """The prompts as the kernel sees them: standardised counts, and vectors on their axes."""

    centre: Array
    scale: Array
    axes: Array
    points: Array
    vectors: Array

    @classmethod
    def of(cls, prompts: Sequence[Features], vectors: bool) -> Look:
        """Look at prompts, of which each has a vector where `vectors` is set."""
        import numpy as np

        raw = np.array([one.surface for one in prompts], dtype=float)
        centre = raw.mean(axis=0)
        scale = np.sqrt(raw.var(axis=0) + np.square(list(FLOORS.values())))
        points = np.clip((raw - centre) / scale, -4, 4)
        if not vectors:
            return cls(centre, scale, np.zeros((0, 0)), points, np.zeros((len(prompts), 0)))
        seen = np.array([one.vector for one in prompts], dtype=float)
        _, _, axes = np.linalg.svd(seen.T @ seen)
        axes = axes[:AXES].astype("f4").astype(float)
        seen = seen @ axes.T
        return cls(centre, scale, axes, points, seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True),
                                                                  1e-9))

    def against(self, place: Array) -> Array:
        """How like every prompt is to those at `place`; as `Head.likeness` says it."""
        import numpy as np

        one, other = self.points, self.points[place]
        apart = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
        surface = np.exp(-np.maximum(apart, 0) / (2 * one.shape[1]))
        if not self.axes.size:
            return surface
        near = np.exp(-SHARPNESS * (1 - self.vectors @ self.vectors[place].T))
        return SURFACE_PART * surface + VECTOR_PART * near


def pivoted(look: Look, most: int) -> tuple[list[int], Array]:
    """Which prompts stand for all, and the factor F of the kernel: K is about F Fᵀ."""
    import numpy as np

    count, draw = len(look.points), np.random.default_rng(0)
    left = np.ones(count)
    factor = np.zeros((count, min(most, count)))
    chosen: list[int] = []
    while len(chosen) < factor.shape[1] and left.max() > EXPLAINED:
        place, step = int(draw.choice(count, p=left / left.sum())), len(chosen)
        if left[place] <= EXPLAINED:
            left[place] = 0
            continue
        column = look.against([place])[:, 0] - factor[:, :step] @ factor[place, :step]
        factor[:, step] = column / np.sqrt(column[place])
        left = np.maximum(left - np.square(factor[:, step]), 0)
        left[place] = 0
        chosen.append(place)
    return chosen, factor[:, :len(chosen)]


class _Problem:
    """The regression, whitened: rows of equal and independent noise, and columns whose prior variances are
    `variances(strength)`. Columns: each model, its categories, its length; difficulty; each model's own."""

    def __init__(self, rows: Sequence[Rated], names: tuple[str, ...], models: Mapping[str, Model],
                 look: Look, factor: Array) -> None:
        import numpy as np

        self.names, self.size = names, factor.shape[1]
        self.fixed = len(CATEGORIES) + 2
        self.models, self.rows = models, rows
        self.of = np.array([names.index(one.model) for one in rows])
        place = np.array([one.prompt for one in rows])
        category = np.array([CATEGORIES.index(one.category) for one in rows])
        score, weight = (np.array([getattr(one, key) for one in rows], dtype=float)
                         for key in ("score", "weight"))
        guess = np.array([[first_guess(models[name].parameters, one, models[name].prior)
                           for one in CATEGORIES] for name in names])
        prior = guess[self.of, category]
        total = np.bincount(self.of, weight, len(names))
        share = (np.bincount(self.of, weight * score, len(names))
                 + PRIOR_WEIGHT * np.bincount(self.of, weight * prior, len(names)) / np.maximum(total, 1e-9))
        share /= total + PRIOR_WEIGHT
        self.noise = np.maximum(share * (1 - share), 0.05)
        self.reach = 4 * share * (1 - share)
        self.guess, self.slope = guess, _slopes([models[name].parameters for name in names])
        length = look.points[place, 0]
        target = score - prior - self.slope[self.of] * length
        self.design = self._design(category, length, factor[place])
        deviation = np.sqrt(self.noise[self.of] / np.maximum(weight, 1e-3))
        self.design /= deviation[:, None]
        self.target = target / deviation
        self._share_luck(place)

    def _design(self, category: Array, length: Array, features: Array) -> Array:
        import numpy as np

        count, size = len(self.of), self.size
        made = np.zeros((count, len(self.names) * (self.fixed + size) + size))
        at, every = self.of * self.fixed, np.arange(count)
        made[every, at] = 1
        made[every, at + 1 + category] = 1
        made[every, at + self.fixed - 1] = length
        start = len(self.names) * self.fixed
        made[:, start:start + size] = self.reach[self.of][:, None] * features
        for number in range(len(self.names)):
            own = self.of == number
            begin = start + size * (1 + number)
            made[own, begin:begin + size] = features[own]
        return made

    def _share_luck(self, place: Array) -> None:
        """Whiten what ratings of one prompt have in common: noise of (1 - r) I + r 1 1ᵀ."""
        import numpy as np

        _, group, many = np.unique(place, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        starts = np.r_[0, np.cumsum(many)[:-1]]
        less = 1 - np.sqrt((1 - COMMON_LUCK) / (1 - COMMON_LUCK + COMMON_LUCK * many))
        for name in ("design", "target"):
            values = getattr(self, name)
            means = np.add.reduceat(values[order], starts, axis=0)
            factor = (less / many).reshape(-1, *([1] * (values.ndim - 1)))
            setattr(self, name, (values - (factor * means)[group]) / np.sqrt(1 - COMMON_LUCK))

    def variances(self, difficulty: float, own: float, of_category: float) -> Array:
        """Each column's prior variance. A model and its category together weigh as PRIOR_WEIGHT ratings."""
        import numpy as np

        level = self.noise / PRIOR_WEIGHT
        fixed = np.stack([level * (1 - of_category), *[level * of_category] * len(CATEGORIES),
                          np.full(len(level), LENGTH_VARIANCE)], axis=1).ravel()
        return np.r_[fixed, np.full(self.size, difficulty), np.full(self.size * len(self.names), own)]


def _slopes(parameters: Sequence[int]) -> Array:
    """What length takes from each model, by its size beside the largest."""
    import numpy as np

    sizes = np.log10(np.maximum(np.array(parameters, dtype=float), 1))
    return -LENGTH * np.clip(sizes.max() - sizes, 0, 1)


def _solved(problem: _Problem) -> tuple[Array, Array, tuple[float, float]]:
    """The mean and covariance of the columns' weights, and the mean strengths, over all strengths by their
    evidence."""
    import numpy as np

    gram, seen = problem.design.T @ problem.design, problem.design.T @ problem.target
    found = []
    for difficulty, own, of_category, held in STRENGTHS:
        root = np.sqrt(problem.variances(difficulty, own, of_category))
        inner = gram * root[:, None] * root[None]
        inner[np.diag_indices_from(inner)] += 1
        lower = np.linalg.cholesky(inner)
        half = np.linalg.solve(lower, root * seen)
        evidence = np.log(held) + half @ half / 2 - np.log(np.diag(lower)).sum()
        found.append((evidence, difficulty, own, root, lower, half))
    shares = np.exp(np.array([one[0] for one in found]) - max(one[0] for one in found))
    shares /= shares.sum()
    mean = covariance = 0.0
    strengths = np.zeros(2)
    for share, (_, difficulty, own, root, lower, half) in zip(shares, found, strict=True):
        if share < 1e-3:
            continue
        inverse = np.linalg.solve(lower, np.diag(root))
        mean = mean + share * (inverse.T @ half)
        covariance = covariance + share * (inverse.T @ inverse)
        strengths += share * np.array([difficulty, own])
    return mean, covariance, (float(strengths[0]), float(strengths[1]))


def _collapsed(problem: _Problem, look: Look, chosen: Sequence[int], factor: Array, embedder: str) -> Head:
    import numpy as np

    mean, covariance, strengths = _solved(problem)
    back = np.linalg.inv(factor[list(chosen)]).T  # from the factor's columns to landmarks
    models = {name: _learned(problem, number, mean, covariance, strengths, back)
              for number, name in enumerate(problem.names)}
    place = list(chosen)
    vectors = look.vectors[place].tolist() if look.axes.size else []
    return Head(embedder, look.centre.tolist(), look.scale.tolist(), look.axes.tolist(),
                look.points[place].tolist(), vectors, models)


def _learned(problem: _Problem, number: int, mean: Array, covariance: Array,
             strengths: tuple[float, float], back: Array) -> Learned:
    import numpy as np

    size, fixed, start = problem.size, problem.fixed, len(problem.names) * problem.fixed
    reach, at = problem.reach[number], number * fixed
    common, own = slice(start, start + size), slice(start + size * (1 + number), start + size * (2 + number))
    weights = back @ (reach * mean[common] + mean[own])
    spread = reach ** 2 * strengths[0] + strengths[1]
    within = (reach ** 2 * covariance[common, common] + covariance[own, own]
              + reach * (covariance[common, own] + covariance[own, common]))
    values, ways = np.linalg.eigh(spread * np.eye(size) - within)
    top = [place for place in np.argsort(-values)[:KNOWN] if values[place] > 0]
    known = [back @ (np.sqrt(values[place]) * ways[:, place]) for place in top]
    level: dict[str, float] = {}
    doubt: dict[str, float] = {}
    for place, category in enumerate(CATEGORIES):
        both = [at, at + 1 + place]
        level[category] = float(problem.guess[number, place] + mean[both].sum())
        doubt[category] = float(covariance[np.ix_(both, both)].sum())
    model = problem.models[problem.names[number]]
    return Learned(model.digest, level, doubt, _counts(problem.rows, problem.names[number]),
                   float(problem.slope[number] + mean[at + fixed - 1]), weights.tolist(), float(spread),
                   [row.tolist() for row in known])


def _counts(rows: Sequence[Rated], name: str) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for one in rows:
        if one.model == name:
            good, bad = found[one.category]
            found[one.category] = (good + one.weight * one.score, bad + one.weight * (1 - one.score))
    return dict(found)
