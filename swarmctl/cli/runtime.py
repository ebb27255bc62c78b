"""`swarmctl runtime build` and `swarmctl runtime list`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.verbs.runtime import Built

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True,
                  pretty_exceptions_enable=False,
                  help="Build llama.cpp on this machine, or list the builds there are.")


@app.command("build")
def build(
    ctx: typer.Context,
    backend: Annotated[str, typer.Option(help="auto, cpu, cuda, rocm, metal or vulkan.")] = "auto",
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at once.")] = None,
    airgap: Annotated[str | None, typer.Option(
        metavar="FOLDER", help="A folder that holds the source or a finished build.")] = None,
) -> None:
    """Build llama.cpp for this machine, once; a later run finds it in the store.

    May be interrupted; the next run goes on from there.
    """
    from swarmctl.cli.progress_view import Progress
    from swarmctl.verbs.runtime import build as verb

    with Progress.on(sys.stderr) as progress:
        built, made = verb(ctx.obj.paths, progress.event, backend=backend, jobs=jobs, airgap=airgap)
    sys.stderr.write("built\n" if made else "already there\n")
    typer.echo(built.folder / "bin")


@app.command("list")
def listing(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the builds in the store; * marks the one for this machine."""
    from swarmctl.verbs.runtime import builds

    found = builds(ctx.obj.paths)
    if as_json:
        records = [{"key": one.key, "folder": str(one.folder), "size": one.size, "native": one.native}
                   for one in found]
        typer.echo(json.dumps(records, indent=2))
    elif found:
        typer.echo(list_text(found))
    else:
        sys.stderr.write("swarmctl: no builds yet; `swarmctl runtime build` makes one\n")


def list_text(found: Sequence[Built]) -> str:
    """One line a build."""
    return "\n".join(f"{'*' if one.native else ' '} {one.key}  {one.size / 1e6:,.1f} MB" for one in found)
