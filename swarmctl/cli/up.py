"""`swarmctl up`: parse, call the verb, show the plan, the progress and the report."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.groups import alike, failures_text, unchanged_text
from swarmctl.errors import SomeHostsFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.fleet.progress import Event
    from swarmctl.verbs.up import HostReport


def up(
    ctx: typer.Context,
    host: Annotated[list[str] | None, typer.Option(
        "--host", "-H", metavar="NAME", help="Only this host; may be given several times.")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", "-n", help="Show the plan and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make every host what the inventory says; --dry-run shows the plan.

    Surveys all hosts, shows a plan with a reason for every step, and applies it. A second run plans nothing.
    It may be cut anywhere and run again.
    """
    from swarmctl.cli.progress_view import Progress
    from swarmctl.verbs.up import up as verb

    with Progress.on(sys.stderr) as progress:
        shown = Shown(progress, quiet=as_json)
        reports = verb(ctx.obj.paths, ctx.obj.inventory, shown, only=tuple(host or ()), dry_run=dry_run)
    if as_json:
        records = [as_record(report) for report in reports]
        typer.echo(json.dumps({"dry_run": dry_run, "hosts": records}, indent=2))
    elif not dry_run and (told := report_text(reports)):
        typer.echo(told)
    raise_failures(reports)


class Shown:
    """Shows a verb's progress; plans go to stdout, the rest to stderr."""

    def __init__(self, progress: Any, *, quiet: bool) -> None:  # noqa: ANN401  a progress_view.Progress
        self._progress = progress
        self._quiet = quiet
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """A line on stderr."""
        with self._lock:
            self._progress.line(text)

    def plan(self, plans: Sequence[HostReport]) -> None:
        """The plan, before anything happens."""
        if not self._quiet:
            with self._lock:
                self._progress.text(plan_text(plans))

    def event(self, event: Event) -> None:
        """A step's progress."""
        with self._lock:
            self._progress.event(event)


def plan_text(plans: Sequence[HostReport]) -> str:
    """The plan as a person reads it: the steps of each host that has any, each with its reason; the others in
    a line or two."""
    lines = [line for report in plans if report.steps for line in _planned(report)]
    lines += [f"{report.host}: off" for report in plans if report.state == "off"]
    lines += [f"  note: {', '.join(hosts)}: {note}" for hosts, note in alike(
        (report.host, note) for report in plans if not report.steps for note in report.notes)]
    if failed := [report.host for report in plans if report.error]:
        lines.append(f"cannot be planned: {', '.join(failed)}")
    if unchanged := [report.host for report in plans if report.state == "unchanged"]:
        lines.append(unchanged_text(unchanged))
    return "\n".join(lines)


def report_text(reports: Sequence[HostReport]) -> str:
    """One line for each host on which something was done; the plan has told of the others."""
    told = [report for report in reports if report.steps and report.state in ("changed", "failed")]
    width = max((len(report.host) for report in told), default=0)
    lines = []
    for report in told:
        done = f"done: {_steps(len(report.steps))} in {report.seconds:.1f} s"
        lines.append(f"{report.host:{width}}  {'FAILED' if report.state == 'failed' else done}")
    return "\n".join(lines)


def as_record(report: HostReport) -> dict[str, Any]:
    """A host's report as JSON."""
    steps = [{"kind": type(step).__name__, "title": step.title, **asdict(step)} for step in report.steps]
    return {"host": report.host, "state": report.state, "seconds": round(report.seconds, 3), "steps": steps,
            "notes": list(report.notes), "error": report.error.message if report.error else None,
            "hint": report.error.hint if report.error else None}


def raise_failures(reports: Sequence[HostReport]) -> None:
    """End with status 3, saying what failed, where hosts did; a lone host's error is raised as it is."""
    failed = [report for report in reports if report.error]
    if not failed:
        return
    if len(reports) == 1 and failed[0].error:
        raise failed[0].error
    told = failures_text([(report.host, report.error) for report in failed if report.error])
    raise SomeHostsFailed(f"{len(failed)} of {len(reports)} hosts failed", hint=told)


def _planned(report: HostReport) -> Iterator[str]:
    """A host's steps, each with its reason."""
    yield f"{report.host}: {_steps(len(report.steps))}"
    yield from (f"  note: {note}" for note in report.notes)
    for number, step in enumerate(report.steps, 1):
        yield f"  {number}. {step.title}"
        yield f"     because {step.reason}"


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"
