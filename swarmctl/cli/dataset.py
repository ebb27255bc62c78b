"""`swarmctl dataset`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.ask import say
from swarmctl.cli.streaming import printable
from swarmctl.errors import SwarmError
from swarmctl.learning.code import FORMS
from swarmctl.learning.refine import DEFAULT_CAP
from swarmctl.verbs import dataset as verb
from swarmctl.verbs.dataset_code import COMMITS, CodeWanted, build_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.cli.context import Context
    from swarmctl.ledger.snapshots import Built, Snapshot

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
                  no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]},
                  help="Make training sets out of ratings, list them, and check that they are whole.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Its name or the beginning of it; `latest`, or `latest:dpo`.")]
CELL = 300


@app.command()
def build(
    ctx: typer.Context,
    kind: Annotated[str, typer.Option("--kind", "-k", metavar="dpo|kto|sft", help=(
        "Pairs of a better and a worse answer, answers labelled good or bad, or corrections."))] = "dpo",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only of answers by this model.")] = None,
    since: Annotated[str | None, typer.Option(metavar="2d|12h|DATE",
                                              help="Only what was said since.")] = None,
    cap: Annotated[int, typer.Option(min=1, help="At most this many rows of one prompt.")] = DEFAULT_CAP,
    files: Annotated[list[Path] | None, typer.Option("--from", help=(
        "Ratings or chats of another program: Open WebUI's exports, or JSON lines; may be repeated."),
        show_default=False)] = None,
    only: Annotated[bool, typer.Option("--only", help="Nothing but the files of --from.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=(
        "Pass over lines of --from that are in no known form, instead of refusing them."))] = False,
    liked: Annotated[bool, typer.Option("--liked", help="With sft: liked answers too.")] = False,
    keep_flagged: Annotated[bool, typer.Option("--keep-flagged", help=(
        "Keep rows with secrets or personal data, and floods of ratings."))] = False,
    without: Annotated[list[str] | None, typer.Option("--without", metavar="TERMINAL", help=(
        "Leave out what was rated there; may be repeated."), show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run",
                                          help="Say what it would hold; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Build a training set from ratings.

    It is an immutable folder of Parquet files with TRL's columns, which datasets.load_dataset reads, and a
    card that says what is in it and what was left out. The same labels give the same dataset.
    """
    context: Context = ctx.obj
    wanted = verb.Wanted(kind, model, since, cap, tuple(files or ()), only, skip_bad, liked, keep_flagged,
                         tuple(without or ()))
    show_built(verb.build(context.paths, wanted, context.clock(), dry_run=dry_run), as_json=as_json)


@app.command("code")
def of_code(
    ctx: typer.Context,
    repositories: Annotated[list[Path], typer.Argument(metavar="REPO...", help="Local git repositories.")],
    licence: Annotated[list[str] | None, typer.Option("--licence", "--license", metavar="SPDX", help=(
        "Take code under this licence instead of the permissive ones; `any`, or `none` for code without one. "
        "May be repeated."), show_default=False)] = None,
    form: Annotated[list[str] | None, typer.Option("--form", metavar="fim|completion|commit", help=(
        "Only rows of this form; may be repeated."), show_default=False)] = None,
    cap: Annotated[int, typer.Option(min=1, help="At most this many rows of one file.")] = DEFAULT_CAP,
    commits: Annotated[int, typer.Option(min=0, help="Read so many of the newest commits.")] = COMMITS,
    keep_flagged: Annotated[bool, typer.Option(
        "--keep-flagged", help="Keep rows with personal data, such as e-mail addresses.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run",
                                          help="Say what it would hold; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Build a training set for a code model from git repositories.

    Only tracked files are read. Left out and counted by reason: what is not under a permissive licence,
    holds a secret, is generated, vendored, minified or binary, or nearly the same as another file.
    """
    context: Context = ctx.obj
    wanted = CodeWanted(tuple(repositories), tuple(licence or ()), tuple(form or FORMS), cap, commits,
                        keep_flagged)
    show_built(build_code(context.paths, wanted, context.clock(), dry_run=dry_run), as_json=as_json)


@app.command("list")
def list_datasets(ctx: typer.Context, as_json: Json = False) -> None:
    """List the datasets, oldest first."""
    context: Context = ctx.obj
    found = verb.listing(context.paths)
    if as_json:
        return _json([{**one.card, "path": str(one.folder)} for one in found])
    if not found:
        say("no dataset is there yet: `swarmctl dataset build`")
        return None
    _table(("name", "train", "held out", "of", "left out", "made"), (_line(one) for one in found))
    return None


@app.command()
def show(
    ctx: typer.Context, name: Name = "latest",
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Show so many rows as well.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a dataset's card."""
    context: Context = ctx.obj
    found = verb.show(context.paths, name)
    shown = verb.rows_of(found, rows) if rows else []
    if as_json:
        return _json({**found.card, "path": str(found.folder), **({"shown": shown} if rows else {})})
    page = (found.folder / "README.md").read_text(encoding="utf-8")
    sys.stdout.write(printable(page.split("---\n", 2)[-1].lstrip()))
    sys.stdout.write(f"\n{found.folder}\n")
    for row in shown:
        sys.stdout.write(f"{json.dumps(row)}\n")
    return None


@app.command()
def check(ctx: typer.Context, name: Name = "latest", as_json: Json = False) -> None:
    """Check that a dataset is as it was written, by its hashes."""
    context: Context = ctx.obj
    found, wrong = verb.check(context.paths, name)
    if as_json:
        _json({"name": found.name, "path": str(found.folder), "wrong": wrong})
    elif not wrong:
        sys.stdout.write(f"{found.name} is as it was written: sha256 {found.card['sha256']}\n")
    if wrong:
        raise SwarmError(f"{found.name} is not as it was written: {'; '.join(wrong)}",
                         hint=f"remove {found.folder} and build it again: `swarmctl dataset build`")


def show_built(built: Built, *, as_json: bool) -> None:
    """What was built, on stdout; what to mind, on stderr."""
    card = built.card
    if as_json:
        path = {"path": str(built.snapshot.folder)} if built.snapshot else {}
        return _json({**card, "new": built.new, **path})
    for reason, count in card["dropped"].items():
        say(printable(f"left out {count:,}: {reason}"))
    for flag, count in card["flags"].items():
        say(f"flagged {count:,}: {flag}")
    for line in (*card["raters"], *card["warnings"]):
        say(printable(line))
    counts = f"{card['rows']['train']:,} rows to train on, {card['rows']['heldout']:,} held out"
    origin = ", ".join(f"{count:,} {source}" for source, count in card["sources"].items())
    if built.snapshot is None:
        sys.stdout.write(f"would be: {card['kind']}, {counts} ({origin})\n")
        return None
    sys.stdout.write(f"{built.snapshot.name}: {counts} ({origin})\n{built.snapshot.folder}\n")
    if not built.new:
        say("nothing is new: this dataset was there already")
    return None


def _line(one: Snapshot) -> tuple[str, ...]:
    card = one.card
    return (one.name, f"{card['rows']['train']:,}", f"{card['rows']['heldout']:,}", card.get("model")
            or "any model",
            f"{sum((card.get('dropped') or {}).values()):,}", str(card["created"])[:16].replace("T", " "))


def _json(found: Mapping[str, Any] | list[Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, no_wrap=True, justify="right" if column in ("train", "held out", "left out")
                        else "left")
    for row in rows:
        grid.add_row(*(printable(text[:CELL]) for text in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False,
            highlight=False).print(grid)
