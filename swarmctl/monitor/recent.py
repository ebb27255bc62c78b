"""The latest questions of this machine, whoever asked them, with what was said of their answers.

At first the journal is read backwards as far as is of interest, then on from where it stood.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from swarmctl.ledger import follow, journal
from swarmctl.ledger.lookup import lines_backwards

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

#: As many as a tall terminal and its sparkline can show.
MOST, FEWEST, SECONDS = 1000, 60, 900.0
#: Read again from before the end, as the last line may have been in the making.
OVERLAP = 256 << 10


@dataclass(frozen=True, slots=True)
class Recent:
    """One question. `at` is seconds since 1970, when it was asked; seconds and tokens a second are None where
    nobody measured. `tries` counts servers that failed it, `escalated` that a larger model was asked after a
    small one."""

    id: str
    at: float
    question: str
    model: str
    host: str
    via: str
    finish: str
    first: float | None
    total: float | None
    tokens: int
    speed: float | None
    tries: int
    escalated: bool


class Tail:
    """Follows the journal. Not for several threads at once."""

    def __init__(self, paths: Paths) -> None:
        self._folder = paths.journal
        self._rows: OrderedDict[str, Recent] = OrderedDict()
        self._scores: dict[str, float] = {}
        self._marks: dict[str, int] | None = None

    def read_on(self, now: float) -> tuple[Recent, ...]:
        """The latest questions, the newest first. Raises LedgerError."""
        sizes = follow.sizes(self._folder)
        if self._marks is None or not self._marks.keys() <= {path.name for path in sizes}:
            self._marks = {path.name: max(0, size - OVERLAP) for path, size in sizes.items()}
            self._rows.clear()
            for record in reversed(list(self._backwards(now))):
                self._take(record)
        for record in follow.fresh(sizes, self._marks, _telling):
            self._take(record)
        while len(self._rows) > MOST:
            self._scores.pop(self._rows.popitem(last=False)[0], None)
        return tuple(sorted(self._rows.values(), key=lambda row: row.id, reverse=True))

    def score(self, exchange: str) -> float | None:
        """What was last said of an answer, -1 to 1."""
        return self._scores.get(exchange)

    def _take(self, record: Record) -> None:
        if record["kind"] == "exchange":
            row = _row(record)
            if row is not None:
                self._rows[row.id] = row
        elif record["kind"] == "rating" and isinstance(record.get("score"), int | float):
            exchange = str(record.get("exchange"))
            if record.get("undoes"):
                self._scores.pop(exchange, None)
            else:
                self._scores[exchange] = float(record["score"])

    def _backwards(self, now: float) -> Iterator[Record]:
        found = 0
        for path in reversed(journal.files(self._folder)):
            for raw in lines_backwards(path):
                record = journal.parse(raw)[0] if _telling(raw) else None
                if record is None:
                    continue
                yield record
                found += record["kind"] == "exchange"
                if found >= MOST or (found >= FEWEST and _seconds(record["at"]) < now - SECONDS):
                    return


def _telling(raw: bytes) -> bool:
    return b'"exchange"' in raw


def _row(record: Mapping[str, Any]) -> Recent | None:
    messages, timings = record.get("messages"), record.get("timings")
    if not isinstance(messages, list) or not isinstance(timings, dict):
        return None
    asked = [one.get("content") for one in messages if isinstance(one, dict) and one.get("role") == "user"]
    tokens, seconds = _number(timings, "completion_tokens") or 0, _number(timings, "decode_seconds")
    route, attempts = record.get("route"), record.get("attempts")
    cascade = route.get("cascade") if isinstance(route, dict) else None
    return Recent(
        record["id"], _seconds(record["at"]), str(asked[-1]) if asked else "", str(record.get("model")),
        str(record.get("host")), str(record.get("via")), str(record.get("finish")),
        _number(timings, "first_token_seconds"), _number(timings, "total_seconds"), int(tokens),
        tokens / seconds if tokens and seconds else None, len(attempts) if isinstance(attempts, list) else 0,
        isinstance(cascade, dict) and cascade.get("decision") == "escalate")


def _number(timings: Mapping[str, Any], key: str) -> float | None:
    value = timings.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0
