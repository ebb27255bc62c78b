r"""The append-only journal: what was asked, answered and rated, one JSON object a line, one file a month.

It is the truth; everything else in `data` can be made from it. Fifty processes write it at once without
waiting for each other, and any of them may be killed, or find the disk full, in the middle of a line. So:

- A record goes out in one O_APPEND write of `\n{...}\n`. The leading newline ends whatever torn line a dying
  writer left before it, so a tear costs the record that was being written and never a neighbour.
- `append` returns after fsync. What it acknowledged is on the disk; what it could not write is a LedgerError.
  Threads that append at the same time share one fsync, so that a hundred a second do not each wait for one.
- Reading never raises on what a line holds: blank lines are passed over, anything else that is no record is
  reported as torn, with its file and line. The last line, where it has no newline yet, may still be being
  written: it is a `tail`, and is read again the next time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import threading
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from swarmctl.errors import LedgerError
from swarmctl.typed import too_deep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

Record = dict[str, Any]

#: Bytes of one line. More is no record of ours, and reading it could take a small machine's memory.
LONGEST = 64 << 20
#: Levels of one record; what a client may send is half of that.
DEEPEST = 200
WRITES = 3
#: what was live where: a file of its own, as its few records are read whole and often
RELEASES = "releases"
#: what `improve` did and a human signed: the same
ROUNDS = "rounds"
#: every fit of the router's quality model: the same
ROUTERS = "routers"
FILE_NAME = re.compile(rf"(?:\d{{4}}-\d{{2}}|{RELEASES}|{ROUNDS}|{ROUTERS})\.jsonl")
MONTH = re.compile(r"\d{4}-\d{2}(?=-\d{2}T)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `record` is None where it is no record, and `reason` says why.

    `offset` and `end` are bytes in `file`, `end` past the newline; `number` counts lines from 1, as editors
    do. `tail` marks a last line without its newline.
    """

    file: str
    number: int
    offset: int
    end: int
    record: Record | None
    reason: str = ""
    tail: bool = False


def append(folder: Path, record: Mapping[str, Any], file: str | None = None) -> None:
    """Write one record to the month's file that its `at` names, or to `file`, and return once it is on the
    disk.

    Raises LedgerError when it cannot be: a full disk, no permission, a record past LONGEST bytes.
    """
    path = folder / f"{file or _month(record)}.jsonl"
    data = b"\n" + encode(record) + b"\n"
    if len(data) > LONGEST:
        raise LedgerError(f"a record of {len(data) >> 20} MiB is too large for {path}",
                          hint=f"the limit is {LONGEST >> 20} MiB; attach less with -f")
    try:
        _write(path, data)
    except OSError as exc:
        raise _failure(path, exc) from exc


def read(folder: Path, torn: Callable[[Line], None] | None = None) -> Iterator[Record]:
    """Every record, oldest month first, in the order of writing. `torn` gets each line that is none."""
    for path in files(folder):
        for line in scan(path):
            if line.record is not None and not line.tail:
                yield line.record
            elif torn is not None:
                torn(line)


def files(folder: Path) -> tuple[Path, ...]:
    """The journal's files: what is of no month, then the months, oldest first."""
    try:
        found = (path for path in folder.iterdir() if FILE_NAME.fullmatch(path.name))
        return tuple(sorted(found, key=lambda path: (path.name[0].isdigit(), path.name)))
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise LedgerError(f"cannot read {folder}: {exc.strerror}", hint="is it a folder of yours?") from exc


def scan(path: Path, offset: int = 0, lines: int = 0) -> Iterator[Line]:
    """The lines of one file from byte `offset`, before which there are `lines`. A missing file has none."""
    for number, start, raw, end in raw_lines(path, offset, lines):
        if raw is None:
            yield Line(path.name, number, start, end, None, f"longer than {LONGEST >> 20} MiB")
        elif raw.strip():
            record, reason = parse(raw)
            yield Line(path.name, number, start, end, record, reason, tail=not raw.endswith(b"\n"))


def raw_lines(path: Path, offset: int = 0, lines: int = 0) -> Iterator[tuple[int, int, bytes | None, int]]:
    """Unparsed lines as (number, offset, bytes or None where past LONGEST, end), blank ones included."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while raw := file.readline(LONGEST):
                lines += 1
                whole = raw.endswith(b"\n") or len(raw) < LONGEST
                end = offset + len(raw) if whole else _skip_line(file)
                yield lines, offset, raw if whole else None, end
                offset = end
    except FileNotFoundError:
        return
    except OSError as exc:
        raise LedgerError(f"cannot read {path}: {exc.strerror}", hint="is it a file of yours?") from exc


def parse(raw: bytes) -> tuple[Record | None, str]:
    """One line as a record, or None and why it is none. A record has `kind`, `id` and `at`, all texts."""
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except ValueError:
        return None, "not JSON"
    except RecursionError:
        return None, "nested too deeply"
    if too_deep(found, raw, DEEPEST):
        return None, "nested too deeply"
    if not isinstance(found, dict):
        return None, "not a JSON object"
    if not all(isinstance(found.get(key), str) for key in ("kind", "id", "at")):
        return None, "without kind, id and at"
    return found, ""


def encode(record: Mapping[str, Any]) -> bytes:
    """The record as one line of JSON.

    Text that is no Unicode (undecodable bytes of an argument) goes in escaped; numbers that JSON lacks
    (infinity, not-a-number) as null.
    """
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(finite(record)).encode("ascii")
    except ValueError:
        return encode(finite(record))


def finite(value: Any) -> Any:  # noqa: ANN401  any JSON
    """The same JSON value with null for every infinity and not-a-number in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above that are missing, for this user alone; they outlive a power cut."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    descriptor, created = _open(path)
    try:
        _write_whole(descriptor, data)
        _sync(descriptor)
    finally:
        os.close(descriptor)
    if created:
        sync_folder(path.parent)


@dataclass(slots=True)
class _Synced:
    """How many writes to one file this process made, and how many of them a finished fsync covers."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    written: int = 0
    covered: int = 0


_files: dict[tuple[int, int], _Synced] = {}
_counting = threading.Lock()


def _sync(descriptor: int) -> None:
    """Return once what was written is on the disk: by a fsync of our own, or by one of another thread that
    began after our write. A failed one covers nobody: each thread behind it then hears from its own."""
    seen = os.fstat(descriptor)
    with _counting:
        file = _files.setdefault((seen.st_dev, seen.st_ino), _Synced())
        file.written += 1
        mine = file.written
    with file.turn:
        if file.covered >= mine:
            return
        with _counting:
            upto = file.written
        os.fsync(descriptor)
        file.covered = upto


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        make_private_folder(path.parent)
        return os.open(path, flags | os.O_CREAT, 0o600), True


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write in one go. After a short write all of it goes again: the rest could land behind another's."""
    for _ in range(WRITES):
        if os.write(descriptor, data) == len(data):
            return
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _month(record: Mapping[str, Any]) -> str:
    found = MONTH.match(str(record.get("at", "")))
    if not found:
        raise LedgerError(f"a record of {record.get('at')!r} has no month to be filed under")
    return found.group()


def _failure(path: Path, exc: OSError) -> LedgerError:
    if exc.errno in FULL:
        return LedgerError(f"cannot record in {path}: the disk is full", hint=(
            "free some space there and try again, or move swarmctl's data: SWARMCTL_HOME or XDG_DATA_HOME\n"
            "`swarmctl doctor` says more. What was recorded before is unharmed"))
    return LedgerError(f"cannot record in {path}: {exc.strerror or exc}",
                       hint=f"{path.parent} must be a folder that you may write; `swarmctl doctor` says what "
                            "is wrong\nwhat was recorded before is unharmed")


def _skip_line(file: IO[bytes]) -> int:
    """Pass over the rest of an overlong line; give the offset after it."""
    while chunk := file.readline(LONGEST):
        if chunk.endswith(b"\n"):
            break
    return file.tell()


def _no_number(_: str) -> None:
    return None
