"""`swarmctl down`: stop what swarmctl started on the hosts, and nothing else. Weights and builds stay."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.converge import Supply, converge
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.remote import connect
from swarmctl.fleet.snapshot import read_fleet, write_fleet
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.fleet.tunnels import close_tunnel
from swarmctl.runtimes.base import Want
from swarmctl.runtimes.llamacpp_plan import plan_removal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Event
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

LOCK_WAIT = 300.0
HOST_LIMIT = 600.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """What was stopped on a host; `error` where not all of it could be, `left` what goes on and is not
    ours."""

    host: str
    servers: tuple[str, ...] = ()
    error: SwarmError | None = None
    seconds: float = 0.0
    left: str = ""


def down(paths: Paths, inventory_path: Path, *, only: Sequence[str] = (), note: Callable[[str], None],
         event: Callable[[Event], None]) -> tuple[Stopped, ...]:
    """Stop every server under the data folders of the hosts (all, or those named), and close their tunnels.

    Raises InventoryError, UsageError for an unknown host, and LockBusy. What fails on one host is in its
    report.
    """
    inventory = read_inventory(inventory_path)
    known = [host.name for host in inventory.hosts]
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(known)}")
    hosts = [host for host in inventory.hosts if not only or host.name in only]
    supply = Supply(paths, Store.of(paths), inventory.ssh_config)
    with local_lock(paths.state / "up.lock", "swarmctl down", wait=LOCK_WAIT, on_wait=note):
        found: dict[str, Stopped] = {}
        for host, result in over_hosts(hosts, lambda host: _stop(host, supply, event), timeout=HOST_LIMIT):
            close_tunnel(paths, host.name)
            found[host.name] = Stopped(host.name, error=result) if isinstance(result, SwarmError) else result
        _forget(paths, {name for name, stopped in found.items() if stopped.error is None})
    return tuple(found[host.name] for host in hosts)


def _stop(host: Host, supply: Supply, event: Callable[[Event], None]) -> Stopped:
    began = time.monotonic()
    remote = connect(host, supply.paths, supply.ssh_config)
    try:
        seen = survey(remote, host)
        plan = plan_removal(seen)
        converge(remote, Want(host), seen, plan, supply, event)
    finally:
        remote.close()
    return Stopped(host.name, tuple(server.name for server in seen.servers),
                   seconds=time.monotonic() - began, left=_left(host, seen))


def _left(host: Host, seen: Facts) -> str:
    """An Ollama of somebody's, which goes on with all its models."""
    port = host.ollama.port if host.ollama else None
    there = next((one for one in seen.ollamas if one.port == port and one.mode != "own"), None)
    if there is None:
        return ""
    return f"the Ollama on 127.0.0.1:{there.port} is not swarmctl's and goes on, with the models it has"


def _forget(paths: Paths, stopped: set[str]) -> None:
    """Nothing is served there any more: `ask` must not try."""
    try:
        fleet = read_fleet(paths.fleet)
    except SwarmError:
        return
    if fleet is None:
        return
    kept = tuple(host for host in fleet.hosts if host.name not in stopped)
    if kept:
        write_fleet(paths.fleet, replace(fleet, hosts=kept))
    else:
        paths.fleet.unlink(missing_ok=True)
