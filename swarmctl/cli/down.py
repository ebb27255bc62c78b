"""`swarmctl down`: parse, call the verb, show what was stopped."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SomeHostsFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.fleet.progress import Event
    from swarmctl.verbs.down import Stopped


def down(
    ctx: typer.Context,
    host: Annotated[list[str] | None, typer.Option(
        "--host", "-H", metavar="NAME", help="Only this host; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Stop what swarmctl started, and nothing else.

    Model weights and builds stay on the hosts, so that the next `up` is quick.
    """
    from swarmctl.cli.progress_view import Progress
    from swarmctl.verbs.down import down as verb

    lock = threading.Lock()
    with Progress.on(sys.stderr) as progress:
        def event(found: Event) -> None:
            with lock:
                progress.event(found)

        stopped = verb(ctx.obj.paths, ctx.obj.inventory, only=tuple(host or ()), note=progress.line,
                       event=event)
    if as_json:
        typer.echo(json.dumps({"hosts": [_record(entry) for entry in stopped]}, indent=2))
    else:
        typer.echo(report_text(stopped))
    failed = [entry.error for entry in stopped if entry.error]
    if len(failed) == 1 == len(stopped):
        raise failed[0]
    if failed:
        raise SomeHostsFailed(f"{len(failed)} of {len(stopped)} hosts failed",
                              hint="\n".join(str(error) for error in failed))


def report_text(stopped: Sequence[Stopped]) -> str:
    """One line a host."""
    width = max((len(entry.host) for entry in stopped), default=0)
    return "\n".join(f"{entry.host:{width}}  {_said(entry)}" for entry in stopped)


def _said(entry: Stopped) -> str:
    if entry.error:
        return "FAILED"
    said = f"stopped {', '.join(entry.servers)}" if entry.servers else "nothing was running"
    return f"{said}; {entry.left}" if entry.left else said


def _record(entry: Stopped) -> dict[str, object]:
    return {"host": entry.host, "servers": list(entry.servers), "seconds": round(entry.seconds, 3),
            "left": entry.left,
            "error": entry.error.message if entry.error else None,
            "hint": entry.error.hint if entry.error else None}
