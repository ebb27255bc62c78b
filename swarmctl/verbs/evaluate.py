"""`eval`: one served model or release against another, and the report on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import SwarmError, UsageError
from swarmctl.evaluation import report
from swarmctl.evaluation.answering import Style
from swarmctl.evaluation.evaluate import BY, Plan, Side, evaluate
from swarmctl.evaluation.questions import capability, held_out
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.learning.grade import MATCHES
from swarmctl.ledger.snapshots import find

if TYPE_CHECKING:
    from swarmctl.evaluation.evaluate import Watch
    from swarmctl.fleet.snapshot import Fleet, Served
    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person wants evaluated. `new` and `old` are MODEL or MODEL:RELEASE as they are served; without
    `old` it is what serves the model now. `dataset` is a name, a folder or `latest`."""

    new: str
    old: str | None = None
    dataset: str | None = "latest"
    capability: Path | None = None
    by: str = "references"
    measure: str = "f1"
    judge: str | None = None
    style: Style = field(default_factory=Style)
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The report, and where it lies as report.json, report.md and report.html."""

    report: dict[str, Any]
    folder: Path


def run(paths: Paths, asked: Asked, watch: Watch, *, at: str) -> Evaluated:
    """Evaluate and write the report.

    Raises UsageError for what is not served or cannot be read, ServerUnavailable where no server is left,
    LedgerError.
    """
    fleet = read_fleet(paths.fleet)
    if fleet is None:
        raise SwarmError("nothing has been brought up yet", hint="swarmctl up")
    plan, facts = _plan(paths, fleet, asked)
    found = evaluate(paths, fleet, plan, watch, at=at, served=facts)
    for name, text in (("report.json", json.dumps(found, indent=1)), ("report.md", report.markdown(found)),
                       ("report.html", report.page(found))):
        write_whole(plan.folder / name, text)
    return Evaluated(found, plan.folder)


def side_of(fleet: Fleet, name: str) -> Side:
    """The weights that a name means where it is served: MODEL is what serves the model now, MODEL:RELEASE one
    release of it. Raises UsageError."""
    all_served = [served for entry in fleet.hosts for served in entry.served if not served.embedding]
    found = {served.digest: served for served in all_served if _is(served, name)}
    if len(found) == 1:
        return Side(name, next(iter(found)))
    known = ", ".join(sorted({_name(served) for served in all_served})) or "nothing"
    if found:
        raise UsageError(f"hosts serve different weights as {name}",
                         hint="`swarmctl up` makes them alike, `swarmctl status` shows them")
    raise UsageError(f"nobody serves {name}", hint=f"served: {known}")


def _plan(paths: Paths, fleet: Fleet, asked: Asked) -> tuple[Plan, dict[str, Any]]:
    _check(asked)
    new = side_of(fleet, asked.new)
    model = _model_of(fleet, new)
    old = side_of(fleet, asked.old or model)
    if new.digest == old.digest:
        raise UsageError(f"{new.name} and {old.name} are the same weights ({new.digest[:12]})",
                         hint="name a release that is not live, or another model with --against")
    questions = held_out(_dataset(paths, asked.dataset), asked.limit) if asked.dataset else ()
    abilities = capability(asked.capability, asked.limit) if asked.capability else ()
    if not questions and not abilities:
        raise UsageError("there is nothing to ask", hint="name --dataset, --capability or both")
    folder = paths.data / "evaluations" / model.replace(":", "-") / f"{old.digest[:8]}-{new.digest[:8]}"
    plan = Plan(model, old, new, questions, abilities, folder, asked.style, asked.by, asked.measure,
                judge=asked.judge)
    return plan, _quantised(paths, fleet, model, new)


def _check(asked: Asked) -> None:
    if asked.by not in BY:
        raise UsageError(f"--by is {asked.by!r}", hint=f"one of {', '.join(BY)}")
    if asked.measure not in MATCHES:
        raise UsageError(f"--measure is {asked.measure!r}", hint=f"one of {', '.join(MATCHES)}")
    if asked.by == "judge" and asked.judge is None:
        raise UsageError("--by judge needs a judge", hint="--judge MODEL, one that is served")


def _is(served: Served, name: str) -> bool:
    if served.release and name == f"{served.model}:{served.release}":
        return True
    return not served.canary and served.model == name


def _name(served: Served) -> str:
    return f"{served.model}:{served.release}" if served.canary else served.model


def _model_of(fleet: Fleet, side: Side) -> str:
    return next(served.model for entry in fleet.hosts for served in entry.served
                if served.digest == side.digest and _is(served, side.name))


def _dataset(paths: Paths, name: str) -> Path:
    folder = Path(name).expanduser()
    return folder if (folder / "heldout.parquet").is_file() else find(paths, name).folder


def _quantised(paths: Paths, fleet: Fleet, model: str, new: Side) -> dict[str, Any]:
    """What quantising this release measured, where this machine made it; else nothing."""
    release = next((served.release for entry in fleet.hosts for served in entry.served
                    if served.digest == new.digest and served.release), "")
    try:
        run = json.loads((paths.data / "releases" / model / release / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    stages = run.get("stages", {}) if isinstance(run, dict) else {}
    found = stages.get("perplexity", {}) if isinstance(stages, dict) else {}
    return dict(found) if isinstance(found, dict) else {}
