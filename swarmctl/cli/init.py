"""`swarmctl init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SomeHostsFailed

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.fleet.suggest import Found
    from swarmctl.verbs.init import Draft


def init(
    ctx: typer.Context,
    source: Annotated[str, typer.Option(
        "--from", metavar="ssh|FILE",
        help="Take hosts from the SSH config, or from an Ansible inventory.")] = "ssh",
    hosts: Annotated[str | None, typer.Option(
        metavar="A,B", help="Only these: aliases, or [user@]address[:port].")] = None,
    out: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write here instead of to the inventory in use; - prints it.")] = None,
    ssh_config: Annotated[str | None, typer.Option(
        "--ssh-config", "-F", metavar="FILE", help="Read this instead of ~/.ssh/config.")] = None,
    discover: Annotated[bool, typer.Option(help="Look at each host over SSH.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Set an inventory that is there aside.")] = False,
) -> None:
    """Write an inventory from ~/.ssh/config or an Ansible inventory.

    Looks at every host (nothing is changed there) and suggests roles and a data folder. Without any host,
    this machine is the swarm. Exits with 3 when some hosts were not reached; they are in the inventory all
    the same.
    """
    from swarmctl.errors import UsageError
    from swarmctl.fleet.remote import connect
    from swarmctl.verbs.init import Wishes, draft_inventory, write_inventory

    context: Context = ctx.obj
    path = Path(out).expanduser().absolute() if out else context.own_inventory
    if out != "-" and path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force sets it aside; --out FILE writes elsewhere")
    named = tuple(part.strip() for part in (hosts or "").split(",") if part.strip())
    draft = draft_inventory(Wishes(source, named, ssh_config, discover),
                            lambda host: connect(host, context.paths, ssh_config), _report)
    if out == "-":
        typer.echo(draft.text, nl=False)
    else:
        aside = write_inventory(path, draft.text, force=force)
        if aside:
            typer.echo(f"the old one is now {aside}", err=True)
        typer.echo(f"wrote {path}: edit it, then `swarmctl up --dry-run`", err=True)
        _mention_this_machine(context)
    _verdict(draft)


def _report(found: Found) -> None:
    from swarmctl.verbs.init import describe

    typer.echo(describe(found), err=True)


def _mention_this_machine(context: Context) -> None:
    """Say how to stop the servers that answered while there was no inventory."""
    from swarmctl.cli.ask import listens_here

    if listens_here(context):
        typer.echo(f"what answered until now still runs: swarmctl -i {context.paths.this_machine} down",
                   err=True)


def _verdict(draft: Draft) -> None:
    for note in draft.notes:
        typer.echo(f"left out {note}", err=True)
    if not draft.found:
        typer.echo("found no hosts; the inventory holds this machine", err=True)
    if draft.unreached:
        names = ", ".join(one.candidate.name for one in draft.unreached)
        raise SomeHostsFailed(f"{len(draft.unreached)} of {len(draft.found)} hosts were not reached: {names}",
                              hint="they are in it all the same; `swarmctl init --force` looks again")
