"""The queue of questions that found no free slot: one for all processes of this machine, fair and bounded.

Each waits with a ticket: a small file in state/queue that its process keeps locked, so that the kernel tells
who still waits. Its name sorts by its turn (routing.waiting). Its content says what it waits for: on each
line HOST@SERVER and the seconds by which it counts as earlier there. Who stands ahead without wanting a
server is not in the way of one who does.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from swarmctl.routing.waiting import EARLIEST, Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

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

    def __init__(self, paths: Paths, turn: float) -> None:
        """Stand in line; `turn` is on the clock of time.monotonic. Raises OSError where the state folder
        cannot be written."""
        self._folder = _folder(paths)
        self.turn = turn
        self.name = f"{_key(turn):020d}-{secrets.token_hex(6)}"
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

    def wants(self, servers: Mapping[str, float]) -> None:
        """Say what is waited for, and by how many seconds we count as earlier there; until then it is
        everything."""
        said = "".join(f"{server} {seconds:.3f}\n" for server, seconds in servers.items())
        if said != self._wants:
            self._wants = said
            with suppress(OSError):
                os.pwrite(self._descriptor, said.encode(), 0)
                os.ftruncate(self._descriptor, len(said.encode()))

    def line(self) -> tuple[tuple[Waiter, ...], int, int]:
        """Those who may be given a slot before us, the first in line first; and how many stand before us and
        behind us. The dead at the end are removed: those of before a reboot, when the clock stood higher,
        nobody would reach from the front for as long as it had been up."""
        names = list(_names(self._folder))
        while names[-1:] > [self.name] and _read(f"{self._folder}/{names[-1]}", names[-1]) is None:
            names.pop()
        near = f"{_key(self.turn + EARLIEST):020d}"
        others = {name: one for name in names if name < near and name != self.name
                  if (one := _read(f"{self._folder}/{name}", name)) is not None}
        return (tuple(others.values()), sum(name < self.name for name in others),
                sum(name > self.name for name in names))

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


def name_of(candidate: Candidate) -> str:
    """What a server is called in a ticket."""
    return f"{candidate.host}@{candidate.server}"


def empty(paths: Paths) -> bool:
    """Whether nobody is in line; the tickets of the dead count as somebody, whom the next in line removes."""
    return next(_names(_folder(paths)), None) is None


def length(paths: Paths) -> int:
    """How many questions wait."""
    folder = _folder(paths)
    return sum(_read(f"{folder}/{name}", name) is not None for name in _names(folder))


def _read(file: str, name: str) -> Waiter | None:
    """Whose turn is when; None for one whose process is gone, which is removed."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _waiter(name, os.pread(descriptor, LONGEST, 0).decode(errors="replace"))
    else:
        with suppress(OSError):
            os.unlink(file)  # noqa: PTH108
        return None
    finally:
        os.close(descriptor)


def _waiter(name: str, said: str) -> Waiter | None:
    """What a ticket says; one that cannot be read wants everything. None for a file that is no ticket."""
    try:
        turn = int(name[:20]) / 1e9 - ORIGIN
    except ValueError:
        return None
    try:
        words = [line.split() for line in said.splitlines()]
        return Waiter(turn, {server: float(seconds) for server, seconds in words})
    except ValueError:
        return Waiter(turn, {})


def _names(folder: str) -> Iterator[str]:
    try:
        return iter(sorted(name for name in os.listdir(folder) if name[0] != "."))  # noqa: PTH208
    except OSError:
        return iter(())


def _key(turn: float) -> int:
    """Nanoseconds on the clock that all processes share."""
    return max(0, int((turn + ORIGIN) * 1e9))


def _folder(paths: Paths) -> str:
    return f"{paths.state}/queue"
