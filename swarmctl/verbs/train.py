"""`swarmctl train`: a recipe becomes a job on the host that fits, checked before it starts, detached once
it runs.

Preflight refuses what would fail after an hour: too little memory or disk, a model that llama.cpp cannot
convert, rows that are too long, a chat template that is not the served one's.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from swarmctl.errors import CommandFailed, SwarmError, Unfit, UsageError
from swarmctl.fleet import jobs
from swarmctl.fleet.convertible import convertible
from swarmctl.fleet.person import who
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.remote import connect
from swarmctl.fleet.runs import Run, at, finished, goes_on, keep_aside, keep_run, record, run_id
from swarmctl.fleet.survey import survey
from swarmctl.fleet.train_env import SIZE, training_python
from swarmctl.fleet.training import Ordered, meeting_address, meeting_port, order, parquet, served_template
from swarmctl.fleet.weights import put_weights
from swarmctl.jobs.bond import ABOVE
from swarmctl.jobs.spec import Node
from swarmctl.training.plan import Load, fitting, spec_of
from swarmctl.training.precision import gpus_for_training

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths
    from swarmctl.training.plan import Fitting

SURVEY_LIMIT = 60.0
EXAMINE_LIMIT = 600.0
#: tokens of a row, until the rows have been looked at: enough to tell which hosts are out of the question
SHORT = 64
STEPS = ("training environment", "base weights", "dataset")


class Watcher(Protocol):
    """Who is told while `train` works."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def event(self, event: Event) -> None:
        """How a step of the preparation goes."""

    def preflight(self, found: Preflight) -> None:
        """What was found and reckoned, before anything starts."""

    def progress(self, run: Run, record: dict[str, Any]) -> None:
        """One record of the job's own progress."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a training would be on the chosen host. `rows` is what jobs.examine found of the dataset and
    template."""

    host: str
    fit: Fitting
    rows: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that could train, as it is now: the runs that train there, and those that were cut off."""

    host: Host
    remote: ShellRemote
    seen: Facts
    fit: Fitting
    busy: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """What a host has been given: absolute paths there."""

    python: str
    code: str
    base: str
    data: str


def train(paths: Paths, inventory_path: Path, recipe: str, watcher: Watcher, *, host: str | None = None,
          dataset: str = "latest", model: str | None = None, given: Sequence[str] = (), follow: bool = True,
          dry_run: bool = False, now: Callable[[], float] = time.time) -> Run | None:
    """Train a model by a recipe; the run. With `follow`, return once it is done; None after a dry run.

    Raises RecipeError, UsageError, Unfit (nothing was started), JobFailed and RemoteErrors.
    """
    wanted = order(paths, inventory_path, recipe, dataset=dataset, model=model, given=given)
    team = choose(wanted, host, watcher)
    try:
        return _on_hosts(wanted, team, watcher, follow=follow, dry_run=dry_run, now=now)
    finally:
        for one in team:
            one.remote.close()


def choose(wanted: Ordered, named: str | None, watcher: Watcher) -> tuple[Candidate, ...]:
    """The hosts that train: all that the recipe names, or the one that is named here, else the fittest of
    those with the role `train` that is free.

    Raises UsageError where none has the role, Unfit where it fits none.
    """
    hosts = _hosts(wanted, named)
    looks = over_hosts(hosts, lambda host: _look(wanted, host), timeout=SURVEY_LIMIT)
    found = {host.name: one for host, one in looks}
    able = [one for host in hosts if isinstance(one := found[host.name], Candidate)]
    errors = [one for one in found.values() if isinstance(one, SwarmError)]
    if not able:
        raise _none_of(errors)
    for one in errors:
        watcher.note(f"{one.host} cannot train this: {one.message}")
    fit = [one for one in able if not one.fit.lacks]
    if wanted.recipe.own.hosts and len(fit) < len(hosts):
        raise next((_unfit(one) for one in able if one.fit.lacks), Unfit("a host of the recipe is missing"))
    if wanted.recipe.own.hosts:
        return tuple(fit)
    if not fit and len(able) == 1:
        raise _unfit(able[0])
    if not fit:
        reasons = "; ".join(f"{one.host.name}: {_short(one)}" for one in able)
        raise Unfit(f"no host can train this: {reasons}", hint="dpo-qlora and a smaller max_length take less")
    best = max(fit, key=_speed)
    if named is None and len(able) > 1:
        watcher.note(f"{best.host.name} trains: of {len(able)} hosts it fits and is the fastest that is free")
    for one in able:
        if one is not best:
            one.remote.close()
    return (best,)


def _none_of(errors: Sequence[SwarmError]) -> SwarmError:
    """Why no host is left: one that could not be reached may be there later, so it comes before what does not
    fit."""
    passing = [one for one in errors if not isinstance(one, Unfit)]
    if passing or len(errors) == 1:
        return (passing or errors)[0]
    return Unfit(f"no host can train this: {'; '.join(map(str, errors))}", hint=errors[0].hint)


def _on_hosts(wanted: Ordered, team: Sequence[Candidate], watcher: Watcher, *, follow: bool, dry_run: bool,
              now: Callable[[], float]) -> Run | None:
    """Prepare every host of the team, check, start; the first one leads and is the run's host."""
    first = team[0]
    run = Run(run_id(wanted.recipe.name, now()), first.host.name, first.seen.data_dir, wanted.recipe.name,
              wanted.recipe.trainer, wanted.model, str(wanted.weights.path), wanted.dataset.name, at(now()),
              who(), team=tuple((one.host.name, one.seen.data_dir) for one in team[1:]))
    try:
        ready = [_prepare(wanted, one, run, watcher) for one in team]
        found = _checked(wanted, first, ready[0], run, watcher)
        if len(team) > 1:
            watcher.note(_doors(team, meeting_address(first.host, wanted.inventory.ssh_config), run.id))
    except SwarmError:
        _discard(team, run)
        raise
    if dry_run:
        _discard(team, run)
        return None
    run = replace(run, plan=_planned(found))
    keep_run(wanted.paths, run)
    record(wanted.paths, run, "start", now())
    if wanted.recipe.own.inference == "drain" and keep_aside(wanted.paths, run, now()):
        watcher.note(f"{run.host} takes no new questions while it trains")
    _start(wanted, team, ready, found.fit, run)
    watcher.note(f"run {run.id} on {run.host}, which needs this terminal no more: "
                 f"`swarmctl jobs follow {run.id}`")
    if follow:
        try:
            ended = jobs.watch(first.remote, run.data_dir, run.id, lambda one: watcher.progress(run, one))
        except KeyboardInterrupt:
            watcher.note(goes_on(run))
            raise
        finished(wanted.paths, run, ended, now())
    return run


def _doors(team: Sequence[Candidate], address: str, run: str) -> str:
    """What hosts that train together leave open to their network."""
    port, first, others = meeting_port(run), team[0].host.name, ", ".join(one.host.name for one in team[1:])
    return (f"as long as it trains, {first} listens at {address}, ports {port} and {port + ABOVE}, and each\n"
            "  host on ports of gloo's or NCCL's choice, all without a password:\n"
            f"  let in only {first}, {others} (docs/train.md says how)")


def _prepare(wanted: Ordered, one: Candidate, run: Run, watcher: Watcher) -> Ready:
    """Environment, code, weights and data, put where they are not there yet."""
    remote, data_dir = one.remote, one.seen.data_dir
    if one.busy:
        watcher.note(f"{one.host.name} is training already ({', '.join(one.busy)}): both would share it")
    if one.cut:
        watcher.note(f"{one.host.name} holds a run that was cut off: `swarmctl jobs resume {one.cut[-1]}` "
                     "goes on with it")
    tell = [Teller(one.host.name, number, len(STEPS), title, watcher.event)
            for number, title in enumerate(STEPS, 1)]
    python = training_python(remote, one.host, one.seen, wanted.paths, tell[0],
                             deepspeed=wanted.recipe.own.deepspeed is not None)
    tell[0](python, 1.0, "done")
    code = jobs.put_code(remote, data_dir)
    base = str(wanted.weights.path) if one.host.local else put_weights(
        remote, wanted.weights, data_dir, tell[1])
    tell[1](base, 1.0, "done")
    files = {f"data/{path.name}": path for path in parquet(wanted.dataset)}
    put = jobs.put_files(remote, data_dir, run.id, files)
    tell[2](put, 1.0, "done")
    return Ready(python, code, base, f"{put}/data")


def _checked(wanted: Ordered, one: Candidate, ready: Ready, run: Run, watcher: Watcher) -> Preflight:
    """Everything that is known before training. Raises Unfit where it speaks against it."""
    rows = _examine(one.remote, wanted, ready)
    watcher.note(f"{run.dataset}: {rows['rows']} rows, the longest {rows['longest']} tokens")
    _require_servable(wanted, rows)
    found = _judged(wanted, one, rows)
    watcher.preflight(found)
    if found.fit.lacks:
        raise _unfit(replace(one, fit=found.fit))
    return found


def _start(wanted: Ordered, team: Sequence[Candidate], ready: Sequence[Ready], fit: Fitting,
           run: Run) -> None:
    """Start the job on every host, the leader's last: the others wait for it."""
    spec = spec_of(wanted.recipe, fit, run=run.id, model=ready[0].base)
    if len(team) > 1:
        address = meeting_address(team[0].host, wanted.inventory.ssh_config)
        spec = replace(spec, node=Node(0, len(team), address, meeting_port(run.id)))
    for rank in reversed(range(len(team))):
        mine = replace(spec, model=ready[rank].base)
        if rank:  # only the leader merges
            mine = replace(mine, stages=spec.stages[:1], node=spec.node and replace(spec.node, rank=rank))
        jobs.start(team[rank].remote, team[rank].seen.data_dir, mine, {}, python=ready[rank].python,
                   code=ready[rank].code)


def _discard(team: Sequence[Candidate], run: Run) -> None:
    """Nothing was started: what was put for this run alone goes again."""
    for one in team:
        jobs.remove_folder(one.remote, one.seen.data_dir, run.id)


def _hosts(wanted: Ordered, named: str | None) -> tuple[Host, ...]:
    there = wanted.inventory.hosts
    if wanted.recipe.own.hosts and named is None:
        missing = sorted(set(wanted.recipe.own.hosts) - {host.name for host in there})
        if missing:
            raise UsageError(f"the inventory has no host {', '.join(missing)}, which the recipe names")
        return tuple(wanted.inventory.host(name) for name in wanted.recipe.own.hosts)
    if named is not None:
        found = tuple(host for host in there if host.name == named)
        if not found:
            raise UsageError(f"the inventory has no host {named}",
                             hint=f"it has {', '.join(host.name for host in there)}")
        return found
    found = tuple(host for host in there if "train" in host.roles)
    if not found:
        raise UsageError("no host of the inventory has the role train",
                         hint="give one `roles: [inference, train]`, or name one with --host")
    return found


def _look(wanted: Ordered, host: Host) -> Candidate:
    remote = connect(host, wanted.paths, wanted.inventory.ssh_config)
    seen = survey(remote, host)
    size = sum(path.stat().st_size for path in parquet(wanted.dataset))
    there = _true(remote, "test", "-d", f"{seen.data_dir}/weights/{wanted.weights.digest[:12]}")
    adopted = host.train is not None and host.train.python is not None
    made = adopted or _true(remote, "sh", "-c", 'ls "$1"/envs/*/.complete', "sh", seen.data_dir)
    load = Load(SHORT, 0 if there or host.local else wanted.weights.size, size, 0 if made else SIZE)
    runs = jobs.states(remote, seen.data_dir)
    running = tuple(one.run for one in runs if one.state == "running")
    cut = tuple(one.run for one in runs if one.state == "stopped")
    try:
        fit = fitting(wanted.recipe, wanted.shape, load, seen, host.limits)
    except Unfit as exc:  # which knows the machine's own name only
        exc.host = host.name
        raise
    return Candidate(host, remote, seen, fit, running, cut)


def _true(remote: ShellRemote, *argv: str) -> bool:
    return remote.run(argv, timeout=SURVEY_LIMIT, check=False).exit_status == 0


def _speed(one: Candidate) -> tuple[bool, int, int]:
    """What makes a host the better one to train on: nothing training there, GPU memory, threads."""
    memory = sum(gpu.memory or 0 for gpu in gpus_for_training(one.seen))
    return not one.busy, memory, one.seen.cpu.threads


def _examine(remote: ShellRemote, wanted: Ordered, ready: Ready) -> Mapping[str, Any]:
    length = str(wanted.recipe.keys.get("max_length", 1024) or 0)
    argv = ("env", f"PYTHONPATH={ready.code}", ready.python, "-m", "swarmctl.jobs.examine", ready.base,
            ready.data, wanted.recipe.trainer, length)
    told = {"template": served_template(wanted), "probe": convertible().probe}
    try:
        done = remote.run(argv, timeout=EXAMINE_LIMIT, stdin=json.dumps(told).encode())
        found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except CommandFailed as exc:
        said = (exc.stderr.strip().splitlines() or [exc.message])[-1]
        raise Unfit(f"the dataset and the tokenizer do not go together: {said}", host=remote.host,
                    hint=f"is {wanted.dataset} a dataset for {wanted.recipe.trainer}?") from exc
    return found


def _require_servable(wanted: Ordered, rows: Mapping[str, Any]) -> None:
    """What is trained must be servable as it was trained. Raises Unfit."""
    if not rows["template"]:
        raise Unfit("the model's tokenizer has no chat template, so nobody could ask it as it was trained",
                    hint="train from a chat (instruct) model")
    problem = convertible().problem(wanted.shape.architecture, rows["tokenizer"])
    if problem:
        raise Unfit(f"what is trained here could not be served: {problem}",
                    hint="train from a base that it can convert")
    if rows["served"] is not None and rows["served"] != rows["rendered"]:
        raise Unfit(f"training would see another chat template than {wanted.model} is served with: "
                    f"{_difference(rows['served'], rows['rendered'])}",
                    hint="give the GGUF the template of the folder it is trained from (convert it again), "
                         "or correct tokenizer_config.json there")


def _difference(served: str, trained: str) -> str:
    """Where two renderings part, as a person can find it."""
    pairs = zip(served, trained, strict=False)
    place = next((index for index, (one, other) in enumerate(pairs) if one != other),
                 min(len(served), len(trained)))
    near = slice(max(0, place - 15), place + 25)
    return f"served {served[near]!r}, trained {trained[near]!r}"


def _judged(wanted: Ordered, chosen: Candidate, rows: Mapping[str, Any]) -> Preflight:
    """The arithmetic again, with the true length of rows; and what speaks against it. Raises Unfit."""
    if not rows["rows"]:
        raise Unfit(f"{wanted.dataset.name} has no rows to train on")
    share = rows["dropped"] / rows["looked"]
    if share > wanted.recipe.own.dropped:
        raise Unfit(f"{share:.0%} of the rows have prompts of max_length tokens or more and would be dropped",
                    hint=f"raise max_length (the longest row has {rows['longest']} tokens), or allow it: "
                         f"swarmctl: {{dropped: {share:.2f}}}")
    load = Load(rows["longest"], 0, 0, 0)
    fit = fitting(wanted.recipe, wanted.shape, load, chosen.seen, chosen.host.limits)
    notes = [f"{rows['cut']} of {rows['looked']} rows are longer than max_length and lose their end"] * bool(
        rows["cut"])
    return Preflight(chosen.host.name, replace(fit, disk=chosen.fit.disk), rows, tuple(notes))


def _planned(found: Preflight) -> dict[str, Any]:
    """What run.json keeps of the plan."""
    fit = found.fit
    return {"precision": fit.precision, "why": fit.why, "processes": fit.processes, "threads": fit.threads,
            "memory": asdict(fit.memory), "disk": asdict(fit.disk), "rows": found.rows["rows"],
            "longest": found.rows["longest"]}


def _unfit(one: Candidate) -> Unfit:
    return Unfit(f"it does not fit: {_short(one)}", host=one.host.name,
                 hint="\n".join(line for each in one.fit.lacks for line in arithmetic(each)))


def _short(one: Candidate) -> str:
    return "; ".join(f"{each.of}: {each.needs / 1e9:,.1f} GB needed, {each.has / 1e9:,.1f} GB there"
                     for each in one.fit.lacks)


def arithmetic(one: Any) -> list[str]:  # noqa: ANN401  a Sum
    """A sum as lines that a person can follow."""
    lines = [f"{part.size / 1e6:>12,.1f} MB  {part.name} ({part.how})" for part in one.parts]
    word = "fits in" if one.fits else "MORE THAN"
    return [*lines, f"{one.needs / 1e6:>12,.1f} MB  in all; {word} the {one.has / 1e6:,.1f} MB of {one.of}"]
