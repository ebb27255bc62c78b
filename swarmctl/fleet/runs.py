"""What this machine knows of the jobs it started: `runs/<run>/run.json`, and a record in the journal of
each act.

The truth of a run lies on its host (see fleet.jobs); this says where that is.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import UsageError
from swarmctl.exchange import RECORD_VERSION, new_id
from swarmctl.fleet import jobs
from swarmctl.fleet.person import who
from swarmctl.fleet.standing import read_aside, set_aside, take_back
from swarmctl.ledger import journal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swarmctl.fleet.jobs import JobState
    from swarmctl.paths import Paths


ASIDE = "aside"


@dataclass(frozen=True, slots=True)
class Run:
    """A run. `data_dir` is absolute on the host, `base` the folder here that it trains from; `plan` holds
    precision, processes and the arithmetic of preflight. `team` are the other hosts that train with it, each
    with its data_dir."""

    id: str
    host: str
    data_dir: str
    recipe: str
    trainer: str
    model: str
    base: str
    dataset: str
    at: str
    by: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    team: tuple[tuple[str, str], ...] = ()

    def folder(self, paths: Paths) -> Path:
        """Where this machine keeps what it knows of the run."""
        return paths.runs / self.id


def run_id(recipe: str, now: float) -> str:
    """A name for a run that begins now (seconds since 1970): recipe, day and six characters."""
    day = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d")
    return f"{recipe}-{day}-{new_id(int(now * 1000), secrets.randbits(30))[-6:]}"


def at(now: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def keep_run(paths: Paths, run: Run) -> None:
    """Write run.json."""
    folder = run.folder(paths)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "run.json", json.dumps({"version": 1, **asdict(run)}, indent=1) + "\n")


def known_runs(paths: Paths) -> tuple[Run, ...]:
    """Every run this machine started, oldest first; what cannot be read is passed over."""
    found = []
    for path in paths.runs.glob("*/run.json"):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            team = tuple((host, data_dir) for host, data_dir in raw.get("team", ()))
            found.append(Run(**{**{key: raw[key] for key in Run.__slots__ if key in raw}, "team": team}))
        except (OSError, ValueError, TypeError):
            continue
    return tuple(sorted(found, key=lambda run: (run.at, run.id)))


def find_run(paths: Paths, named: str) -> Run:
    """The run of a name or its beginning; `latest` is the newest. Raises UsageError."""
    there = known_runs(paths)
    found = there[-1:] if named == "latest" else [run for run in there if run.id == named] or [
        run for run in there if run.id.startswith(named)]
    if len(found) != 1:
        what = f"{len(found)} runs are" if found else "no run is"
        names = ", ".join(run.id for run in (found or there)[-8:])
        raise UsageError(f"{what} called {named!r}", hint=f"there are: {names}" if names else
                         "none was started from here; `swarmctl jobs` asks the hosts too")
    return found[0]


def goes_on(run: Run) -> str:
    """What a person is told who stops watching a run."""
    return (f"{run.id} goes on on {run.host}: `swarmctl jobs follow {run.id}` shows it again, "
            f"`swarmctl jobs cancel {run.id}` ends it")


def record(paths: Paths, run: Run, action: str, now: float, **more: Any) -> None:  # noqa: ANN401  any JSON
    """Append what was done with a run to the journal. Raises LedgerError."""
    journal.append(paths.journal, {
        "v": RECORD_VERSION, "kind": "job", "id": new_id(int(now * 1000), secrets.randbits(30)),
        "at": at(now), "action": action, "run": run.id, "host": run.host, "recipe": run.recipe,
        "model": run.model, "dataset": run.dataset, "by": who(), **more})


def keep_aside(paths: Paths, run: Run, now: float) -> bool:
    """Let the run's host have no new questions until the run has ended. False where a person had set it aside
    before: then it stays so."""
    if read_aside(paths, run.host) is not None:
        return False
    set_aside(paths, run.host, "cordoned", now)
    (run.folder(paths) / ASIDE).touch()
    return True


def take_back_host(paths: Paths, run: Run, state: JobState) -> None:
    """Give the host its questions again once a run that set it aside has ended."""
    mark = run.folder(paths) / ASIDE
    if state.ended and mark.exists():
        take_back(paths, run.host)
        mark.unlink(missing_ok=True)


def finished(paths: Paths, run: Run, ended: JobState, now: float) -> Mapping[str, Any]:
    """Remember how a run ended, once; what its stages gave. Raises JobFailed."""
    take_back_host(paths, run, ended)
    kept = run.folder(paths) / "result.json"
    if ended.result is not None:
        text = json.dumps(ended.result, indent=1) + "\n"
        if not kept.exists() or kept.read_text(encoding="utf-8") != text:
            kept.write_text(text, encoding="utf-8")
            record(paths, run, ended.state, now, result=ended.result)
    return jobs.outcome(ended, run.host)
