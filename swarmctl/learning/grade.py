"""How well an answer agrees with a reference, from 0 to 1. Pure.

`exact` and `f1` are SQuAD's measures (Rajpurkar et al., arXiv:1606.05250), but case and punctuation count:
whoever rates code or spelling means them. The other matches are for capability sets, where only a part of the
answer is known.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def exact(answer: str, reference: str) -> float:
    """1 where both are the same but for white space."""
    return float(answer.split() == reference.split())


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words."""
    said, wanted = Counter(answer.split()), Counter(reference.split())
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else float(not said and not wanted)


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands in the answer as whole words."""
    return float(re.search(rf"(?<!\w){re.escape(reference.strip())}(?!\w)", answer) is not None)


def number(answer: str, reference: str) -> float:
    """1 where the last number of the answer is the reference's, as GSM8K is graded (arXiv:2110.14168)."""
    said = NUMBER.findall(answer)
    return float(bool(said) and _value(said[-1]) == _value(reference.strip()))


def matches(answer: str, reference: str) -> float:
    """1 where the reference, a regular expression, is found in the answer."""
    return float(re.search(reference, answer) is not None)


MATCHES: Mapping[str, Callable[[str, str], float]] = {
    "exact": exact, "f1": f1, "contains": contains, "number": number, "regex": matches}


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
