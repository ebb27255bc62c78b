"""`swarmctl train`: parse, call the verb, show the arithmetic and then the job as it goes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.errors import UsageError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.cli.job_view import JobView
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.runs import Run
    from swarmctl.verbs.train import Preflight


def train(
    ctx: typer.Context,
    recipe: Annotated[str | None, typer.Argument(
        help="A shipped recipe's name, or the path of a YAML file in TRL's key names.")] = None,
    model: Annotated[str | None, typer.Option(
        "--model", "-m", help="The model of the inventory to train.")] = None,
    host: Annotated[str | None, typer.Option(
        "--host", "-H", help="Where; otherwise the fastest free host with the role train that fits.")] = None,
    dataset: Annotated[str, typer.Option(
        "--dataset", "-d", help="A dataset's name or folder; otherwise the newest that suits.")] = "latest",
    given: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="A key over the recipe's own; may be repeated.")] = None,
    detach: Annotated[bool, typer.Option(
        "--detach", help="Return once it runs; `jobs follow` shows it.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Check everything and start nothing. What checking needs stays on the host: the "
                          "training environment and the base weights.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name the recipes that ship with swarmctl.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as one JSON document.")] = False,
) -> None:
    """Train a model on a host, by a recipe.

    The job is checked before it starts, runs detached, and survives this terminal, the network and a reboot:
    `swarmctl jobs follow` shows it again, `swarmctl jobs resume` goes on from its last checkpoint.
    """
    if listed:
        _list(as_json)
        return
    if recipe is None:
        raise UsageError("which recipe?", hint="`swarmctl train --list` names those that ship")
    from swarmctl.cli.job_view import JobView
    from swarmctl.verbs.train import train as verb

    context: Context = ctx.obj
    with JobView.on(sys.stderr) as view:
        run = verb(context.paths, context.inventory, recipe, Shown(view), host=host, dataset=dataset,
                   model=model, given=given or (), follow=not detach, dry_run=dry_run, now=context.clock)
    if run is None:
        sys.stderr.write("nothing was started\n")
    else:
        _show(context, run, as_json)


class Shown:
    """What `train` tells, on stderr."""

    def __init__(self, view: JobView) -> None:
        self._view = view

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._view.line(text)

    def event(self, event: Event) -> None:
        """How a step of the preparation goes; only its end is worth a line, and what takes long."""
        if event.state == "done" or event.fraction is None:
            self._view.line(f"{event.host}: {event.title}: {event.detail}")

    def preflight(self, found: Preflight) -> None:
        """The arithmetic."""
        from swarmctl.verbs.train import arithmetic

        fit = found.fit
        some = "1 process" if fit.processes == 1 else f"{fit.processes} processes"
        lines = [f"{found.host}: computes in {fit.precision} ({fit.why}), {some}", *arithmetic(fit.memory),
                 *arithmetic(fit.disk), *found.notes]
        self._view.line("\n".join(f"  {line}" for line in lines))

    def progress(self, run: Run, record: dict[str, Any]) -> None:  # noqa: ARG002  the protocol's signature
        """One record of the job."""
        self._view.record(record)


def _show(context: Context, run: Run, as_json: bool) -> None:
    from dataclasses import asdict

    from swarmctl.jobs.folder import read_json

    result = read_json(run.folder(context.paths) / "result.json")
    if as_json:
        sys.stdout.write(json.dumps({**asdict(run), "result": result}, indent=1) + "\n")
    else:
        sys.stdout.write(f"{run.id}\n")


def _list(as_json: bool) -> None:
    from swarmctl.fleet.recipes import shipped_recipes

    found = shipped_recipes()
    if as_json:
        sys.stdout.write(json.dumps([{"name": name, "what": what} for name, what in found], indent=1) + "\n")
        return
    wide = max(len(name) for name, _ in found)
    sys.stdout.write("".join(f"{name:<{wide}}  {what}\n" for name, what in found))
