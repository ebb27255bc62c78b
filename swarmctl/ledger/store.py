"""The ledger: a DuckDB file made from the journal, for questions that scanning lines would not answer.

One process may hold a DuckDB file for writing, and then even a read-only open fails in every other. So each
use is connect to close under a lock on `ledger.lock` (shared for readers), waited for with a bound. The
journal is the truth: `sync` reads what was appended since the last time, in one transaction; `rebuild` makes
the file anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import LedgerError, LockBusy
from swarmctl.ledger import journal
from swarmctl.ledger.migrations import migrate
from swarmctl.ledger.rows import COLUMNS, Malformed, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from swarmctl.ledger.journal import Line
    from swarmctl.paths import Paths

WAIT = 20.0
POLL = 0.02
BATCH_BYTES = 8 << 20
REBUILD = "the journal has everything: `swarmctl log rebuild` makes the ledger anew from it"
OFFLINE: Mapping[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
#: No files, no network, no extensions: what `log sql` runs can read the ledger and nothing else.
SEALED: Mapping[str, Any] = {
    **OFFLINE, "enable_external_access": False, "allow_community_extensions": False}


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync read: records taken in, and lines that were none."""

    records: int
    torn: int


@contextmanager
def open_ledger(paths: Paths, *, read_only: bool = False, sealed: bool = True,
                wait: float = WAIT) -> Iterator[Any]:
    """A DuckDB connection, locked until the block ends. A `sealed` reader cannot reach any other file either.

    Raises LockBusy when others hold it for longer than `wait` seconds, LedgerError for what DuckDB raises.
    """
    with _locked(paths, shared=read_only, wait=wait), translated(paths), _umask():
        config = SEALED if read_only and sealed else OFFLINE
        connection = _connect(paths.ledger, config, read_only=read_only)
        try:
            if not read_only:
                migrate(connection)
            yield connection
        finally:
            connection.close()


def sync(paths: Paths, *, wait: float = WAIT) -> Synced:
    """Take in what the journal has gained since the last time. Twice is the same as once."""
    with open_ledger(paths, wait=wait) as connection:
        return _take_in(connection, paths.journal)


def rebuild(paths: Paths, *, wait: float = WAIT) -> Synced:
    """Make the ledger anew from the journal, beside the old one, and put it in its place by rename."""
    fresh = paths.ledger.with_name(f"{paths.ledger.name}.new")
    with _locked(paths, shared=False, wait=wait), translated(paths), _umask():
        _remove(fresh)
        connection = _connect(fresh, OFFLINE, read_only=False)
        try:
            migrate(connection)
            synced = _take_in(connection, paths.journal)
        finally:
            connection.close()
        _wal(paths.ledger).unlink(missing_ok=True)
        fresh.replace(paths.ledger)
        journal.sync_folder(paths.ledger.parent)
    return synced


@contextmanager
def translated(paths: Paths) -> Iterator[None]:
    """Turn what DuckDB raises into LedgerErrors. Who runs a person's statement catches its errors first."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise LedgerError("the ledger needs more memory for this than there is", hint="ask for less") from exc
    except duckdb.Error as exc:
        first = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise LedgerError(f"the ledger {paths.ledger} cannot be used: {first}", hint=REBUILD) from exc


def _connect(path: Path, config: Mapping[str, Any], *, read_only: bool) -> Any:  # noqa: ANN401  duckdb's
    import duckdb

    connection = duckdb.connect(str(path), read_only=read_only, config=dict(config))
    # Another thread of this process may have the file open: then its settings hold, and are locked already.
    if not connection.execute("SELECT current_setting('lock_configuration')").fetchall()[0][0]:
        connection.execute("SET enable_progress_bar = false")  # it would go to stdout, amid the answer
        connection.execute("SET lock_configuration = true")
    return connection


@contextmanager
def _locked(paths: Paths, *, shared: bool, wait: float) -> Iterator[None]:
    lock = paths.ledger.with_suffix(".lock")
    try:
        journal.make_private_folder(lock.parent)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise LedgerError(f"cannot open {lock}: {exc.strerror}", hint="is the folder yours?") from exc
    try:
        _flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, wait: float) -> None:
    until = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise LockBusy(f"another swarmctl has used the ledger for more than {wait:g} seconds",
                               hint="a long `swarmctl log sql`? try again when it has ended") from None
            time.sleep(POLL)


@contextmanager
def _umask() -> Iterator[None]:
    """DuckDB makes its files itself; they are for this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _take_in(connection: Any, folder: Path) -> Synced:  # noqa: ANN401
    connection.begin()
    try:
        marks = _marks(connection)
        if not _continues(marks, folder):
            marks = _forget(connection)
        synced = Synced(0, 0)
        for path in journal.files(folder):
            mark = marks.get(path.name, (0, 0))
            synced = _take_file(connection, path, mark, synced)
    except BaseException:  # Ctrl-C too: marks and rows are taken in together or not; raised again
        connection.rollback()
        raise
    connection.commit()
    return synced


def _marks(connection: Any) -> dict[str, tuple[int, int]]:  # noqa: ANN401
    found = connection.execute("SELECT file, byte_offset, lines FROM journal_marks").fetchall()
    return {file: (offset, lines) for file, offset, lines in found}


def _continues(marks: Mapping[str, tuple[int, int]], folder: Path) -> bool:
    """Whether the journal is still the one that was read: no file gone, cut, or shifted under its mark."""
    try:
        return all(_ends_a_line(folder / file, offset) for file, (offset, _) in marks.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _ends_a_line(path: Path, offset: int) -> bool:
    with path.open("rb") as file:
        return offset == 0 or os.pread(file.fileno(), 1, offset - 1) == b"\n"


def _forget(connection: Any) -> dict[str, tuple[int, int]]:  # noqa: ANN401
    for table in (*COLUMNS, "journal_marks"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608  our own names
    return {}


def _take_file(connection: Any, path: Path, mark: tuple[int, int], before: Synced) -> Synced:  # noqa: ANN401
    (offset, lines), records, torn = mark, before.records, before.torn
    batch, size = _batch(), 0
    for line in journal.scan(path, offset, lines):
        if line.tail:
            break
        taken = _add(batch, line)
        records, torn = records + taken, torn + (not taken)
        size += line.end - line.offset
        offset, lines = line.end, line.number
        if size > BATCH_BYTES:
            _insert(connection, batch)
            batch, size = _batch(), 0
    _insert(connection, batch)
    connection.execute("INSERT OR REPLACE INTO journal_marks VALUES (?, ?, ?)", [path.name, offset, lines])
    return Synced(records, torn)


def _batch() -> dict[str, list[Mapping[str, Any]]]:
    return {table: [] for table in COLUMNS}


def _add(batch: Mapping[str, list[Mapping[str, Any]]], line: Line) -> bool:
    reason = line.reason
    if line.record is not None:
        try:
            for table, row in tuple(rows(line.record)):
                batch[table].append(row)
        except Malformed as exc:
            reason = str(exc)
        else:
            return True
    where = {"file": line.file, "line": line.number, "byte_offset": line.offset}
    batch["torn"].append({**where, "reason": reason})
    return False


def _insert(connection: Any, batch: Mapping[str, list[Mapping[str, Any]]]) -> None:  # noqa: ANN401
    """One statement a table: DuckDB unpacks one JSON text 150 times faster than executemany binds rows."""
    for table, of_table in batch.items():
        if not of_table:
            continue
        columns = COLUMNS[table]
        shape = json.dumps([columns])
        connection.execute(
            f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) "  # noqa: S608  our own names
            f"SELECT r.* FROM (SELECT unnest(from_json(?::JSON, '{shape}')) AS r)", [json.dumps(of_table)])


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _wal(path).unlink(missing_ok=True)
