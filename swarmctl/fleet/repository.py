"""A local git repository, read through git itself: tracked files of HEAD, and its last commits.

Nothing in the repository is run: no hooks, no filters, no external diff, whatever its configuration says.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TIMEOUT = 120.0
RECORD, FIELD = "\x01", "\x02"
#: Files larger than this are no code that a person wrote.
LARGEST_BLOB = 1 << 20
PLAIN = ("100644", "100755")


@dataclass(frozen=True, slots=True)
class Repository:
    """A checkout, or a bare repository, at one commit."""

    folder: Path
    commit: str

    @property
    def name(self) -> str:
        """What it is called: its folder."""
        return self.folder.name.removesuffix(".git")

    def files(self) -> Iterator[tuple[str, int]]:
        """Paths and sizes in bytes of the plain files of the commit; links and submodules are not files."""
        listed = _git(self.folder, "ls-tree", "-r", "-l", "-z", "--full-tree", self.commit)
        for entry in listed.split(b"\0"):
            if entry:
                facts, _, path = entry.partition(b"\t")
                mode, kind, _, size = facts.decode("ascii").split()
                if kind == "blob" and mode in PLAIN:
                    yield path.decode("utf-8", "surrogateescape"), int(size)

    def marked(self, paths: Sequence[str]) -> frozenset[str]:
        """Those that .gitattributes calls generated or vendored (linguist-generated, linguist-vendored)."""
        given = b"\0".join(path.encode("utf-8", "surrogateescape") for path in paths)
        try:
            found = _git(self.folder, "check-attr", "--stdin", "-z", "linguist-generated",
                         "linguist-vendored",
                         given=given).split(b"\0")
        except SwarmError:  # a bare repository has no attributes to look up
            return frozenset()
        return frozenset(found[place].decode("utf-8", "surrogateescape") for place in range(0, len(found) - 2,
                                                                                            3)
                         if found[place + 2] in (b"set", b"true"))

    def texts(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The contents of files, in one go."""
        asked = "".join(f"{self.commit}:{path}\n" for path in paths if "\n" not in path)
        found = _git(self.folder, "cat-file", "--batch", given=asked.encode("utf-8", "surrogateescape"))
        place = 0
        for path in (path for path in paths if "\n" not in path):
            head, place = found[place:found.index(b"\n", place)], found.index(b"\n", place) + 1
            if head.endswith(b" missing"):
                continue
            size = int(head.rsplit(b" ", 1)[1])
            yield path, found[place:place + size]
            place += size + 1

    def commits(self, most: int) -> Iterator[tuple[str, str, str, str]]:
        """The newest commits as (id, when, message, diff), merges left out. The diff is unified, of text."""
        shown = _git(self.folder, "log", "--no-merges", f"--max-count={most}", "--no-color", "--no-ext-diff",
                     "--no-textconv", "--no-renames", "--diff-filter=M", "--unified=8", "--patch",
                     f"--format={RECORD}%H{FIELD}%aI{FIELD}%B{FIELD}", self.commit)
        for record in shown.decode("utf-8", "replace").split(RECORD)[1:]:
            parts = record.split(FIELD, 3)
            if len(parts) == 4:
                yield parts[0], parts[1], parts[2], parts[3]


def open_repository(folder: Path) -> Repository:
    """A repository at its HEAD. Raises UsageError where there is none."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel").decode().strip() or str(folder)
        commit = _git(folder, "rev-parse", "--verify", "HEAD").decode().strip()
    except SwarmError as exc:
        if folder.is_dir() and (folder / "HEAD").is_file():
            return Repository(folder.resolve(), _git(folder, "rev-parse", "--verify",
                                                     "HEAD").decode().strip())
        raise UsageError(f"{folder} is no git repository with a commit", hint=exc.message) from exc
    return Repository(type(folder)(top), commit)


def _git(folder: Path, *words: str, given: bytes = b"") -> bytes:
    argv = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c",
            "core.quotePath=false",
            "-C", str(folder), *words)
    try:
        done = subprocess.run(argv, input=given, capture_output=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError as exc:
        raise SwarmError("git is not installed here", hint="install it: apt install git") from exc
    except subprocess.TimeoutExpired as exc:
        raise SwarmError(f"git {words[0]} took more than {TIMEOUT:.0f} s in {folder}") from exc
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SwarmError(f"git {words[0]} in {folder}: {lines[0] if lines else 'failed'}")
    return done.stdout
