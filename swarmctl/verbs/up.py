"""`swarmctl up`: every host becomes what the inventory says. Survey, plan, show, apply, write down what is
served.

The plan is pure and is shown before anything changes. Hosts are worked on at the same time and fail apart:
one that is off keeps its last known entry in the snapshot and is reported.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from swarmctl.dispatch.verify import gpus_working
from swarmctl.errors import CommandTimeout, ConnectionLost, HostUnreachable, SwarmError, UsageError
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.releases import read as read_releases
from swarmctl.fleet.releases import wanted
from swarmctl.fleet.remote import connect
from swarmctl.fleet.roles import as_it_stands, rewriting
from swarmctl.fleet.served import served_on
from swarmctl.fleet.snapshot import Fleet, HostEntry, read_fleet, write_fleet
from swarmctl.fleet.store import resolve_model
from swarmctl.fleet.survey import survey
from swarmctl.fleet.warm import warm
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Want
from swarmctl.runtimes.plans import host_notes, plan_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.converge import Supply
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.sharing import Sharing
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import ModelFile
    from swarmctl.steps import Step

LOCK_WAIT = 300.0
SURVEY_LIMIT = 60.0
#: building llama.cpp on a small machine takes hours, pushing large weights too
HOST_LIMIT = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What would be done on a host. `notes` say what needs no step: what is adopted as it is."""

    host: Host
    remote: ShellRemote
    want: Want
    seen: Facts
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostReport:
    """How it went on a host: planned (dry run), unchanged, changed, off (intermittent) or failed."""

    host: str
    state: str
    steps: tuple[Step, ...] = ()
    error: SwarmError | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Watcher(Protocol):
    """Who is told while `up` works. Called from several threads."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def plan(self, plans: Sequence[HostReport]) -> None:
        """The whole plan, before anything is changed."""

    def event(self, event: Event) -> None:
        """A step's progress."""


def up(paths: Paths, inventory_path: Path, watcher: Watcher, *, only: Sequence[str] = (),
       dry_run: bool = False, previous: bool = False) -> tuple[HostReport, ...]:
    """Make the hosts (all, or those named in `only`) what the inventory says; a report for each, in its
    order. A trained release serves in its model's place, and a canary beside it; with `previous` what a
    rollback would return to is served too.

    Raises InventoryError, UsageError for an unknown host, LockBusy where another `up` of this machine does
    not end, and SwarmError where a model's file cannot be had. What fails on one host is in its report.
    """
    inventory = wanted(read_inventory(inventory_path), read_releases(paths), paths, previous=previous)
    hosts = chosen(inventory, only)
    if dry_run:
        models = _models(inventory, hosts, inventory_path, paths, watcher)
        _, reports = _survey(inventory, hosts, models, paths, keep=False)
        watcher.plan(reports)
        return reports
    with local_lock(paths.state / "up.lock", "swarmctl up", wait=LOCK_WAIT, on_wait=watcher.note):
        inventory = wanted(read_inventory(inventory_path), read_releases(paths), paths, previous=previous)
        hosts = chosen(inventory, only)
        models = _models(inventory, hosts, inventory_path, paths, watcher)
        plans, reports = _survey(inventory, hosts, models, paths)
        watcher.plan(reports)
        done, entries = _apply(inventory, plans, paths, watcher)
        with rewriting(paths):
            old = _known(inventory_path, paths)
            fleet = _fleet(inventory, inventory_path, entries, old)
            write_fleet(paths.fleet, as_it_stands(fleet, read_releases(paths)))
    for name in sorted(old.keys() - {host.name for host in inventory.hosts}):
        watcher.note(f"{name} has left the inventory and goes on serving: "
                     f"put it back, `swarmctl down --host {name}`, then take it out")
    for plan in plans:
        plan.remote.close()
    return tuple(done.get(report.host, report) for report in reports)


def chosen(inventory: Inventory, only: Sequence[str]) -> tuple[Host, ...]:
    """The hosts of those names, in the inventory's order; all where none is named."""
    known = [host.name for host in inventory.hosts]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(known)}")
    return tuple(host for host in inventory.hosts if not only or host.name in only)


def _models(inventory: Inventory, hosts: Sequence[Host], path: Path, paths: Paths,
            watcher: Watcher) -> dict[str, ModelFile]:
    wanted = sorted({placement.model for host in hosts for placement in host.models
                     if inventory.models[placement.model].pulled is None})
    folder = path.absolute().parent
    return {name: resolve_model(inventory.models[name], folder, paths, airgap=inventory.airgap,
                                note=partial(_model_note, watcher, name))
            for name in wanted}


def _model_note(watcher: Watcher, name: str, text: str) -> None:
    watcher.note(f"model {name}: {text}")


def _survey(inventory: Inventory, hosts: Sequence[Host], models: dict[str, ModelFile],
            paths: Paths, *, keep: bool = True) -> tuple[tuple[HostPlan, ...], tuple[HostReport, ...]]:
    """Plans of the hosts that can be reached and made what is wanted, and a report for every host. With
    `keep` the connections of hosts that have steps stay open."""
    def look(host: Host) -> HostPlan:
        remote = connect(host, paths, inventory.ssh_config)
        names = sorted({placement.model for placement in host.models})
        want = Want(host, {name: models[name] for name in names if name in models},
                    {name: inventory.models[name] for name in names})
        with contextlib.ExitStack() as leaving:  # hundreds of connections that nobody needs are a burden
            leaving.callback(remote.close)
            seen = survey(warm(remote, host, paths, inventory.ssh_config, once=True), host)
            plan = HostPlan(host, remote, want, seen, plan_host(want, seen), host_notes(want, seen))
            if keep and plan.steps:
                leaving.pop_all()
        return plan

    found = {host.name: result for host, result in over_hosts(hosts, look, timeout=SURVEY_LIMIT)}
    plans = tuple(result for host in hosts if isinstance(result := found[host.name], HostPlan))
    reports = tuple(_planned(host, found[host.name]) for host in hosts)
    return plans, reports


def _planned(host: Host, result: HostPlan | SwarmError) -> HostReport:
    if isinstance(result, SwarmError):
        if host.intermittent and isinstance(result, HostUnreachable | ConnectionLost | CommandTimeout):
            return HostReport(host.name, "off", notes=(f"it is off ({result.message}): next time",))
        return HostReport(host.name, "failed", error=result)
    return HostReport(host.name, "planned" if result.steps else "unchanged", result.steps, notes=result.notes)


def _apply(inventory: Inventory, plans: Sequence[HostPlan], paths: Paths,
           watcher: Watcher) -> tuple[dict[str, HostReport], dict[str, HostEntry]]:
    """Apply every plan; reports and snapshot entries by host."""
    _sweep(inventory, plans, paths)
    reports = {plan.host.name: HostReport(plan.host.name, "unchanged", notes=plan.notes) for plan in plans}
    entries = {plan.host.name: _entry(plan) for plan in plans if not plan.steps}
    if changing := [plan for plan in plans if plan.steps]:
        with _supply(inventory, plans, paths) as supply:
            for plan, result in over_hosts(changing, lambda plan: _make_true(plan, supply, watcher),
                                           timeout=HOST_LIMIT):
                if isinstance(result, SwarmError):
                    reports[plan.host.name] = HostReport(plan.host.name, "failed", plan.steps, result)
                else:
                    reports[plan.host.name], entries[plan.host.name] = result
    return reports, entries


def _sweep(inventory: Inventory, plans: Sequence[HostPlan], paths: Paths) -> None:
    """Remove from hosts what a killed run left of one-time keys."""
    if not (paths.state / "one-time").is_dir():
        return
    from swarmctl.fleet.one_time_key import sweep

    remotes = {plan.host.name: plan.remote for plan in plans}
    sweep(paths, remotes.get, {host.name for host in inventory.hosts})


@contextlib.contextmanager
def _supply(inventory: Inventory, plans: Sequence[HostPlan], paths: Paths) -> Iterator[Supply]:
    """What applying draws on. Imported here: most runs find nothing to do, and need none of it."""
    from swarmctl.fleet.converge import Supply
    from swarmctl.fleet.holders import build_holders, ollama_holders
    from swarmctl.fleet.store import Store

    there = [(plan.remote, plan.seen) for plan in plans]
    with _sharing(inventory, plans, paths) as sharing:
        yield Supply(paths, Store.of(paths, inventory.airgap), inventory.ssh_config,
                     partial(build_holders, there), partial(ollama_holders, there), sharing)


def _sharing(inventory: Inventory, plans: Sequence[HostPlan], paths: Paths) -> Sharing:
    """Who has which weights already."""
    from swarmctl.fleet.blobs import Place, blob_path
    from swarmctl.fleet.sharing import Sharing

    sharing = Sharing(paths, inventory.between_hosts)
    for plan in plans:
        for blob in plan.seen.blobs:
            sharing.holds(blob.sha256, Place(plan.remote, blob_path(plan.seen.data_dir, blob.sha256),
                                             plan.seen.data_dir, plan.host.ssh, inventory.ssh_config))
    return sharing


def _make_true(plan: HostPlan, supply: Supply, watcher: Watcher) -> tuple[HostReport, HostEntry]:
    """Apply one host's plan, and look again: what is then still to do is a failure, not a success."""
    from swarmctl.fleet.converge import converge

    began = time.monotonic()
    converge(plan.remote, plan.want, plan.seen, plan.steps, supply, watcher.event)
    seen = survey(plan.remote, plan.host)
    after = replace(plan, seen=seen, steps=plan_host(plan.want, seen))
    if after.steps:
        left = "; ".join(f"{step.title}: {step.reason}" for step in after.steps)
        raise SwarmError(f"after applying the plan this is still to do: {left}", host=plan.host.name,
                         hint="run `up` again; if it stays, `swarmctl logs` may say why")
    report = HostReport(plan.host.name, "changed", plan.steps, seconds=time.monotonic() - began,
                        notes=plan.notes)
    return report, _entry(after)


def _entry(plan: HostPlan) -> HostEntry:
    """The host as `ask` will know it."""
    host, energy = plan.host, plan.host.energy
    idle, load = estimated_watts(plan.seen)
    return HostEntry(
        name=host.name, ssh=host.ssh, data_dir=plan.seen.data_dir, connect_timeout=host.connect_timeout,
        idle_watts=idle if energy.idle_watts is None else energy.idle_watts,
        load_watts=load if energy.load_watts is None else energy.load_watts,
        energy_price=energy.price, currency=energy.currency, roles=host.roles,
        served=tuple(served_on(plan.want, plan.seen)), intermittent=host.intermittent,
        gpus=gpus_working(plan.seen), wake_on_demand=host.wake_on_demand)


def estimated_watts(seen: Facts) -> tuple[float, float]:
    """Idle and loaded watts of a host whose owner has not said: a rule of thumb, good enough to rank hosts.

    10 W and 1.5 W a core at idle, 8 W a core under load; a discrete GPU adds 15 W idle and 180 W loaded.
    """
    discrete = sum(gpu.vendor in ("nvidia", "amd") for gpu in seen.gpus)
    idle = 10.0 + 1.5 * seen.cpu.cores + 15.0 * discrete
    return idle, idle + 6.5 * seen.cpu.cores + 165.0 * discrete


def _known(path: Path, paths: Paths) -> dict[str, HostEntry]:
    """The entries of the last snapshot of this inventory, by host."""
    try:
        old = read_fleet(paths.fleet)
    except SwarmError:
        return {}
    return {entry.name: entry for entry in old.hosts} if old and old.inventory == str(path.absolute()) else {}


def _fleet(inventory: Inventory, path: Path, entries: dict[str, HostEntry],
           old: dict[str, HostEntry]) -> Fleet:
    """The new snapshot: fresh entries, and the last known one of a host that failed or was left out."""
    merged = {**old, **entries}
    return Fleet(
        inventory=str(path.absolute()), inventory_sha256=sha256(path.read_bytes()).hexdigest(),
        written=datetime.now(UTC).isoformat(timespec="seconds"), ssh_config=inventory.ssh_config,
        value_of_time=inventory.value_of_time, cost_of_bad_answer=inventory.cost_of_bad_answer,
        routing=Policy(**asdict(inventory.routing)),
        hosts=tuple(merged[host.name] for host in inventory.hosts if host.name in merged))
