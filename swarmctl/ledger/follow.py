"""Reading on in the journal from where one stopped: the marks, each file's read bytes, and whether they still
hold. Who counts from the journal keeps marks beside its counts, and pays for what is new alone."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from swarmctl.ledger import journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from swarmctl.ledger.journal import Record


def sizes(folder: Path) -> dict[Path, int]:
    """Each file of the journal and its bytes as of now, oldest first."""
    found = {}
    for path in journal.files(folder):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_size
    return found


def continues(marks: Mapping[str, int], found: Mapping[Path, int]) -> bool:
    """Whether the journal is still the one that was counted: no file gone, cut, or shifted under its mark."""
    by_name = {path.name: path for path in found}
    return all(name in by_name and (found[by_name[name]] == mark or _ends_a_line(by_name[name], mark))
               for name, mark in marks.items())


def fresh(found: Mapping[Path, int], marks: dict[str, int],
          wanted: Callable[[bytes], bool]) -> Iterator[Record]:
    """The records past the marks whose line is `wanted`, which are moved on as they are read: each to behind
    its file's last newline. Unwanted lines are not parsed. Raises LedgerError."""
    for path, size in found.items():
        begin = marks.setdefault(path.name, 0)
        if size == begin:
            continue
        for _, _, raw, end in journal.raw_lines(path, begin):
            if raw is not None and not raw.endswith(b"\n"):
                break
            marks[path.name] = end
            if raw is not None and wanted(raw):
                record, _ = journal.parse(raw)
                if record is not None:
                    yield record


def mark(value: object) -> int:
    """A mark out of a file that may hold anything. Raises ValueError."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _ends_a_line(path: Path, offset: int) -> bool:
    if offset == 0:
        return True
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), 1, offset - 1) == b"\n"
    except OSError:
        return False
