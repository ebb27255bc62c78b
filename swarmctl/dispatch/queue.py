"""The queue of questions that found no free slot: one for all processes of this machine, fair and bounded.

Each waits with a ticket: a small file in state/queue that its process keeps locked, so that the kernel tells
who still waits. Its name sorts by arrival, less AGEING seconds for each step of priority: among equals the
first comes first, the important come earlier, and nobody waits for ever. Its content says what it waits for
(HOST@SERVER, a line each): who stands ahead without wanting a server is not in the way of one who does.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

#: What a step of priority is worth, in seconds of having come earlier.
AGEING = 10.0
#: Keeps the key of an early, important ticket positive.
ORIGIN = 1e9
#: More than any ticket says.
LONGEST = 1 << 16
#: So many of the first in line are woken when something has changed; each that leaves wakes the next.
WOKEN = 2

_line_lock = threading.Lock()
_line: dict[str, threading.Event] = {}


class Ticket:
    """A place in the queue; given up when it is closed or its process ends, however that is."""

    def __init__(self, paths: Paths, priority: int) -> None:
        """Stand in line. Raises OSError where the state folder cannot be written."""
        self._folder = _folder(paths)
        self.name = f"{_key(priority):020d}-{secrets.token_hex(6)}"
        os.makedirs(self._folder, exist_ok=True)  # noqa: PTH103
        part = f"{self._folder}/.{self.name}"
        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody knows of it yet
        os.replace(part, f"{self._folder}/{self.name}")  # noqa: PTH105
        self._wants = ""
        self._woken = threading.Event()
        with _line_lock:
            _line[self.name] = self._woken

    def sleep(self, seconds: float) -> bool:
        """Wait so long, or until this process frees a slot; whether it did."""
        woken = self._woken.wait(seconds)
        self._woken.clear()
        return woken

    def wants(self, candidates: Iterable[Candidate]) -> None:
        """Say what is waited for; until then it is everything."""
        said = "".join(f"{_name(candidate)}\n" for candidate in candidates)
        if said != self._wants:
            self._wants = said
            with suppress(OSError):
                os.pwrite(self._descriptor, said.encode(), 0)
                os.ftruncate(self._descriptor, len(said.encode()))

    def line(self) -> tuple[tuple[frozenset[str], ...], int]:
        """What each of those before us wants, the first in line first (an empty set is everything), and how
        many stand behind us."""
        names = list(_names(self._folder))
        ahead = tuple(wanted for name in names if name < self.name
                      if (wanted := _read(f"{self._folder}/{name}")) is not None)
        return ahead, sum(name > self.name for name in names)

    def close(self) -> None:
        """Leave; once more does nothing."""
        if self._descriptor < 0:
            return
        with suppress(OSError):
            os.unlink(f"{self._folder}/{self.name}")  # noqa: PTH108
        os.close(self._descriptor)
        self._descriptor = -1
        with _line_lock:
            _line.pop(self.name, None)
        wake()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wake() -> None:
    """Let the first of this process's own look at once; those of others see it within a poll."""
    if _line:
        with _line_lock:
            for name in sorted(_line)[:WOKEN]:
                _line[name].set()


def before(candidate: Candidate, ahead: Iterable[frozenset[str]]) -> int:
    """How many of those ahead want this candidate's server."""
    return sum(not wanted or _name(candidate) in wanted for wanted in ahead)


def empty(paths: Paths) -> bool:
    """Whether nobody is in line; the tickets of the dead count as somebody, whom the next in line removes."""
    return next(_names(_folder(paths)), None) is None


def length(paths: Paths) -> int:
    """How many questions wait."""
    folder = _folder(paths)
    return sum(_read(f"{folder}/{name}") is not None for name in _names(folder))


def _read(file: str) -> frozenset[str] | None:
    """What a ticket wants; None for one whose process is gone, which is removed."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return frozenset(os.pread(descriptor, LONGEST, 0).decode(errors="replace").split())
    else:
        with suppress(OSError):
            os.unlink(file)  # noqa: PTH108
        return None
    finally:
        os.close(descriptor)


def _names(folder: str) -> Iterator[str]:
    try:
        return iter(sorted(name for name in os.listdir(folder) if name[0] != "."))  # noqa: PTH208
    except OSError:
        return iter(())


def _key(priority: int) -> int:
    """Nanoseconds on the clock that all processes share."""
    return int((time.monotonic() - AGEING * priority + ORIGIN) * 1e9)


def _name(candidate: Candidate) -> str:
    return f"{candidate.host}@{candidate.server}"


def _folder(paths: Paths) -> str:
    return f"{paths.state}/queue"
