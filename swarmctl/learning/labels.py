"""What people said of answers, as learning reads it: answers, votes on them, and blind choices between two.
Pure.

The ledger gives these of its own rows, and imports make them of other programs' files, so that one set of
rules turns both into training data. A vote here is a rating: the latest that was not taken back stands.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from swarmctl.exchange import Message

Side = Literal["a", "b", "tie", "both-bad"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and its answer. `id` is the exchange's, `at` ISO 8601 in UTC.

    `asked` holds what else bound the answer, as canonical JSON: tools, the choice of one, a schema; empty
    where nothing did. `calls` tells that the answer was a call of tools; `origin` where an imported one came
    from. `untold` is why the turns do not tell what was asked: it was a picture, or no conversation at all.
    """

    id: str
    at: str
    prompt: tuple[Message, ...]
    text: str
    finish: str
    model: str
    digest: str = ""
    tools: str = ""
    asked: str = ""
    calls: bool = False
    origin: str = ""
    untold: str = ""

    @property
    def key(self) -> str:
        """Equal for two answers to the same thing: the same turns, system prompt, tools and schema."""
        turns = [[turn.role, normal(turn.content), [[call.name, call.arguments] for call in turn.tool_calls]]
                 for turn in self.prompt]
        return json.dumps([turns, self.tools, self.asked], ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Vote:
    """One rating, standing or not. `seconds` is when, since 1970. `undoes` names the vote that it takes
    back."""

    id: str
    exchange: str
    terminal: str
    seconds: float
    score: float | None
    stars: int | None = None
    correction: str | None = None
    undoes: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One blind comparison of two answers, by their exchanges' ids."""

    id: str
    terminal: str
    seconds: float
    a: str
    b: str
    side: Side


@dataclass(frozen=True, slots=True)
class Labels:
    """Everything that was said, and the answers it was said of."""

    answers: Mapping[str, Answer]
    votes: tuple[Vote, ...] = ()
    choices: tuple[Choice, ...] = ()

    def joined(self, other: Labels) -> Labels:
        """Both together. Ids of an import never meet those of the ledger."""
        return Labels({**self.answers, **other.answers}, (*self.votes, *other.votes),
                      (*self.choices, *other.choices))

    def without(self, ids: Collection[str]) -> Labels:
        """The same, without votes and choices of these ids: what they had covered stands again."""
        return Labels(self.answers, tuple(one for one in self.votes if one.id not in ids),
                      tuple(one for one in self.choices if one.id not in ids))

    @property
    def said(self) -> tuple[Vote | Choice, ...]:
        """Every vote and every choice."""
        return (*self.votes, *self.choices)

    @property
    def newest(self) -> str:
        """The greatest id of a vote or choice of the ledger; empty where there is none."""
        return max((one.id for one in self.said if ":" not in one.id), default="")


def standing(votes: Iterable[Vote]) -> dict[str, Vote]:
    """Of each exchange the vote that stands: the latest that was not taken back."""
    votes = tuple(votes)
    undone = {one.undoes for one in votes if one.undoes}
    found: dict[str, Vote] = {}
    for one in sorted(votes, key=lambda vote: vote.id):
        if not one.undoes and one.id not in undone:
            found[one.exchange] = one
    return found


def latest_choices(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Of each two answers the last comparison, in the order of their ids."""
    found: dict[frozenset[str], Choice] = {}
    for one in sorted(choices, key=lambda choice: choice.id):
        found[frozenset((one.a, one.b))] = one
    return tuple(sorted(found.values(), key=lambda choice: choice.id))


def new_since(labels: Labels, rating: str) -> int:
    """How many answers have a vote that stands, or a decisive choice, newer than a rating's id (a card's
    `until`); all of them for an empty id."""
    rated = {one.exchange for one in standing(labels.votes).values() if one.id > rating}
    chosen = [one for one in latest_choices(labels.choices) if one.id > rating and one.side in ("a", "b")]
    return len(rated) + len(chosen)


def normal(text: str) -> str:
    """A text without what a person does not see: Unicode's composed form (NFC), single spaces, no ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())
