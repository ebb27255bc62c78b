"""`swarmctl upgrade`: move runtimes to another version, one canary host first, and back where it is worse.

Of each runtime one host goes first, the one that is missed least. Only when it was kept there do the others
follow, one at a time; the first that has to go back ends it. Each host is judged against itself, moments
before (fleet.move).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from swarmctl.dispatch.under_way import await_idle
from swarmctl.errors import (
    CommandTimeout,
    ConnectionLost,
    HostUnreachable,
    SwarmError,
    UsageError,
)
from swarmctl.fleet.locks import HostLock, local_lock
from swarmctl.fleet.move import Mover
from swarmctl.fleet.surveyed import Surveyed, look, refresh, supply_of, yard_of
from swarmctl.inventory import RUNTIMES, placed_on
from swarmctl.runtimes.ollama_plan import adopted
from swarmctl.runtimes.regression import TOLERANCE
from swarmctl.runtimes.versions import TITLES, VERSION, held, held_words, in_force, wanted_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from swarmctl.facts import VersionChange
    from swarmctl.fleet.move import Moved
    from swarmctl.fleet.progress import Event, Teller
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.fleet.yard import Yard
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

LOCK_WAIT = 300.0
DRAIN_LIMIT = 300.0
AWAY = (HostUnreachable, ConnectionLost, CommandTimeout)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: to which version (None: the one each host is to have), of which runtime, who goes
    first, how many seconds answers under way may take, and how slow is too slow."""

    to: str | None = None
    runtime: str | None = None
    canary: str | None = None
    drain: float = DRAIN_LIMIT
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True)
class Report:
    """A runtime on a host. `state` is planned, unchanged, held, adopted, absent, off, failed, waiting (it was
    not tried, as another was worse), or how the move ended: kept, returned, undecided. `version` is in force
    and `to` is asked for; `canary` goes first."""

    host: str
    runtime: str
    state: str
    version: str = ""
    to: str = ""
    canary: bool = False
    note: str = ""
    moved: Moved | None = None
    error: SwarmError | None = None
    history: tuple[VersionChange, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether it did not go as asked."""
        return self.state in ("failed", "returned", "undecided")


class Watcher(Protocol):
    """Who is told how it goes."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def plan(self, plans: Sequence[Report]) -> None:
        """Who would be moved, the canary first, before anything is changed."""

    def event(self, event: Event) -> None:
        """A move's progress."""

    def done(self, report: Report) -> None:
        """A move ended."""


def upgrade(paths: Paths, inventory: Path, watcher: Watcher, wish: Wish, clock: Callable[[], float], *,
            only: Sequence[str] = (), dry_run: bool = False) -> tuple[Report, ...]:
    """Move the hosts (all, or those in `only`) to the version that is wanted, or to `wish.to`.

    Raises InventoryError, UsageError, and LockBusy. What fails on one host is in its report.
    """
    yard = yard_of(paths, inventory)
    if wish.canary is not None and not {wish.canary} <= {host.name for host in yard.chosen(only)}:
        raise UsageError(f"--canary {wish.canary} is not among the hosts", hint="name it as a HOST too")
    if wish.to is not None and not VERSION.fullmatch(wish.to):
        raise UsageError(f"--to {wish.to} is no version", hint="0.33.0 is one")
    if dry_run:
        return _planned(yard, wish, only, watcher)[0]
    with local_lock(paths.state / "up.lock", "swarmctl upgrade", wait=LOCK_WAIT, on_wait=watcher.note):
        plans, hosts = _planned(yard, wish, only, watcher)
        try:
            return tuple(_carried_out(yard, wish, plans, hosts, watcher, clock))
        finally:
            for one in hosts.values():
                one.remote.close()


def _planned(yard: Yard, wish: Wish, only: Sequence[str],
             watcher: Watcher) -> tuple[tuple[Report, ...], dict[str, Surveyed]]:
    """Who would be moved and who not, in the order of moving, and the hosts that answered."""
    found = look(yard, yard.chosen(only))
    hosts = {name: one for name, one in found.items() if isinstance(one, Surveyed)}
    runtimes = [name for name in RUNTIMES if wish.runtime in (None, name)
                and any(placed_on(one.host, name) for one in hosts.values())]
    if wish.to and len(runtimes) > 1:
        raise UsageError(f"--to {wish.to} of which runtime?", hint="say --runtime llamacpp or ollama")
    away = [_away(host, error) for host in yard.chosen(only)
            if not isinstance(error := found[host.name], Surveyed)]
    plans = [report for name in runtimes for report in _ordered(_standings(hosts, name, wish), yard, wish)]
    watcher.plan((*plans, *away))
    return (*plans, *away), hosts


def _away(host: Host, error: SwarmError) -> Report:
    if host.intermittent and isinstance(error, AWAY):
        return Report(host.name, "", "off", note=f"it is off ({error.message}): next time")
    return Report(host.name, "", "failed", error=error)


def _standings(hosts: dict[str, Surveyed], runtime: str, wish: Wish) -> list[Report]:
    """What is to be done with a runtime on each host. What was worse on one is tried on no other, unless told
    so or unless that one is not among the hosts."""
    found = [_standing(one, runtime, wish) for one in hosts.values() if placed_on(one.host, runtime)]
    if wish.to is not None:
        return found
    worse = {change.other: (one.host.name, change) for one in hosts.values()
             for change in held(runtime, one.seen).values() if change.event == "returned"}
    return [_spared(report, *worse[report.to]) if report.state == "planned" and report.to in worse else report
            for report in found]


def _spared(report: Report, other: str, change: VersionChange) -> Report:
    return replace(report, state="held", note=f"on {other} {held_words(change)}; `swarmctl upgrade "
                                              f"{report.host}` tries it here")


def _standing(one: Surveyed, runtime: str, wish: Wish) -> Report:
    """What is to be done with a runtime on a host, if anything."""
    report = Report(one.host.name, runtime, "planned",
                    history=tuple(line for line in one.seen.versions if line.runtime == runtime))
    try:
        there = adopted(one.want, one.seen) if runtime == "ollama" else None
    except SwarmError as exc:
        return replace(report, state="failed", error=exc)
    if there is not None:
        return replace(report, state="adopted", version=there.version,
                       note="it is adopted: whoever installed it upgrades it")
    runs = in_force(runtime, one.seen)
    to = wish.to or wanted_version(runtime, one.want, one.seen)
    if runs is None:
        return replace(report, state="absent", to=to, note=f"nothing is installed: `swarmctl up --host "
                                                           f"{one.host.name}` installs {to}")
    report = replace(report, version=runs, to=to)
    if runs == to:
        cut = report.history and report.history[-1].event == "begun"
        return replace(report, state="unchanged", note=f"going to {report.history[-1].other} was cut off: "
                       "`swarmctl up` undoes what is left of it" if cut else "")
    if wish.to is None and (before := held(runtime, one.seen).get(to)):
        return replace(report, state="held", note=f"{held_words(before)}; `swarmctl upgrade {one.host.name} "
                                                  f"--to {to}` tries it again")
    return report


def _ordered(reports: Sequence[Report], yard: Yard, wish: Wish) -> Iterator[Report]:
    """Those to be moved first, the canary before all; then those that need nothing."""
    fleet = yard.fleet()
    moving = sorted((one for one in reports if one.state == "planned"),
                    key=lambda one: (one.host != wish.canary, _weight(one.host, yard, fleet)))
    for place, one in enumerate(moving):
        yield replace(one, canary=place == 0)
    yield from (one for one in reports if one.state != "planned")


def _weight(host: str, yard: Yard, fleet: Fleet | None) -> tuple[int, bool, float, str]:
    """How much a host would be missed: the models that only it serves, whether it orchestrates, and the
    tokens a second it gives all conversations together."""
    entries = fleet.hosts if fleet else ()
    mine = [one for entry in entries if entry.name == host for one in entry.served]
    others = {one.model for entry in entries if entry.name != host for one in entry.served}
    alone = sum(one.model not in others for one in mine)
    return (alone, "orchestrate" in yard.inventory.host(host).roles,
            sum(one.decode_speed * one.parallel for one in mine), host)


def _carried_out(yard: Yard, wish: Wish, plans: Sequence[Report], hosts: dict[str, Surveyed],
                 watcher: Watcher, clock: Callable[[], float]) -> Iterator[Report]:
    """Make the moves, in order, until one has to go back."""
    stopped = False
    for plan in plans:
        if plan.state != "planned":
            yield plan
            continue
        if stopped:
            yield replace(plan, state="waiting")
            continue
        report = _move(yard, wish, plan, hosts, watcher, clock)
        watcher.done(report)
        yield report
        stopped = report.state in ("returned", "undecided") or (report.bad and plan.canary)


def _move(yard: Yard, wish: Wish, plan: Report, hosts: dict[str, Surveyed], watcher: Watcher,
          clock: Callable[[], float]) -> Report:
    one = hosts[plan.host]
    mover = Mover(plan.runtime, one.host, one.remote, one.seen.data_dir, one.want,
                  supply_of(yard, hosts.values()), watcher.event,
                  _idle(yard, one, wish.drain), clock,
                  HostLock(one.remote, one.seen.data_dir, yard.paths.state), wish.tolerance)
    try:
        moved = mover.upgrade(plan.to)
        refresh(yard, one)
    except SwarmError as exc:
        return replace(plan, state="failed", error=exc)
    return replace(plan, state=moved.state, version=moved.version, moved=moved, error=_error(plan, moved))


def _error(plan: Report, moved: Moved) -> SwarmError | None:
    name = TITLES[plan.runtime]
    if moved.state == "returned":
        return SwarmError(f"{name} {moved.other} is worse, and {moved.version} serves again: "
                          + "; ".join(moved.why), host=plan.host,
                          hint=f"it is not tried there again unless told: `swarmctl upgrade {plan.host} "
                               f"--to {moved.other}`")
    if moved.state == "undecided":
        return SwarmError(f"{name} {moved.other} could not be judged, and {moved.version} serves again: "
                          + "; ".join(moved.notes), host=plan.host,
                          hint="the machine had other work; run it again when it is quieter")
    return None


def _idle(yard: Yard, one: Surveyed, limit: float) -> Callable[[Teller], None]:
    """Waits for the answers under way on a host; raises where they do not end."""
    def wait(tell: Teller) -> None:
        fleet = yard.fleet()
        entry = next((entry for entry in (fleet.hosts if fleet else ()) if entry.name == one.host.name), None)
        busy, _ = await_idle(yard.paths, entry, yard.inventory.ssh_config, timeout=limit,
                             say=lambda count: tell(f"{count} answers under way" if count else "idle"))
        if busy:
            raise SwarmError(f"{busy} answers are still under way after {limit:g} s; it was not switched",
                             host=one.host.name, hint="run it again later, or give --drain more seconds")

    return wait
