"""What the journal says in numbers: every exchange, rating and comparison counted once, whoever made it.

`ask` in a terminal and the gateway both write to the journal before they return, so that whoever exposes
metrics reads on there and misses nothing. The counts and how far the journal was read are kept together in
one file in state, replaced by rename: a process that starts goes on from there, and counters never fall
while the journal stands. A file that is garbage, or of another journal, is thrown away and counted anew.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.ledger import follow
from swarmctl.ledger.scores import is_comparison, is_rating
from swarmctl.monitor.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

#: Raise it whenever counting changes: the whole journal is counted anew then.
VERSION = 1
#: Bytes of journal that may be read again by the next process before the file is written.
SLACK = 64 << 10
GARBAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
UNKNOWN = "unknown"

#: host → (watts at work, money per kWh, currency)
Tariffs = dict[str, tuple[float, float, str]]


class Tally:
    """The counts, brought up to date by `read_on`. Safe to share between threads."""

    def __init__(self, paths: Paths, tariffs: Callable[[], Tariffs]) -> None:
        self._folder = paths.journal
        self._file = paths.state / "metrics.json"
        self._tariffs = tariffs
        self._lock = threading.Lock()
        self._marks: dict[str, int] = {}
        self._counts = Counts()
        self._kept = 0
        self._votes = 0
        self._load()

    @property
    def votes(self) -> int:
        """How many ratings and comparisons this process has read; it changes when there are new ones."""
        return self._votes

    def read_on(self) -> Counts:
        """Count what the journal holds since the last time. Raises LedgerError where it cannot be read."""
        with self._lock:
            sizes = follow.sizes(self._folder)
            if not follow.continues(self._marks, sizes):
                self._marks, self._counts, self._kept = {}, Counts(), 0
                self._votes += 1
            tariffs = self._tariffs()
            for record in follow.fresh(sizes, self._marks, _counted):
                self._count(record, tariffs)
            if sum(self._marks.values()) - self._kept > SLACK:
                self._keep()
            return self._counts

    def keep(self) -> None:
        """Write down how far it has come."""
        with self._lock:
            if sum(self._marks.values()) != self._kept:
                self._keep()

    def _count(self, record: Record, tariffs: Tariffs) -> None:
        kind = record["kind"]
        if kind == "exchange":
            with suppress(*GARBAGE):  # a line that somebody edited by hand counts for what can be read of it
                exchange(self._counts, record, tariffs)
        elif kind == "rating" and is_rating(record):
            self._votes += 1
            _rating(self._counts, record)
        elif kind == "comparison" and is_comparison(record):
            self._votes += 1
            _comparison(self._counts, record)

    def _load(self) -> None:
        try:
            raw = json.loads(self._file.read_text(encoding="utf-8"))
            if raw["version"] != VERSION:
                return
            marks = {str(name): follow.mark(value) for name, value in raw["marks"].items()}
            self._counts = Counts.from_record(raw["counts"])
            self._marks, self._kept = marks, sum(marks.values())
        except (OSError, *GARBAGE):
            self._marks, self._counts = {}, Counts()

    def _keep(self) -> None:
        """It only saves time: a full disk or a read-only folder is no error."""
        raw = {"version": VERSION, "marks": self._marks, "counts": self._counts.to_record()}
        with suppress(OSError):
            write_whole(self._file, json.dumps(raw))
            self._kept = sum(self._marks.values())


def exchange(counts: Counts, record: Mapping[str, Any], tariffs: Tariffs) -> None:
    """Count one exchange."""
    served = (_word(record, "host"), _word(record, "model"))
    counts.add("swarmctl_exchanges_total",
               (*served, _word(record, "category"), _word(record, "via"), _word(record, "finish")))
    route = record.get("route") or {}
    _on_the_way(counts, record.get("attempts") or (), route, served)
    timings = record.get("timings") or {}
    for key, name in SUMS.items():
        if value := _number(timings, key):
            counts.add(name, served, value)
    for key, name in SPREADS.items():
        if (value := _number(timings, key)) is not None and record.get("finish") != "error":
            counts.observe(name, served, value)
    if record.get("finish") != "error":
        counts.observe("swarmctl_queue_seconds", served, _number(timings, "queue_seconds") or 0.0)
    _costs(counts, route, timings, served, tariffs)


def _on_the_way(counts: Counts, attempts: Iterable[Mapping[str, Any]], route: Mapping[str, Any],
                served: tuple[str, str]) -> None:
    """What happened before the answer: servers that failed, were too slow, or were asked first as small."""
    cascade = route.get("cascade") or {}
    small = (_word(cascade, "host"), _word(cascade, "model"))
    if small[1] != UNKNOWN:
        counts.add("swarmctl_cascades_total", (small[1], _word(cascade, "decision")))
    escalated = cascade.get("decision") == "escalate"
    for attempt in attempts:
        tried = (_word(attempt, "host"), _word(attempt, "model"))
        if attempt.get("hedged"):
            counts.add("swarmctl_hedges_total", tried)
        elif escalated and tried == small:
            escalated = False
        else:
            counts.add("swarmctl_failed_attempts_total", tried)
    if route.get("explored"):
        counts.add("swarmctl_explorations_total", served)


SUMS = {"prompt_tokens": "swarmctl_prompt_tokens_total",
        "cached_tokens": "swarmctl_cached_prompt_tokens_total",
        "completion_tokens": "swarmctl_completion_tokens_total",
        "prompt_seconds": "swarmctl_prefill_seconds_total", "decode_seconds": "swarmctl_decode_seconds_total",
        "load_seconds": "swarmctl_model_load_seconds_total"}
SPREADS = {"first_token_seconds": "swarmctl_first_token_seconds", "total_seconds": "swarmctl_answer_seconds"}


def _costs(counts: Counts, route: Mapping[str, Any], timings: Mapping[str, Any], served: tuple[str, str],
           tariffs: Tariffs) -> None:
    busy = sum(_number(timings, key) or 0.0 for key in ("prompt_seconds", "decode_seconds", "load_seconds"))
    watts, price, currency = tariffs.get(served[0], (0.0, 0.0, ""))
    if joules := busy * watts:
        counts.add("swarmctl_energy_joules_total", served, joules)
        counts.add("swarmctl_energy_cost_total", (*served, currency), joules / 3.6e6 * price)
    rows = route.get("prices") or ()
    row = next((row for row in rows if (row.get("host"), row.get("model")) == served), None)
    if row is not None:
        counts.add("swarmctl_expected_cost_seconds_total", served, _number(row, "total") or 0.0)
        waits = ("queue", "connect", "load", "prefill", "decode")
        counts.add("swarmctl_expected_wait_seconds_total", served,
                   sum(_number(row, key) or 0.0 for key in waits))


def _rating(counts: Counts, record: Mapping[str, Any]) -> None:
    score = record.get("score")
    if record.get("undoes") or score is None:
        return
    verdict = "good" if score > 0 else "bad" if score < 0 else "neutral"
    counts.add("swarmctl_ratings_total", (record["model"], record["category"], verdict))


def _comparison(counts: Counts, record: Mapping[str, Any]) -> None:
    choice = record["choice"]
    for side, model in (("a", record["model_a"]), ("b", record["model_b"])):
        result = "tie" if choice == "tie" else "lost" if choice != side else "won"
        counts.add("swarmctl_comparisons_total", (model, result))


def _counted(raw: bytes) -> bool:
    """Whether a line may count. A rating names its exchange."""
    return b'"exchange"' in raw or b'"comparison"' in raw


def _word(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) and value else UNKNOWN


def _number(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return float(value)
