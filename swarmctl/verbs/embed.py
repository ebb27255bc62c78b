"""`embed`: texts to vectors, by the servers of an embedding model or by sentence-transformers here.

Texts are read as they are needed and vectors written as they come, so that a corpus of any size goes through
and what was written stays, whatever happens next.
"""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from swarmctl.dispatch.vectors import embed_all
from swarmctl.errors import DiskFull, SwarmError, UsageError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from swarmctl.dispatch.embedding_model import Model

FORMATS = ("jsonl", "parquet")
#: a batch: enough to keep a server at work, little enough to show progress
BATCH_TEXTS, BATCH_CHARACTERS = 32, 32_000
#: a longer text fits into no model there is
LONGEST_TEXT = 8 << 20
COLUMNS = {"text": "VARCHAR", "source": "VARCHAR", "n": "BIGINT", "model": "VARCHAR", "digest": "VARCHAR",
           "vector": "FLOAT[]"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it came from: the `n`th argument or line of `source`, from 1."""

    text: str
    source: str
    n: int


@dataclass(frozen=True, slots=True)
class Row:
    """A text and its vector."""

    text: Text
    vector: array[float]


@dataclass(frozen=True, slots=True)
class Refused:
    """A text that has no vector, and why."""

    text: Text
    reason: str


@dataclass(slots=True)
class Count:
    """How far it is."""

    rows: int = 0
    tokens: int = 0
    width: int = 0
    refused: list[Refused] = field(default_factory=list)


def embed(model: Model, texts: Iterable[Text], count: Count,
          say: Callable[[str], None]) -> Iterator[list[Row]]:
    """Embed texts; yields rows batch by batch, in the order of the texts. What is refused goes to `count`.

    Raises ServerError or RemoteError where no server is left.
    """
    def lost(where: str, exc: SwarmError) -> None:
        say(f"{where} failed ({exc.message}); the others go on")

    ahead: list[list[Text]] = []

    def batches() -> Iterator[list[str]]:
        for batch in _batches(texts):
            ahead.append(batch)
            yield [one.text for one in batch]

    for done in embed_all(model.lanes, batches(), lost):
        rows = []
        for text, result in zip(ahead.pop(0), done.results, strict=True):
            if isinstance(result, str):
                count.refused.append(Refused(text, result))
                continue
            count.width = count.width or len(result)
            if len(result) != count.width:
                raise SwarmError(f"a vector has {len(result)} numbers and those before it {count.width}",
                                 hint="two servers do not serve the same model: `swarmctl up`")
            rows.append(Row(text, result))
        count.rows += len(rows)
        count.tokens += done.tokens
        yield rows


def read_texts(arguments: Sequence[str], files: Sequence[Path], stdin: BinaryIO, *,
               lines: bool) -> tuple[Iterator[Text], int | None]:
    """The texts in the order they were named, read as they are needed, and how many there are where that can
    be known. A file is one text, or with `lines` one a line that is not blank; `-` is stdin.

    Raises UsageError at once for an empty argument or a file that cannot be read, and while reading for what
    is not UTF-8.
    """
    for number, text in enumerate(arguments, 1):
        if not text.strip():
            raise UsageError(f"text {number} is empty")
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"text {number} is not UTF-8")
    total: int | None = len(arguments)
    for path in files:
        counted = _count_texts(path, lines=lines)
        total = None if total is None or counted is None else total + counted
    return _read(arguments, files, stdin, lines=lines), total


class Jsonl:
    """Rows as JSON lines, each whole. Numbers have the nine digits that give a float32 back."""

    def __init__(self, stream: TextIO, model: Model) -> None:
        self._stream = stream
        self._ends = f', "model": {json.dumps(model.name)}, "digest": {json.dumps(model.digest)}, "vector": ['

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            text = json.dumps(row.text.text, ensure_ascii=self._stream.isatty())
            head = f'{{"text": {text}, "source": {json.dumps(row.text.source)}, "n": {row.text.n}'
            self._stream.write(f"{head}{self._ends}{', '.join(f'{value:.9g}' for value in row.vector)}]}}\n")
        self._stream.flush()


class OutFile:
    """The file of `--out`, which must not be there yet unless `force`. JSON lines are there as they come;
    Parquet is made of them in the end, through DuckDB, of as many as there are by then."""

    def __init__(self, path: Path, form: str, model: Model, *, force: bool) -> None:
        """Raises UsageError where the file is there, SwarmError where it cannot be written."""
        if path.exists() and not force:
            raise UsageError(f"{path} is there already", hint="--force replaces it")
        self.path = path
        self._parquet = form == "parquet"
        self._lines = path.with_name(f".{path.name}.jsonl.part") if self._parquet else path
        try:
            self._stream = self._lines.open("w", encoding="utf-8")
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        self._jsonl = Jsonl(self._stream, model)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows. Raises SwarmError, DiskFull."""
        try:
            self._jsonl.write(rows)
        except OSError as exc:
            raise _unwritable(self.path, exc) from exc

    def close(self) -> None:
        """Finish the file; one that would hold no rows is not left. Raises SwarmError."""
        with suppress(OSError):  # what could not be written was said when it was tried
            self._stream.close()
        filled = self._lines.stat().st_size > 0
        if self._parquet and filled:
            _parquet_of(self._lines, self.path)
        if self._parquet or not filled:
            self._lines.unlink(missing_ok=True)


def out_format(form: str | None, out: Path | None) -> str:
    """The format wished for, else by the file's name. Raises UsageError."""
    found = form or ("parquet" if out is not None and out.suffix == ".parquet" else "jsonl")
    if found not in FORMATS:
        raise UsageError(f"--format {found}: no such format", hint=" | ".join(FORMATS))
    if found == "parquet" and out is None:
        raise UsageError("Parquet needs a file", hint="--out vectors.parquet")
    return found


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_TEXTS or size + len(text.text) > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text.text)
    if batch:
        yield batch


def _read(arguments: Sequence[str], files: Sequence[Path], stdin: BinaryIO, *, lines: bool) -> Iterator[Text]:
    for number, text in enumerate(arguments, 1):
        yield Text(text, "argument", number)
    for path in files:
        source = "stdin" if str(path) == "-" else str(path)
        try:
            with nullcontext(stdin) if source == "stdin" else path.open("rb") as stream:
                yield from _texts(stream, source, lines=lines)
        except OSError as exc:
            raise UsageError(f"{source}: {exc.strerror}") from exc


def _texts(stream: BinaryIO, source: str, *, lines: bool) -> Iterator[Text]:
    if not lines:
        text = _decoded(stream.read(LONGEST_TEXT + 1), source, "")
        if not text.strip():
            raise UsageError(f"{source} is empty")
        yield Text(text, source, 1)
        return
    number = 0
    while raw := stream.readline(LONGEST_TEXT + 1):
        number += 1
        if text := _decoded(raw, source, f" line {number}").strip():
            yield Text(text, source, number)


def _decoded(raw: bytes, source: str, where: str) -> str:
    if len(raw) > LONGEST_TEXT:
        raise UsageError(f"{source}{where} is longer than {LONGEST_TEXT >> 20} MiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{source}{where} is not UTF-8 text (byte {exc.start})") from exc


def _count_texts(path: Path, *, lines: bool) -> int | None:
    """The texts of a file; None for stdin and pipes, which can be read only once."""
    if str(path) == "-":
        return None
    try:
        with path.open("rb") as stream:
            if not lines or not path.is_file():
                return None if lines else 1
            return sum(1 for line in stream if line.strip())
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc


def _parquet_of(lines: Path, path: Path) -> None:
    """Turn JSON lines into a Parquet file, which takes its name when it is whole."""
    import duckdb

    part = path.with_name(f".{path.name}.part")
    source = (f"read_json($lines, format = 'newline_delimited', columns = {COLUMNS!r}, "
              f"maximum_object_size = {2 * 6 * LONGEST_TEXT})")
    values: dict[str, Any] = {"lines": str(lines), "part": str(part)}
    try:
        with duckdb.connect() as connection:
            connection.execute(f"COPY (FROM {source}) TO $part (FORMAT parquet, COMPRESSION zstd)", values)
        part.replace(path)
    except (OSError, duckdb.Error) as exc:
        part.unlink(missing_ok=True)
        raise SwarmError(f"{path} cannot be written: {str(exc).splitlines()[0]}",
                         hint=f"the rows are in {lines}, as JSON lines") from exc


def _unwritable(path: Path, exc: OSError) -> SwarmError:
    kind = DiskFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else SwarmError
    return kind(f"{path} cannot be written: {exc.strerror}", hint="name another file with --out")
