"""What people and judges said of two releases, as votes in the order in which they came.

Three kinds that are never mixed: blind comparisons by people, thumbs and stars on each alone (the k-th of one
against the k-th of the other), and a judge model that sees every pair in both orders.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from swarmctl.exchange import ChatRequest, Message
from swarmctl.learning.gates import side_by_side
from swarmctl.ledger.store import open_ledger, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from swarmctl.evaluation.answering import Lane, Reply
    from swarmctl.evaluation.questions import Question
    from swarmctl.paths import Paths

BLIND = """
    SELECT c.choice, a.digest FROM comparisons c
    JOIN exchanges a ON a.id = c.a JOIN exchanges b ON b.id = c.b
    WHERE (a.digest, b.digest) IN ((?, ?), (?, ?)) ORDER BY c.id"""
RATED = "SELECT score FROM current_ratings WHERE digest = ? AND score IS NOT NULL AND id >= ? ORDER BY id"
VERDICT = {"type": "object", "properties": {"better": {"enum": ["first", "second", "tie"]}},
           "required": ["better"], "additionalProperties": False}
INSTRUCTION = ("You compare two answers to one question. Say which answers it better: correct first, then "
               "clear, then short. Answer as JSON: {\"better\": \"first\"}, \"second\" or \"tie\".")


def blind_votes(paths: Paths, new: str, old: str) -> tuple[bool | None, ...]:
    """People's blind choices between two digests. Both bad is a tie. Raises LedgerError."""
    sync(paths)
    with open_ledger(paths, read_only=True) as ledger:
        rows = ledger.execute(BLIND, [new, old, old, new]).fetchall()
    return tuple(None if choice in ("tie", "both-bad") else (choice == "a") == (digest_a == new)
                 for choice, digest_a in rows)


def thumbs(paths: Paths, new: str, old: str, since: str = "") -> tuple[bool | None, ...]:
    """Ratings of two digests from the rating id `since` on, paired in their order. Raises LedgerError."""
    sync(paths)
    with open_ledger(paths, read_only=True) as ledger:
        both = [[score for (score,) in ledger.execute(RATED, [digest, since]).fetchall()]
                for digest in (new, old)]
    return side_by_side(both[0], both[1])


def judged(judges: Sequence[Lane], questions: Sequence[Question], new: Mapping[str, Sequence[Reply]],
           old: Mapping[str, Sequence[Reply]], tick: Callable[[int, int], None]) -> Iterator[bool | None]:
    """A judge model's vote on the first answers to each question: asked in both orders, and a tie where the
    order changes its mind or it says nothing that can be read. Raises RemoteError, ServerError."""
    for number, question in enumerate(questions):
        one, other = new[question.key][0].answer, old[question.key][0].answer
        judge = judges[number % len(judges)]
        yield _both_orders(judge, question, one, other) if one.split() != other.split() else None
        tick(number + 1, len(questions))


def _both_orders(judge: Lane, question: Question, new: str, old: str) -> bool | None:
    forth, back = _better(judge, question, new, old), _better(judge, question, old, new)
    if {forth, back} != {"first", "second"}:
        return None
    return forth == "first"


def _better(judge: Lane, question: Question, first: str, second: str) -> str:
    asked = "\n\n".join(f"{turn.role}: {turn.content}" for turn in question.messages)
    text = f"Question:\n{asked}\n\nFirst answer:\n{first}\n\nSecond answer:\n{second}"
    request = ChatRequest((Message("system", INSTRUCTION), Message("user", text)), 64, 0.0, 0, VERDICT)
    try:
        said = json.loads(judge.reply(request).answer)
    except ValueError:
        return "tie"
    return str(said.get("better", "tie")) if isinstance(said, dict) else "tie"
