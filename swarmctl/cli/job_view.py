"""A job's progress for a person: a bar with loss, margin and time left on a terminal, plain lines elsewhere.

Speed and the time left are reckoned here, from the clock and the counts in the job's own records.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLAIN_EVERY = 5.0
WIDE = 24


class Pace:
    """Reckons speed and time left from the records of one stage, since it began or was resumed."""

    def __init__(self) -> None:
        self._stage = ""
        self._first: Mapping[str, Any] | None = None

    def add(self, record: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """(tokens a second, seconds left) after this record; None where they cannot be known yet."""
        if record.get("stage") != self._stage or record.get("event") in ("begun", "resumed"):
            self._stage, self._first = str(record.get("stage")), None
        if "step" not in record or "loss" not in record:
            return None, None
        if self._first is None:
            self._first = record
        steps = record["step"] - self._first["step"]
        spent = (_clock(record) - _clock(self._first)).total_seconds()
        if steps <= 0 or spent <= 0:
            return None, None
        tokens = (record.get("tokens") or 0) - (self._first.get("tokens") or 0)
        return (tokens / spent if tokens > 0 else None), (record["steps"] - record["step"]) * spent / steps


def words(record: Mapping[str, Any], speed: float | None, left: float | None) -> str:
    """One record in a few words."""
    if "event" in record:
        more = f" ({record['checkpoint']})" if "checkpoint" in record else ""
        why = f": {record['error']}" if record.get("error") else ""
        step = f" at step {record['step']}" if "step" in record else ""
        return f"{record['event']}{more}{step}{why}"
    parts = [f"step {record.get('step')}/{record.get('steps')}"]
    parts += [f"{name} {record[key]:.4g}" for key, name in
              (("loss", "loss"), ("reward_margin", "margin"), ("eval_loss", "eval loss"))
              if isinstance(record.get(key), int | float)]
    if speed:
        parts.append(f"{speed:,.0f} tok/s")
    if record.get("memory_bytes"):
        parts.append(f"{record['memory_bytes'] / 1e9:.1f} GB")
    if left is not None:
        parts.append(f"{_duration(left)} left")
    return "  ".join(parts)


class JobView:
    """Shows a job's records as they come."""

    def __init__(self, stream: TextIO, live: Any = None) -> None:  # noqa: ANN401  a rich Progress
        self._stream, self._live = stream, live
        self._pace = Pace()
        self._task: Any = None
        self._said = 0.0

    @classmethod
    @contextmanager
    def on(cls, stream: TextIO) -> Iterator[JobView]:
        """A live bar while the block runs, where `stream` is a terminal."""
        if not stream.isatty():
            yield cls(stream)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        with Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=WIDE),
                      TextColumn("{task.fields[said]}", markup=False), console=Console(file=stream)) as live:
            yield cls(stream, live)

    def line(self, text: str) -> None:
        """A line above the bar."""
        if self._live is None:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def record(self, record: Mapping[str, Any]) -> None:
        """One record of progress.jsonl."""
        speed, left = self._pace.add(record)
        said = words(record, speed, left)
        stage = str(record.get("stage"))
        if self._live is None:
            self._plain(stage, said, last="event" in record or record.get("step") == record.get("steps"))
        elif "event" in record:
            self.line(f"{stage}: {said}")
        else:
            if self._task is None:
                self._task = self._live.add_task(stage, total=1, said="")
            self._live.update(self._task, description=stage, completed=record.get("step") or 0,
                              total=record.get("steps"), said=said)

    def _plain(self, stage: str, said: str, *, last: bool) -> None:
        now = time.monotonic()
        if last or now - self._said >= PLAIN_EVERY:
            self._said = now
            self._stream.write(f"{stage}: {said}\n")
            self._stream.flush()


def _clock(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(record["at"]))


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


