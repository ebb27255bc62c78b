"""What the router would have believed of each rated answer, had it never seen that prompt's ratings.

How sure a model is of its answer is weighed as evidence beside that belief (`routing.calibration`). What was
believed when the answer was given came from whatever had been learned by then, and the fit that was just made
knows the rating itself; evidence fitted beside either would be counted twice, or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING
from zlib import crc32

from swarmctl.evaluation.learned import learn
from swarmctl.ledger.routers import weight_of
from swarmctl.routing.beliefs import believe, known_as, see
from swarmctl.routing.features import read_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.evaluation.learned import Known, Vectors
    from swarmctl.ledger.routers import Opinion
    from swarmctl.routing.beliefs import Weights

FOLDS = 4
#: The newest opinions that are learned from, which bounds the time of the fits: as many as curves are
#: fitted on (`ledger.heard`), for what was believed when an answer was given says less than what is now.
MOST = 4000


def beliefs_left_out(opinions: Sequence[Opinion], served: Sequence[Known],
                     vectors: Vectors) -> Mapping[tuple[str, str], float]:
    """(opinion, exchange) → the share of good answers that was to be expected, for answers of served models.
    Prompts are left out whole."""
    found: dict[tuple[str, str], float] = {}
    latest = opinions[-MOST:]
    for fold in range(FOLDS):
        known = [one for one in latest if _fold(one) != fold]
        try:
            weights = learn(known, served, vectors, version="left out", at="")
        except ValueError:
            continue
        for to in served:
            counts = _counts(known, to)
            for one in latest:
                if _fold(one) == fold and (one.model, one.digest) == (to.model, to.digest):
                    found[one.id, one.exchange] = _belief(one, to, weights, counts[one.category], vectors)
    return found


def _fold(opinion: Opinion) -> int:
    return crc32(opinion.question.encode()) % FOLDS


def _counts(opinions: Sequence[Opinion], to: Known) -> Mapping[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for one in opinions:
        if one.model == to.model:
            part = one.weight * weight_of(one.digest, to.digest)
            good, bad = found[one.category]
            found[one.category] = (good + part * one.good, bad + part * (1 - one.good))
    return found


def _belief(one: Opinion, to: Known, weights: Weights, counted: tuple[float, float],
            vectors: Vectors) -> float:
    vector = vectors.of(one.question)
    seen = see(weights, read_features(one.question, vector, vectors.embedder if vector else ""))
    return believe(known_as(to.model, to.digest), to.parameters, to.prior, *counted, one.category, seen).mean
