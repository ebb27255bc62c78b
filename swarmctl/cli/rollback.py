"""`swarmctl rollback NAME`: what goes back depends on what the name is."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import UsageError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context


def rollback(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL|HOST", help="A model, or a host.")],
    runtime: Annotated[str | None, typer.Option(
        metavar="NAME", help="This runtime: llamacpp or ollama; else the one that moved last.")] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT",
                                        help="Why; it is recorded.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Take a model's canary back, or have the release before serve; or a host's runtime in its version from
    before. Seconds, and no download.

    Of a model the canary goes where there is one, else its champion. Of a host the version that is left is
    held: neither `up` nor `upgrade` goes there again, unless `upgrade --to` names it.
    """
    from swarmctl.fleet.inventory_file import read_inventory

    context: Context = ctx.obj
    inventory = read_inventory(context.inventory)
    hosts = [host.name for host in inventory.hosts]
    if name in inventory.models and name in hosts and runtime is None:
        raise UsageError(f"{name} is a model and a host",
                         hint="--runtime NAME means the host's; the model has to be renamed")
    if name in inventory.models and runtime is None:
        from swarmctl.cli.deploy import roll_back_model

        roll_back_model(context, name, reason, as_json=as_json)
        return
    if name not in hosts:
        raise UsageError(f"the inventory has no model and no host {name}",
                         hint=f"models: {', '.join(inventory.models)}; hosts: {', '.join(hosts)}")
    _host(context, name, runtime, reason, as_json=as_json)


def _host(context: Context, name: str, runtime: str | None, reason: str, *, as_json: bool) -> None:
    from swarmctl.cli.progress_view import Progress
    from swarmctl.inventory import RUNTIMES
    from swarmctl.runtimes.versions import TITLES
    from swarmctl.verbs.rollback import roll_back_host

    if runtime not in (None, *RUNTIMES):
        raise typer.BadParameter(f"there is no runtime {runtime}; there are {', '.join(RUNTIMES)}")
    with Progress.on(sys.stderr) as progress:
        done = roll_back_host(context.paths, context.inventory, name, context.clock, runtime=runtime,
                              reason=reason, note=progress.line, event=progress.event)
    moved = done.moved
    if as_json:
        typer.echo(json.dumps({"host": name, "runtime": done.runtime, "version": moved.version,
                               "left": moved.other, "seconds": moved.seconds, "out_seconds": moved.out},
                              indent=1))
        return
    typer.echo(f"{name}: {TITLES[done.runtime]} {moved.version} serves again, {moved.other} is held "
               f"({moved.seconds:.1f} s)")
