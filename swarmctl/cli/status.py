"""`swarmctl status`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.groups import alike
from swarmctl.errors import SomeHostsFailed, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from swarmctl.cli.context import Context
    from swarmctl.verbs.status import HostStatus, ServerStatus

COLOURS = {"ready": "green", "idle": "dim", "stopped": "yellow", "loading": "yellow", "degraded": "red",
           "starting": "yellow", "down": "red", "no runtime": "red", "unreachable": "red", "off": "dim",
           "cordoned": "yellow", "draining": "yellow"}


def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show all of it live, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks of --watch.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Show every host and model server, and whether it generates.

    A server is ready when it generated a token just now; a port that is open proves nothing. Exits with 3
    when a host cannot be reached or a server does not generate; an intermittent host may be off.
    --watch draws hosts, GPUs, slots, the queue, the latest questions and how answers are liked.
    """
    context: Context = ctx.obj
    if watch:
        from swarmctl.cli.watch import watch as watching

        if as_json:
            raise UsageError("--watch draws, and --json prints", hint="one or the other")
        watching(context, interval)
        return
    rows = look(context)
    if as_json:
        sys.stdout.write(json.dumps([row.to_record() for row in rows], indent=1) + "\n")
    else:
        _print(rows)
    _verdict(rows)


def look(context: Context) -> list[HostStatus]:
    """One look at every host, in the inventory's order. Without an inventory, at this machine."""
    from swarmctl.fleet.inventory_file import read_inventory
    from swarmctl.fleet.remote import connect
    from swarmctl.fleet.snapshot import read_fleet
    from swarmctl.verbs.status import status as status_verb

    inventory = read_inventory(context.inventory)
    fleet = read_fleet(context.paths.fleet)
    if fleet is not None and fleet.inventory != str(context.inventory):
        fleet = None
    found = status_verb(context.paths, inventory, fleet,
                        lambda host: connect(host, context.paths, inventory.ssh_config), context.clock())
    rows = {row.host: row for row in found}
    return [rows[host.name] for host in inventory.hosts]


def table(rows: list[HostStatus]) -> Table:
    """One line a server, and one for a host without any."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("host", "state", "model", "server"):
        made.add_column(name, overflow="fold")
    for name in ("token", "busy", "tok/s", "memory", "free"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        for number, server in enumerate(row.servers or (None,)):
            made.add_row(*_host_cells(row, number), *_server_cells(server), *_size_cells(row, number))
    return made


def _host_cells(row: HostStatus, number: int) -> tuple[str, str]:
    if number:
        return "", ""
    colour = COLOURS.get(row.state, "")
    return row.host, f"[{colour}]{row.state}[/]" if colour else row.state


def _server_cells(server: ServerStatus | None) -> tuple[str, ...]:
    if server is None:
        return ("-", "-", "", "", "")
    token = f"{server.seconds * 1000:.0f} ms" if server.seconds is not None else ""
    busy = f"{server.busy}/{server.slots}" if server.busy is not None else ""
    rate = server.prefill_speed if server.embedding else server.decode_speed
    speed = f"{rate:.0f}" if rate else ""
    name = f"{server.model}:{server.release}" if server.release else server.model
    name += " (vectors)" if server.embedding else f" (canary, {server.share:.0%})" if server.canary else ""
    colour = COLOURS.get(server.state, "")
    again = f", {server.restarts} restart{'s' * (server.restarts > 1)}" if server.restarts else ""
    far = f" {server.progress:.0%}" if server.progress is not None else ""
    return (name, f"[{colour}]{server.state}[/]{far}{again}", token, busy, speed)


def _size_cells(row: HostStatus, number: int) -> tuple[str, str]:
    if number or row.memory is None or row.memory_available is None or row.disk_free is None:
        return "", ""
    return f"{1 - row.memory_available / row.memory:.0%}", f"{row.disk_free / 2**30:.0f} GiB"


def _print(rows: list[HostStatus]) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(highlight=False).print(table(rows))
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    told = [(row.host, f"{row.detail} → {row.hint}" if row.hint else row.detail) for row in rows
            if row.detail and row.state != "idle"]
    told += [(row.host, problem) for row in rows for problem in row.problems]
    for hosts, text in alike(told):
        notes.print(f"[bold]{', '.join(hosts)}[/]: {escape(text)}")


def _verdict(rows: list[HostStatus]) -> None:
    from swarmctl.verbs.status import FAILED

    if bad := ", ".join(row.host for row in rows if row.state in FAILED):
        raise SomeHostsFailed(f"not well: {bad}")
