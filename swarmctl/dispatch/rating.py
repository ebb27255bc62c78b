"""A person's word on one answer, recorded: what `rate` and the gateway's feedback share.

A rating says all that its person thinks of the answer now: what is not said anew is taken over from the one
that stood before, so that a comment does not erase a thumb. Undoing it brings back the one before. A
correction without any score counts as down: the answer was not what it should have been.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.record import timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.exchange import CROCKFORD, Rating, new_id, stars_to_score
from swarmctl.ledger.journal import append
from swarmctl.ledger.lookup import Found, find, standing_rating
from swarmctl.ledger.terminal import recall

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

VALUES = ("up", "down", "1", "2", "3", "4", "5")
NOTES = {"error": "the question had failed; the rating is recorded all the same",
         "cancelled": "the answer had been stopped; the rating is recorded all the same"}


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is said of an answer now: `value` is one of VALUES, or `score` is any number from -1 to 1.
    `correction` makes the corrected text from the answer."""

    value: str | None = None
    comment: str | None = None
    correction: Callable[[str], str] | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Rated:
    """The rating as recorded, its exchange, and what stands now (None after the only one was undone)."""

    rating: Rating
    exchange: Record
    standing: Rating | None
    note: str = ""


def rate(paths: Paths, opinion: Opinion, *, terminal: str, now: float, id_part: str | None = None) -> Rated:
    """Rate the exchange that `id_part` names, or the last one of this terminal, and record it.

    Raises UsageError (no such exchange, no such value, nothing said), SwarmError (the editor failed, or left
    the answer as it was), LedgerError.
    """
    if opinion == Opinion():
        raise UsageError("nothing was said of the answer", hint=(
            "swarmctl rate up | down | 1 to 5, --comment TEXT, --correct, --correction TEXT, or --undo"))
    score, stars = _score(opinion.value)
    found, before = _found(paths, terminal, id_part)
    correction = _corrected(found.exchange, opinion)
    rating = _blank(found, terminal, now)
    if before is not None:
        rating = replace(rating, score=before.score, stars=before.stars, comment=before.comment,
                         correction=before.correction)
    if opinion.value is not None or opinion.score is not None:
        rating = replace(rating, score=opinion.score if opinion.value is None else score, stars=stars)
    if correction is not None:
        rating = replace(rating, correction=correction, score=-1.0 if rating.score is None else rating.score)
    if opinion.comment is not None:
        rating = replace(rating, comment=opinion.comment)
    append(paths.journal, rating.to_record())
    return Rated(rating, found.exchange, rating, NOTES.get(found.exchange.get("finish", ""), ""))


def undo(paths: Paths, *, terminal: str, now: float, id_part: str | None = None) -> Rated:
    """Take back the rating that stands. Raises UsageError where none does, LedgerError."""
    found, before = _found(paths, terminal, id_part)
    if before is None:
        raise UsageError(f"no rating of {found.exchange['id']} stands", hint="there is nothing to undo")
    blank = _blank(found, terminal, now)
    taken_back = replace(before, id=blank.id, at=blank.at, terminal=terminal, undoes=before.id)
    append(paths.journal, taken_back.to_record())
    return Rated(taken_back, found.exchange, standing_rating((*found.ratings, taken_back.to_record())))


def _found(paths: Paths, terminal: str, id_part: str | None) -> tuple[Found, Rating | None]:
    if id_part is None:
        last = recall(paths, terminal)
        if last is None:
            raise UsageError("this terminal has asked nothing yet", hint=(
                "give an id: `swarmctl log list` shows them"))
        id_part = last.exchange
    found = find(paths.journal, id_part)
    return found, standing_rating(found.ratings)


def _score(value: str | None) -> tuple[float | None, int | None]:
    if value is None:
        return None, None
    if value not in VALUES:
        raise UsageError(f"{value!r} is no rating",
                         hint="up, down, or 1 to 5; the right answer goes behind --correction")
    if value.isdigit():
        return stars_to_score(int(value)), int(value)
    return (1.0 if value == "up" else -1.0), None


def _corrected(exchange: Record, opinion: Opinion) -> str | None:
    if opinion.correction is None:
        return None
    answer = str(exchange.get("answer", ""))
    text = opinion.correction(answer)
    if text.strip() == answer.strip():
        raise SwarmError("the answer was left as it is", hint="nothing was recorded")
    if not text.strip():
        raise SwarmError("the correction is empty", hint="nothing was recorded")
    return text


def _blank(found: Found, terminal: str, now: float) -> Rating:
    """A rating that says nothing yet. Its id sorts after every rating before it, whatever the clock did."""
    exchange = found.exchange
    moment = max([int(now * 1000), *(_milliseconds(one["id"]) + 1 for one in found.ratings)])
    return Rating(id=new_id(moment, secrets.randbits(30)), at=timestamp(moment / 1000),
                  exchange=exchange["id"], model=exchange["model"], digest=exchange.get("digest", ""),
                  category=exchange["category"], host=exchange["host"], terminal=terminal)


def _milliseconds(identity: str) -> int:
    """The time in an id, in milliseconds since 1970; 0 where it is not one of ours."""
    moment = 0
    for letter in identity[:10]:
        if letter not in CROCKFORD:
            return 0
        moment = moment << 5 | CROCKFORD.index(letter)
    return moment
