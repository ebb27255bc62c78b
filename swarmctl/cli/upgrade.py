"""`swarmctl upgrade`: parse, call the verb, show who goes, how it went, and what was worse."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.errors import SomeHostsFailed, SwarmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.fleet.progress import Event
    from swarmctl.verbs.upgrade import Report

NAMES = {"llamacpp": "llama.cpp", "ollama": "Ollama", "": ""}


def upgrade(
    ctx: typer.Context,
    hosts: Annotated[list[str] | None, typer.Argument(
        metavar="[HOST]...", help="Hosts of the inventory; all where none is named.")] = None,
    runtime: Annotated[str | None, typer.Option(
        metavar="NAME", help="Only this runtime: llamacpp or ollama.")] = None,
    to: Annotated[str | None, typer.Option(
        metavar="VERSION", help="To this version, also one that was rolled back.")] = None,
    canary: Annotated[str | None, typer.Option(
        metavar="HOST", help="The host that goes first; else the one that is missed least.")] = None,
    drain: Annotated[float, typer.Option(
        min=0, metavar="SECONDS", help="How long answers under way may take before a host is left as it is.",
    )] = 300.0,
    tolerance: Annotated[float, typer.Option(
        min=0.0, max=1.0, help="The share of its old speed below which a host goes back.")] = 0.8,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", "-n", help="Show who would be moved and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Move runtimes to the wanted version: one canary host first, and back where it is worse.

    Each host is measured on its old version, switched, and measured on the new one. Where that is slower,
    does not serve or answers garbage, the host goes back by itself, and the others are left alone. It may be
    cut anywhere and run again.
    """
    from swarmctl.cli.progress_view import Progress
    from swarmctl.inventory import RUNTIMES
    from swarmctl.verbs.upgrade import Wish
    from swarmctl.verbs.upgrade import upgrade as verb

    if runtime not in (None, *RUNTIMES):
        raise typer.BadParameter(f"there is no runtime {runtime}; there are {', '.join(RUNTIMES)}")
    with Progress.on(sys.stderr) as progress:
        reports = verb(ctx.obj.paths, ctx.obj.inventory, _Shown(progress, quiet=as_json),
                       Wish(to, runtime, canary, drain, tolerance), ctx.obj.clock, only=tuple(hosts or ()),
                       dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "hosts": [as_record(one) for one in reports]}, indent=2))
    raise_failures(reports)


class _Shown:
    """Shows a verb's progress: plan and results on stdout, the rest on stderr."""

    def __init__(self, progress: Any, *, quiet: bool) -> None:  # noqa: ANN401  a Progress
        self._progress = progress
        self._quiet = quiet

    def note(self, text: str) -> None:
        """A line on stderr."""
        self._progress.line(text)

    def plan(self, plans: Sequence[Report]) -> None:
        """Who goes, and who does not and why."""
        if not self._quiet:
            self._progress.text("\n".join(map(plan_line, plans)) or "no host serves anything")

    def event(self, event: Event) -> None:
        """A step's progress."""
        self._progress.event(event)

    def done(self, report: Report) -> None:
        """How a move went."""
        if not self._quiet:
            self._progress.text(result_text(report))


def plan_line(report: Report) -> str:
    """One runtime of one host, before anything happens."""
    name = f"{NAMES[report.runtime]} " if report.runtime else ""
    if report.state == "planned":
        first = "goes first: " if report.canary else ""
        return f"{report.host}: {first}{name}{report.version} → {report.to}"
    if report.error:
        return f"{report.host}: {name}cannot be looked at: {report.error.message}"
    stays = "stays" if report.state in ("held", "adopted") else "is there" if report.version else ""
    said = f"{name}{report.version} {stays}".strip() if stays else name.strip()
    return f"{report.host}: {said}{': ' if said and report.note else ''}{report.note}"


def result_text(report: Report) -> str:
    """How a move ended, with what was compared."""
    if report.moved is None:
        return f"{report.host}: FAILED: {report.error.message if report.error else report.state}"
    moved, name = report.moved, NAMES[report.runtime]
    took = f"in {moved.seconds:.1f} s, {moved.out:.1f} s without questions"
    head = {"kept": f"{name} {moved.version} is kept ({took})",
            "returned": f"WORSE: {name} {moved.version} serves again, {moved.other} is held ({took})",
            "undecided": f"UNDECIDED: {name} {moved.version} serves again ({took})"}[moved.state]
    return "\n".join((f"{report.host}: {head}", *(f"  {line}" for line in (*moved.why, *moved.notes))))


def as_record(report: Report) -> dict[str, Any]:
    """A report as JSON."""
    moved = report.moved
    return {"host": report.host, "runtime": report.runtime, "state": report.state, "version": report.version,
            "to": report.to, "canary": report.canary, "note": report.note,
            "why": list(moved.why) if moved else [], "compared": list(moved.notes) if moved else [],
            "seconds": moved.seconds if moved else 0.0, "out_seconds": moved.out if moved else 0.0,
            "error": report.error.message if report.error else None,
            "hint": report.error.hint if report.error else None,
            "history": [asdict(change) for change in report.history]}


def raise_failures(reports: Sequence[Report]) -> None:
    """End with status 3 where some hosts were moved and some were not as asked, else with 1."""
    bad = [report for report in reports if report.bad]
    if not bad:
        return
    waiting = ", ".join(report.host for report in reports if report.state == "waiting")
    stays = [f"not tried: {waiting}"] if waiting else []
    if any(report.state == "kept" for report in reports):
        raise SomeHostsFailed(f"{len(bad)} of {len(reports)} hosts did not go as asked",
                              hint="\n".join((*map(_told, bad), *stays)))
    if len(bad) == 1 and bad[0].error:
        error = bad[0].error
        raise SwarmError(error.message, host=bad[0].host,
                         hint="\n".join((*([error.hint] if error.hint else []), *stays)) or None)
    raise SwarmError(f"{len(bad)} of {len(reports)} hosts did not go as asked",
                     hint="\n".join((*map(_told, bad), *stays)))


def _told(report: Report) -> str:
    error = report.error
    if error is None:
        return f"{report.host}: {report.state}"
    return f"{report.host}: {error.message}" + (f" ({error.hint})" if error.hint else "")
