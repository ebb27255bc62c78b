"""`swarmctl jobs`: list, show, follow, cancel, resume, read and remove runs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.confirm import confirm_removal
from swarmctl.errors import SomeHostsFailed, SwarmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.inventory import Inventory
    from swarmctl.verbs.jobs import Row

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
                  invoke_without_command=True,
                  help="Runs of `swarmctl train` on all hosts: list, show, follow, cancel, resume, remove.")
RUN = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, its beginning, or latest.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def jobs(
    ctx: typer.Context,
    host: Annotated[list[str] | None, typer.Option("--host", "-H", help="Only these hosts.")] = None,
    as_json: AS_JSON = False,
) -> None:
    """Runs of `swarmctl train` on all hosts: list, show, follow, cancel, resume, remove.

    Without a command, list them.
    """
    if ctx.invoked_subcommand is not None:
        return
    from swarmctl.verbs.jobs import listing

    rows: list[Row] = []
    failed: list[str] = []
    for one, found in listing(ctx.obj.paths, _inventory(ctx.obj), host or ()):
        if isinstance(found, SwarmError):
            failed.append(one.name)
            sys.stderr.write(f"{found}{f' → {found.hint}' if found.hint else ''}\n")
        else:
            rows += found
    rows.sort(key=lambda row: (row.run.at if row.run else "", row.state.run))
    if as_json:
        _print([row.to_record() for row in rows])
    elif rows:
        _table(rows)
    else:
        sys.stderr.write("swarmctl: no runs yet; `swarmctl train` makes one\n")
    if failed:
        raise SomeHostsFailed(f"failed: {', '.join(failed)}")


@app.command()
def show(ctx: typer.Context, run: RUN, as_json: AS_JSON = False) -> None:
    """Show one run: how it is, what it has made, and where."""
    from swarmctl.verbs.jobs import show as verb

    row = verb(ctx.obj.paths, _inventory(ctx.obj), run)
    if as_json:
        _print(row.to_record() | {"plan": dict(row.run.plan) if row.run else {}})
        return
    sys.stdout.write(text_of(row))


@app.command()
def follow(ctx: typer.Context, run: RUN = "latest") -> None:
    """Watch a run until it ends, however often the connection breaks.

    Ctrl-C leaves; the job goes on. Exits with 1 where the job failed.
    """
    from swarmctl.cli.job_view import JobView
    from swarmctl.verbs.jobs import follow as verb

    context: Context = ctx.obj
    with JobView.on(sys.stderr) as view:
        found, _ = verb(context.paths, _inventory(context), run, view.record, context.clock, view.line)
    sys.stdout.write(f"{found.id}\n")


@app.command()
def resume(ctx: typer.Context, run: RUN, as_json: AS_JSON = False) -> None:
    """Go on with a run that was killed, failed or was cancelled, from its last whole checkpoint."""
    from swarmctl.verbs.jobs import resume as verb

    _tell(verb(ctx.obj.paths, _inventory(ctx.obj), run, ctx.obj.clock), as_json)


@app.command()
def cancel(ctx: typer.Context, run: RUN, as_json: AS_JSON = False) -> None:
    """End a run's job and all of its processes. Its checkpoints stay: `resume` goes on."""
    from swarmctl.verbs.jobs import cancel as verb

    _tell(verb(ctx.obj.paths, _inventory(ctx.obj), run, ctx.obj.clock), as_json)


@app.command()
def logs(
    ctx: typer.Context,
    run: RUN,
    on: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines from its end.")] = 100,
) -> None:
    """Show what the job itself wrote."""
    from swarmctl.verbs.jobs import logs as verb

    try:
        verb(ctx.obj.paths, _inventory(ctx.obj), run, lines=lines, on=on, sink=typer.echo)
    except KeyboardInterrupt:
        if not on:
            raise


@app.command()
def tensorboard(
    ctx: typer.Context,
    run: RUN = "latest",
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="The port here; a free one.")] = None,
) -> None:
    """Open TensorBoard over a run, through a tunnel, until Ctrl-C."""
    from swarmctl.verbs.jobs import tensorboard as verb

    verb(ctx.obj.paths, _inventory(ctx.obj), run, port, typer.echo)


@app.command()
def remove(ctx: typer.Context, run: RUN) -> None:
    """Remove a run's folder from its host, with its checkpoints and weights. A release made of it stays."""
    from swarmctl.verbs.jobs import remove as verb

    found = verb(ctx.obj.paths, _inventory(ctx.obj), run, ctx.obj.clock)
    sys.stderr.write(f"{found.host}: run {found.id} is removed\n")


@app.command()
def prune(
    ctx: typer.Context,
    host: Annotated[list[str] | None, typer.Option("--host", "-H", help="Only these hosts.")] = None,
    days: Annotated[float, typer.Option(min=0.0, help="Leave runs that began within so many days.")] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Remove what old trainings have left on hosts: runs, base weights, environments, job code.

    What works, what is young, what a release that serves or a rollback's release was made of, what an open
    round of `improve` needs and what the next training would use stays. Exits with 3 where a host failed.
    """
    from swarmctl.verbs.jobs_prune import Pruned
    from swarmctl.verbs.jobs_prune import prune as verb

    context: Context = ctx.obj
    inventory = _inventory(context)
    if not (dry_run or yes):
        confirm_removal(f"runs older than {days:g} days, and what only they need", can_look=True)
    found = list(verb(context.paths, inventory, host or (), days=days, dry_run=dry_run, now=context.clock()))
    rows = [one for _, one in found if isinstance(one, Pruned)]
    if as_json:
        _print([row.to_record() for row in rows])
    for row in rows * (not as_json):
        for one in row.what:
            sys.stdout.write(f"{row.host}: {one.path} ({one.size / 1e6:,.1f} MB)\n")
        word = "would go" if dry_run else "are gone"
        sys.stderr.write(f"{row.host}: {len(row.what)} folders, {row.size / 1e6:,.1f} MB {word}\n")
    failed = {one.name: why for one, why in found if isinstance(why, SwarmError)}
    for why in failed.values():
        sys.stderr.write(f"{why}{f' → {why.hint}' if why.hint else ''}\n")
    if failed:
        raise SomeHostsFailed(f"failed: {', '.join(failed)}")


def text_of(row: Row) -> str:
    """One run, for a person."""
    state, run = row.state, row.run
    lines = [f"{state.run} on {row.host}: {state.state}"]
    if run:
        lines += [f"  {run.recipe} ({run.trainer}) of {run.model}, from {run.base}",
                  f"  dataset {run.dataset}, started {run.at} by {run.by}", f"  {run.data_dir}/runs/{run.id}"]
    for name, gave in ((state.result or {}).get("stages") or {}).items():
        told = ", ".join(f"{key} {_short(value)}" for key, value in _flat(gave) if _tellable(value))
        lines.append(f"  {name}: {told}")
    if (state.result or {}).get("error"):
        lines.append(f"  {(state.result or {})['error']}")
    elif state.state == "stopped":
        lines.append(f"  it was cut off; `swarmctl jobs resume {state.run}` goes on from its last checkpoint")
    return "\n".join(lines) + "\n"


def _flat(gave: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a stage gave, with one level of names within names."""
    for key, value in gave.items():
        if isinstance(value, dict):
            yield from ((f"{key} {name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _tellable(value: Any) -> bool:  # noqa: ANN401  any JSON
    return isinstance(value, int | float | str)


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _tell(row: Row, as_json: bool) -> None:
    if as_json:
        _print(row.to_record())
    else:
        sys.stderr.write(f"{row.host}: run {row.state.run} is {row.state.state}\n")


def _table(rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("run", "host", "state", "model", "at", "step", "loss"):
        made.add_column(name, overflow="fold", no_wrap=name == "run")  # to be copied whole
    for row in rows:
        last = row.state.last or {}
        step = f"{last['step']}/{last['steps']}" if "step" in last else str(last.get("stage", "-"))
        loss = f"{last['loss']:.4g}" if isinstance(last.get("loss"), int | float) else "-"
        made.add_row(row.state.run, row.host, row.state.state, row.run.model if row.run else "?",
                     row.run.at[:16].replace("T", " ") if row.run else "?", step, loss)
    Console(highlight=False, markup=False).print(made)


def _inventory(context: Context) -> Inventory:
    from swarmctl.fleet.inventory_file import read_inventory

    return read_inventory(context.inventory)


def _print(what: object) -> None:
    sys.stdout.write(json.dumps(what, indent=1) + "\n")
