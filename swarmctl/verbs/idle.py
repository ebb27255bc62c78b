"""`idle` and `sleep`: put machines to sleep that nobody uses, and never one that somebody does.

There is no daemon: each call looks once. A host is idle when it has answered nothing of ours for
`idle_minutes`, was not just woken, booted or changed, and is itself at rest (fleet.rest). It is drained, sent
to sleep by its own command, and remembered as asleep, so that no question waits for it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from swarmctl.dispatch.habits import last_used
from swarmctl.dispatch.marks import mark_down
from swarmctl.dispatch.under_way import await_idle
from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.asleep import awake_since, fell_asleep, read_asleep, seen_awake
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.rest import GONE, Use, against, ask_use, send_to_sleep
from swarmctl.fleet.standing import read_aside, set_aside, take_back
from swarmctl.fleet.tunnels import close_tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import Fleet, HostEntry
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

#: Answers under way end, or the host stays awake until the next look.
DRAIN_LIMIT = 60.0
SLEEP_LIMIT = 30.0
HOST_LIMIT = 180.0
ALLOW = ("a polkit rule for org.freedesktop.login1.suspend, a NOPASSWD line for `systemctl suspend` in "
         "sudoers, or `sleep_command` in the inventory")
#: Seconds for which a person must have typed nothing, where the host has no `idle_minutes`.
QUIET = 600.0
#: A load average of half a processor is somebody's work; less is a desktop at rest.
MOST_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Rested:
    """What came of a host: `state` is asleep (it was), off, waiting (not idle for long enough), in use, idle
    (a dry run: it would sleep), slept, or failed. `minutes` since it was last used, as far as is known
    here."""

    host: str
    state: str
    detail: str = ""
    minutes: float | None = None


@dataclass(frozen=True, slots=True)
class _Bed:
    """What putting one host to sleep needs."""

    paths: Paths
    host: Host
    entry: HostEntry | None
    fleet: Fleet | None
    remote: Remote
    now: float
    most_load: float


def idle(paths: Paths, inventory: Inventory, fleet: Fleet | None, connect: Callable[[Host], Remote], *,
         only: Sequence[str] = (), now: float, dry_run: bool = False,
         most_load: float = MOST_LOAD) -> tuple[Rested, ...]:
    """Look at every host that has a `when_idle` and put those to sleep that nobody uses; what came of each.

    Raises UsageError where no host has one.
    """
    hosts = _chosen(inventory, only)
    beds = [_bed(paths, host, fleet, connect, now, most_load) for host in hosts]
    found = {}
    for bed, result in over_hosts(beds, lambda bed: _round(bed, dry_run=dry_run), timeout=HOST_LIMIT):
        found[bed.host.name] = (Rested(bed.host.name, "failed", _said(result))
                                if isinstance(result, SwarmError) else result)
    return tuple(found[host.name] for host in hosts)


def sleep(paths: Paths, inventory: Inventory, fleet: Fleet | None, connect: Callable[[Host], Remote],
          name: str, *, now: float, force: bool = False, most_load: float = MOST_LOAD) -> Rested:
    """Put one host to sleep now, however long it has been idle; with `force` also one that somebody uses (but
    answers under way end first). Raises SwarmError where it is in use or does not go, RemoteErrors."""
    try:
        host = inventory.host(name)
    except KeyError as exc:
        names = ", ".join(one.name for one in inventory.hosts)
        raise UsageError(f"the inventory has no host {name}", hint=f"it has {names}") from exc
    if host.local:
        raise UsageError("it is this very machine", host=name, hint="put it to sleep by its own means")
    bed = _bed(paths, host, fleet, connect, now, most_load)
    try:
        use = _asked(bed)
        why = [] if force else list(against(use, quiet=_quiet(host), most_load=most_load))
        if why:
            raise SwarmError(f"somebody uses it: {'; '.join(why)}", host=name,
                             hint=f"swarmctl sleep {name} --force")
        return _put_to_bed(bed, use)
    finally:
        bed.remote.close()


def last_use(paths: Paths, entry: HostEntry | None, fleet: Fleet | None, host: str) -> float:
    """When a host was last of use as this machine knows: it answered, came back from sleep, or was changed by
    `up`."""
    served = entry.served if entry else ()
    answered = [moment for one in served if (moment := last_used(paths, host, one.server))]
    made = datetime.fromisoformat(fleet.written).timestamp() if fleet and entry else 0.0
    return max(awake_since(paths, host), made, *answered, 0.0)


def _chosen(inventory: Inventory, only: Sequence[str]) -> tuple[Host, ...]:
    names = [host.name for host in inventory.hosts]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(names)}")
    hosts = tuple(host for host in inventory.hosts
                  if host.when_idle != "nothing" and (not only or host.name in only))
    if not hosts:
        raise UsageError("no host may go to sleep by itself",
                         hint="hosts.NAME: {intermittent: true, idle_minutes: 30, when_idle: suspend}")
    return hosts


def _bed(paths: Paths, host: Host, fleet: Fleet | None, connect: Callable[[Host], Remote], now: float,
         most_load: float) -> _Bed:
    entry = next((one for one in fleet.hosts if one.name == host.name), None) if fleet else None
    return _Bed(paths, host, entry, fleet, connect(host), now, most_load)


def _round(bed: _Bed, *, dry_run: bool) -> Rested:
    name, quiet = bed.host.name, _quiet(bed.host)
    used = last_use(bed.paths, bed.entry, bed.fleet, name)
    if bed.now - used < quiet:
        return _rested(bed, "waiting", used, f"of {quiet / 60:g} minutes")
    slept = read_asleep(bed.paths, name)
    try:
        use = _asked(bed)
        if slept and seen_awake(bed.paths, name, bed.now):
            return _rested(bed, "waiting", bed.now, "it is back from sleep")
        used = max(used, bed.now - use.uptime if use.uptime else 0.0)
        if bed.now - used < quiet:
            return _rested(bed, "waiting", used, f"of {quiet / 60:g} minutes; it has just started")
        why = list(against(use, quiet=quiet, most_load=bed.most_load))
        if why:
            return _rested(bed, "in use", used, "; ".join(why))
        if dry_run:
            return _rested(bed, "idle", used, f"would run: {shlex.join(_command(bed, use))}")
        return _put_to_bed(bed, use)
    except GONE as exc:
        return Rested(name, "asleep" if slept else "off", slept.why if slept else exc.message)
    finally:
        bed.remote.close()


def _rested(bed: _Bed, state: str, used: float, detail: str) -> Rested:
    return Rested(bed.host.name, state, detail, (bed.now - used) / 60)


def _asked(bed: _Bed) -> Use:
    folder = bed.entry.data_dir if bed.entry else bed.host.data_dir
    action = "suspend" if bed.host.when_idle == "nothing" else bed.host.when_idle
    return ask_use(bed.remote, folder, action)


def _quiet(host: Host) -> float:
    """Seconds without use after which it counts as idle."""
    return QUIET if host.idle_minutes is None else host.idle_minutes * 60


def _command(bed: _Bed, use: Use) -> tuple[str, ...]:
    """What sends it to sleep. Raises SwarmError where its user may not."""
    command = bed.host.sleep_command or use.way
    if not command:
        raise SwarmError(f"it cannot be sent to sleep: {use.no_way or 'no command is known'}",
                         host=bed.host.name, hint=ALLOW)
    return command


def _put_to_bed(bed: _Bed, use: Use) -> Rested:
    """Drain, send to sleep, remember. Whatever fails, the host takes questions again."""
    command, name = _command(bed, use), bed.host.name
    aside = read_aside(bed.paths, name)
    if aside and aside.state != "cordoned":
        return _rested(bed, "in use", bed.now, f"it is {aside.state}")
    if not aside:
        set_aside(bed.paths, name, "draining", bed.now)
    try:
        config = bed.fleet.ssh_config if bed.fleet else None
        busy, _ = await_idle(bed.paths, bed.entry, config, timeout=DRAIN_LIMIT, say=lambda _: None)
        if busy:
            return _rested(bed, "in use", bed.now, f"{busy} answers under way after {DRAIN_LIMIT:.0f} s")
        close_tunnel(bed.paths, name)
        seconds = send_to_sleep(bed.remote, command, f"{use.data_dir}/sleep.log", limit=SLEEP_LIMIT)
        asleep = fell_asleep(bed.paths, name, shlex.join(command), bed.now)
        mark_down(bed.paths, name, asleep.why, bed.now, verify=True)
    finally:
        if not aside:
            take_back(bed.paths, name)
    return Rested(name, "slept", f"silent {seconds:.0f} s after `{shlex.join(command)}`")


def _said(why: SwarmError) -> str:
    return f"{why.message}; {why.hint}" if why.hint else why.message
