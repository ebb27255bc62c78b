"""What an answer's text shows of how it came about: sums that do not add up, numbers that were passed over,
results that lead nowhere, an end that is none. Beside the probabilities of its tokens it is the other
evidence of whether it is right; which of the two says more is for the ratings to decide
(`routing.calibration`).
"""

from __future__ import annotations

import operator
import re
from math import isfinite, log1p
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Names of the signs, in their order. Each is of about unit size. Answers are recorded with theirs, so new
#: ones stand behind.
SIGNS = ("slips", "sums", "last sum", "whole number", "fraction", "no end", "passed over", "doubts", "length",
         "question", "shares", "own words", "quoted", "how many passed over", "loose result", "cut off")
#: Patterns are compiled when first used: most commands read no answer. All are bounded, so that no text takes
#: long to read.
DIGITS = r"(?:\d[\d,]{0,18}(?:\.\d{1,18})?|\.\d{1,18})"
SIDE = rf"\({{0,2}}\$?{DIGITS}%?\){{0,2}}"
#: a sum as people write one, of a dozen terms at most
TERMS = rf"{SIDE}(?: {{0,3}}[-+*/x] {{0,3}}{SIDE}){{0,12}}"
#: and what it is said to be, which may be a further sum that is said to be something
SUMS = rf"(?<![\d,.]){TERMS}(?:\s{{0,3}}=\s{{0,3}}\$?-?{TERMS}){{1,8}}"
TERM = rf"{DIGITS}%?|[-+*/x()]"
#: a number with its sign; a dash between two numbers is none
SIGNED = rf"(?:(?<![\w.)%])-)?\$?{DIGITS}"
#: How answers write the signs of a sum, where it is not by the plain ones.
PLAIN = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\*": "*", "\\$": "$", "\\%": "%", "**": "",
         "×": "*", "÷": "/", "·": "*", "⋅": "*", "−": "-"}  # noqa: RUF001  as people write them
#: where an answer says that it is one: a mark of its kind, or the words
END = r"(?i)####|\\boxed|\bthe answer is\b"
#: what a text that was cut off ends in: a letter, a digit, the middle of a sum or of a list
BROKEN = r"[\w,;:(<=+*/-]\s*\Z"
DOUBTS = (r"(?i)\b(?:however|sorry|assum\w*|if we|mistake|not possible|not enough|i think|i believe|"
          r"perhaps|maybe|would)\b")
SHARES = r"(?i)\b(?:half|third|quarter|fifth|twice|thrice|percent|\d/\d)\b|%"
WORD = r"[^\W\d_]{2,}"
APPLY: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}
#: Rounding to a cent, or to a hundredth, is no slip.
ROUNDED = 0.011
LONGEST = 20_000


class Sum(NamedTuple):
    """A sum that a text states: its terms, what they come to, and what the text says that they do."""

    terms: tuple[float, ...]
    true: float
    claimed: float
    right: bool


def signs(question: str, answer: str) -> tuple[float, ...]:
    """The signs of an answer, as SIGNS. Bounded work: of a very long answer only the beginning is read."""
    text, asked = answer[:LONGEST], question[:LONGEST]
    plain = _plain(text)
    sums = list(_sums(plain))
    final = _final(plain)
    given, used = _numbers(asked), set(_numbers(plain))
    missed = sum(one not in used for one in given)
    ends = len(re.findall(END, text))
    return (
        float(min(sum(not one.right for one in sums), 3)),
        log1p(len(sums)),
        float(bool(sums) and final == sums[-1].claimed),
        float(final is not None and final == int(final) >= 0),
        float(any(one.claimed != int(one.claimed) for one in sums)),
        float(ends != 1),
        missed / max(1, len(given)),
        min(len(re.findall(DOUBTS, text)), 4) / 2,
        log1p(len(text)) / 4,
        log1p(len(asked)) / 4,
        float(bool(re.search(SHARES, asked))),
        *_taken(asked.lower(), text.lower()),
        log1p(missed) / 2,
        float(_loose(sums, final)),
        float(not ends and bool(re.search(BROKEN, text))),
    )


def _final(plain: str) -> float | None:
    """The number that the answer ends in: the first after its last mark of an end, or its last."""
    said = _numbers(re.split(END, plain)[-1], SIGNED) or _numbers(plain, SIGNED)
    if not said:
        return None
    return said[0] if re.search(END, plain) else said[-1]


def _loose(sums: Sequence[Sum], final: float | None) -> bool:
    """Whether a sum's result is neither taken up by a later one nor what the answer ends in."""
    taken = set() if final is None else {round(final, 2)}
    for one in reversed(sums):
        result = {round(one.claimed, 2), round(one.true, 2)}
        if taken.isdisjoint(result):
            return True
        taken |= result | {round(term, 2) for term in one.terms}
    return False


def _taken(asked: str, text: str) -> tuple[float, float]:
    """Which share of an answer's words the question lacks; and whether the answer stands in the question,
    letter by letter and digit by digit, whatever lies between them: a quotation, a word spelled out."""
    words, known = re.findall(WORD, text), set(re.findall(WORD, asked))
    bare = "".join(filter(str.isalnum, text))
    stands = bool(bare) and bare in "".join(filter(str.isalnum, asked))
    return sum(word not in known for word in words) / max(1, len(words)), float(stands)


def _plain(text: str) -> str:
    """The text with plain signs in its sums."""
    return re.sub("|".join(map(re.escape, PLAIN)), lambda found: PLAIN[found[0]], text)


def _sums(plain: str) -> Iterator[Sum]:
    """The sums that a text states. Of 2 * 3 + 1 = 6 + 1 = 7 there are two."""
    for found in re.finditer(SUMS, plain):
        parts = [part.strip() for part in found[0].split("=")]
        values = [_value(part) for part in parts]
        terms = [_numbers(part) for part in parts]
        for i in range(len(parts) - 1):
            true, claimed = values[i], values[i + 1]
            if len(terms[i]) < 2 or true is None or claimed is None:
                continue
            right = _same(true, claimed)
            if parts[i + 1].endswith("%") and len(terms[i + 1]) == 1:
                claimed = terms[i + 1][0]  # people write 1 / 4 = 25 %, and 1 / 4 * 100 = 25 % too
            yield Sum(tuple(terms[i]), true, claimed, right or _same(true, claimed))


def _same(true: float, claimed: float) -> bool:
    """Whether that is the result, or rounds it."""
    if true == int(true) and claimed == int(claimed):
        return true == claimed
    return abs(true - claimed) <= ROUNDED * max(1.0, abs(true))


def _value(terms: str) -> float | None:
    """The value of a sum; None where it has none."""
    try:
        values = _worked_out(re.findall(TERM, terms.replace("x", "*")))
    except (ZeroDivisionError, IndexError):
        return None
    return values[0] if len(values) == 1 and isfinite(values[0]) else None


def _worked_out(terms: Sequence[str]) -> list[float]:
    """Dijkstra's shunting yard. Brackets that are only opened hold all the rest, as a sentence may stand in
    them. Raises IndexError where a sign lacks a side, and ZeroDivisionError."""
    values: list[float] = []
    waiting: list[str] = []
    before = "("
    for one in terms:
        if one in BINDS:
            if before == "(":
                values.append(0.0)
            _settle(waiting, values, BINDS[one])
            waiting.append(one)
        elif one == "(":
            waiting.append(one)
        elif one == ")":
            _settle(waiting, values, 1)
            del waiting[-1:]
        else:
            values.append(_number(one.rstrip("%")) / (100 if one.endswith("%") else 1))
        before = one
    _settle([sign for sign in waiting if sign != "("], values, 0)
    return values


def _settle(waiting: list[str], values: list[float], least: int) -> None:
    """Work out the signs that wait and bind at least so strongly, the latest first."""
    while waiting and BINDS.get(waiting[-1], 0) >= least:
        second, first = values.pop(), values.pop()
        values.append(APPLY[waiting.pop()](first, second))


def _numbers(text: str, pattern: str = DIGITS) -> list[float]:
    return [_number(one) for one in re.findall(pattern, text)]


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("$", "") or 0)
