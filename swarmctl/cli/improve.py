"""`swarmctl improve`: the loop, closed. Here the verbs that make up a round are put together."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.deploy import bring_up, desk, showing
from swarmctl.errors import JobCut, JobFailed, RecipeError, SwarmError, Unfit
from swarmctl.fleet.person import who

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmctl.cli.context import Context
    from swarmctl.inventory import ImproveWish, Inventory
    from swarmctl.learning.gates import Judgement
    from swarmctl.paths import Paths
    from swarmctl.verbs.improve import Standing

def improve(
    ctx: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(
        metavar="[MODEL...]", help="Models of the inventory with an `improve:` entry.",
        show_default="all of them")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until Ctrl-C.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once; this is the default.")] = False,
    every: Annotated[float, typer.Option(min=0.05, metavar="MINUTES",
                                         help="How often --watch looks.")] = 10.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a look.")] = False,
) -> None:
    """Train a model anew where its ratings make that worth it, and serve the result if it is better.

    The inventory's `improve:` entry says when. A round builds a data set, trains, quantises, evaluates, waits
    for a signature (`swarmctl review`), becomes a canary, and is promoted on its votes or taken back. A round
    that was cut goes on where it was.
    """
    if watch and (once or dry_run):
        raise typer.BadParameter("--watch goes with neither --once nor --dry-run")
    while True:
        _look(ctx.obj, models or [], dry_run=dry_run, as_json=as_json)
        if not watch:
            return
        time.sleep(every * 60)


def _look(context: Context, models: list[str], *, dry_run: bool, as_json: bool) -> None:
    from swarmctl.fleet.inventory_file import read_inventory
    from swarmctl.verbs.improve import improve as verb
    from swarmctl.verbs.improve import policies

    found = []
    for model, policy in policies(read_inventory(context.inventory), models).items():
        found.append(verb(context.paths, model, policy, Steps(context), drift=drift(context),
                          clock=context.clock, say=say, dry_run=dry_run))
        if not as_json:
            sys.stdout.write(_text(found[-1]) + "\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps([_record(one) for one in found]) + "\n")
        sys.stdout.flush()


def say(text: str) -> None:
    """A line for the person who watches."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def drift(context: Context) -> str | None:
    """Why the topics are no longer what they were; None where they are, or were never asked for. Where they
    have drifted they are clustered anew."""
    from swarmctl.verbs.topics import How, overview, sorted_last

    if sorted_last(context.paths, context.clock()) is None:
        return None
    try:
        found = overview(context.paths, context.inventory, How(), context.clock(), say)
        if found.due:
            overview(context.paths, context.inventory, How(recluster=True), context.clock(), say)
    except SwarmError as exc:
        say(f"topics: {exc.message}; the round does without them")
        return None
    return found.due


@dataclass(frozen=True, slots=True)
class Steps:
    """A round's steps, each one or two of the other verbs."""

    context: Context

    def build(self, model: str, policy: ImproveWish) -> Mapping[str, Any]:
        """See verbs.improve.Steps."""
        from swarmctl.fleet.recipes import read_recipe
        from swarmctl.verbs.dataset import Wanted, build

        with _refusals(SwarmError):
            kind = read_recipe(policy.recipe).trainer
            built = build(self.context.paths, Wanted(kind=kind, model=model), self.context.clock())
        assert built.snapshot is not None
        rows = built.card["rows"]
        say(f"data set {built.snapshot.name}: {rows['train']} rows to train on, {rows['heldout']} held out")
        return {"dataset": built.snapshot.name, "rows": rows["train"], "heldout": rows["heldout"],
                "until": built.card["until"]}

    def train(self, model: str, policy: ImproveWish, dataset: str, started: Callable[[str], None],
              run: str | None) -> Mapping[str, Any]:
        """See verbs.improve.Steps."""
        from swarmctl.cli.job_view import JobView
        from swarmctl.cli.train import Shown
        from swarmctl.fleet.inventory_file import read_inventory
        from swarmctl.verbs import jobs
        from swarmctl.verbs.train import train

        paths, inventory = self.context.paths, read_inventory(self.context.inventory)
        with _refusals(Unfit, RecipeError, JobFailed), JobView.on(sys.stderr) as view:
            if run is None and (run := _begun(paths, inventory, model, policy.recipe, dataset)):
                started(run)
            if run is None:
                made = train(paths, self.context.inventory, policy.recipe, Shown(view), host=policy.host,
                             dataset=dataset, model=model, follow=False, now=self.context.clock)
                assert made is not None
                run = made.id
                started(run)
            jobs.resume(paths, inventory, run, self.context.clock)
            try:
                known, stages = jobs.follow(paths, inventory, run, view.record, self.context.clock,
                                           view.line)
            except JobCut as exc:
                say(f"{exc.host}: {exc.message}; going on with it")
                jobs.resume(paths, inventory, run, self.context.clock)
                known, stages = jobs.follow(paths, inventory, run, view.record, self.context.clock,
                                           view.line)
        seconds = sum(float(stage.get("seconds", 0.0)) for stage in stages.values())
        return {"run": run, "hours": seconds / 3600, "kwh": self._kwh(known.host, seconds)}

    def deploy(self, model: str, policy: ImproveWish, run: str) -> Mapping[str, Any]:
        """See verbs.improve.Steps."""
        from swarmctl.verbs import deploy

        wish = deploy.Wish(run, model, who(), policy.quantize, 0.0)
        context = self.context
        with _refusals(deploy.Refused), showing(quiet=False) as shown:
            done = deploy.deploy(context.paths, context.inventory, wish, bring_up(context, shown),
                                 context.clock, shown.note, shown.event)
        for host, error in done.failed.items():
            say(f"{host}: {error.message}")
        return {"release": done.release, "sha256": done.sha256}

    def evaluate(self, model: str, policy: ImproveWish, release: str, dataset: str) -> Mapping[str, Any]:
        """See verbs.improve.Steps."""
        from swarmctl.cli.eval import watching
        from swarmctl.evaluation.answering import Style
        from swarmctl.verbs.evaluate import Asked, run

        beside = self.context.inventory.parent
        capability = beside / Path(policy.capability).expanduser() if policy.capability else None
        asked = Asked(f"{model}:{release}", None, dataset, capability, policy.by, policy.measure,
                      policy.judge, Style(policy.temperature, policy.max_tokens, policy.samples))
        at = datetime.fromtimestamp(self.context.clock(), UTC).isoformat(timespec="seconds")
        with watching() as watch:
            done = run(self.context.paths, asked, watch, at=at)
        measured = done.report["measures"]["references"] or {}
        return {"decision": done.report["decision"], "reasons": done.report["reasons"],
                "report": str(done.folder), "old": measured.get("old"), "new": measured.get("new")}

    def share(self, model: str, release: str, share: float, details: Mapping[str, Any]) -> None:
        """See verbs.improve.Steps."""
        from swarmctl.verbs import releases

        with desk(self.context, quiet=False) as at:
            releases.share(at, model, share, reason=_why(details), evidence=_evidence(release, details))

    def votes(self, model: str, release: str) -> Judgement:  # noqa: ARG002  the canary that there is
        """See verbs.improve.Steps."""
        from swarmctl.verbs.releases import judged

        return judged(self.context.paths, self.context.inventory, model)

    def promote(self, model: str, release: str, details: Mapping[str, Any]) -> None:
        """See verbs.improve.Steps."""
        from swarmctl.fleet.releases import read, standing
        from swarmctl.verbs import releases

        champion = standing(read(self.context.paths), model).champion
        if champion is None or champion.release != release:
            with desk(self.context, quiet=False) as at:
                releases.promote(at, model, release, reason=_why(details), evidence=_evidence(release,
                                                                                              details))

    def retire(self, model: str, release: str, details: Mapping[str, Any]) -> None:
        """See verbs.improve.Steps."""
        from swarmctl.fleet.releases import read, standing
        from swarmctl.verbs import releases

        canary = standing(read(self.context.paths), model).canary
        if canary is not None and canary.release == release:
            with desk(self.context, quiet=False) as at:
                releases.rollback(at, model, reason=_why(details), evidence=_evidence(release, details))

    def _kwh(self, host: str, seconds: float) -> float:
        """What a host draws under load, over that time."""
        from swarmctl.fleet.snapshot import read_fleet

        fleet = read_fleet(self.context.paths.fleet)
        watts = next((entry.load_watts for entry in fleet.hosts if entry.name == host), 0.0) if fleet else 0.0
        return watts * seconds / 3.6e6


def _begun(paths: Paths, inventory: Inventory, model: str, recipe: str, dataset: str) -> str | None:
    """The run that this round began and was cut before it could say so; None where there is none."""
    from swarmctl.fleet.recipes import read_recipe
    from swarmctl.fleet.runs import known_runs
    from swarmctl.verbs.jobs import show

    mine = (model, read_recipe(recipe).name, dataset)
    run = next((one for one in reversed(known_runs(paths))
                if (one.model, one.recipe, one.dataset) == mine), None)
    if run is None:
        return None
    try:
        found = show(paths, inventory, run.id).state.state
    except JobFailed:
        return None  # nothing was started on the host
    return run.id if found in ("running", "stopped", "done") else None


@contextmanager
def _refusals(*kinds: type[SwarmError]) -> Iterator[None]:
    """What these errors say ends the round; a job that was cut does not, it goes on next time."""
    from swarmctl.verbs.improve import Refused

    try:
        yield
    except JobCut:
        raise
    except kinds as exc:
        raise Refused(exc.message, host=exc.host, hint=exc.hint) from exc


def _why(details: Mapping[str, Any]) -> str:
    return "; ".join(str(reason) for reason in details.get("reasons", ()))


def _evidence(release: str, details: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("decision", "reasons", "report", "old", "new", "dataset", "run")
    return {"release": release, **{key: details[key] for key in keys if key in details}}


def _text(found: Standing) -> str:
    if found.round is None:
        assert found.due is not None
        word = "a round would begin" if found.due.go else "no round"
        return f"{found.model}: {word}: {'; '.join(found.due.reasons)}"
    one = found.round
    release = f", {one.details['release']}" if "release" in one.details else ""
    return f"{one.id}: {one.stage}: {one.status}{release}" + "".join(f"\n  {why}" for why in one.reasons)


def _record(found: Standing) -> dict[str, Any]:
    from swarmctl.monitor.digest import summary

    due = {"go": found.due.go, "reasons": list(found.due.reasons)} if found.due else None
    return {"model": found.model, "due": due, "round": summary(found.round) if found.round else None}
