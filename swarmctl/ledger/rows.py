"""From a record of the journal to rows of the ledger's tables. Pure.

A record may come from an older or newer swarmctl, or from an editor: a field of the wrong type becomes NULL,
a field without a column is kept in `more`, and a record that lacks what its kind is about is `Malformed`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.ledger.journal import finite
from swarmctl.ledger.scores import is_comparison, is_rating

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.ledger.journal import Record

Row = tuple[str, dict[str, Any]]

#: Each table's columns and their DuckDB types, in the schema's order.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "exchanges": {
        "id": "VARCHAR", "at_utc": "TIMESTAMP", "conversation": "VARCHAR", "parent": "VARCHAR",
        "terminal": "VARCHAR", "via": "VARCHAR", "category": "VARCHAR", "host": "VARCHAR",
        "runtime": "VARCHAR", "model": "VARCHAR", "digest": "VARCHAR", "template": "VARCHAR",
        "question": "VARCHAR", "answer": "VARCHAR", "finish": "VARCHAR", "error": "VARCHAR",
        "params": "JSON", "max_tokens": "BIGINT", "temperature": "DOUBLE", "seed": "BIGINT",
        "prompt_tokens": "BIGINT", "cached_tokens": "BIGINT",
        "prompt_seconds": "DOUBLE", "completion_tokens": "BIGINT", "decode_seconds": "DOUBLE",
        "load_seconds": "DOUBLE", "first_token_seconds": "DOUBLE", "total_seconds": "DOUBLE",
        "queue_seconds": "DOUBLE", "failovers": "BIGINT", "route": "JSON", "tool_calls": "JSON",
        "more": "JSON"},
    "messages": {"exchange": "VARCHAR", "position": "BIGINT", "role": "VARCHAR", "content": "VARCHAR",
                 "tool_calls": "JSON", "tool_call_id": "VARCHAR", "name": "VARCHAR"},
    "attempts": {"exchange": "VARCHAR", "position": "BIGINT", "host": "VARCHAR", "model": "VARCHAR",
                 "error": "VARCHAR", "tokens": "BIGINT", "hedged": "BOOLEAN"},
    "ratings": {
        "id": "VARCHAR", "at_utc": "TIMESTAMP", "exchange": "VARCHAR", "model": "VARCHAR",
        "digest": "VARCHAR", "category": "VARCHAR", "host": "VARCHAR", "score": "DOUBLE", "stars": "BIGINT",
        "comment": "VARCHAR", "correction": "VARCHAR", "undoes": "VARCHAR", "terminal": "VARCHAR",
        "more": "JSON"},
    "comparisons": {
        "id": "VARCHAR", "at_utc": "TIMESTAMP", "a": "VARCHAR", "b": "VARCHAR", "model_a": "VARCHAR",
        "model_b": "VARCHAR", "category": "VARCHAR", "shown_left": "VARCHAR", "choice": "VARCHAR",
        "comment": "VARCHAR", "terminal": "VARCHAR", "more": "JSON"},
    "decisions": {"id": "VARCHAR", "at_utc": "TIMESTAMP", "kind": "VARCHAR", "record": "JSON"},
    "torn": {"file": "VARCHAR", "line": "BIGINT", "byte_offset": "BIGINT", "reason": "VARCHAR"},
}
TIMINGS = ("prompt_tokens", "cached_tokens", "prompt_seconds", "completion_tokens", "decode_seconds",
           "load_seconds", "first_token_seconds", "total_seconds", "queue_seconds")
PARAMS = ("max_tokens", "temperature", "seed")
#: Fields that say how to read a record; what they say is in the table's name or under another column.
READ_BY = frozenset({"v", "kind", "left"})


class Malformed(ValueError):
    """The record is of a kind we know, without what that kind is about."""


def rows(record: Record) -> Iterator[Row]:
    """(table, row) for each row of a record. A kind that is not ours is a decision. Raises Malformed."""
    clean: Record = storable(record)
    clean["at_utc"] = _utc(clean.pop("at"))
    make = {"exchange": _exchange, "rating": _rating, "comparison": _comparison}.get(clean["kind"], _decision)
    return make(clean)


def storable(value: Any) -> Any:  # noqa: ANN401  any JSON
    """The same JSON value as DuckDB can take it: no lone surrogates, no infinities."""
    return _text(finite(value))


def _exchange(record: Record) -> Iterator[Row]:
    messages, attempts = record.pop("messages", None), record.pop("attempts", None) or ()
    if not (_dicts(messages) and _dicts(attempts) and isinstance(record.get("model"), str)):
        raise Malformed("an exchange without messages and model")
    timings, params = _mapping(record.pop("timings", None)), _mapping(record.get("params"))
    asked = [one.get("content") for one in messages if one.get("role") == "user"]
    record |= {key: timings.pop(key, None) for key in TIMINGS} | {key: params.get(key) for key in PARAMS}
    record |= {"question": asked[-1] if asked else None, "failovers": len(attempts),
               "tool_calls": record.get("tool_calls") or None}
    yield "exchanges", _fit("exchanges", record | ({"timings": timings} if timings else {}))
    for table, parts in (("messages", messages), ("attempts", attempts)):
        for position, part in enumerate(parts):
            yield table, {**part, "exchange": record["id"], "position": position}


def _rating(record: Record) -> Iterator[Row]:
    if not is_rating(record):
        raise Malformed("a rating without exchange, model, category and a score from -1 to 1")
    yield "ratings", _fit("ratings", record)


def _comparison(record: Record) -> Iterator[Row]:
    if not is_comparison(record):
        raise Malformed("a comparison without its two exchanges, models, category and choice")
    yield "comparisons", _fit("comparisons", {**record, "shown_left": record.pop("left", None)})


def _decision(record: Record) -> Iterator[Row]:
    at_utc = record.pop("at_utc")
    yield "decisions", {"id": record["id"], "at_utc": at_utc, "kind": record["kind"], "record": record}


def _fit(table: str, record: Record) -> dict[str, Any]:
    """The record's fields that are columns, and the others in `more`."""
    columns = COLUMNS[table]
    known = {key: value for key, value in record.items() if key in columns}
    more = {key: value for key, value in record.items() if key not in columns and key not in READ_BY}
    return known | ({"more": more} if more else {})


def _utc(at: str) -> str | None:
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)).isoformat(" ")


def _dicts(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list | tuple) and all(isinstance(one, dict) for one in value)


def _mapping(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return dict(value) if isinstance(value, dict) else {}


def _text(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    return [_text(item) for item in value] if isinstance(value, list) else value
