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
    name: Annotated[str, typer.Argument(metavar="HOST", help="A host of the inventory.")],
    runtime: Annotated[str | None, typer.Option(
        metavar="NAME", help="This runtime: llamacpp or ollama; else the one that moved last.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Have a host's runtime serve in its version from before; seconds, and no download.

    The version that is left is held: neither `up` nor `upgrade` goes there again, unless `upgrade --to` names
    it.
    """
    from swarmctl.fleet.inventory_file import read_inventory

    context: Context = ctx.obj
    hosts = [host.name for host in read_inventory(context.inventory).hosts]
    if name not in hosts:
        raise UsageError(f"the inventory has no host {name}", hint=f"it has {', '.join(hosts)}")
    _host(context, name, runtime, as_json=as_json)


def _host(context: Context, name: str, runtime: str | None, *, as_json: bool) -> None:
    from swarmctl.cli.progress_view import Progress
    from swarmctl.inventory import RUNTIMES
    from swarmctl.runtimes.versions import TITLES
    from swarmctl.verbs.rollback import roll_back_host

    if runtime not in (None, *RUNTIMES):
        raise typer.BadParameter(f"there is no runtime {runtime}; there are {', '.join(RUNTIMES)}")
    with Progress.on(sys.stderr) as progress:
        done = roll_back_host(context.paths, context.inventory, name, context.clock, runtime=runtime,
                              note=progress.line, event=progress.event)
    moved = done.moved
    if as_json:
        typer.echo(json.dumps({"host": name, "runtime": done.runtime, "version": moved.version,
                               "left": moved.other, "seconds": moved.seconds, "out_seconds": moved.out},
                              indent=1))
        return
    typer.echo(f"{name}: {TITLES[done.runtime]} {moved.version} serves again, {moved.other} is held "
               f"({moved.seconds:.1f} s)")
