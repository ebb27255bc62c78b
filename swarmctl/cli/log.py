"""`swarmctl log`: list, show, search, query and export what was asked and rated. Alone it lists."""

from __future__ import annotations

import csv
import json
import math
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from swarmctl.cli.streaming import printable
from swarmctl.ledger.terminal import terminal_id
from swarmctl.verbs import log as verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.verbs.log import Table

#: Columns of a table where there is no terminal to ask.
WIDTH = 160
CELL = 400
CONTEXT = 40


class ListByDefault(TyperGroup):
    """A group whose `list` runs when no command is named: `swarmctl log -n 5` lists five."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer's own signature
        """Put `list` before the arguments, unless they name a command or ask for help."""
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ListByDefault, rich_markup_mode=None, add_completion=False,
                  pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="List, show, search, query and export what was asked and rated. Alone it lists.")

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many, the newest.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_exchanges(
    ctx: typer.Context,
    limit: Limit = 20,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Answered by this model.")] = None,
    host: Annotated[str | None, typer.Option("--host", "-H", help="Answered on this host.")] = None,
    category: Annotated[str | None, typer.Option(help="routine, complex or code.")] = None,
    rated: Annotated[str | None, typer.Option(metavar="any|none|up|down", help="Rated so.")] = None,
    since: Annotated[str | None, typer.Option(metavar="2d|12h|DATE", help="Asked since then.")] = None,
    as_json: Json = False,
) -> None:
    """List exchanges, newest first."""
    context: Context = ctx.obj
    wanted = verb.Wanted(limit, model, host, category, rated, since)
    found = verb.listing(context.paths, wanted, context.clock())
    if as_json:
        return _json(_objects(found))
    if not found.rows:
        return _say(_why_none(context, wanted))
    year = _local(context.clock()).year
    _table(("id", "when", "category", "s", "rated", "answered by", "question"),
           (_line(row, year) for row in found.rows), fixed=5)
    return None


@app.command()
def show(
    ctx: typer.Context,
    exchange: Annotated[str | None, typer.Argument(
        metavar="[ID]", show_default=False,
        help="Its id, or 4 or more characters of its beginning or end; else this terminal's last.")] = None,
    as_json: Json = False,
) -> None:
    """Show one exchange whole: messages, answer, route, timings, ratings."""
    from swarmctl.cli.log_show import page

    context: Context = ctx.obj
    found = verb.show(context.paths, exchange, terminal=terminal_id(context.environ))
    if as_json:
        return _json({**found.exchange, "ratings": found.ratings, "comparisons": found.comparisons})
    sys.stdout.write(page(found))
    return None


@app.command()
def search(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for, in any case.")],
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Find exchanges by their question, answer, comment or correction."""
    context: Context = ctx.obj
    found = verb.search(context.paths, text, limit)
    if as_json:
        return _json(_objects(found))
    if not found.rows:
        return _say(f"nothing that was asked or answered holds {printable(text)!r}")
    year = _local(context.clock()).year
    _table(("id", "when", "in", "answered by", "text"), (
        (one, _when(at, year), part, f"{model} on {host}", _around(content, text))
        for one, at, model, host, part, content in found.rows), fixed=3)
    return None


@app.command()
def sql(
    ctx: typer.Context,
    statement: Annotated[str, typer.Argument(help="DuckDB SQL. docs/ledger.md lists tables and columns.")],
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Query the ledger with SQL, read-only.

    Tables: exchanges, messages, attempts, ratings, comparisons, decisions, torn. Views: answers (exchanges
    with the rating that stands), current_ratings, approval, scores. Times are UTC.
    """
    context: Context = ctx.obj
    found = verb.query(context.paths, statement)
    if as_json:
        return _json(_objects(found))
    if as_csv:
        return _csv(found)
    if found.columns:
        _table(found.columns, found.rows)
    return None


@app.command()
def export(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder, or with --table a file.")],
    form: Annotated[str, typer.Option("--format", "-f", metavar="parquet|jsonl",
                                      help="What to write.")] = "parquet",
    table: Annotated[str | None, typer.Option("--table", "-t", help="Only this table or view.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the tables as Parquet or JSON lines, one file each."""
    context: Context = ctx.obj
    written = verb.export(context.paths, out.expanduser(), form=form, table=table, force=force)
    if as_json:
        return _json([str(path) for path in written])
    sys.stdout.write("".join(f"{printable(str(path))}\n" for path in written))
    return None


@app.command()
def rebuild(ctx: typer.Context, as_json: Json = False) -> None:
    """Make the ledger anew from the journal: after damage, or after lines were deleted from the journal."""
    context: Context = ctx.obj
    synced = verb.rebuild(context.paths)
    if as_json:
        return _json({"records": synced.records, "torn": synced.torn, "ledger": str(context.paths.ledger)})
    torn = f"; {_many(synced.torn, 'line')} torn, `swarmctl log check` tells which" if synced.torn else ""
    sys.stdout.write(f"{context.paths.ledger}: {synced.records} records{torn}\n")
    return None


@app.command()
def check(ctx: typer.Context, as_json: Json = False) -> None:
    """Read the whole journal, count its records, and name each line that is none. Changes nothing.

    A torn line is what a killed process or a full disk left; it was never acknowledged, and harms no other.
    """
    context: Context = ctx.obj
    found = verb.check(context.paths)
    torn = [{"file": str(context.paths.journal / line.file), "line": line.number, "byte_offset": line.offset,
             "reason": line.reason} for line in found.torn]
    if as_json:
        return _json({"files": found.files, "records": dict(found.kinds), "torn": torn})
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.kinds.items())) or "no records"
    files = _many(len(found.files), "file")
    sys.stdout.write(printable(f"{files}: {kinds}; {_many(len(torn), 'line')} torn\n"))
    for line in torn:
        sys.stdout.write(printable(f"{line['file']}:{line['line']}: {line['reason']}\n"))
    return None


def _line(row: Sequence[Any], year: int) -> tuple[str, ...]:
    identity, at, category, model, host, finish, seconds, score, stars, question = row
    ending = "" if finish == "stop" else f" ({finish})"
    return (identity, _when(at, year), category or "", "" if seconds is None else f"{seconds:.1f}",
            _worth(score, stars), f"{model} on {host}{ending}", question or "")


def _worth(score: float | None, stars: int | None) -> str:
    if stars is not None:
        return f"{stars} of 5"
    return "" if score is None else "up" if score > 0 else "down"


def _when(at: datetime | None, year: int) -> str:
    """A moment of the ledger, which is UTC, by this machine's clock; of other years than this one the day."""
    if at is None:
        return ""
    here = _local(at.replace(tzinfo=UTC).timestamp())
    return here.strftime("%m-%d %H:%M") if here.year == year else here.strftime("%Y-%m-%d")


def _local(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC).astimezone()


def _around(content: str, text: str) -> str:
    """The part of a text where another stands."""
    start = max(content.lower().find(text.lower()) - CONTEXT, 0)
    piece = " ".join(content[start:start + len(text) + 2 * CONTEXT].split())
    return f"{'…' if start else ''}{piece}{'…' if start + len(text) + 2 * CONTEXT < len(content) else ''}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _objects(table: Table) -> list[dict[str, Any]]:
    """Rows as objects; a column name that comes twice gets a number."""
    names: list[str] = []
    for name in table.columns:
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def _why_none(context: Context, wanted: verb.Wanted) -> str:
    narrowed = wanted != verb.Wanted(wanted.limit)
    if narrowed and verb.listing(context.paths, verb.Wanted(1), context.clock()).rows:
        return "nothing that was asked is like that; `swarmctl log` alone lists all"
    return "nothing was asked yet: `swarmctl ask` does"


def _say(line: str) -> None:
    sys.stderr.write(f"swarmctl: {line}\n")


def _json(value: Any) -> None:  # noqa: ANN401
    """ASCII only: nothing in it can drive a terminal, and any JSON reader gives the text back."""
    sys.stdout.write(json.dumps(_plain(value), indent=1) + "\n")


def _plain(value: Any) -> Any:  # noqa: ANN401  what DuckDB gives, as what JSON has
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.hex() if isinstance(value, bytes) else str(value)


def _csv(table: Table) -> None:
    """RFC 4180. A terminal gets it with control characters made visible, a file as it is."""
    safe: Callable[[str], str] = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout)
    writer.writerow(map(safe, table.columns))
    writer.writerows([safe(_text(value)) for value in row] for row in table.rows)


def _text(value: Any) -> str:  # noqa: ANN401
    plain = _plain(value)
    if plain is None:
        return ""
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else str(plain)


def _table(columns: Iterable[str], rows: Iterable[Sequence[Any]], fixed: int = 0) -> None:
    """One line a row, control characters made visible; only the first `fixed` columns are never cut."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(Text(printable(column), no_wrap=True, overflow="ellipsis"), no_wrap=place < fixed)
    for row in rows:
        texts = (printable(" ".join(_text(value)[:CELL].split())) for value in row)
        grid.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH).print(grid)
