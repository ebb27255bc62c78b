"""Finding and ending what runs in a lab host: its sshd, the sessions below it, and all that was started in
them.

A session's environment carries the host's mark (sshd.MARK); whatever a session starts inherits it, also a
server that has long left its session. Only processes with this very lab's mark, or below this very sshd,
are ever touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.lab.sshd import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable

GRACE = 5.0
#: Nothing survives SIGKILL, but on a crowded machine its end takes time.
KILLED = 60.0
PROC = Path("/proc")


def marked(folder: Path) -> tuple[int, ...]:
    """Processes that were started in sessions of the host whose files lie in `folder`."""
    mark = f"{MARK}={folder}"
    if not PROC.is_dir():
        return tuple(pid for pid, line in _ps("pid=,command=", "-E") if mark in line.split())
    wanted = mark.encode()
    return tuple(pid for pid in _pids() if wanted in _environ(pid).split(b"\0"))


def below(parent: int) -> tuple[int, ...]:
    """A process's children and theirs, the process itself not included."""
    children: dict[int, list[int]] = {}
    for pid, line in _ps("pid=,ppid="):
        children.setdefault(int(line.split()[0]), []).append(pid)
    found: list[int] = []
    queue = [parent]
    while queue:
        queue = [child for pid in queue for child in children.get(pid, ())]
        found.extend(queue)
    return tuple(found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return not _zombie(pid)


def runs(pid: int, word: str) -> bool:
    """Whether a process runs whose command line has `word` in it: a number from a file may be another's by
    now."""
    if not alive(pid):
        return False
    if not PROC.is_dir():
        return any(found == pid and word in line for found, line in _ps("pid=,command="))
    try:
        return word.encode() in (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that have ended are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end(pids: Iterable[int], grace: float = GRACE) -> None:
    """SIGTERM, and SIGKILL for what is still there after `grace` seconds. Frozen processes are woken
    first."""
    wanted = tuple(pids)
    send(wanted, signal.SIGTERM)
    send(wanted, signal.SIGCONT)
    _await_end(wanted, grace)
    kill(pid for pid in wanted if alive(pid))


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, and wait until they are gone."""
    wanted = tuple(pids)
    send(wanted, signal.SIGKILL)
    _await_end(wanted, KILLED)


def _await_end(pids: tuple[int, ...], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.02)


def _pids() -> Iterable[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _environ(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _zombie(pid: int) -> bool:
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["Z"]


def _ps(columns: str, *flags: str) -> tuple[tuple[int, str], ...]:
    done = subprocess.run(("ps", "-A", "-ww", *flags, "-o", columns), capture_output=True, text=True,
                          errors="replace",
                          timeout=10, check=True)
    pairs = (line.strip().partition(" ") for line in done.stdout.splitlines() if line.strip())
    return tuple((int(pid), rest.strip()) for pid, _, rest in pairs)
