"""Rows to a Parquet file and back, through DuckDB: the control side has no other library for it."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

from swarmctl.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

#: Bytes of one row as JSON.
LONGEST_ROW = 256 << 20


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows in their order. `columns` has DuckDB's types. The file is not there before it is whole,
    unless the caller's folder is a temporary one. Raises OSError, LedgerError."""
    import duckdb

    lines = path.with_name(f"{path.name}.jsonl")
    try:
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        source = (f"read_json($lines, format = 'newline_delimited', columns = {dict(columns)!r}, "
                  f"maximum_object_size = {LONGEST_ROW})")
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute(f"COPY (FROM {source}) TO $path (FORMAT parquet, COMPRESSION zstd)",
                               {"lines": str(lines), "path": str(path)})
    except duckdb.IOException as exc:
        kind = errno.ENOSPC if "No space" in str(exc) else errno.EIO
        raise OSError(kind, str(exc).splitlines()[0]) from exc
    except duckdb.Error as exc:
        raise LedgerError(f"{path.name} cannot be written: {str(exc).splitlines()[0]}",
                          hint="nothing was replaced; is it a defect of swarmctl?") from exc
    finally:
        lines.unlink(missing_ok=True)


def read_json_rows(path: Path, count: int = 1 << 62) -> list[dict[str, Any]]:
    """The first rows as objects; all by default. Raises LedgerError."""
    return [json.loads(row) for (row,) in _fetched(path, ("to_json(t)::VARCHAR",), count)]


def read_columns(path: Path, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Some columns of every row. Raises LedgerError."""
    return _fetched(path, tuple(f'"{name}"' for name in columns), 1 << 62)


def _fetched(path: Path, selected: tuple[str, ...], count: int) -> list[tuple[Any, ...]]:
    import duckdb

    try:
        with duckdb.connect() as connection:
            found = connection.execute(
                f"SELECT {', '.join(selected)} FROM read_parquet($path) t LIMIT $count",  # noqa: S608  our own names
                {"path": str(path), "count": count})
            return list(found.fetchall())
    except duckdb.Error as exc:
        raise LedgerError(f"{path} cannot be read: {str(exc).splitlines()[0]}",
                          hint="was it changed? what it was made from is in the journal") from exc
