"""`swarmctl jobs`: the runs of all hosts, and what a person can do with one. The hosts know; this machine
asks."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.errors import CommandTimeout, JobFailed, SwarmError, UsageError
from swarmctl.fleet import jobs
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.remote import connect
from swarmctl.fleet.runs import Run, find_run, finished, goes_on, known_runs, record, take_back_host
from swarmctl.fleet.survey import survey
from swarmctl.fleet.tunnels import forward_port, unforward_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from swarmctl.fleet.jobs import JobState
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

LOOK_LIMIT = 60.0
LOG_LIMIT = 86_400.0
SERVING = re.compile(r"TensorBoard \S+ at http://[^:/]+:(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """A run as it is now. `run` is what this machine knows of it, None where another started it."""

    host: str
    state: JobState
    run: Run | None

    def to_record(self) -> dict[str, Any]:
        """The row for --json."""
        run, state = self.run, self.state
        known = {"recipe": run.recipe, "model": run.model, "dataset": run.dataset, "at": run.at,
                 "by": run.by} if run else {}
        return {"run": state.run, "host": self.host, "state": state.state, "stages": list(state.stages),
                "last": state.last, "result": state.result, **known}


def listing(paths: Paths, inventory: Inventory,
            only: Sequence[str] = ()) -> Iterator[tuple[Host, list[Row] | SwarmError]]:
    """The runs of each host that trains or that a run was started on, as it answers."""
    known = {run.id: run for run in known_runs(paths)}
    used = {run.host for run in known.values()}
    hosts = [host for host in inventory.hosts
             if (host.name in only if only else "train" in host.roles or host.name in used)]

    def look(host: Host) -> list[Row]:
        with _reached(paths, inventory, host) as remote:
            folder = next((run.data_dir for run in known.values() if run.host == host.name), None)
            found = jobs.states(remote, folder or survey(remote, host).data_dir)
            return [_row(paths, host.name, one, known.get(one.run)) for one in found]

    yield from over_hosts(hosts, look, timeout=LOOK_LIMIT)


def show(paths: Paths, inventory: Inventory, named: str) -> Row:
    """One run, as it is on its host now."""
    run = find_run(paths, named)
    with _host(paths, inventory, run) as remote:
        return _row(paths, run.host, jobs.state(remote, run.data_dir, run.id), run)


def follow(paths: Paths, inventory: Inventory, named: str, sink: Callable[[dict[str, Any]], None],
           now: Callable[[], float], note: Callable[[str], None]) -> tuple[Run, Mapping[str, Any]]:
    """Watch a run to its end, from its first record on; what its stages gave. Whoever leaves before is told
    by `note` that it goes on. Raises JobFailed."""
    run = find_run(paths, named)
    with _host(paths, inventory, run) as remote:
        try:
            ended = jobs.watch(remote, run.data_dir, run.id, sink)
        except KeyboardInterrupt:
            note(goes_on(run))
            raise
        return run, finished(paths, run, ended, now())


def resume(paths: Paths, inventory: Inventory, named: str, now: Callable[[], float]) -> Row:
    """Start a run again, from its newest whole checkpoint. One that runs or is done is left as it is."""
    run = find_run(paths, named)
    with _host(paths, inventory, run) as remote:
        before = jobs.state(remote, run.data_dir, run.id)
        if before.state in ("running", "done"):
            return Row(run.host, before, run)
        record(paths, run, "resume", now(), was=before.state)
        _team(paths, inventory, run, _again)
        return Row(run.host, jobs.resume(remote, run.data_dir, run.id), run)


def cancel(paths: Paths, inventory: Inventory, named: str, now: Callable[[], float]) -> Row:
    """End a run's job. Its folder stays, and `resume` goes on."""
    run = find_run(paths, named)
    with _host(paths, inventory, run) as remote:
        before = jobs.state(remote, run.data_dir, run.id)
        after = jobs.cancel(remote, run.data_dir, run.id)
        _team(paths, inventory, run, jobs.cancel)
        if not before.ended:
            record(paths, run, "cancel", now())
        return _row(paths, run.host, after, run)


def remove(paths: Paths, inventory: Inventory, named: str, now: Callable[[], float]) -> Run:
    """Remove a run's folder from its host. What this machine knows of it stays. Raises JobFailed while it
    runs."""
    run = find_run(paths, named)
    with _host(paths, inventory, run) as remote:
        jobs.remove(remote, run.data_dir, run.id)
        _team(paths, inventory, run, jobs.remove)
    record(paths, run, "remove", now())
    return run


def logs(paths: Paths, inventory: Inventory, named: str, *, lines: int, on: bool,
         sink: Callable[[str], None]) -> None:
    """The last lines of what a job itself wrote; with `on`, and what comes, until interrupted."""
    run = find_run(paths, named)
    path = f"{jobs.run_folder(run.data_dir, run.id)}/log"
    with _host(paths, inventory, run) as remote:
        try:
            remote.run(("tail", "-n", str(lines), *(("-f",) if on else ()), path), timeout=LOG_LIMIT,
                       on_line=sink)
        except CommandTimeout:
            return


def _row(paths: Paths, host: str, state: JobState, run: Run | None) -> Row:
    """A run as it is; whoever sees first that it has ended gives its host the questions back."""
    if run is not None:
        take_back_host(paths, run, state)
    return Row(host, state, run)


def tensorboard(paths: Paths, inventory: Inventory, named: str, port: int | None,
                say: Callable[[str], None]) -> None:
    """Run TensorBoard over a run's event files on its host, and lead a port of this machine to it; `say`
    hears its address. Until interrupted."""
    run = find_run(paths, named)
    host = inventory.host(run.host)
    near = port or free_ports(1)[0]
    there: list[int] = []

    def heard(line: str) -> None:
        found = SERVING.search(line)
        if found and not there:
            there.append(int(found[1]))
            if not host.local:
                forward_port(paths, host_name=host.name, ssh=host.ssh, port=there[0], near=near,
                             ssh_config=inventory.ssh_config, connect_timeout=host.connect_timeout)
            say(f"http://127.0.0.1:{there[0] if host.local else near}/")

    with _host(paths, inventory, run) as remote:
        try:
            folder = jobs.run_folder(run.data_dir, run.id)
            done = remote.run(("sh", f"{folder}/job", "tensorboard"), timeout=LOG_LIMIT, on_line=heard,
                              check=False)
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise JobFailed(f"TensorBoard ended: {last}", host=run.host)
        finally:
            if there and not host.local:
                unforward_port(paths, host_name=host.name, port=there[0], near=near)


def _again(remote: ShellRemote, data_dir: str, run: str) -> None:
    """Start a host's part in a run anew: one that still waits for the others meets nobody any more."""
    if not jobs.state(remote, data_dir, run).ended:
        jobs.cancel(remote, data_dir, run)
    jobs.resume(remote, data_dir, run)


def _team(paths: Paths, inventory: Inventory, run: Run,
          act: Callable[[ShellRemote, str, str], object]) -> None:
    """Do the same on the other hosts of a run."""
    for name, data_dir in run.team:
        with _host(paths, inventory, replace(run, host=name)) as remote:
            act(remote, data_dir, run.id)


@contextmanager
def _host(paths: Paths, inventory: Inventory, run: Run) -> Iterator[ShellRemote]:
    try:
        host = inventory.host(run.host)
    except KeyError as exc:
        raise UsageError(f"run {run.id} is on {run.host}, which the inventory no longer has",
                         hint="put the host back, or name another inventory with -i") from exc
    with _reached(paths, inventory, host) as remote:
        yield remote


@contextmanager
def _reached(paths: Paths, inventory: Inventory, host: Host) -> Iterator[ShellRemote]:
    remote = connect(host, paths, inventory.ssh_config)
    try:
        yield remote
    finally:
        remote.close()
