"""From ratings to the router's weights: which rows the fit gets, for which served models. Pure but for numpy
inside the fit.

A rating of the weights that serve now counts whole for them, one of other weights of the same model in part
(`routers.weight_of`): what was said of a release that was rolled back says something, but not all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.exchange import CATEGORIES
from swarmctl.ledger.routers import weight_of
from swarmctl.ledger.topic_store import prompt_key
from swarmctl.routing.beliefs import Weights, known_as
from swarmctl.routing.features import read_features
from swarmctl.routing.fitting import Model, Rated, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.ledger.routers import Opinion
    from swarmctl.routing.beliefs import Head

#: Ratings that are fitted, the newest: they bound its time and memory.
MOST = 6000
MOST_MODELS = 8
#: A head with vectors needs so many prompts that have one.
FEWEST_VECTORS = 30


@dataclass(frozen=True, slots=True)
class Known:
    """Weights that are served now, under the name of their model."""

    model: str
    digest: str
    parameters: int
    prior: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of prompts by their keys (see topic_store), and the digest of what made them."""

    embedder: str = ""
    by_key: Mapping[str, Sequence[float]] | None = None

    def of(self, text: str) -> Sequence[float] | None:
        """A prompt's vector, where there is one."""
        return (self.by_key or {}).get(prompt_key(text)) or None


def learn(opinions: Sequence[Opinion], served: Sequence[Known], vectors: Vectors, *, version: str,
          at: str) -> Weights:
    """Fit both heads. Raises ValueError where no rating is of a model that is or was served."""
    latest = opinions[-MOST:]
    rows, models = _rows(latest, _with_former(latest, served))
    heads = [_head(rows, models, Vectors())]
    seen = [row for row in rows if vectors.of(row[0].question) is not None]
    if len({row[0].question for row in seen}) >= FEWEST_VECTORS:
        heads.append(_head(seen, models, vectors))
    until = max(one.id for one in latest)
    return Weights(version, at, len(latest), until, tuple(heads))


_Row = tuple["Opinion", str, float]


def _rows(opinions: Sequence[Opinion], served: Sequence[Known]) -> tuple[list[_Row], dict[str, Model]]:
    """Each opinion, with every model that it says something of and how much."""
    of_model: dict[str, list[Known]] = {}
    for one in served:
        of_model.setdefault(one.model, []).append(one)
    rows = [(one, known_as(to.model, to.digest), one.weight * weight_of(one.digest, to.digest))
            for one in opinions for to in of_model.get(one.model, ())]
    return rows, {known_as(one.model, one.digest): Model(one.parameters, one.prior) for one in served}


def _with_former(opinions: Sequence[Opinion], served: Sequence[Known]) -> list[Known]:
    """The served models, and the most rated of those that served once: they tell which prompts are hard. Of
    them nothing else is known than how they were rated, and they count as small as the smallest."""
    there = {one.model for one in served}
    gone = Counter(one.model for one in opinions if one.model not in there)
    smallest = min((one.parameters for one in served), default=1)
    found = list({known_as(one.model, one.digest): one for one in served}.values())
    for model, count in gone.most_common(max(0, MOST_MODELS - len(found))):
        share = sum(one.good for one in opinions if one.model == model) / count
        found.append(Known(model, "", smallest, dict.fromkeys(CATEGORIES, share)))
    return found


def _head(rows: Sequence[_Row], models: Mapping[str, Model], vectors: Vectors) -> Head:
    places: dict[str, int] = {}
    rated = [Rated(places.setdefault(one.question, len(places)), name, one.category, one.good, weight)
             for one, name, weight in rows]
    prompts = [read_features(text, vectors.of(text), vectors.embedder) for text in places]
    return fit(rated, prompts, models, vectors=bool(vectors.embedder))
