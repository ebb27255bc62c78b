"""`route`: what the router believes and why, how good that has been, and learning it anew."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.probe import route
from swarmctl.dispatch.question import Asked, as_question, as_request, put
from swarmctl.dispatch.record import timestamp
from swarmctl.dispatch.shadow import SHADOW_VIA
from swarmctl.errors import SwarmError, UsageError
from swarmctl.evaluation.learned import Known, Vectors, learn
from swarmctl.evaluation.left_out import beliefs_left_out
from swarmctl.evaluation.replay import FEWEST, Replayed, replay
from swarmctl.exchange import Message
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.learning.raters import floods
from swarmctl.ledger import heard, routers
from swarmctl.ledger.labels import read_labels
from swarmctl.ledger.lookup import find_exchange
from swarmctl.ledger.topic_store import read_state
from swarmctl.routing.waiting import LAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from swarmctl.dispatch.answer import Sink
    from swarmctl.dispatch.question import Answered
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.fleet.snapshot import HostEntry
    from swarmctl.ledger.routers import Opinion
    from swarmctl.paths import Paths
    from swarmctl.routing.beliefs import Weights
    from swarmctl.routing.category import Categorised
    from swarmctl.routing.cost import Route

FEWEST_RATINGS = 10
#: Versions sort by time.
VERSION = "%Y%m%dT%H%M%S%fZ"


@dataclass(frozen=True, slots=True)
class Explained:
    """How a question would go. `version` is of the weights that were asked, empty where there are none."""

    sort: Categorised
    way: Route
    version: str
    ratings: int
    with_vector: bool


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit that was made: of how many ratings and prompts, for which models, in how many seconds."""

    weights: Weights
    prompts: int
    left_out: int
    seconds: float


def explain(swarm: Swarm, asked: Asked, now: float) -> Explained:
    """Price a question as `ask` would now, and ask nobody. Raises NoCandidate."""
    sort, question = as_question(asked, as_request(asked), swarm)
    way = route(swarm, question, swarm.candidates, now)
    weights, seen = swarm.weights, question.seen
    version, ratings = (weights.version, weights.ratings) if weights and seen else ("", 0)
    return Explained(sort, way, version, ratings, bool(seen and seen.head.embedder))


def fit(paths: Paths, clock: Callable[[], float], say: Callable[[str], None], *, wait: float) -> Fitted:
    """Learn from every rating so far, keep what was learned, and let `ask` use it. Raises SwarmError where
    there is too little to learn from, LockBusy where another process is at it for longer than `wait`."""
    with _lock(paths, wait, say):
        begun = clock()
        opinions, left_out = _opinions(paths)
        if len(opinions) < FEWEST_RATINGS:
            raise SwarmError(f"{len(opinions)} ratings are too few to learn from",
                             hint=f"{FEWEST_RATINGS} are the least: swarmctl rate, swarmctl compare")
        counted = routers.counted(paths)
        prompts = len({one.question for one in opinions})
        say(f"fitting {len(opinions):,} ratings of {prompts:,} prompts")
        at = datetime.fromtimestamp(begun, UTC)
        try:
            weights = learn(opinions, _served(paths), _vectors(paths), version=at.strftime(VERSION),
                            at=timestamp(begun))
        except ValueError as exc:
            raise SwarmError(f"nothing to learn: {exc}", hint="`swarmctl up` serves models") from exc
        say("fitting how sure models are of their answers")
        heard.refit(paths, beliefs_left_out(opinions, _served(paths), _vectors(paths)))
        seconds = clock() - begun
        routers.keep(paths, weights, counted, {
            "prompts": prompts, "left_out": left_out, "seconds": round(seconds, 2),
            "models": sorted({name for head in weights.heads for name in head.models}),
            "vectors": [head.embedder for head in weights.heads if head.embedder]})
        return Fitted(weights, prompts, left_out, seconds)


def evaluate(paths: Paths, progress: Callable[[int, int], None]) -> Replayed:
    """Replay the journal. Raises SwarmError where there are too few ratings."""
    opinions, _ = _opinions(paths)
    found = replay(opinions, _served(paths), _vectors(paths), progress)
    if found is None:
        raise SwarmError(f"fewer than {FEWEST} ratings of models that are served: nothing can be said yet",
                         hint="swarmctl rate, swarmctl compare")
    return found


def shadow(swarm: Swarm, identity: str, model: str, host: str | None, sink: Sink, *,
           clock: Callable[[], float]) -> Answered:
    """Have a model answer what an exchange asked; the answer is recorded as that exchange's shadow. Raises as
    `dispatch.question.put` does."""
    row = find_exchange(swarm.paths.journal, identity)
    try:
        *before, last = [Message(one["role"], one["content"]) for one in row["messages"]]
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"{identity} has no question that another model could answer") from exc
    params: dict[str, Any] = row.get("params") or {}
    asked = Asked(last.content, model=model, host=host, history=tuple(before), previous=str(row["id"]),
                  via=SHADOW_VIA, max_tokens=params.get("max_tokens"),
                  temperature=params.get("temperature"), seed=params.get("seed"),
                  schema=params.get("schema"), priority=LAST)
    return put(swarm, asked, sink, terminal=SHADOW_VIA, clock=clock)


def _opinions(paths: Paths) -> tuple[list[Opinion], int]:
    """What counts, oldest first, and how many votes were left out as no person's."""
    out = {vote for flood in floods(read_labels(paths)) for vote in flood.votes}
    opinions = routers.read_opinions(paths)
    kept = [one for one in opinions if one.id not in out]
    return kept, len(opinions) - len(kept)


def _served(paths: Paths) -> tuple[Known, ...]:
    fleet = read_fleet(paths.fleet)
    return tuple({(one.model, one.digest): one for one in _each(fleet.hosts)}.values()) if fleet else ()


def _each(hosts: Sequence[HostEntry]) -> Iterator[Known]:
    for entry in hosts:
        for one in entry.served:
            if not one.embedding:
                yield Known(one.model, one.digest, one.parameters, one.quality)


def _vectors(paths: Paths) -> Vectors:
    """The vectors that `topics` made; none where they cannot be read."""
    try:
        state = read_state(paths)
    except SwarmError:
        return Vectors()
    if state is None:
        return Vectors()
    return Vectors(state.digest, {key: one.vector for key, one in state.placed.items() if one.vector})


def _lock(paths: Paths, wait: float, say: Callable[[str], None]) -> AbstractContextManager[None]:
    return local_lock(paths.state / "routing" / "fit.lock", "fitting the router", wait=wait, on_wait=say)
