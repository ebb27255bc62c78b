"""Texts that are the same, or nearly: exact Jaccard similarity of word shingles, over an inverted index.
Pure.

Two texts are near when the shares of three-word runs that they have in common reach a threshold and they
hold the same numbers: "3 plus 4" is not "3 plus 5", however much else they share. Only the rarest shingles
of a text are indexed, as many as it takes that no pair above the threshold is missed (prefix filtering:
Chaudhuri et al. 2006, Bayardo et al. 2007), so nothing is approximate and no library is needed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Words of a shingle, and the Jaccard similarity from which two texts are near.
WORDS = 3
NEAR = 0.85
WORD = re.compile(r"\w+|[^\w\s]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Shingles = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is compared."""

    shingles: Shingles
    numbers: tuple[str, ...]


def text_of(text: str, *, numbers: bool = True) -> Text:
    """Prepare a text. Case and white space do not count; numbers only where `numbers` says so."""
    words = [word.casefold() for word in WORD.findall(text)]
    runs = {tuple(words[start:start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))}
    return Text(frozenset(runs), tuple(sorted(NUMBER.findall(text))) if numbers else ())


def similarity(one: Text, other: Text) -> float:
    """Jaccard's: shingles shared, of all; 0 where the numbers differ."""
    if one.numbers != other.numbers:
        return 0.0
    shared = len(one.shingles & other.shingles)
    return shared / (len(one.shingles) + len(other.shingles) - shared)


def near_pairs(texts: Sequence[str], threshold: float = NEAR, *,
               numbers: bool = True) -> Iterator[tuple[int, int]]:
    """Every two texts that are near, as (earlier, later)."""
    prepared = [text_of(text, numbers=numbers) for text in texts]
    often = Counter(shingle for text in prepared for shingle in text.shingles)
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, text in enumerate(prepared):
        rarest = sorted(text.shingles, key=lambda shingle: (often[shingle], shingle))
        prefix = rarest[:len(rarest) - ceil(threshold * len(rarest)) + 1]
        for other in sorted({found for shingle in prefix for found in index[shingle]}):
            if similarity(text, prepared[other]) >= threshold:
                yield other, place
        for shingle in prefix:
            index[shingle].append(place)


def duplicates(rows: Sequence[tuple[str, ...]], threshold: float = NEAR) -> dict[int, int]:
    """Of rows of texts: place → the place of an earlier row that it is near in each of its texts, and that
    is kept itself."""
    gone: dict[int, int] = {}
    for earlier, later in near_pairs([row[0] for row in rows], threshold):
        if later in gone or earlier in gone or len(rows[earlier]) != len(rows[later]):
            continue
        if all(one == other or similarity(text_of(one), text_of(other)) >= threshold
               for one, other in zip(rows[earlier][1:], rows[later][1:], strict=True)):
            gone[later] = earlier
    return gone


def near_any(texts: Sequence[str], others: Sequence[str], threshold: float = NEAR) -> frozenset[int]:
    """Places of the texts that are near any of the others."""
    first = len(others)
    found = near_pairs([*others, *texts], threshold)
    return frozenset(later - first for earlier, later in found if earlier < first <= later)
