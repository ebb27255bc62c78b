"""`swarmctl doctor`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.groups import alike
from swarmctl.errors import SomeHostsFailed, SwarmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.diagnosis import Finding
    from swarmctl.diagnosis.finding import Severity
    from swarmctl.verbs.doctor import Report

COLOURS: dict[Severity, str] = {"error": "red", "warning": "yellow", "info": "dim"}
#: parts what is told of a finding while it is compared with others
BETWEEN = "\0"


def doctor(
    ctx: typer.Context,
    hosts: Annotated[list[str] | None, typer.Argument(metavar="[HOST]...", help="Only these hosts.")] = None,
    prove: Annotated[bool, typer.Option(
        "--prove", help="Try each exposed port from here, as a stranger would.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find what is wrong, say why it matters, and name the command that mends it.

    Nothing is loaded, started or changed. Exits with 1 when there is an error among the findings, with 3 when
    some hosts could not be reached, with 0 otherwise.
    """
    from swarmctl.fleet.inventory_file import read_inventory
    from swarmctl.fleet.remote import connect
    from swarmctl.fleet.snapshot import read_fleet
    from swarmctl.verbs.doctor import doctor as doctor_verb

    context: Context = ctx.obj
    inventory = read_inventory(context.inventory)
    fleet = read_fleet(context.paths.fleet)
    if fleet is not None and fleet.inventory != str(context.inventory):
        fleet = None
    report = doctor_verb(context.paths, inventory, fleet,
                         lambda host: connect(host, context.paths, inventory.ssh_config),
                         only=hosts or (), prove=prove)
    if as_json:
        sys.stdout.write(json.dumps(report.to_record(), indent=1) + "\n")
    else:
        _print(report)
    _verdict(report)


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for hosts, severity, said in _alike(report.findings):
        console.print(*_lines(hosts, severity, *said.split(BETWEEN)), sep="\n", markup=True)
    looked = len(report.examined)
    if not report.findings:
        console.print(f"{looked} host{'' if looked == 1 else 's'} examined, nothing found")


def _alike(findings: Sequence[Finding]) -> Iterator[tuple[Sequence[str], Severity, str]]:
    """Findings that say the same of several hosts, together, as the first of them says it."""
    for severity in COLOURS:
        some = [(one.host, BETWEEN.join((one.what, one.seen, one.why, one.mend)))
                for one in findings if one.severity == severity]
        for hosts, said in alike(some):
            yield hosts, severity, said


def _lines(hosts: Sequence[str], severity: Severity, what: str, seen: str, why: str,
           mend: str) -> tuple[str, ...]:
    from rich.markup import escape

    return (f"[{COLOURS[severity]}]{severity}[/] [bold]{', '.join(hosts)}[/]: {escape(what)}",
            f"  seen  {escape(seen)}", f"  why   {escape(why)}", f"  mend  {escape(mend)}", "")


def _verdict(report: Report) -> None:
    if report.errors:
        raise SwarmError(f"{report.errors} error{'' if report.errors == 1 else 's'} found")
    if report.unreachable:
        raise SomeHostsFailed(f"not reached: {', '.join(report.unreachable)}")
