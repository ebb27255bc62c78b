"""`swarmctl jobs prune`: remove what old trainings have left on hosts, and never what a release needs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet import jobs
from swarmctl.fleet.litter import Found, Left, look, remove, unneeded
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.releases import read, standing
from swarmctl.fleet.remote import connect
from swarmctl.fleet.runs import known_runs, record
from swarmctl.fleet.survey import survey
from swarmctl.fleet.train_env import current_envs
from swarmctl.fleet.weights import base_weights, describe
from swarmctl.ledger import rounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.fleet.shell import Remote
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

LIMIT = 2400.0
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went from a host, or would."""

    host: str
    what: tuple[Left, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(one.size for one in self.what)

    def to_record(self) -> dict[str, Any]:
        """The row for --json."""
        return {"host": self.host, "size": self.size,
                "removed": [{"path": one.path, "size": one.size} for one in self.what]}


def prune(paths: Paths, inventory: Inventory, only: Sequence[str], *, days: float, dry_run: bool,
          now: float) -> Iterator[tuple[Host, Pruned | SwarmError]]:
    """Remove it from each host that trains or that a run was started on; each as it is done.

    Raises UsageError for a host that the inventory has not.
    """
    unknown = [name for name in only if name not in {host.name for host in inventory.hosts}]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}")
    used = {name for run in known_runs(paths) for name in (run.host, *(host for host, _ in run.team))}
    hosts = [host for host in inventory.hosts
             if (host.name in only if only else "train" in host.roles or host.name in used)]
    current = _bases(paths, inventory)

    def one(host: Host) -> Pruned:
        return _prune(paths, inventory, host, current, days=days, dry_run=dry_run, now=now)

    yield from over_hosts(hosts, one, timeout=LIMIT)


def _prune(paths: Paths, inventory: Inventory, host: Host, current: set[str], *, days: float, dry_run: bool,
           now: float) -> Pruned:
    remote = connect(host, paths, inventory.ssh_config)
    try:
        seen = survey(remote, host)
        data_dir = seen.data_dir
        going = _over(paths, inventory, remote, data_dir, now - days * DAY)
        found = look(remote, data_dir)
        what = tuple(unneeded(found, going, current | current_envs(seen)))
        if what and not dry_run:
            _remove(paths, remote, data_dir, found, what, going)
            for run in known_runs(paths):
                if f"runs/{run.id}" in {one.path for one in what} and run.host == host.name:
                    record(paths, run, "remove", now, reason="swarmctl jobs prune")
        return Pruned(host.name, what)
    finally:
        remote.close()


def _remove(paths: Paths, remote: Remote, data_dir: str, found: Found, what: Sequence[Left],
            going: set[str]) -> None:
    """Remove it under the host's lock, unless somebody has begun something meanwhile."""
    lock = HostLock(remote, data_dir, paths.state)
    lock.renew(LIMIT)
    try:
        begun = set(look(remote, data_dir).named) - set(found.named)
        again = {one.run for one in jobs.states(remote, data_dir) if not one.ended} & going
        if begun or again:
            raise SwarmError(f"{', '.join(sorted(begun | again))} has begun meanwhile; nothing was removed",
                             host=remote.host, hint="run it again")
        remove(remote, data_dir, what)
    finally:
        lock.release()


def _over(paths: Paths, inventory: Inventory, remote: Remote, data_dir: str, before: float) -> set[str]:
    """Runs there that have ended, began before then (seconds since 1970), and no release that stands or round
    that is open needs. Runs that another machine started are left to it."""
    needed = _needed(paths, inventory)
    began = {run.id: datetime.fromisoformat(run.at).timestamp() for run in known_runs(paths)}
    found = set()
    for state in jobs.states(remote, data_dir):
        run = state.run.partition(".")[0]  # a deploy's job is called after its run
        if state.ended and state.state != "unknown" and run not in needed and began.get(run, before) < before:
            found.add(state.run)
    return found


def _needed(paths: Paths, inventory: Inventory) -> set[str]:
    records = read(paths)
    found = {str(one.details.get("run") or "") for one in rounds.read(paths) if not one.over}
    for model in inventory.models:
        how = standing(records, model)
        found |= {one.run for one in (how.champion, how.canary, how.previous) if one}
    return found - {""}


def _bases(paths: Paths, inventory: Inventory) -> set[str]:
    """What the next training of each model would start from."""
    found = set()
    for model in inventory.models:
        try:
            folder = base_weights(inventory, model, read(paths), paths)
            found.add(f"weights/{describe(folder).digest[:12]}")
        except SwarmError:
            continue  # nothing is trained of a model without weights
    return found
