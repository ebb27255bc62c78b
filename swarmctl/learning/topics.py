"""What is asked about, as arithmetic: assigning prompts to topics, naming them, how they move, and when to
cluster anew. Pure; vectors have length one, so that a product is a cosine.

Clustering itself is in `clustering`, which needs scikit-learn; everything here is plain Python, as it also
runs where only new prompts are sorted into topics that are there.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from math import log, log2, sqrt
from operator import mul
from typing import TYPE_CHECKING

from swarmctl.learning.approval import Approval, approvals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Vector = tuple[float, ...]

#: The topic of a prompt that is like none.
NONE = -1
TERMS, NAMED = 8, 3
#: A prompt belongs to its nearest topic where it is as near as all but so many of a hundred of the topic's
#: own, and a
#: little less near is forgiven.
FARTHEST_PERCENT, FORGIVEN = 2, 0.05
#: A topic survives a new clustering where it shares this much with a new one (Jaccard of their prompts).
SURVIVES = 0.3
#: The window whose share of traffic a trend compares with what was before.
TREND_SECONDS = 7 * 86_400.0
#: When to cluster anew: too many prompts like no topic, twice as many prompts, other shares, or just old.
OUTLIERS, FEWEST_OUTLIERS = 0.2, 20
GROWTH = 2.0
DRIFT = 0.1
AGE_DAYS, AGE_GROWTH = 30, 1.1
FIRST_PROMPTS = 50
WORD = re.compile(r"[^\W\d_][\w'-]*[^\W_]|[^\W\d_]")
#: Words of questions that say nothing of what is asked about; c-TF-IDF does the rest.
SAYS_NOTHING = frozenset({
    "a", "about", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by",
    "can", "could", "did", "do", "does", "for", "from", "get", "give", "had", "has", "have", "he", "her",
    "him", "his", "how", "i", "if", "in", "into", "is", "it", "its", "just", "let", "like", "make", "many",
    "may", "me", "much", "my", "need", "no", "not", "of", "on", "one", "or", "our", "out", "please", "she",
    "should", "show", "so", "some", "tell", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "to", "up", "us", "use", "using", "want", "was", "we", "were", "what", "when", "where",
    "which", "who", "whom", "whose", "why", "will", "with", "would", "write", "you", "your", "aber", "als",
    "auch", "auf", "aus", "bei", "bin", "bist", "da", "das", "dass", "dem", "den", "der", "des",
    "die", "dir", "du", "durch", "ein", "eine", "einen", "einer", "es", "für", "hat", "ich", "ihr", "im",
    "ist", "ja", "kann", "man", "mein", "mich", "mir", "mit", "nach", "nicht", "noch", "nur", "oder",
    "sich", "sie", "sind", "und", "uns", "von", "vor", "war", "wann", "warum", "wer", "wie",
    "wir", "wird", "wo", "zu", "zum", "zur"})


@dataclass(frozen=True, slots=True)
class Topic:
    """A cluster of prompts. `threshold` is the least cosine to `centroid` that belongs to it; `members` how
    many prompts made it, `since` when its id was given (ISO 8601)."""

    id: int
    name: str
    terms: tuple[str, ...]
    centroid: Vector
    threshold: float
    members: int
    since: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question that was asked, with the topic it was sorted into. `score` is the rating that stands."""

    exchange: str
    seconds: float
    text: str
    model: str
    digest: str
    score: float | None
    topic: int = NONE
    similarity: float = 0.0


@dataclass(frozen=True, slots=True)
class Clustered:
    """The state at the last clustering: when, of how many different prompts, and each topic's share of
    them."""

    seconds: float
    prompts: int
    shares: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """A topic as it stands. `trend` is its share of the last week's questions less its share before, None
    without both; `sure` tells that it is more than chance (two proportions, 95 %). `shift` is how far its
    new prompts lie from its centre (1 - cosine of the means)."""

    topic: Topic
    size: int
    share: float
    approval: Approval
    trend: float | None
    sure: bool
    shift: float | None


def assign(vector: Sequence[float], topics: Sequence[Topic]) -> tuple[int, float]:
    """The nearest topic and the cosine to it; NONE where it is not near enough."""
    if not topics:
        return NONE, 0.0
    near, best = max(((cosine(vector, topic.centroid), topic) for topic in topics), key=lambda pair: pair[0])
    return (best.id if near >= best.threshold else NONE), near


def centre(vectors: Sequence[Sequence[float]]) -> Vector:
    """The mean direction of vectors, of length one."""
    sums = [sum(column) for column in zip(*vectors, strict=True)]
    length = sqrt(sum(value * value for value in sums)) or 1.0
    return tuple(value / length for value in sums)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of vectors of length one."""
    return float(sum(map(mul, one, other)))


def threshold(centroid: Vector, vectors: Sequence[Sequence[float]]) -> float:
    """The least cosine that belongs, from those that made the topic."""
    found = sorted(cosine(centroid, vector) for vector in vectors)
    return found[len(found) * FARTHEST_PERCENT // 100] - FORGIVEN


def terms(texts: Mapping[int, Sequence[str]], most: int = TERMS) -> dict[int, tuple[str, ...]]:
    """Each topic's words, the most telling first, by c-TF-IDF: how often in the topic, times log(1 + mean
    words of a topic / how often in all) (Grootendorst, arXiv:2203.05794). A word counts once a text."""
    counts = {topic: Counter(word for text in several for word in set(words(text)))
              for topic, several in texts.items()}
    everywhere: Counter[str] = sum(counts.values(), Counter())
    mean = everywhere.total() / max(1, len(counts))
    found = {}
    for topic, counted in counts.items():
        size = counted.total() or 1
        score = {word: count / size * log(1 + mean / everywhere[word]) for word, count in counted.items()}
        found[topic] = tuple(sorted(score, key=lambda word: (-score[word], word))[:most])
    return found


def words(text: str) -> list[str]:
    """The words of a text that may name a topic."""
    return [word for word in (found.casefold() for found in WORD.findall(text))
            if word not in SAYS_NOTHING and len(word) > 1]


def name(found: Sequence[str]) -> str:
    """A topic's name: its first terms."""
    return ", ".join(found[:NAMED]) or "(no words)"


def overlaps(old: Mapping[str, int], new: Mapping[str, int]) -> dict[tuple[int, int], float]:
    """Of each old and new topic the Jaccard similarity of their prompts, over the prompts that both
    clusterings hold. Prompts of no topic count for none."""
    shared = old.keys() & new.keys()
    both = Counter((old[key], new[key]) for key in shared)
    olds, news = Counter(old[key] for key in shared), Counter(new[key] for key in shared)
    return {(one, other): count / (olds[one] + news[other] - count)
            for (one, other), count in both.items() if NONE not in (one, other)}


def summaries(topics: Sequence[Topic], prompts: Sequence[Prompt], now: float,
              new: Mapping[int, Sequence[Sequence[float]]]) -> tuple[Summary, ...]:
    """Every topic as it stands, the largest first. `new` holds the vectors of each topic's prompts since the
    last clustering."""
    by_topic: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_topic[prompt.topic].append(prompt)
    liked = approvals((prompt.topic, (1 + prompt.score) / 2) for prompt in prompts
                      if prompt.score is not None)
    nobody = Approval(0.0, 0.0, 0.0, 1.0)
    found = []
    for topic in topics:
        own = by_topic[topic.id]
        trend, sure = _trend(own, prompts, now)
        since = new.get(topic.id) or ()
        found.append(Summary(topic, len(own), len(own) / max(1, len(prompts)), liked.get(topic.id, nobody),
                             trend,
                             sure, 1 - cosine(centre(since), topic.centroid) if since else None))
    return tuple(sorted(found, key=lambda one: (-one.size, one.topic.id)))


def shares(topics_of: Iterable[int]) -> dict[int, float]:
    """Each topic's share of the prompts, those of none included."""
    counts = Counter(topics_of)
    return {topic: count / counts.total() for topic, count in counts.items()}


def drift(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """How much the shares have moved: Jensen-Shannon divergence in bits, from 0 (the same) to 1 (nothing
    shared)."""
    found = 0.0
    for topic in before.keys() | now.keys():
        one, other = before.get(topic, 0.0), now.get(topic, 0.0)
        middle = (one + other) / 2
        found += sum(share / 2 * log2(share / middle) for share in (one, other) if share)
    return max(0.0, found)


def topics_due(clustered: Clustered | None, topics_of: Sequence[int], now: float) -> str | None:
    """Why to cluster anew, as a person reads it; None where there is no reason. `topics_of` has one topic
    for each different prompt there is now."""
    count = len(topics_of)
    if clustered is None:
        return f"{count} prompts were never clustered" if count >= FIRST_PROMPTS else None
    outliers = sum(topic == NONE for topic in topics_of)
    if count > clustered.prompts and outliers >= FEWEST_OUTLIERS and outliers > OUTLIERS * count:
        return f"{outliers} of {count} prompts are like no topic"
    if count >= GROWTH * clustered.prompts:
        return f"there are {count} prompts, and there were {clustered.prompts}"
    moved = drift(clustered.shares, shares(topics_of)) if topics_of else 0.0
    if moved > DRIFT:
        return f"the shares of the topics have drifted by {moved:.2f} (of 1)"
    days, more = (now - clustered.seconds) / 86_400, count - clustered.prompts
    if days > AGE_DAYS and count >= AGE_GROWTH * clustered.prompts:
        return f"the last clustering is {days:.0f} days old, and {more} prompts are new"
    return None


def policy() -> str:
    """The rules of topics_due, for a person."""
    return (f"to be clustered anew when {OUTLIERS:.0%} of the prompts ({FEWEST_OUTLIERS} or more) are like "
            f"no topic, at {GROWTH:g} times the prompts, at a drift of {DRIFT:g}, or after {AGE_DAYS} days "
            f"with {AGE_GROWTH - 1:.0%} new prompts")


def _trend(own: Sequence[Prompt], every: Sequence[Prompt], now: float) -> tuple[float | None, bool]:
    edge = now - TREND_SECONDS
    late, own_late = sum(one.seconds >= edge for one in every), sum(one.seconds >= edge for one in own)
    early, own_early = len(every) - late, len(own) - own_late
    if not late or not early:
        return None, False
    change = own_late / late - own_early / early
    pooled = len(own) / len(every)
    spread = sqrt(pooled * (1 - pooled) * (1 / late + 1 / early))
    return change, bool(spread) and abs(change) / spread > 1.96
