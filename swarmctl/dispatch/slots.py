"""Slots: a question holds one of a server's from before it is sent until its answer ends.

A slot is a small file in state/slots/HOST@SERVER, and holding it is a flock on it: the kernel is the one who
compares and swaps, between threads and processes alike, and who frees the slots of a process that dies. What
others do at a server (`others`) leaves that many slots fewer. Freeing touches `freed`, which waiters watch.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from swarmctl.dispatch.queue import wake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

#: runtimes whose servers say how busy they are
TELLING = frozenset({"llamacpp"})
#: How often, and how long each time, the counting lock is waited for; without it a count is only less sure.
TRIES, PAUSE = 10, 0.002


class Slot:
    """A claimed slot, free again when it is closed or its process ends, however that is. `company` is how
    many answers the server was giving when it was claimed."""

    __slots__ = ("_descriptor", "_freed", "company")

    def __init__(self, descriptor: int | None, freed: str, company: int) -> None:
        self._descriptor = descriptor
        self._freed = freed
        self.company = company

    def close(self) -> None:
        """Free it; once more does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with suppress(OSError):  # nobody has ever waited
                os.utime(self._freed, ns=(time.time_ns(), time.time_ns()))
            wake()

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def claim(paths: Paths, candidate: Candidate, slots: int, others: int = 0) -> Slot | None:
    """Take one of a server's slots; None where none is free. Never waits.

    Where the state folder cannot be written, the question is not kept from being asked: it holds nothing
    then.
    """
    folder = _folder(paths, candidate)
    try:
        if others <= 0 and (slot := _take(folder, slots, slots)):
            return slot
        with _counting(folder):
            return _take(folder, slots, slots - others)
    except OSError:
        return Slot(None, "", 0)


def claimed(paths: Paths, candidate: Candidate, slots: int) -> int:
    """How many of a server's slots this machine's questions hold."""
    folder = _folder(paths, candidate)
    try:
        if not os.path.isdir(folder):  # noqa: PTH112  on every question's way
            return 0
        with _counting(folder):
            return _held_of(folder, slots)
    except OSError:
        return 0


def freed_at(paths: Paths) -> int:
    """When a slot was last freed, in ns; from the first call on, freeing leaves its mark."""
    file = paths.state / "slots" / "freed"
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
        return 0
    except OSError:
        return 0


def _take(folder: str, slots: int, limit: int) -> Slot | None:
    """Lock the first file that nobody holds, unless `limit` are held. Counting goes on to the last file only
    where the limit is lower than the slots."""
    taken, mine = 0, -1
    try:
        for number in range(slots):
            descriptor = _open(f"{folder}/{number}")
            if not _lock(descriptor, fcntl.LOCK_EX):
                os.close(descriptor)
                taken += 1
            elif mine < 0:
                mine = descriptor
            else:
                os.close(descriptor)
            if taken >= limit or (mine >= 0 and limit >= slots):
                break
    except OSError:
        if mine >= 0:
            os.close(mine)
        raise
    if mine < 0:
        return None
    if taken >= limit:
        os.close(mine)
        return None
    return Slot(mine, f"{os.path.dirname(folder)}/freed", taken + slots - limit)  # noqa: PTH120


def _open(file: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(file, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
        return os.open(file, flags, 0o600)


def _held_of(folder: str, slots: int) -> int:
    """How many are held. They are made in order and never removed: after the first that is not there, none
    is."""
    held = 0
    for number in range(slots):
        try:
            descriptor = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            break
        try:
            held += not _lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
    return held


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _counting(folder: str) -> Iterator[None]:
    """Keep others who count away: a lock that is tried looks like one that is held. Bounded, as a stopped
    process may hold it."""
    descriptor = _open(f"{folder}/count")
    try:
        for _ in range(TRIES):
            if _lock(descriptor, fcntl.LOCK_EX):
                break
            time.sleep(PAUSE)
        yield
    finally:
        os.close(descriptor)


def _folder(paths: Paths, candidate: Candidate) -> str:
    return f"{paths.state}/slots/{candidate.host}@{candidate.server}"
