"""Many hosts at once, over a bounded number of threads, each result as soon as it is there.

A host that hangs holds up nobody: past its limit it is reported as timed out, its thread is left behind
(threads cannot be ended) and another takes its place. The threads are daemons, so that Ctrl-C leaves at
once.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from swarmctl.errors import CommandTimeout, SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_hosts(items: Iterable[Item], work: Callable[[Item], Result], *, limit: int = 32,
               timeout: float = 3600.0) -> Iterator[tuple[Item, Result | SwarmError]]:
    """Do `work` for every item and yield (item, what it returned or the SwarmError it raised), first done
    first.

    At most `limit` run at once, each for at most `timeout` seconds. Any other exception is a defect and is
    raised here. Leaving the iterator early starts nothing more.
    """
    pool = _Pool(tuple(items), work, timeout)
    pool.start(min(limit, len(pool.items)))
    try:
        yield from pool.results()
    finally:
        pool.stopped = True


class _Pool(Generic[Item, Result]):
    """One run of over_hosts. `running` maps an item's number to when it started; whoever removes it reports
    it."""

    def __init__(self, items: tuple[Item, ...], work: Callable[[Item], Result], timeout: float) -> None:
        self.items = items
        self.stopped = False
        self._work = work
        self._timeout = timeout
        self._next = iter(range(len(items)))
        self._lock = threading.Lock()
        self._running: dict[int, float] = {}
        self._done: queue.SimpleQueue[tuple[int, Result | Exception]] = queue.SimpleQueue()

    def start(self, threads: int) -> None:
        """Start that many threads."""
        for _ in range(threads):
            threading.Thread(target=self._serve, name="swarmctl-host", daemon=True).start()

    def results(self) -> Iterator[tuple[Item, Result | SwarmError]]:
        """Each item once."""
        for _ in self.items:
            number, result = self._take()
            if isinstance(result, Exception) and not isinstance(result, SwarmError):
                raise result
            yield self.items[number], result

    def _take(self) -> tuple[int, Result | Exception]:
        while True:
            try:
                return self._done.get(timeout=self._patience())
            except queue.Empty:
                late = self._overdue()
                if late is not None:
                    self.start(1)
                    return late, CommandTimeout(f"not done within {self._timeout:g} s")

    def _patience(self) -> float:
        with self._lock:
            first = min(self._running.values(), default=time.monotonic())
        return max(0.0, min(1.0, first + self._timeout - time.monotonic()))

    def _overdue(self) -> int | None:
        """An item past its limit, taken off the list; its thread's result will be dropped."""
        now = time.monotonic()
        with self._lock:
            late = next((number for number, since in self._running.items() if now - since >= self._timeout),
                        None)
            if late is not None:
                del self._running[late]
        return late

    def _serve(self) -> None:
        while not self.stopped:
            with self._lock:
                number = next(self._next, None)
                if number is None:
                    return
                self._running[number] = time.monotonic()
            result = self._attempt(number)
            with self._lock:
                if self._running.pop(number, None) is None:
                    return  # reported as late, and replaced
            self._done.put((number, result))

    def _attempt(self, number: int) -> Result | Exception:
        try:
            return self._work(self.items[number])
        except Exception as exc:  # noqa: BLE001  handed to the thread that waits, which raises what is not ours
            return exc
