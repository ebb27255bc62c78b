"""`swarmctl logs`: parse, call the verb, print lines as they come."""

from __future__ import annotations

from typing import Annotated

import typer


def logs(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(help="The host, by its name in the inventory.")],
    server: Annotated[str | None, typer.Argument(
        help="One server of that host; all where none is named.")] = None,
    follow: Annotated[bool, typer.Option(
        "--follow", "-f", help="Go on as the log grows, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines from its end.")] = 50,
) -> None:
    """Show or follow the log of a host's model servers."""
    from swarmctl.verbs.logs import logs as verb

    try:
        verb(ctx.obj.paths, ctx.obj.inventory, host, server, lines=lines, follow=follow, sink=typer.echo)
    except KeyboardInterrupt:
        if not follow:
            raise
