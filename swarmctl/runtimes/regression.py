"""What makes a new version of a runtime worse than the one before it. Pure.

Slower by more than noise is worse, and so is garbage. Text that differs is not: two versions round
differently, and a greedy answer drifts apart from the first token where they disagree. But it begins the
same; where most answers begin otherwise, the version reads its prompt or its weights differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts import Speed

#: of the old speed, below which a new one is worse, and of answers that must still come
TOLERANCE = 0.8
#: two versions' vectors of one text; rounding moves them by far less
LEAST_COSINE = 0.99
#: a text is garbage where fewer of its characters can be read, or where one word makes up so much of it
READABLE, REPEATED, MANY_WORDS = 0.9, 0.8, 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a fixed prompt. `finish` is stop, length or, where none came whole, error; then `text` is
    why."""

    text: str
    finish: str

    @property
    def sound(self) -> bool:
        """Whether it is an answer at all."""
        return self.finish in ("stop", "length") and not _garbage(self.text)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server did: its speed, and its answers to the fixed prompts, or an embedding model's vectors."""

    speed: Speed
    answers: tuple[Answer, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()


def better_of(one: Speed, other: Speed) -> Speed:
    """The best of two measurements: whatever else a machine does only slows them."""
    return replace(one, prefill=max(one.prefill, other.prefill), decode=max(one.decode, other.decode),
                   overhead=min(one.overhead, other.overhead))


def slower(name: str, before: Speed, after: Speed, tolerance: float = TOLERANCE) -> tuple[str, ...]:
    """The speeds that fell below `tolerance` of what they were, in words."""
    return tuple(f"{name}: {what} {was:,.0f} → {now:,.0f} tokens/s ({now / was:.2f} of before, "
                 f"{tolerance:.2f} is asked)"
                 for what, was, now in _speeds(before, after) if now < was * tolerance)


def speed_words(name: str, before: Speed, after: Speed) -> str:
    """Both speeds side by side."""
    said = ", ".join(f"{what} {was:,.0f} → {now:,.0f} tokens/s ({now / was:.2f})"
                     for what, was, now in _speeds(before, after))
    return f"{name}: {said}"


def garbled(name: str, before: Sample, after: Sample) -> tuple[str, ...]:
    """What is worse in the answers or vectors, in words."""
    if before.vectors:
        found = _least_cosine(before.vectors, after.vectors)
        return () if found >= LEAST_COSINE else (
            f"{name}: its vectors changed (cosine {found:.3f} with before, {LEAST_COSINE} is asked)",)
    pairs = [(was, now) for was, now in zip(before.answers, after.answers, strict=True) if was.sound]
    if not pairs:
        return ()
    lost = [now for was, now in pairs if not now.sound or (was.finish, now.finish) == ("stop", "length")]
    if len(pairs) - len(lost) < TOLERANCE * len(pairs):
        return (f"{name}: {len(lost)} of {len(pairs)} answers are none any more ({_told(lost[0])})",)
    other = [now for was, now in pairs if now.sound and _opening(was.text) != _opening(now.text)]
    if 2 * len(other) > len(pairs):
        return (f"{name}: {len(other)} of {len(pairs)} greedy answers begin with another word "
                f"({_told(other[0])})",)
    return ()


def drift(name: str, before: Sample, after: Sample) -> str:
    """How alike the outputs are, in words."""
    if before.vectors:
        return f"{name}: its vectors are alike (cosine {_least_cosine(before.vectors, after.vectors):.4f})"
    same = sum(was == now for was, now in zip(before.answers, after.answers, strict=True))
    told = "" if same == len(before.answers) else ", the others drift"
    return f"{name}: {same} of {len(before.answers)} greedy answers are the same{told}"


def _speeds(before: Speed, after: Speed) -> Iterator[tuple[str, float, float]]:
    for what, was, now in (("decode", before.decode, after.decode),
                           ("prefill", before.prefill, after.prefill)):
        if was > 0:
            yield what, was, now


def _least_cosine(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> float:
    if len(before) != len(after):
        return 0.0
    return min((_cosine(one, other) for one, other in zip(before, after, strict=True)), default=1.0)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        return 0.0
    size = sqrt(sum(x * x for x in one)) * sqrt(sum(y * y for y in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / size if size else 0.0


def _garbage(text: str) -> bool:
    if not text.strip():
        return True
    readable = sum(char.isprintable() or char in "\n\t" for char in text) - text.count("\ufffd")
    words = text.split()
    commonest = max(words.count(word) for word in set(words))
    return readable < READABLE * len(text) or (len(words) >= MANY_WORDS and commonest > REPEATED * len(words))


def _opening(text: str) -> str:
    return text.split(maxsplit=1)[0] if text.strip() else ""


def _told(answer: Answer) -> str:
    text = " ".join(answer.text.split())[:60]
    if answer.finish == "error":
        return text
    return f"{text!r}, which does not end" if answer.finish == "length" else repr(text)
