"""`swarmctl cordon`, `swarmctl drain`, `swarmctl uncordon`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Inventory

Hosts = Annotated[list[str], typer.Argument(metavar="HOST...", help="Hosts of the inventory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def cordon(ctx: typer.Context, hosts: Hosts, as_json: AsJson = False) -> None:
    """Take hosts out for new questions; their servers and the answers under way stay."""
    from swarmctl.verbs.standing import cordon as cordon_verb

    context: Context = ctx.obj
    found = cordon_verb(context.paths, _inventory(context), hosts, context.clock())
    if as_json:
        _print([{"host": each.host, "state": each.state, "since": each.since} for each in found])
        return
    for each in found:
        sys.stderr.write(f"{each.host}: {each.why}\n")


def uncordon(ctx: typer.Context, hosts: Hosts, as_json: AsJson = False) -> None:
    """Let hosts have questions again."""
    from swarmctl.verbs.standing import uncordon as uncordon_verb

    context: Context = ctx.obj
    found = uncordon_verb(context.paths, _inventory(context), hosts)
    if as_json:
        _print([{"host": host, "was_aside": was} for host, was in found])
        return
    for host, was in found:
        sys.stderr.write(f"{host}: takes questions again\n" if was else f"{host}: was not set aside\n")


def drain(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the inventory.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for answers under way.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Cordon a host and wait until it is idle.

    Exits with 1 when answers are still under way after the timeout; the host stays out for new questions
    either way.
    """
    from swarmctl.verbs.standing import drain as drain_verb

    context: Context = ctx.obj

    def say(busy: int) -> None:
        if busy:
            sys.stderr.write(f"{host}: {_answers(busy)} under way\n")

    found = drain_verb(context.paths, _inventory(context), _fleet(context), host, timeout=timeout,
                       now=context.clock(), say=say)
    if as_json:
        _print({"host": found.host, "busy": found.busy, "seconds": round(found.seconds, 3)})
    elif not found.busy:
        sys.stderr.write(f"{host}: idle after {found.seconds:.1f} s, and cordoned: "
                         f"`swarmctl uncordon {host}` takes it back\n")
    if found.busy:
        raise SwarmError(f"{_answers(found.busy)} still under way after {timeout:g} s", host=host,
                         hint=f"it takes no new questions; wait on with `swarmctl drain {host}`")


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _inventory(context: Context) -> Inventory:
    from swarmctl.fleet.inventory_file import read_inventory

    return read_inventory(context.inventory)


def _fleet(context: Context) -> Fleet | None:
    from swarmctl.fleet.snapshot import read_fleet

    fleet = read_fleet(context.paths.fleet)
    return fleet if fleet is not None and fleet.inventory == str(context.inventory) else None


def _print(what: object) -> None:
    sys.stdout.write(json.dumps(what, indent=1) + "\n")
