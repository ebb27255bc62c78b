"""Raters who are not people, or who want the opposite: floods and inverted votes. Pure.

A terminal is the rater. A flood is a run of votes, each within moments of the one before, all of which say
the same: nobody reads that fast, and a person who does would not like everything. An inverted rater is one
who says the opposite of nearly everybody else about the very same answers. Floods are left out; an inverted
rater is named, as being of another mind is no crime.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.learning.labels import normal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from swarmctl.learning.labels import Labels, Vote

#: A flood: this many votes, none more than so many seconds after the one before.
FLOOD_VOTES = 12
FLOOD_SECONDS = 2.0
ONE_WAY = 0.98
#: An inverted rater: at least so many answers that others rated too, and at most this share of agreement.
SHARED_VOTES = 8
INVERTED = 0.2
#: One-sided: at least so many votes, all the same, where others are divided.
ONE_SIDED_VOTES = 20
DIVIDED = 0.2


@dataclass(frozen=True, slots=True)
class Flood:
    """A run of votes, by their ids, that no person made. `up` is what they all say."""

    terminal: str
    votes: tuple[str, ...]
    seconds: float
    up: bool

    @property
    def reason(self) -> str:
        """For a person."""
        way = "liked" if self.up else "disliked"
        return (f"{self.terminal}: {len(self.votes)} answers {way} in {self.seconds:.0f} s, none read "
                f"for more than {FLOOD_SECONDS:g} s")


@dataclass(frozen=True, slots=True)
class Doubt:
    """A rater to look at: `agreed` of `shared` votes agree with the others'; or all of `shared` say the
    same."""

    terminal: str
    kind: str
    agreed: int
    shared: int
    reason: str


def floods(labels: Labels) -> tuple[Flood, ...]:
    """Every flood of votes, in the order of time."""
    by_terminal: dict[str, list[Vote]] = defaultdict(list)
    for vote in labels.votes:
        if vote.score and not vote.undoes and vote.terminal and vote.seconds > 0:
            by_terminal[vote.terminal].append(vote)
    found = (flood for terminal, votes in by_terminal.items() for flood in _floods(terminal, votes))
    return tuple(sorted(found, key=lambda flood: flood.votes[0]))


def doubts(labels: Labels) -> tuple[Doubt, ...]:
    """Raters who contradict everybody else about the same answers, and those who say the same of everything.
    Where only two rated the same, it cannot be told who is inverted: both are named, once."""
    said: dict[str, list[_Said]] = defaultdict(list)
    for raters in _opinions(labels).values():
        for terminal, up in raters.items():
            others = {name: other for name, other in raters.items() if name != terminal}
            said[terminal].append(_Said(up, _majority(others.values()), frozenset(others)))
    everyone = [one.up for several in said.values() for one in several]
    found = (_inverted(terminal, several) or _one_sided(terminal, several, everyone)
             for terminal, several in sorted(said.items()))
    return tuple({doubt.reason: doubt for doubt in found if doubt is not None}.values())


@dataclass(frozen=True, slots=True)
class _Said:
    """What a rater says of one answer, what most others say of it (None: divided, or nobody), and who they
    are."""

    up: bool
    others: bool | None
    who: frozenset[str]


def _floods(terminal: str, votes: Sequence[Vote]) -> Iterator[Flood]:
    burst: list[Vote] = []
    for vote in sorted(votes, key=lambda one: (one.seconds, one.id)):
        if burst and vote.seconds - burst[-1].seconds > FLOOD_SECONDS:
            yield from _flood(terminal, burst)
            burst = []
        burst.append(vote)
    yield from _flood(terminal, burst)


def _flood(terminal: str, burst: Sequence[Vote]) -> Iterator[Flood]:
    """The burst, where it is long and of one opinion. A script of mixed opinions is no flood."""
    ups = sum(_up(vote) for vote in burst)
    if len(burst) >= FLOOD_VOTES and max(ups, len(burst) - ups) >= ONE_WAY * len(burst):
        seconds = burst[-1].seconds - burst[0].seconds
        yield Flood(terminal, tuple(one.id for one in burst), seconds, 2 * ups > len(burst))


def _opinions(labels: Labels) -> dict[tuple[str, str], dict[str, bool]]:
    """What each terminal said last of each (prompt, answer text)."""
    undone = {vote.undoes for vote in labels.votes if vote.undoes}
    found: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
    for vote in sorted(labels.votes, key=lambda one: one.id):
        answer = labels.answers.get(vote.exchange)
        if answer is not None and vote.score and vote.terminal and not vote.undoes and vote.id not in undone:
            found[answer.key, normal(answer.text)][vote.terminal] = _up(vote)
    return found


def _inverted(terminal: str, said: Sequence[_Said]) -> Doubt | None:
    shared = [one for one in said if one.others is not None]
    agreed = sum(one.up == one.others for one in shared)
    if len(shared) < SHARED_VOTES or agreed > INVERTED * len(shared):
        return None
    others = frozenset().union(*(one.who for one in shared))
    if len(others) > 1:
        reason = f"{terminal} agrees with the others on {agreed} of {len(shared)} answers that they rated too"
    else:
        one, other = sorted((terminal, *others))
        reason = (f"{one} and {other} say the opposite of {len(shared) - agreed} of {len(shared)} answers "
                  "that both rated")
    return Doubt(terminal, "inverted", agreed, len(shared), reason)


def _one_sided(terminal: str, said: Sequence[_Said], everyone: Sequence[bool]) -> Doubt | None:
    ups = sum(one.up for one in said)
    others, other_ups = len(everyone) - len(said), sum(everyone) - ups
    divided = others >= ONE_SIDED_VOTES and DIVIDED <= other_ups / others <= 1 - DIVIDED
    if len(said) < ONE_SIDED_VOTES or ups not in (0, len(said)) or not divided:
        return None
    return Doubt(terminal, "one-sided", ups, len(said), (
        f"{terminal} {'likes' if ups else 'dislikes'} all of {len(said)} answers, where the others like "
        f"{other_ups} of {others}"))


def _majority(votes: Iterable[bool]) -> bool | None:
    balance = sum(1 if up else -1 for up in votes)
    return None if balance == 0 else balance > 0


def _up(vote: Vote) -> bool:
    return (vote.score or 0) > 0

