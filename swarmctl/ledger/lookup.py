"""Finding one exchange in the journal without DuckDB: newest first, read backwards in blocks.

`rate` and `ask -c` mean a recent answer nearly always, and then one block is read. An id may be given by any
four characters or more of its beginning or end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from swarmctl.errors import LedgerError, UsageError
from swarmctl.exchange import CROCKFORD, Message, Rating, ToolCall
from swarmctl.ledger import journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from swarmctl.ledger.journal import Record

ID_LENGTH = 16
SHORTEST_PART = 4
BLOCK = 64 << 10
LISTED = 10
LIST = "`swarmctl log list` shows what is"


@dataclass(frozen=True, slots=True)
class Found:
    """An exchange's record, and the records that refer to it, oldest first."""

    exchange: Record
    ratings: tuple[Record, ...]
    comparisons: tuple[Record, ...]


def find(folder: Path, id_part: str) -> Found:
    """The exchange whose id is, begins or ends with `id_part`, with its ratings and comparisons.

    Raises UsageError when there is none, or more than one (then they are listed).
    """
    part = _checked(id_part)
    exchanges: dict[str, Record] = {}
    others: dict[str, Record] = {}
    for record in _mentioning(folder, part):
        if record["kind"] != "exchange":
            others.setdefault(record["id"], record)
        elif _fits(record["id"], part):
            exchanges.setdefault(record["id"], record)
            if record["id"] == part:
                return _found(record, others)
    if len(exchanges) == 1:
        return _found(next(iter(exchanges.values())), others)
    raise _ambiguous(part, exchanges) if exchanges else _missing(part)


def is_id(text: str) -> bool:
    """Whether a text could be an id or the beginning or end of one."""
    return SHORTEST_PART <= len(text) <= ID_LENGTH and set(text.lower()) <= set(CROCKFORD)


def find_exchange(folder: Path, id_part: str) -> Record:
    """The record of the exchange whose id is, begins or ends with `id_part`. Raises as `find` does."""
    return find(folder, id_part).exchange


def standing_rating(ratings: tuple[Record, ...]) -> Rating | None:
    """The latest rating that was not taken back."""
    undone = {record.get("undoes") for record in ratings}
    standing = [record for record in ratings if not record.get("undoes") and record["id"] not in undone]
    return _rating(max(standing, key=lambda record: str(record["id"]))) if standing else None


def conversation_messages(folder: Path, exchange_id: str) -> tuple[Message, ...]:
    """All that was said up to this exchange, with its answer, to go on from there.

    A question without any answer (it failed) is left out, so that two questions never stand in a row.
    """
    return _messages(find_exchange(folder, exchange_id))


def last_messages(folder: Path, conversation: str) -> tuple[Message, ...]:
    """All that was said in a conversation, up to its last exchange. Raises UsageError where there is none."""
    for record in _mentioning(folder, conversation):
        if record["kind"] == "exchange" and record.get("conversation") == conversation:
            return _messages(record)
    raise UsageError(f"no conversation {conversation!r} is recorded", hint=LIST)


def lines_backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, last first, without their newlines."""
    try:
        file = path.open("rb")
    except OSError as exc:
        raise LedgerError(f"cannot read {path}: {exc.strerror}", hint="is it a file of yours?") from exc
    with file:
        position, rest, block = file.seek(0, 2), b"", BLOCK
        while position:
            step = min(block, position)
            position -= step
            file.seek(position)
            first, *lines = (file.read(step) + rest).split(b"\n")
            yield from reversed(lines)
            block = BLOCK if lines else 2 * block
            rest = first
        if rest:
            yield rest


def _mentioning(folder: Path, text: str) -> Iterator[Record]:
    """Records that hold a text anywhere, newest first. Only lines that do are parsed."""
    needle = text.encode("utf-8", "surrogateescape")
    for path in reversed(journal.files(folder)):
        for raw in lines_backwards(path):
            if needle in raw:
                record, _ = journal.parse(raw)
                if record is not None:
                    yield record


def _found(exchange: Record, others: dict[str, Record]) -> Found:
    about = exchange["id"]
    oldest_first = list(others.values())[::-1]
    ratings = [one for one in oldest_first if one["kind"] == "rating" and one.get("exchange") == about]
    comparisons = [one for one in oldest_first if one["kind"] == "comparison"]
    return Found(exchange, tuple(ratings), tuple(
        one for one in comparisons if about in (one.get("a"), one.get("b"))))


def _rating(record: Record) -> Rating:
    known = {field.name for field in fields(Rating)}
    try:
        return Rating(**{key: value for key, value in record.items() if key in known})
    except TypeError as exc:
        raise _malformed(record) from exc


def _messages(record: Record) -> tuple[Message, ...]:
    try:
        said = tuple(Message(one["role"], one["content"], _calls(one), one.get("tool_call_id"),
                             one.get("name")) for one in record["messages"])
        calls = _calls(record)
    except (KeyError, TypeError, AttributeError) as exc:
        raise _malformed(record) from exc
    if record.get("answer") or calls:
        return (*said, Message("assistant", record.get("answer") or "", calls))
    return said[:-1] if said and said[-1].role == "user" else said


def _calls(record: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls that a record or one of its messages holds; rows from before there were tools hold none."""
    return tuple(ToolCall(str(one["id"]), str(one["name"]), str(one["arguments"]))
                 for one in record.get("tool_calls") or ())


def _checked(id_part: str) -> str:
    part = id_part.strip().lower()
    if not is_id(part):
        raise UsageError(f"{id_part!r} is not an id", hint=(
            f"an id has {ID_LENGTH} letters and digits; its first or last {SHORTEST_PART} or more will do\n"
            "`swarmctl log list` shows them"))
    return part


def _fits(exchange_id: str, part: str) -> bool:
    return exchange_id.startswith(part) or exchange_id.endswith(part)


def _malformed(record: Record) -> LedgerError:
    return LedgerError(f"the {record['kind']} {record['id']} is in the journal, but not in our form",
                       hint="was the journal edited, or written by a newer swarmctl?")


def _missing(part: str) -> UsageError:
    return UsageError(f"no exchange {part!r} is recorded", hint=LIST)


def _ambiguous(part: str, exchanges: dict[str, Record]) -> UsageError:
    newest = sorted(exchanges, reverse=True)[:LISTED]
    shown = [f"{one}  {exchanges[one]['at']}  {_question(exchanges[one])}" for one in newest]
    more = len(exchanges) - len(newest)
    return UsageError(f"{part!r} is the id of {len(exchanges)} exchanges; give more of it",
                      hint="\n".join([*shown, *([f"… and {more} more"] if more else [])]))


def _question(record: dict[str, Any]) -> str:
    asked = [one["content"] for one in record.get("messages", ()) if one.get("role") == "user"]
    line = " ".join(asked[-1].split())[:60] if asked else ""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
