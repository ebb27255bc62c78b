"""`swarmctl embed`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from swarmctl.cli.ask import say
from swarmctl.cli.streaming import printable
from swarmctl.dispatch.embedding_model import find_model
from swarmctl.errors import SwarmError, UsageError
from swarmctl.verbs.embed import Count, Jsonl, OutFile, out_format, read_texts
from swarmctl.verbs.embed import embed as embed_verb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.dispatch.embedding_model import Model
    from swarmctl.verbs.embed import Row

#: refused texts that are named one by one
NAMED = 20
SHOWN = 60


def embed(
    ctx: typer.Context,
    text: Annotated[list[str] | None, typer.Argument(
        help="Texts, each with a vector of its own. Without texts and files, stdin is read.",
        show_default=False)] = None,
    file: Annotated[list[Path] | None, typer.Option(
        "--file", "-f", help="A file to embed; may be repeated. `-` is stdin.", show_default=False)] = None,
    lines: Annotated[bool, typer.Option(
        "--lines", help="Embed each line of the files or stdin that is not blank, not the whole.")] = False,
    form: Annotated[str | None, typer.Option(
        "--format", metavar="jsonl|parquet", help="What to write; else by the name of --out, else jsonl.",
        show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(
        "--out", "-o", help="A file to write instead of stdout.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out.")] = False,
    model: Annotated[str | None, typer.Option(
        "--model", "-m", help="This model; with --in-process a folder or a name of the hub.")] = None,
    host: Annotated[str | None, typer.Option("--host", "-H", help="On this host only.")] = None,
    in_process: Annotated[bool, typer.Option(
        "--in-process", help="With sentence-transformers in this process, whatever is served.")] = False,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print one JSON object: what was done and, without --out, the rows.")] = False,
) -> None:
    """Turn texts into vectors.

    All hosts that serve the embedding model work at once; where none does, sentence-transformers embeds in
    this process, if it is installed. Vectors have length one and come in the order of the texts, as JSON
    lines (text, source, n, model, digest, vector) or as Parquet. A text that is too long for the model is
    reported and the others go on; then the exit status is 1. Ctrl-C keeps what was written.
    """
    context: Context = ctx.obj
    if in_process and host:
        raise UsageError("--in-process and --host contradict each other")
    form = out_format(form, out)
    texts, total = read_texts(text or [], _files(text, file), sys.stdin.buffer, lines=lines)
    found = find_model(context.paths, context.inventory, model=model, host=host, in_process=in_process,
                       say=say)
    run = _Run(found, Count(), total, out)
    write, close = _sink(found, out, form, force=force, keep=run.rows if as_json else None)
    try:
        for rows in embed_verb(found, texts, run.count, run.above):
            write(rows)
            run.show()
    except KeyboardInterrupt:
        run.above(f"stopped; {out} keeps the vectors that were written" if out else "stopped")
        raise
    finally:
        run.end()
        close()
    if as_json:
        sys.stdout.write(json.dumps(run.record()) + "\n")
    run.verdict()


def _files(texts: list[str] | None, files: list[Path] | None) -> list[Path]:
    if texts or files:
        return files or []
    if sys.stdin.isatty():
        raise UsageError("nothing to embed", hint='swarmctl embed "a text", or -f FILE')
    return [Path("-")]


def _sink(model: Model, out: Path | None, form: str, *, force: bool,
          keep: list[Row] | None) -> tuple[Callable[[Sequence[Row]], None], Callable[[], None]]:
    """Where rows go, and what ends it."""
    if out is not None:
        file = OutFile(out.expanduser(), form, model, force=force)
        return file.write, file.close
    if keep is not None:
        return keep.extend, lambda: None
    return Jsonl(sys.stdout, model).write, lambda: None


@dataclass(slots=True)
class _Run:
    """One run as a person watches it: a line on a terminal's stderr that changes, lines elsewhere."""

    model: Model
    count: Count
    total: int | None
    out: Path | None
    err: TextIO = sys.stderr
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)

    def show(self) -> None:
        """Say how far it is, five times a second on a terminal, every five seconds elsewhere."""
        live = self.err.isatty() and (self.out is not None or not sys.stdout.isatty())
        now = time.monotonic()
        if now - self.shown < (0.2 if live else 5.0):
            return
        self.shown = now
        done = self.count.rows + len(self.count.refused)
        of = f" of {self.total:,}" if self.total is not None else ""
        line = f"embedded {done:,}{of} texts, {done / (now - self.began):,.0f} a second"
        self.err.write(f"\r\033[K{line}" if live else f"swarmctl: {line}\n")
        self.err.flush()

    def above(self, line: str) -> None:
        """A note, on a line of its own."""
        self.end()
        say(line)

    def end(self) -> None:
        """Wipe the line that changes."""
        if self.err.isatty():
            self.err.write("\r\033[K")
            self.err.flush()

    def record(self) -> dict[str, Any]:
        """What was done, for --json."""
        count, seconds = self.count, time.monotonic() - self.began
        found = {"model": self.model.name, "digest": self.model.digest, "where": self.model.where.split(", "),
                 "texts": count.rows, "dimensions": count.width, "tokens": count.tokens,
                 "seconds": round(seconds, 3), "out": str(self.out) if self.out else None,
                 "refused": [{"source": one.text.source, "n": one.text.n, "reason": one.reason}
                             for one in count.refused]}
        if self.out is None:
            found["rows"] = [{"text": row.text.text, "source": row.text.source, "n": row.text.n,
                              "vector": [float(f"{value:.9g}") for value in row.vector]} for row in self.rows]
        return found

    def verdict(self) -> None:
        """Say what was done, and fail where texts were refused."""
        count = self.count
        if self.out is not None or self.err.isatty():
            to = f" → {self.out}" if self.out else ""
            say(f"{count.rows:,} vectors of {count.width} numbers by {self.model.name} "
                f"({self.model.where}), {time.monotonic() - self.began:.1f} s{to}")
        for one in count.refused[:NAMED]:
            start = " ".join(one.text.text[:SHOWN].split())
            say(printable(f"{one.text.source} {one.text.n} (“{start}…”): {one.reason}"))
        if not count.refused:
            return
        bad = len(count.refused)
        more = f" ({bad - NAMED} more than are named above)" if bad > NAMED else ""
        raise SwarmError(f"{bad} of {bad + count.rows} texts have no vector{more}",
                         hint="cut them into shorter ones, or embed them with --lines")
