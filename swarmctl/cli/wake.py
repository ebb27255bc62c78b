"""`swarmctl wake`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context


def wake(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the inventory that has a `mac`.")],
    via: Annotated[str | None, typer.Option(
        "--via", metavar="HOST", help="Send it from this host, which is on the same network.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is back and generated a token.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that --wait waits for it.")] = 180.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Wake a sleeping host over the network.

    The packet is broadcast on this machine's networks, or by another host that is on the same one. The
    host's firmware and driver must have wake-on-LAN switched on.
    """
    from swarmctl.fleet.inventory_file import read_inventory
    from swarmctl.fleet.remote import connect
    from swarmctl.fleet.snapshot import read_fleet
    from swarmctl.verbs.wake import wake as wake_verb

    context: Context = ctx.obj
    inventory = read_inventory(context.inventory)
    fleet = read_fleet(context.paths.fleet)
    if fleet is not None and fleet.inventory != str(context.inventory):
        fleet = None
    found = wake_verb(context.paths, inventory, fleet, host,
                      lambda one: connect(one, context.paths, inventory.ssh_config), via=via,
                      wait=timeout if wait else None, now=context.clock())
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        awake = "" if found.seconds is None else f"; it answered after {found.seconds:.0f} s"
        sys.stderr.write(f"{host}: magic packet sent from {found.sent_from}{awake}\n")
    if found.why:
        raise SwarmError(f"it is back and not well: {found.why}", host=host, hint=f"swarmctl doctor {host}")
