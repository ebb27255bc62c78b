"""`topics`: what this swarm is asked about, how each topic is liked, and how that moves.

New prompts are embedded and sorted into the topics that are there; clustering anew is asked for, or done the
first time. A topic that survives a new clustering keeps its id.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.embedding_model import find_model
from swarmctl.dispatch.record import timestamp
from swarmctl.dispatch.vectors import embed_all
from swarmctl.errors import SwarmError, UsageError
from swarmctl.learning import clustering, topics
from swarmctl.learning.approval import Approval, approvals
from swarmctl.learning.topics import Clustered, Prompt, Summary, Topic
from swarmctl.ledger.labels import read_prompts
from swarmctl.ledger.topic_store import HEAD, Placed, State, prompt_key, read_state, to_embed, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from swarmctl.dispatch.embedding_model import Model
    from swarmctl.paths import Paths

SHORTEST_HEAD = 100
BATCH = 32
FEWEST = 10


@dataclass(frozen=True, slots=True)
class How:
    """How to embed and to cluster. `k` None: chosen by the silhouette."""

    recluster: bool = False
    method: str = "kmeans"
    k: int | None = None
    model: str | None = None
    host: str | None = None
    in_process: bool = False


@dataclass(frozen=True, slots=True)
class Overview:
    """All topics. `outliers` prompts are like none; `new` were sorted in now; `due` is why to cluster anew,
    where there is a reason; `drift` is since the last clustering."""

    summaries: tuple[Summary, ...]
    prompts: int
    outliers: int
    new: int
    drift: float
    due: str | None
    reclustered: str
    state: State


@dataclass(frozen=True, slots=True)
class Page:
    """One topic: its most typical prompts, its worst rated ones, and how each model is liked there."""

    summary: Summary
    typical: tuple[Prompt, ...]
    worst: tuple[Prompt, ...]
    models: dict[tuple[str, str], Approval]


def overview(paths: Paths, inventory: Path, how: How, now: float, say: Callable[[str], None]) -> Overview:
    """Sort new prompts in, cluster where that is asked for or was never done, and give every topic.

    Raises SwarmError where there is too little to cluster or nothing makes vectors, UsageError.
    """
    if how.method not in clustering.METHODS:
        raise UsageError(f"--method {how.method}: no such method", hint=" | ".join(clustering.METHODS))
    prompts = read_prompts(paths)
    texts = {prompt_key(prompt.text): prompt.text for prompt in prompts}
    state = read_state(paths)
    if state is None and len(texts) < FEWEST:
        raise SwarmError(f"too few different prompts for topics: {len(texts)}",
                         hint=f"{FEWEST} are the least; a few hundred tell something")
    again = "it was asked for" if how.recluster else "there were none yet" if state is None else ""
    state, new = _embedded(paths, inventory, how, state, texts, say)
    if again:
        state = _clustered(state, texts, how, now)
    write_state(paths, state)
    return _overview(state, prompts, new, again, now)


def sorted_last(paths: Paths, now: float) -> Overview | None:
    """Every topic as it was last sorted; None where none was. Embeds nothing and writes nothing."""
    state = read_state(paths)
    return _overview(state, read_prompts(paths), 0, "", now) if state else None


def page(paths: Paths, identity: int, now: float) -> Page:
    """One topic, as it was last sorted. Raises UsageError where there is none of that id."""
    state = read_state(paths)
    known = {topic.id for topic in state.topics} if state else set()
    if state is None or identity not in known:
        gone = {one: f"topic {one} ({name}) ended with the clustering of {when[:10]}"
                for one, name, when in (state.retired if state else ())}
        raise UsageError(gone.get(identity, f"there is no topic {identity}"),
                         hint="`swarmctl topics` lists them")
    prompts = _sorted_in(state, read_prompts(paths))
    own = [prompt for prompt in prompts if prompt.topic == identity]
    summary = next(one for one in topics.summaries(state.topics, prompts, now, _new_vectors(state))
                   if one.topic.id == identity)
    worst = sorted((one for one in own if (one.score or 0) < 0), key=lambda one: (one.score or 0,
                                                                                  -one.seconds))
    liked = approvals(((one.model, one.digest), (1 + one.score) / 2) for one in own if one.score is not None)
    return Page(summary, _typical(own), tuple(worst), liked)


def _embedded(paths: Paths, inventory: Path, how: How, state: State | None, texts: Mapping[str, str],
              say: Callable[[str], None]) -> tuple[State, int]:
    """The state with a vector for every prompt, and how many are new. Where there are topics and nothing
    embeds just now, new prompts wait."""
    missing = [key for key in texts if state is None or key not in state.placed]
    if state is not None and not missing and not how.model:
        return _without_gone(state, texts), 0
    try:
        return _with_vectors(paths, inventory, how, state, texts, say)
    except UsageError:
        raise
    except SwarmError as exc:
        if state is None or how.recluster:
            raise
        say(f"{len(missing)} new prompts are not sorted in: {exc}")
        return _without_gone(state, texts), 0


def _with_vectors(paths: Paths, inventory: Path, how: How, state: State | None, texts: Mapping[str, str],
                  say: Callable[[str], None]) -> tuple[State, int]:
    model = find_model(paths, inventory, model=how.model, host=how.host, in_process=how.in_process, say=say)
    before = dict(state.placed) if state else {}
    other = state is not None and (state.digest, state.model) != (model.digest, model.name)
    if state is not None and other and not how.recluster:
        raise UsageError(f"the vectors were made by {state.model}, and {model.name} embeds now",
                         hint="--recluster embeds all prompts anew; a topic that survives keeps its id")
    known = {} if other else dict(before)
    missing = [key for key in texts if key not in known]
    vectors = _vectors(model, [texts[key] for key in missing], say)
    there = state.topics if state and not other else ()
    for key, vector in zip(missing, vectors, strict=True):
        topic, near = topics.assign(vector, there) if vector else (topics.NONE, 0.0)
        known[key] = Placed(vector, before[key].topic if key in before else topic, near, old=False)
    fresh = state or State("", "", how.method, Clustered(0.0, 0, {}), (), 1)
    made = replace(fresh, model=model.name, digest=model.digest, placed=known)
    return _without_gone(made, texts), len(missing)


def _without_gone(state: State, texts: Mapping[str, str]) -> State:
    """A prompt that was deleted from the journal leaves no vector behind."""
    return replace(state, placed={key: one for key, one in state.placed.items() if key in texts})


def _vectors(model: Model, texts: Sequence[str], say: Callable[[str], None]) -> list[tuple[float, ...]]:
    """A vector for each text, of as much of its beginning as the model takes; empty where it takes
    nothing."""
    found: list[tuple[float, ...]] = [()] * len(texts)
    waiting, head = list(range(len(texts))), HEAD
    while waiting and head >= SHORTEST_HEAD:
        cut = [to_embed(texts[place], head) for place in waiting]
        batches = [cut[start:start + BATCH] for start in range(0, len(cut), BATCH)]
        results = [result for done in embed_all(model.lanes, iter(batches), lambda where, exc: say(
            f"{where} failed ({exc.message}); the others go on")) for result in done.results]
        refused = []
        for place, result in zip(waiting, results, strict=True):
            if isinstance(result, str):
                refused.append(place)
            else:
                found[place] = tuple(result)
        waiting, head = refused, head // 2
    return found


def _clustered(state: State, texts: Mapping[str, str], how: How, now: float) -> State:
    """The state with new clusters; those that survive keep their ids."""
    placed = {key: one for key, one in state.placed.items() if one.vector}
    keys = list(placed)
    labels = clustering.cluster([placed[key].vector for key in keys], method=how.method, k=how.k)
    before = {key: one.topic for key, one in placed.items() if state.topics}
    ids = clustering.match(topics.overlaps(before, dict(zip(keys, labels, strict=True))), topics.SURVIVES)
    following = state.next_id
    for label in sorted(set(labels) - {topics.NONE} - ids.keys()):
        ids[label], following = following, following + 1
    members: dict[int, list[str]] = defaultdict(list)
    for key, label in zip(keys, labels, strict=True):
        members[ids.get(label, topics.NONE)].append(key)
    of_none = members.pop(topics.NONE, [])
    made = tuple(_topics(state, members, texts, timestamp(now)))
    after = {key: Placed(placed[key].vector, topic, _near(placed[key], made, topic), old=True)
             for topic, several in members.items() for key in several}
    after |= {key: Placed(placed[key].vector, *topics.assign(placed[key].vector, made), old=True)
              for key in of_none}
    after |= {key: replace(one, topic=topics.NONE, old=True) for key, one in state.placed.items()
              if not one.vector}
    gone = tuple((topic.id, topic.name, timestamp(now)) for topic in state.topics if topic.id not in members)
    shares = topics.shares(one.topic for one in after.values())
    return replace(state, method=how.method, clustered=Clustered(now, len(after), shares), topics=made,
                   next_id=following, retired=(*state.retired, *gone), placed=after)


def _topics(state: State, members: Mapping[int, Sequence[str]], texts: Mapping[str, str],
            at: str) -> Iterator[Topic]:
    named = topics.terms({topic: [texts[key] for key in keys] for topic, keys in members.items()})
    since = {topic.id: topic.since for topic in state.topics}
    for topic, keys in sorted(members.items()):
        vectors = [state.placed[key].vector for key in keys]
        centroid = topics.centre(vectors)
        yield Topic(topic, topics.name(named[topic]), named[topic], centroid,
                    topics.threshold(centroid, vectors), len(keys), since.get(topic, at))


def _near(one: Placed, made: Sequence[Topic], identity: int) -> float:
    return next(topics.cosine(one.vector, topic.centroid) for topic in made if topic.id == identity)


def _overview(state: State, prompts: Sequence[Prompt], new: int, again: str, now: float) -> Overview:
    placed = _sorted_in(state, prompts)
    of_each = [one.topic for one in state.placed.values()]
    return Overview(
        topics.summaries(state.topics, placed, now, _new_vectors(state)), len(placed),
        sum(one.topic == topics.NONE for one in placed), new,
        topics.drift(state.clustered.shares, topics.shares(of_each)) if of_each else 0.0,
        topics.topics_due(state.clustered, of_each, now), again, state)


def _sorted_in(state: State, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts with the topics that they were sorted into."""
    found = []
    for prompt in prompts:
        place = state.placed.get(prompt_key(prompt.text))
        found.append(replace(prompt, topic=place.topic, similarity=place.similarity) if place else prompt)
    return found


def _new_vectors(state: State) -> dict[int, list[tuple[float, ...]]]:
    found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for one in state.placed.values():
        if not one.old and one.vector:
            found[one.topic].append(one.vector)
    return found


def _typical(own: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Nearest to the centre first, each text once."""
    found: dict[str, Prompt] = {}
    for prompt in sorted(own, key=lambda one: -one.similarity):
        found.setdefault(prompt_key(prompt.text), prompt)
    return tuple(found.values())
