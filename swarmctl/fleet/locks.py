"""One `up` at a time: a flock on this machine, and on each host a lock folder with a lease.

The flock ends with its process, however that ends. The host's lock serves several people's machines: its
lease is renewed before every step, so one whose holder died expires by itself; one whose holder was a process
of this machine that is gone is taken over at once.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from swarmctl.errors import LockBusy, SwarmError
from swarmctl.fleet.host_shell import LOCK_HELD, attempt, explain, on_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from swarmctl.fleet.shell import Completed, Remote

POLL = 0.1
#: seconds a lease outlives the step it was taken for
MARGIN = 60


@contextmanager
def local_lock(path: Path, what: str, *, wait: float, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a flock on `path`; wait up to `wait` seconds, saying so once. Raises LockBusy that names the
    holder, SwarmError where there can be no such file."""
    with _opened(path) as file:
        deadline = time.monotonic() + wait
        said = False
        while not _try(file.fileno()):
            file.seek(0)
            named = file.read().strip()
            holder = named or "another swarmctl process"
            if time.monotonic() > deadline:
                raise LockBusy(f"{what}: {holder} is at it, since more than {wait:.0f} s",
                               hint="wait for it to end, then run the same again")
            if named and not said:  # who took it just now has yet to write its name
                on_wait(f"waiting for {holder}")
                said = True
            time.sleep(POLL)
        with suppress(OSError):  # on a full disk it is a lock without a name
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{getpass.getuser()}'s swarmctl (pid {os.getpid()})".encode())
        yield


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as exc:
        raise SwarmError(f"cannot write {path}: {exc.strerror or exc}",
                         hint=f"is the disk full, or {path.parent} not yours?") from exc


class HostLock:
    """The lock on one host's data folder. `renew` before each step with the seconds that step may take."""

    def __init__(self, remote: Remote, data_dir: str, state: Path) -> None:
        self._remote = remote
        self._data_dir = data_dir
        self._place = f"{getpass.getuser()}@{socket.gethostname()}:{state}"
        self._owner = f"{self._place} pid {os.getpid()}"

    def renew(self, seconds: float) -> None:
        """Take the lock, or extend it. Raises LockBusy that names the holder."""
        done = self._take(seconds, dead="")
        if done.exit_status == LOCK_HELD and self._is_gone(done.stdout.strip()):
            done = self._take(seconds, dead=done.stdout.strip())
        if done.exit_status == LOCK_HELD:
            holder = done.stdout.strip() or "somebody"
            raise LockBusy(f"{holder} is changing this host", host=self._remote.host,
                           hint="wait for it to end, then run the same again")
        if done.exit_status != 0:
            raise explain(self._remote.host, "lock", done)

    def release(self) -> None:
        """Give the lock back, if it is ours."""
        on_host(self._remote, "unlock", self._data_dir, self._owner)

    def _take(self, seconds: float, dead: str) -> Completed:
        lease = str(int(seconds) + MARGIN)
        return attempt(self._remote, "lock", self._data_dir, self._owner, lease, dead)

    def _is_gone(self, holder: str) -> bool:
        """Whether the holder was a process of this very machine and state folder that no longer lives.

        Ours alone runs here under the flock, so a live process of that number is another program.
        """
        place, _, pid = holder.rpartition(" pid ")
        return place == self._place and pid.isdigit() and int(pid) != os.getpid()


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
