"""Whether swarmctl can keep what it has to keep on this machine. Pure; fleet.home looks."""

from __future__ import annotations

import errno
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.diagnosis.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = "this machine"
#: Free bytes below which the next answers may be the last that are recorded.
LOW = 64 << 20
#: The folders that grow with every answer.
GROWING = ("data", "state")
ELSEWHERE = "or SWARMCTL_HOME=FOLDER elsewhere"
FULL = (errno.ENOSPC, errno.EDQUOT)
WHY = {
    "data": "answers are shown and cannot be recorded: no rating, no log, nothing to learn from",
    "state": "slots, queues and marks are not kept: terminals get in each other's way, and a host that is "
             "off is tried again by every question",
    "cache": "no build and no weights can be kept here, so `up` fails",
    "runtime": "tunnels have no place for their sockets, so hosts cannot be reached",
}


@dataclass(frozen=True, slots=True)
class Folder:
    """One of our folders: its `name` in WHY, and what writing to it came to (`error` is an errno, 0 where it
    went well). `disk` tells file systems apart, `free` are its bytes for us."""

    name: str
    path: str
    disk: int
    free: int
    error: int = 0
    said: str = ""


def home_findings(folders: Sequence[Folder]) -> Iterator[Finding]:
    """What is wrong with them; those that fail alike on one disk are one finding."""
    alike: dict[tuple[int, int], list[Folder]] = {}
    for folder in folders:
        if folder.error or (folder.name in GROWING and folder.free < LOW):
            alike.setdefault((folder.disk, folder.error), []).append(folder)
    for some in alike.values():
        yield _finding(some)


def _finding(some: Sequence[Folder]) -> Finding:
    first, names = some[0], ", ".join(dict.fromkeys(folder.path for folder in some))
    if not first.error:
        return Finding(HERE, "home", "warning", f"its disk has only {first.free >> 20} MiB left for swarmctl",
                       names, "once it is full, answers are shown and cannot be recorded", _room(first.path))
    what = {errno.EROFS: "swarmctl's folders are read-only", **dict.fromkeys(FULL, "swarmctl's disk is full")}
    return Finding(HERE, "home", "error",
                   what.get(first.error, "swarmctl's folders cannot be written"),
                   f"writing to {names}: {first.said}", "; ".join(WHY[folder.name] for folder in some),
                   _mend(first))


def _mend(folder: Folder) -> str:
    path = shlex.quote(folder.path)
    if folder.error in FULL:
        return _room(folder.path)
    if folder.error == errno.EROFS:
        return (f"findmnt -T {path} shows the mount (after an error of the disk, dmesg says so); "
                f'sudo mount -o remount,rw "$(findmnt -no TARGET -T {path})"; {ELSEWHERE}')
    return f'ls -ld {path} says whose it is; sudo chown -R "$(id -un)" {path}; {ELSEWHERE}'


def _room(path: str) -> str:
    return (f"df -h {shlex.quote(path)}; `swarmctl models prune` makes room, and swarmctl's cache folder may "
            f"be removed; {ELSEWHERE}")
