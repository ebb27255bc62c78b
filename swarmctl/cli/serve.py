"""`swarmctl serve`: the gateway, its keys and its service unit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True, no_args_is_help=False)


@app.callback()
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option("--host", "-H", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535,
                                      help="The port to listen on; 0 takes a free one.")] = 11411,
) -> None:
    """Serve the swarm to every program that speaks OpenAI, Ollama or Anthropic."""
    if ctx.invoked_subcommand:
        return
    from swarmctl.verbs.serve import Serving, run

    context: Context = ctx.obj
    run(context.paths, context.inventory, Serving(host, port), clock=context.clock, log=sys.stderr, say=_say)


def _say(line: str) -> None:
    sys.stderr.write(f"swarmctl: {line}\n")
    sys.stderr.flush()
