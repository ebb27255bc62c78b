"""`swarmctl trust`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.confirm import agreed
from swarmctl.errors import SwarmError, UsageError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.verbs.trust import Offer


def trust(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the inventory, or any SSH alias or address.")],
    replace: Annotated[bool,
                       typer.Option("--replace", help="Accept it in place of the recorded key.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Show a host's SSH key and accept it.

    The key goes into swarmctl's own known_hosts file; yours is left alone. Compare the fingerprint with what
    `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the machine itself.
    """
    from swarmctl.verbs.trust import offered_key
    from swarmctl.verbs.trust import trust as trust_verb

    context: Context = ctx.obj
    ssh, ssh_config, connect_timeout = _destination(context, host)
    offer = offered_key(context.paths, host=host, ssh=ssh, ssh_config=ssh_config,
                        connect_timeout=connect_timeout)
    _show(offer)
    if offer.verdict == "known":
        sys.stderr.write("That is the recorded key: nothing to do.\n")
        return
    if offer.verdict == "unknown" or replace:
        _confirm(yes)
    trust_verb(context.paths, offer, replace=replace)
    sys.stderr.write(f"Recorded in {context.paths.known_hosts}.\n")


def _destination(context: Context, name: str) -> tuple[str, str | None, float]:
    """What the inventory says of that name; without it, the name itself is the SSH destination."""
    if not context.inventory.exists():
        return name, None, 5.0
    from swarmctl.fleet.inventory_file import read_inventory

    inventory = read_inventory(context.inventory)
    found = next((host for host in inventory.hosts if host.name == name), None)
    if found is None:
        return name, inventory.ssh_config, 5.0
    if found.local:
        raise UsageError(f"{name} is this machine: it is not reached over SSH")
    return found.ssh, inventory.ssh_config, found.connect_timeout


def _show(offer: Offer) -> None:
    from swarmctl.fleet.hostkeys import fingerprint

    sys.stderr.write(f"{offer.host} ({offer.known_as}) presents\n  {offer.kind} {offer.fingerprint}\n")
    for key in offer.recorded:
        sys.stderr.write(f"recorded in {key.file}:{key.line}\n  {key.kind} {fingerprint(key.blob)}\n")


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to compare the fingerprint",
                         hint="add --yes if it is known to be right")
    if not agreed("Is that the machine's own key?"):
        raise SwarmError("nothing was recorded")
