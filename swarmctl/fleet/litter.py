"""What trainings leave on hosts: runs, base weights, environments and job code; and which of it nobody needs.

A run is needed while it works, while it is young, and while a release that serves, or that a rollback would
return to, was made of it. The rest is needed by the runs that stay, which name it, and by the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from swarmctl.fleet.shell import Remote

LOOK_LIMIT = 300.0
REMOVE_LIMIT = 1800.0
#: each folder with its KiB and whether it is older than a day, then who names what. $1 is data_dir
LOOK = """cd "$1" 2>/dev/null || exit 0
for each in runs/* weights/* envs/* jobs/*; do
  if [ -d "$each" ]; then
    old=$(find "$each" -maxdepth 0 -mtime +0)
    echo "$each $(du -sk "$each" | cut -f1) ${old:+old}"
  fi
done
grep -oHE '(weights|envs|jobs)/[0-9a-f]{12}' runs/*/spec.json runs/*/job 2>/dev/null || true"""
REMOVE = 'cd "$1" && shift && rm -rf -- "$@"'


@dataclass(frozen=True, slots=True)
class Left:
    """A folder under data_dir, such as weights/1a2b3c4d5e6f, and its bytes. `old` is older than a day: what
    is being put there is not."""

    path: str
    size: int
    old: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a host holds: the folders, and which of them each run names."""

    left: tuple[Left, ...]
    named: Mapping[str, frozenset[str]]


def look(remote: Remote, data_dir: str) -> Found:
    """Ask a host. Raises RemoteErrors."""
    said = remote.run(("sh", "-c", LOOK, "sh", data_dir), timeout=LOOK_LIMIT).stdout
    left: list[Left] = []
    named: dict[str, set[str]] = {}
    for line in said.splitlines():
        file, colon, what = line.partition(":")
        if colon and file.startswith("runs/"):
            named.setdefault(file.split("/")[1], set()).add(what)
            continue
        path, size, *old = line.split(" ")
        left.append(Left(path, int(size) * 1024, old == ["old"]))
    return Found(tuple(left), {run: frozenset(names) for run, names in named.items()})


def unneeded(found: Found, going: Collection[str], current: Collection[str]) -> Iterator[Left]:
    """What may go: the runs `going`, and of the rest what no run names that stays, and is not `current`, such
    as envs/1a2b3c4d5e6f. Pure."""
    needed = set(current).union(*(names for run, names in found.named.items() if run not in going))
    for one in found.left:
        kind, _, name = one.path.partition("/")
        if name in going if kind == "runs" else one.old and one.path not in needed:
            yield one


def remove(remote: Remote, data_dir: str, what: Iterable[Left]) -> None:
    """Remove folders. Raises RemoteErrors."""
    remote.run(("sh", "-c", REMOVE, "sh", data_dir, *(one.path for one in what)), timeout=REMOVE_LIMIT)
