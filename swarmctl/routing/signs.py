"""What an answer's text shows of how it came about: sums that do not add up, numbers that were passed over,
an end that is none. Beside the probabilities of its tokens it is the other evidence of whether it is right;
which of the two says more is for the ratings to decide (`routing.calibration`).
"""

from __future__ import annotations

import operator
import re
from math import log1p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Names of the signs, in their order. Each is of about unit size.
SIGNS = ("slips", "sums", "last sum", "whole number", "fraction", "no end", "passed over", "doubts", "length",
         "question", "shares", "own words", "quoted")
#: Patterns are compiled when first used: most commands read no answer. All are bounded, so that no text takes
#: long to read.
DIGITS = r"\d[\d,]{0,18}(?:\.\d{1,18})?"
SIDE = rf"\$?{DIGITS}%?"
#: a sum as people write one, of a dozen terms at most, and what it is said to be
SUM = (rf"(?<![\d,.])({SIDE}(?: {{0,3}}[-+*/x×÷] {{0,3}}{SIDE}){{1,12}}) {{0,3}}="  # noqa: RUF001
       rf" {{0,3}}\$?(-?{DIGITS})")
#: where an answer says that it is one: a mark of its kind, or the words
END = r"(?i)####|\\boxed|\bthe answer is\b"
DOUBTS = (r"(?i)\b(?:however|sorry|assum\w*|if we|mistake|not possible|not enough|i think|i believe|"
          r"perhaps|maybe|would)\b")
SHARES = r"(?i)\b(?:half|third|quarter|fifth|twice|thrice|percent|\d/\d)\b|%"
WORD = r"[^\W\d_]{2,}"
APPLY: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
#: Rounding to a cent, or to a hundredth, is no slip.
ROUNDED = 0.011
LONGEST = 20_000


def signs(question: str, answer: str) -> tuple[float, ...]:
    """The signs of an answer, as SIGNS. Bounded work: of a very long answer only the beginning is read."""
    text, asked = answer[:LONGEST], question[:LONGEST]
    sums = list(_sums(text))
    end = re.split(END, text)[-1]
    said = _numbers(end) or _numbers(text)
    final = said[0] if said and re.search(END, text) else said[-1] if said else None
    given = _numbers(asked)
    used = set(_numbers(text))
    return (
        float(min(sum(abs(true - claimed) > ROUNDED * max(1.0, abs(true)) for true, claimed in sums), 3)),
        log1p(len(sums)),
        float(bool(sums) and final == sums[-1][1]),
        float(final is not None and final == int(final)),
        float(any(claimed != int(claimed) for _, claimed in sums)),
        float(len(re.findall(END, text)) != 1),
        sum(one not in used for one in given) / max(1, len(given)),
        min(len(re.findall(DOUBTS, text)), 4) / 2,
        log1p(len(text)) / 4,
        log1p(len(asked)) / 4,
        float(bool(re.search(SHARES, asked))),
        *_taken(asked.lower(), text.lower()),
    )


def _taken(asked: str, text: str) -> tuple[float, float]:
    """Which share of an answer's words the question lacks; and whether the answer stands in the question,
    letter by letter and digit by digit, whatever lies between them: a quotation, a word spelled out."""
    words, known = re.findall(WORD, text), set(re.findall(WORD, asked))
    bare = "".join(filter(str.isalnum, text))
    stands = bool(bare) and bare in "".join(filter(str.isalnum, asked))
    return sum(word not in known for word in words) / max(1, len(words)), float(stands)


def _sums(text: str) -> Iterator[tuple[float, float]]:
    """What each sum that the text states comes to, and what the text says that it does."""
    for found in re.finditer(SUM, text):
        true = _value(found[1])
        if true is not None:
            yield true, _number(found[2].lstrip("-")) * (-1 if found[2].startswith("-") else 1)


def _value(terms: str) -> float | None:
    """The value of a sum without brackets; None where it divides by zero."""
    parts = re.findall(rf"{SIDE}|[-+*/x×÷]", terms)  # noqa: RUF001
    numbers = [_number(one.strip("$%")) / (100 if one.endswith("%") else 1) for one in parts[::2]]
    signs_between = [{"x": "*", "×": "*", "÷": "/"}.get(one, one) for one in parts[1::2]]  # noqa: RUF001
    for level in ("*/", "+-"):
        rest, left = [numbers[0]], []
        for sign, number in zip(signs_between, numbers[1:], strict=True):
            if sign not in level:
                rest.append(number)
                left.append(sign)
            elif sign == "/" and number == 0:
                return None
            else:
                rest[-1] = APPLY[sign](rest[-1], number)
        numbers, signs_between = rest, left
    return numbers[0]


def _numbers(text: str) -> list[float]:
    return [_number(one) for one in re.findall(DIGITS, text)]


def _number(text: str) -> float:
    return float(text.replace(",", "") or 0)
