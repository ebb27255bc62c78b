"""Progress of many hosts on stderr: one live line a host on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.fleet.progress import Event

#: on plain output, a step under way says something new, and the same again, at most this often; seconds
PLAIN_EVERY, PLAIN_REPEAT = 5.0, 60.0


class Progress:
    """Shows events. Not for several threads at once: the caller holds a lock."""

    def __init__(self, stream: TextIO, live: Any = None) -> None:  # noqa: ANN401  a rich Progress
        self._stream = stream
        self._live = live
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, tuple[float, str]] = {}

    @classmethod
    @contextmanager
    def on(cls, stream: TextIO) -> Iterator[Progress]:
        """A live display while the block runs, where `stream` is a terminal."""
        if not stream.isatty():
            yield cls(stream)
            return
        with _rich(stream) as live:
            yield cls(stream, live)

    def line(self, text: str) -> None:
        """A line above the display."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def text(self, text: str) -> None:
        """Text on stdout, above the display."""
        if self._live and sys.stdout.isatty():
            self.line(text)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def event(self, event: Event) -> None:
        """A step's progress."""
        if self._live:
            self._bar(event)
        else:
            self._plain(event)

    def _bar(self, event: Event) -> None:
        if event.host not in self._tasks:
            self._tasks[event.host] = self._live.add_task(event.host, total=1.0, step="", detail="")
        self._live.update(self._tasks[event.host], step=f"{event.number}/{event.total} {event.title}",
                          detail="failed" if event.state == "failed" else event.detail,
                          total=1.0 if event.fraction is not None or event.state == "done" else None,
                          completed=event.fraction or 0.0)
        if event.state == "failed":
            self.line(f"{event.host}: {event.title} failed: {event.detail}")

    def _plain(self, event: Event) -> None:
        percent = f" {event.fraction:.0%}" if event.state == "going" and event.fraction is not None else ""
        detail = f": {event.detail}" if event.detail else ""
        word = {"begun": "", "going": "", "done": " (done)", "failed": " FAILED"}[event.state]
        text = f"{event.host} [{event.number}/{event.total}] {event.title}{word}{detail}{percent}"
        now, (at, before) = time.monotonic(), self._said.get(event.host, (-PLAIN_REPEAT, ""))
        if event.state == "going" and now - at < (PLAIN_REPEAT if text == before else PLAIN_EVERY):
            return
        self._said[event.host] = now, text
        self.line(text)


def _rich(stream: TextIO) -> Any:  # noqa: ANN401
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                        TextColumn("{task.fields[step]}", markup=False),
                        TextColumn("{task.fields[detail]}", markup=False, style="dim"), TimeElapsedColumn(),
                        console=Console(file=stream))
