"""What an evaluation asks: the frozen held-out share of a data set, and a capability set of one's own.

A capability set is JSON lines: `{"prompt": …, "answer": …}`, or `messages` for the prompt, and optionally
`match` (exact, contains, number, regex, f1), `group` (versions of one question share it) and `topic`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast

from swarmctl.errors import UsageError
from swarmctl.exchange import Message
from swarmctl.learning.grade import MATCHES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ROLES = ("system", "user", "assistant", "tool")
LONGEST_LINE = 1 << 20
WHY = "a line is {\"prompt\": \"…\", \"answer\": \"…\"}, see docs/eval.md"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. Without a `reference` only judges and people can tell which answer is better."""

    messages: tuple[Message, ...]
    reference: str | None
    group: str
    match: str = "f1"
    topic: str = ""

    @property
    def key(self) -> str:
        """What tells this question from others, whatever file it came from."""
        text = json.dumps([[turn.role, turn.content] for turn in self.messages])
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def prompt(self) -> str:
        """The last thing that the user says."""
        return next((turn.content for turn in reversed(self.messages) if turn.role == "user"), "")


def held_out(folder: Path, limit: int | None = None) -> tuple[Question, ...]:
    """The held-out questions of a data set's folder, each prompt once. Raises UsageError."""
    import duckdb

    file = folder / "heldout.parquet"
    if not file.is_file():
        raise UsageError(f"{folder} has no heldout.parquet",
                         hint="`swarmctl dataset list` names the data sets")
    connection = duckdb.connect()
    try:
        rows = connection.execute("SELECT prompt, reference, \"group\" FROM read_parquet(?)",
                                  [str(file)]).fetchall()
    except duckdb.Error as exc:
        raise UsageError(f"{file} cannot be read: {str(exc).splitlines()[0]}",
                         hint="`swarmctl dataset check` tells whether it is whole") from exc
    finally:
        connection.close()
    found = {question.key: question for question in (_of_row(*row) for row in rows)}
    return tuple(found.values())[:limit]


def capability(file: Path, limit: int | None = None) -> tuple[Question, ...]:
    """The questions of a capability set. Raises UsageError with file and line."""
    try:
        with file.open(encoding="utf-8") as lines:
            found = tuple(_of_lines(lines, file))
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise UsageError(f"{file} cannot be read: {why}", hint=WHY) from exc
    if not found:
        raise UsageError(f"{file} has no question", hint=WHY)
    return found[:limit]


def _of_row(prompt: Sequence[dict[str, str]], reference: str | None, group: str) -> Question:
    turns = tuple(Message(cast("Any", turn["role"]), turn["content"]) for turn in prompt)
    return Question(turns, reference, group)


def _of_lines(lines: Iterator[str] | Any, file: Path) -> Iterator[Question]:  # noqa: ANN401  a text file
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _of_line(line)
            except (ValueError, TypeError) as exc:
                raise UsageError(f"{file}, line {number}: {exc}", hint=WHY) from exc


def _of_line(line: str) -> Question:
    if len(line) > LONGEST_LINE:
        raise ValueError("it is longer than a megabyte")
    raw = json.loads(line)
    if not isinstance(raw, dict) or not isinstance(raw.get("answer"), str):
        raise ValueError("it has no `answer` text")  # noqa: TRY004  a bad line, not a bad call
    messages, match = _messages(raw), raw.get("match", "contains")
    if match not in MATCHES:
        raise ValueError(f"`match` is {match!r}; it is one of {', '.join(MATCHES)}")
    if match == "regex":
        _checked(raw["answer"])
    question = Question(messages, raw["answer"], "", match, str(raw.get("topic", "")))
    return Question(messages, raw["answer"], str(raw.get("group", question.key)), match, question.topic)


def _messages(raw: dict[str, Any]) -> tuple[Message, ...]:
    if isinstance(raw.get("prompt"), str):
        return (Message("user", raw["prompt"]),)
    turns = raw.get("messages")
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
        raise ValueError("it has neither a `prompt` text nor `messages` of role and content")
    return tuple(Message(cast("Literal['user']", turn["role"]), turn["content"]) for turn in turns)


def _is_turn(turn: Any) -> bool:  # noqa: ANN401  any JSON
    return isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)


def _checked(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as exc:
        raise ValueError(f"its answer is no regular expression: {exc}") from exc
