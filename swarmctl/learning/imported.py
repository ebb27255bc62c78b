"""What files of other programs hold, on its way to rows: labels where answers were rated, rows where the
file says itself what is better, and the lines that are neither. Pure.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import Message
from swarmctl.learning.labels import Answer, Choice, Labels, Vote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from swarmctl.learning.pairs import Kind, Row

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
         "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
         "model": "assistant"}


class Malformed(ValueError):
    """What a line holds is in none of the forms; its text says why."""


class Unusable(Malformed):
    """What a line holds is in one of the forms and makes no row; its text says why, as a card counts it."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is in none of the forms."""

    where: str
    reason: str


@dataclass(slots=True)
class Imported:
    """All that was found. `rows` say themselves what is better; answers with votes go through the same rules
    as the ledger's."""

    answers: dict[str, Answer] = field(default_factory=dict)
    votes: list[Vote] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def labels(self) -> Labels:
        """The labels among it."""
        return Labels(self.answers, tuple(self.votes), tuple(self.choices))


def items(text: str, name: str, bad: list[Bad]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, each with where it stands: JSON lines, or one JSON array or object. What
    is no object goes to `bad`."""
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start == "[" or (start == "{" and _is_one_object(text)):
        return _of_document(text, name, bad)
    return _of_lines(text, name, bad)


def as_kind(rows: Iterable[Row], kind: Kind, dropped: Counter[str], *, liked: bool) -> Iterator[Row]:
    """Rows of files as rows of a kind: pairs are taken apart for KTO, and give liked examples for SFT."""
    for row in rows:
        if kind == "dpo" and row.rejected is not None:
            yield row
        elif kind == "dpo":
            dropped["imported without a worse answer"] += 1
        elif kind == "kto" and row.rejected is not None:
            yield replace(row, rejected=None, label=True)
            yield replace(row, completion=row.rejected, rejected=None, label=False)
        elif kind == "kto":
            dropped["imported without a label"] += 1
        elif row.rejected is None or liked:
            yield replace(row, rejected=None, label=True)
        else:
            dropped["imported pair, and --liked was not given"] += 1


def turns(value: Any, role: str = "role", content: str = "content") -> tuple[Message, ...]:  # noqa: ANN401
    """A list of messages, under whatever names its keys go. Raises Malformed, Unusable."""
    if not isinstance(value, list) or not value:
        raise Malformed("messages must be a list with something in it")
    return tuple(_turn(one, role, content) for one in value)


def asked(text: str, system: Any = None) -> tuple[Message, ...]:  # noqa: ANN401
    """A plain prompt as turns."""
    before = (Message("system", clean(system)),) if isinstance(system, str) and system.strip() else ()
    return (*before, Message("user", clean(text)))


def split_last(said: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """A conversation as its prompt and its last answer. Raises Malformed, Unusable."""
    if said[-1].role != "assistant":
        raise Unusable("imported without an answer at its end")
    if not any(turn.role == "user" for turn in said[:-1]):
        raise Malformed("nothing was asked before the answer")
    if not said[-1].content.strip():
        raise Unusable("empty answer")
    return tuple(said[:-1]), said[-1].content


def clean(text: str) -> str:
    """A text that can be written: halves of surrogate pairs, which are no Unicode, become escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _turn(one: Any, role: str, content: str) -> Message:  # noqa: ANN401
    if not isinstance(one, dict) or not isinstance(one.get(role), str):
        raise Malformed(f"a message is an object with {role} and {content}")
    if one.get("tool_calls") or one.get("function_call") or one[role] in ("tool", "function", "observation"):
        raise Unusable("calls of tools")
    known = ROLES.get(one[role].lower())
    if known is None:
        raise Malformed(f"{one[role]!r} is no role of a message")
    return Message(known, clean(_text(one.get(content))))  # type: ignore[arg-type]


def _text(value: Any) -> str:  # noqa: ANN401
    """Text, or the text parts of OpenAI's content list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        if any(part.get("type") not in ("text", "input_text", "output_text") for part in value):
            raise Unusable("asked of a picture or a file")
        return "".join(str(part.get("text", "")) for part in value)
    raise Malformed("a message without text")


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip("\ufeff")), dict)
    except (ValueError, RecursionError):
        return False


def _of_lines(text: str, name: str, bad: list[Bad]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip("\ufeff \t\r")):
            continue
        where = f"{name} line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as exc:
            bad.append(Bad(where, f"not JSON: {_why(exc)}"))
            continue
        if isinstance(found, dict):
            yield where, found
        else:
            bad.append(Bad(where, "not a JSON object"))


def _of_document(text: str, name: str, bad: list[Bad]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one JSON array, one after the other, so that each is known by its line."""
    decoder = json.JSONDecoder()
    place = _skip(text, 1 if text.startswith("\ufeff") else 0, "")
    single = text[place] == "{"
    place = place if single else _skip(text, place + 1, "")
    line, counted = 1, 0
    while place < len(text) and text[place] != "]":
        line, counted = line + text.count("\n", counted, place), place
        where = f"{name} line {line}"
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as exc:
            bad.append(Bad(where, f"not JSON from here on: {_why(exc)}"))
            return
        if isinstance(found, dict):
            yield where, found
        else:
            bad.append(Bad(where, "not a JSON object"))
        place = _skip(text, place, "" if single else ",")
        if single and place < len(text):
            bad.append(Bad(where, "more follows the JSON object"))
            return
    if not single and place >= len(text):
        bad.append(Bad(name, "the JSON array is cut off"))


def _skip(text: str, place: int, also: str) -> int:
    while place < len(text) and (text[place].isspace() or text[place] in (also or " ")):
        place += 1
    return place


def _why(exc: Exception) -> str:
    return exc.msg if isinstance(exc, json.JSONDecodeError) else "nested too deeply"
