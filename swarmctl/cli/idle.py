"""`swarmctl idle`, `swarmctl sleep`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SomeHostsFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Inventory
    from swarmctl.verbs.idle import Rested

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document (with --watch one a round).")]
Load = Annotated[float, typer.Option(
    "--load", min=0, help="The most load average a processor that still counts as idle.")]


def idle(
    ctx: typer.Context,
    hosts: Annotated[list[str] | None, typer.Argument(metavar="[HOST]...", help="Only these hosts.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds from one look of --watch to the next.")] = 60.0,
    load: Load = 0.5,
    as_json: AsJson = False,
) -> None:
    """Put hosts to sleep that nobody uses, as `when_idle` in the inventory says.

    A host sleeps when it has answered nothing for its `idle_minutes`, nobody types or is connected there, no
    GPU is at work and its load is low. It is drained first. Questions do not wait for a sleeping host;
    `swarmctl wake` wakes it. Exits with 3 when a host that should sleep does not.
    """
    while True:
        rows = _look(ctx.obj, hosts or (), dry_run, load)
        _show(rows, as_json=as_json)
        if not watch:
            break
        time.sleep(every)
    failed = [row.host for row in rows if row.state == "failed"]
    if failed:
        raise SomeHostsFailed(f"not asleep: {', '.join(failed)}")


def sleep(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the inventory.")],
    force: Annotated[bool, typer.Option("--force", help="Also when somebody uses it.")] = False,
    load: Load = 0.5,
    as_json: AsJson = False,
) -> None:
    """Put one host to sleep now, however long it has been idle.

    It is refused while somebody uses the machine. Answers under way end first. Questions do not wait for a
    sleeping host; `swarmctl wake` wakes it.
    """
    from swarmctl.fleet.remote import connect
    from swarmctl.verbs.idle import sleep as sleep_verb

    context: Context = ctx.obj
    inventory, fleet = _known(context)
    row = sleep_verb(context.paths, inventory, fleet,
                     lambda one: connect(one, context.paths, inventory.ssh_config), host, now=context.clock(),
                     force=force, most_load=load)
    _show((row,), as_json=as_json)


def _look(context: Context, hosts: Sequence[str], dry_run: bool, load: float) -> tuple[Rested, ...]:
    """One look, at the inventory as it is now."""
    from swarmctl.fleet.remote import connect
    from swarmctl.verbs.idle import idle as idle_verb

    inventory, fleet = _known(context)
    return idle_verb(context.paths, inventory, fleet,
                     lambda one: connect(one, context.paths, inventory.ssh_config), only=hosts,
                     now=context.clock(), dry_run=dry_run, most_load=load)


def _known(context: Context) -> tuple[Inventory, Fleet | None]:
    from swarmctl.fleet.inventory_file import read_inventory
    from swarmctl.fleet.snapshot import read_fleet

    fleet = read_fleet(context.paths.fleet)
    if fleet is not None and fleet.inventory != str(context.inventory):
        fleet = None
    return read_inventory(context.inventory), fleet


def _show(rows: Iterable[Rested], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    else:
        for row in rows:
            idle_for = "" if row.minutes is None else f", idle for {row.minutes:.0f} min"
            detail = f": {row.detail}" if row.detail else ""
            sys.stdout.write(f"{row.host}: {row.state}{idle_for}{detail}\n")
    sys.stdout.flush()
