"""Vectors to clusters, by scikit-learn, which is imported when it is needed: it comes with the extra
`embed`. Pure, and seeded: the same vectors give the same clusters.
"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from math import isqrt
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

METHODS = ("kmeans", "hdbscan")
#: Into the very environment that runs this.
INSTALL = f"{shlex.quote(sys.executable)} -m pip install 'swarmctl[embed]'"
SEED = 0
#: Silhouettes are measured on so many vectors at most, and for so many clusters at most.
SAMPLE, MOST_CLUSTERS = 2_000, 24
NEARLY = 0.95
#: HDBSCAN looks at directions: past some twenty dimensions everything is equally far from everything.
DIMENSIONS = 20
SMALLEST = 5


def cluster(vectors: Sequence[Sequence[float]], *, method: str = "kmeans", k: int | None = None) -> list[int]:
    """The cluster of each vector, from 0; -1 where it is in none (HDBSCAN). k-means chooses `k` by the mean
    silhouette where it is not given. Raises SwarmError where scikit-learn is not there."""
    if find_spec("sklearn") is None:
        raise SwarmError("clustering needs scikit-learn, which is not installed here", hint=INSTALL)
    import numpy

    matrix = numpy.asarray(vectors, dtype="float32")
    if method == "hdbscan":
        return _hdbscan(matrix)
    return _kmeans(matrix, k if k is not None else _choose(matrix))


def match(overlaps: Mapping[tuple[int, int], float], least: float) -> dict[int, int]:
    """New cluster → old topic, so that the sum of overlaps is greatest (the Hungarian method); pairs below
    `least` are not matched."""
    import numpy
    from scipy.optimize import linear_sum_assignment

    olds, news = sorted({old for old, _ in overlaps}), sorted({new for _, new in overlaps})
    if not overlaps:
        return {}
    matrix = numpy.array([[overlaps.get((old, new), 0.0) for new in news] for old in olds])
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return {news[column]: olds[row] for row, column in zip(rows, columns, strict=True)
            if matrix[row, column] >= least}


def _kmeans(matrix: Any, k: int) -> list[int]:  # noqa: ANN401  an array
    from sklearn.cluster import KMeans

    found = KMeans(min(k, len(matrix)), n_init=4, random_state=SEED).fit_predict(matrix)
    return [int(label) for label in found]


def _choose(matrix: Any) -> int:  # noqa: ANN401
    """The smallest k whose mean silhouette is nearly the best, among those up to the square root of half the
    vectors (Mardia et al. 1979): with many small clusters the silhouette rises again, as near copies find
    each other."""
    from sklearn.metrics import silhouette_score

    most = min(MOST_CLUSTERS, isqrt(len(matrix) // 2))
    scores: dict[int, float] = {}
    for k in range(2, most + 1):
        labels = _kmeans(matrix, k)
        if len(set(labels)) > 1:
            scores[k] = float(silhouette_score(matrix, labels, metric="cosine", random_state=SEED,
                                               sample_size=min(SAMPLE, len(matrix))))
    enough = NEARLY * max(scores.values(), default=0.0)
    return next((k for k, score in scores.items() if score >= enough), 1)


def _hdbscan(matrix: Any) -> list[int]:  # noqa: ANN401
    from sklearn.cluster import HDBSCAN
    from sklearn.decomposition import PCA

    few = min(DIMENSIONS, *matrix.shape)
    flat = PCA(few, random_state=SEED).fit_transform(matrix) if few < matrix.shape[1] else matrix
    size = max(SMALLEST, len(matrix) // 100)
    return [int(label) for label in HDBSCAN(min_cluster_size=size, min_samples=2,
                                            copy=True).fit_predict(flat)]
