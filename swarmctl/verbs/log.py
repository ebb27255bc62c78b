"""`log`: what was asked, answered and thought of it. Reads; the one thing it writes is the DuckDB file.

Single exchanges are read from the journal. Everything that ranges over many first brings the ledger up to
date and then asks DuckDB, read-only.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.errors import LedgerError, UsageError
from swarmctl.ledger import journal, scores, store
from swarmctl.ledger.lookup import Found, find
from swarmctl.ledger.moment import moment
from swarmctl.ledger.rows import COLUMNS, Malformed, rows, storable
from swarmctl.ledger.terminal import recall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.ledger.journal import Line
    from swarmctl.ledger.store import Synced
    from swarmctl.paths import Paths

VIEWS = ("answers", "current_ratings", "approval", "scores")
EXPORTED = tuple(table for table in COLUMNS if table != "torn")
TABLES = (*COLUMNS, *VIEWS)
FORMATS: Mapping[str, str] = {"parquet": "parquet", "jsonl": "json"}
RATED: Mapping[str, str] = {
    "any": "(score IS NOT NULL OR comment IS NOT NULL OR correction IS NOT NULL)",
    "none": "(score IS NULL AND comment IS NULL AND correction IS NULL)",
    "up": "score > 0", "down": "score < 0"}
READ_ONLY = "a statement can read the ledger, and nothing else; docs/ledger.md lists its tables and columns"
LISTED = "id, at_utc, category, model, host, finish, total_seconds, score, stars, question"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, and rows of as many values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which exchanges to list; None means any."""

    limit: int = 20
    model: str | None = None
    host: str | None = None
    category: str | None = None
    rated: str | None = None
    since: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What reading the whole journal found: records by kind, and the lines that are none."""

    files: tuple[str, ...]
    kinds: Mapping[str, int]
    torn: tuple[Line, ...]


def listing(paths: Paths, wanted: Wanted, now: float) -> Table:
    """The exchanges that are wanted, newest first. Raises UsageError for a filter that means nothing."""
    where, values = _where(wanted, now)
    statement = f"SELECT {LISTED} FROM answers WHERE {where} ORDER BY at_utc DESC, id DESC LIMIT ?"  # noqa: S608
    return _ask(paths, statement, [*values, wanted.limit])


def show(paths: Paths, id_part: str | None, *, terminal: str) -> Found:
    """One exchange with its ratings and comparisons; without an id the last one of this terminal."""
    if id_part is None:
        last = recall(paths, terminal)
        if last is None:
            raise UsageError("this terminal has asked nothing yet", hint="`swarmctl log list` shows ids")
        id_part = last.exchange
    return find(paths.journal, id_part)


def search(paths: Paths, text: str, limit: int = 20) -> Table:
    """Exchanges whose question, answer, comment or correction holds a text in any case; newest first."""
    found = " UNION ALL ".join(
        f"SELECT id, at_utc, model, host, '{part}' AS part, {part} AS text, {rank} AS rank FROM answers"  # noqa: S608
        for rank, part in enumerate(("question", "answer", "comment", "correction")))
    return _ask(paths, (
        f"SELECT id, at_utc, model, host, part, text FROM ({found}) WHERE contains(lower(text), lower(?)) "  # noqa: S608
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY rank) = 1 "
        "ORDER BY at_utc DESC, id DESC LIMIT ?"), [storable(text), limit])


def query(paths: Paths, statement: str) -> Table:
    """What a person's own SQL gives. It can read the ledger; it cannot write, nor reach any other file.

    Raises UsageError with DuckDB's words where the statement is wrong or asks for more than reading.
    """
    import duckdb

    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        try:
            return _interruptible(connection, lambda: _fetched(connection.sql(storable(statement))))
        except (duckdb.ProgrammingError, duckdb.DataError, duckdb.PermissionException,
                duckdb.NotSupportedError, duckdb.DependencyException) as exc:
            first, _, rest = str(exc).partition("\n")
            raise UsageError(first, hint=rest.strip("\n") or READ_ONLY) from exc


def export(paths: Paths, out: Path, *, form: str, table: str | None = None,
           force: bool = False) -> tuple[Path, ...]:
    """Write one table to a file, or all to a folder, as Parquet or JSON lines. Gives the files.

    Raises UsageError for an unknown table or form and for files that are there already, unless `force`.
    """
    targets = _targets(out, form, table)
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not force:
        raise UsageError(f"{', '.join(there)}: there already", hint="--force replaces")
    store.sync(paths)
    with store.open_ledger(paths, read_only=True, sealed=False) as connection:
        for name, path in targets.items():
            _copy(connection, name, path, FORMATS[form])
    return tuple(targets.values())


def rebuild(paths: Paths) -> Synced:
    """Make the ledger, and the scores that routing reads, anew from the journal."""
    scores.forget(paths)
    return store.rebuild(paths)


def check(paths: Paths) -> Checked:
    """Read the whole journal and tell what is in it. Needs no ledger."""
    kinds: Counter[str] = Counter()
    torn: list[Line] = []
    files = journal.files(paths.journal)
    for path in files:
        for line in journal.scan(path):
            bad = _trouble(line)
            if bad is None and line.record is not None:
                kinds[line.record["kind"]] += 1
            elif bad is not None:
                torn.append(bad)
    return Checked(tuple(str(path) for path in files), kinds, tuple(torn))


def _ask(paths: Paths, statement: str, values: Sequence[Any]) -> Table:
    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        found = connection.execute(statement, list(values))
        return Table(tuple(column[0] for column in found.description), tuple(found.fetchall()))


def _interruptible(connection: Any, work: Callable[[], Table]) -> Table:  # noqa: ANN401
    """Work in another thread, so that Ctrl-C is heard at once: in a long fetch DuckDB does not listen."""
    from concurrent.futures import ThreadPoolExecutor, wait

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            return running.result()
        except KeyboardInterrupt:
            while not wait([running], timeout=0.1).done:
                connection.interrupt()
            raise


def _fetched(relation: Any) -> Table:  # noqa: ANN401  a duckdb relation, or None where there is no result
    """Fetch, with zoned times as text: DuckDB would need one more package to make them objects."""
    if relation is None:
        return Table((), ())
    zoned = ["WITH TIME ZONE" in str(kind) for kind in relation.types]
    columns = tuple(relation.columns)
    if any(zoned):
        relation = relation.project(", ".join(
            f"#{number}::VARCHAR" if cast else f"#{number}" for number, cast in enumerate(zoned, 1)))
    return Table(columns, tuple(relation.fetchall()))


def _where(wanted: Wanted, now: float) -> tuple[str, list[Any]]:
    clauses, values = ["true"], []
    for column in ("model", "host", "category"):
        value = getattr(wanted, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(storable(value))
    if wanted.rated is not None:
        if wanted.rated not in RATED:
            raise UsageError(f"--rated {wanted.rated}: no such rating", hint=" | ".join(RATED))
        clauses.append(RATED[wanted.rated])
    if wanted.since is not None:
        clauses.append("at_utc >= ?")
        values.append(_since(wanted.since, now))
    return " AND ".join(clauses), values


def _since(text: str, now: float) -> datetime:
    """A moment as the ledger's columns have it: UTC, without a zone."""
    return datetime.fromtimestamp(moment(text, now), UTC).replace(tzinfo=None)


def _targets(out: Path, form: str, table: str | None) -> dict[str, Path]:
    if form not in FORMATS:
        raise UsageError(f"--format {form}: no such format", hint=" | ".join(FORMATS))
    if table is not None and table not in TABLES:
        raise UsageError(f"--table {table}: no such table", hint=" | ".join(TABLES))
    if table is not None and not out.is_dir():
        return {table: out}
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, and all tables need a folder", hint="or name one with --table")
    return {name: out / f"{name}.{form}" for name in ((table,) if table else EXPORTED)}


def _copy(connection: Any, table: str, path: Path, form: str) -> None:  # noqa: ANN401
    """Write through a temporary name, so that a file that is there is whole."""
    import duckdb

    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection.execute(f"COPY (FROM {table}) TO $part (FORMAT {form})", {"part": str(part)})
        part.replace(path)
    except (OSError, duckdb.IOException) as exc:
        with suppress(OSError):
            part.unlink()
        raise LedgerError(f"cannot write {path}: {str(exc).splitlines()[0]}",
                          hint="is there room, and is the folder yours to write?") from exc


def _trouble(line: Line) -> Line | None:
    """The line, where it is no record or is not what its kind should be."""
    if line.record is None or line.tail:
        reason = "not ended: being written, or cut off" if line.tail else line.reason
        return replace(line, record=None, reason=reason)
    try:
        tuple(rows(line.record))
    except Malformed as exc:
        return replace(line, record=None, reason=str(exc))
    return None
