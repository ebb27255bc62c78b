"""How much each key has used: requests a minute, turns at a time, tokens a day (in UTC).

Counted in the gateway's memory; what a day's tokens were before it started is counted from the journal. Used
from the event loop alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.errors import Busy
from swarmctl.ledger import journal
from swarmctl.ledger.lookup import lines_backwards
from swarmctl.routing.cost import DEFAULT_CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from swarmctl.gateway.keys import Key

MINUTE, DAY = 60.0, 86_400.0
#: Exchanges bear the time at which they were asked, and stand where they ended: what was asked before
#: midnight by so many seconds may stand among today's.
OVERNIGHT = 3600.0
#: What is said to come back in where too many of a key's turns are under way.
AT_ONCE_SECONDS = 1.0


class OverLimit(Busy):
    """A key has used what it may; the swarm itself may be idle."""


@dataclass(slots=True)
class Used:
    """What one key has used. `room` is a bucket that fills with its requests a minute."""

    room: float
    filled: float
    day: str
    tokens: int = 0
    running: int = 0


class Limits:
    """All keys' use. `spent` is each terminal's tokens of the day of `now`, from before."""

    def __init__(self, spent: Mapping[str, int] | None = None, now: float = 0.0) -> None:
        self._used: dict[str, Used] = {}
        self._spent = dict(spent or {})
        self._spent_on = _day(now)

    @contextmanager
    def turn(self, key: Key, now: float) -> Iterator[None]:
        """Let a key's request in for as long as the block runs. Raises OverLimit, saying when to come
        again."""
        used = self._of(key, now)
        if key.tokens_per_day is not None and used.tokens >= key.tokens_per_day:
            raise OverLimit(f"the key {key.name} has used its {key.tokens_per_day:,} tokens of today",
                            retry_after=DAY - now % DAY)
        if key.at_once is not None and used.running >= key.at_once:
            raise OverLimit(f"the key {key.name} may have {key.at_once} requests under way",
                            retry_after=AT_ONCE_SECONDS)
        if key.requests_per_minute is not None:
            if used.room < 1:
                raise OverLimit(f"the key {key.name} may ask {key.requests_per_minute} times a minute",
                                retry_after=(1 - used.room) * MINUTE / key.requests_per_minute)
            used.room -= 1
        used.running += 1
        try:
            yield
        finally:
            used.running -= 1

    def spend(self, key: Key, tokens: int, now: float) -> None:
        """Count tokens that were read and made for a key."""
        self._of(key, now).tokens += tokens

    def _of(self, key: Key, now: float) -> Used:
        day, most = _day(now), float(key.requests_per_minute or 0)
        used = self._used.get(key.name)
        if used is None:
            used = Used(most, now, self._spent_on, self._spent.pop(key.terminal, 0))
            self._used[key.name] = used
        if used.day != day:
            used.day, used.tokens = day, 0
        used.room = min(most, used.room + max(0.0, now - used.filled) * most / MINUTE)
        used.filled = now
        return used


def spent_today(folder: Path, now: float) -> dict[str, int]:
    """Tokens of today by terminal, from the journal's end backwards."""
    spent: dict[str, int] = {}
    path, day = folder / f"{_day(now)[:7]}.jsonl", _day(now)
    overnight = datetime.fromtimestamp(now - now % DAY - OVERNIGHT, UTC).isoformat()
    if not path.exists():
        return spent
    for raw in lines_backwards(path):
        record, _ = journal.parse(raw) if raw.strip() else (None, "")
        if record is None:
            continue
        if not record["at"].startswith(day):
            if record["at"] < overnight:
                break
            continue
        terminal, timings = record.get("terminal"), record.get("timings")
        if record["kind"] == "exchange" and isinstance(timings, dict) and isinstance(terminal, str):
            spent[terminal] = spent.get(terminal, 0) + _tokens(record, timings)
    return spent


def _tokens(record: Mapping[str, Any], timings: Mapping[str, Any]) -> int:
    """As its server counted them; by the characters of what was read and said where the answer was cut before
    it did."""
    counted = [timings.get(key) for key in ("prompt_tokens", "completion_tokens")]
    tokens = sum(count for count in counted if isinstance(count, int))
    if tokens or timings.get("first_token_seconds") is None:
        return tokens
    turns = record["messages"] if isinstance(record.get("messages"), list) else ()
    read = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    texts = (*read, record.get("answer"), record.get("thought"))
    return round(sum(len(text) for text in texts if isinstance(text, str)) / DEFAULT_CHARACTERS_PER_TOKEN)


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()
