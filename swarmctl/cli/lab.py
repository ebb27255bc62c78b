"""`swarmctl lab`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.lab.lab import HostState

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False,
                  help="A swarm of three real SSH hosts on this machine, to try it all.")

Folder = Annotated[Path | None, typer.Option("--folder", metavar="FOLDER", envvar="SWARMCTL_LAB",
                                             help="The lab's folder, instead of the usual one.")]


class Mode(StrEnum):
    """How the lab's hosts are kept apart."""

    loopback = "loopback"
    netns = "netns"


@app.command()
def up(
    ctx: typer.Context,
    mode: Annotated[Mode | None, typer.Option(
        help="loopback: ports of 127.0.0.1, no root. netns: a network namespace each, needs root.")] = None,
    hosts: Annotated[int | None, typer.Option(min=1, max=200, help="How many hosts; 3 if unset.")] = None,
    folder: Folder = None,
) -> None:
    """Make the lab and start its hosts; what runs already is left alone."""
    from swarmctl.verbs.lab import lab_up

    where = _folder(ctx, folder)
    lab = lab_up(where, mode=mode.value if mode else None, hosts=hosts, cache=ctx.obj.paths.cache)
    names = ", ".join(host.name for host in lab.hosts)
    sys.stderr.write(f"The lab runs ({lab.mode}): {names}\n"
                     f'Use it in this shell:  eval "$(swarmctl lab env)"  and then:  swarmctl up\n')


@app.command()
def down(
    ctx: typer.Context,
    wipe: Annotated[bool,
                    typer.Option("--wipe", help="Remove the lab's folder too, answers and all.")] = False,
    folder: Folder = None,
) -> None:
    """Stop the lab: tunnels, model servers, sshd."""
    from swarmctl.verbs.lab import lab_down

    where = _folder(ctx, folder)
    if lab_down(where, wipe=wipe) is None:
        sys.stderr.write(f"swarmctl: there is no lab in {where}\n")
        return
    sys.stderr.write(f"The lab is down{' and its folder is removed' if wipe else ''}.\n")


@app.command()
def status(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    folder: Folder = None,
) -> None:
    """Show the lab's hosts and what runs in them."""
    from swarmctl.verbs.lab import lab_status

    found = lab_status(_folder(ctx, folder))
    if as_json:
        sys.stdout.write(json.dumps([asdict(host) for host in found], indent=1) + "\n")
        return
    _show(found)


@app.command()
def env(ctx: typer.Context, folder: Folder = None) -> None:
    """Print the line that makes a shell use the lab: eval "$(swarmctl lab env)"."""
    from swarmctl.lab.lab import Lab

    lab = Lab.load(_folder(ctx, folder))
    sys.stdout.write("".join(f"export {key}={shlex.quote(value)}\n" for key, value in lab.environ.items()))


@app.command()
def cut(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the lab.")],
    folder: Folder = None,
) -> None:
    """Take a host off the network without a word, to see what happens."""
    from swarmctl.verbs.lab import lab_cut

    lab_cut(_folder(ctx, folder), host)


@app.command()
def mend(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the lab.")],
    folder: Folder = None,
) -> None:
    """Bring a host back that was cut or has crashed."""
    from swarmctl.verbs.lab import lab_mend

    lab_mend(_folder(ctx, folder), host)


def _folder(ctx: typer.Context, given: Path | None) -> Path:
    from swarmctl.verbs.lab import lab_folder

    return given.expanduser().absolute() if given else lab_folder(ctx.obj.paths, ctx.obj.environ)


def _show(found: Sequence[HostState]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("host", "address", "sshd", "processes"):
        table.add_column(column)
    for host in found:
        state = "answers" if host.greets else "silent" if host.sshd else "down"
        table.add_row(host.name, f"{host.address}:{host.port}", state, str(len(host.started)))
    Console().print(table)
