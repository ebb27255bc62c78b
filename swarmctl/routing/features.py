"""What can be told of a prompt before anybody answers it: cheap counts, and a vector where one is at hand.

Pure Python and quick: `ask` reads these on every question. Only the beginning is counted letter by letter,
as a file of megabytes says no more about itself in its second page.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters that are counted one by one.
HEAD = 4000
SYMBOLS = frozenset("=+-*/^<>{}[]()\\|$%_")
#: Each feature, and the least spread that it is given: a swarm whose prompts are all alike in one must not
#: take a small step for a great one.
FLOORS = {
    "length": 0.1, "words": 0.1, "lines": 0.1, "letters": 0.01, "digits": 0.005, "capitals": 0.005,
    "symbols": 0.005, "foreign": 0.005, "word length": 0.1, "questions": 0.1, "numbers": 0.1, "code": 0.1,
    "variety": 0.01, "longest word": 0.5, "longest line": 0.1,
}
NAMES = tuple(FLOORS)


@dataclass(frozen=True, slots=True)
class Features:
    """`surface` holds a number for each of NAMES; `vector` is of length one, by the embedding model whose
    weights have the digest `embedder`. None where nothing embedded the prompt."""

    surface: tuple[float, ...]
    vector: Sequence[float] | None = None
    embedder: str = ""


def read_features(text: str, vector: Sequence[float] | None = None, embedder: str = "") -> Features:
    """Read a prompt."""
    head = text[:HEAD]
    size = len(head) or 1
    words, lines = head.split(), head.split("\n")
    letters, digits = sum(map(str.isalpha, head)), sum(map(str.isdigit, head))
    surface = (
        log(len(text) or 1), log(len(words) + 1), log(len(lines)), letters / size, digits / size,
        sum(map(str.isupper, head)) / size, sum(map(SYMBOLS.__contains__, head)) / size,
        0.0 if head.isascii() else sum(ord(letter) > 127 for letter in head) / size,
        letters / max(1, len(words)), float(head.count("?")), float(digits > 0), float("```" in head),
        len({word.lower() for word in words}) / max(1, len(words)),
        float(max(map(len, words), default=0)), log(1 + max(map(len, lines))),
    )
    return Features(surface, vector, embedder)
