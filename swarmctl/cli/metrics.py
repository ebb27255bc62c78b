"""`swarmctl metrics`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True,
                  add_completion=False,
                  help="What Prometheus may know of this swarm; its dashboard and its alerts.")

Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE",
                                             help="Replace this file in one go instead of printing.")]


@app.callback(invoke_without_command=True)
def metrics(
    ctx: typer.Context,
    output: Output = None,
    hosts: Annotated[bool, typer.Option("--hosts/--no-hosts", help="Look at the hosts, too.")] = True,
) -> None:
    """Print this swarm's metrics once, in Prometheus's text format.

    `swarmctl serve` exposes the same and more at /metrics. Without it, run this from cron into the folder of
    node_exporter's textfile collector: swarmctl metrics -o FOLDER/swarmctl.prom
    """
    if ctx.invoked_subcommand:
        return
    from swarmctl.verbs.metrics import metrics as metrics_verb

    context: Context = ctx.obj
    _put(metrics_verb(context.paths, context.clock, hosts=hosts).decode(), output)


@app.command()
def dashboard(output: Output = None) -> None:
    """Print a dashboard of these metrics, as Grafana imports it (Dashboards, New, Import)."""
    from swarmctl.monitor.dashboard import dashboard as made

    _put(made(), output)


@app.command()
def alerts(output: Output = None) -> None:
    """Print alert rules over these metrics, as Prometheus's rule_files take them."""
    from swarmctl.monitor.alerts import rules

    _put(rules(), output)


def _put(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    from swarmctl.atomic import write_whole

    try:
        write_whole(output, text)
    except OSError as exc:
        raise SwarmError(f"{output} could not be written: {exc.strerror}") from exc
