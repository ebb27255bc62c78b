"""`cordon`, `drain`, `uncordon`: take a host out for new questions, wait until it is idle, and take it back.

Nothing is stopped: answers that are under way end as they would. Other terminals of this machine see it at
their next question; another person's controller does not (the word is kept here, not on the host).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import RemoteError, ServerError, SwarmError, UsageError
from swarmctl.fleet.standing import Aside, read_aside, set_aside, take_back
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.fleet.snapshot import Fleet, HostEntry
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths

SLOTS_TIMEOUT = 5.0
#: Idle twice in a row, so that a question between two turns of a conversation's tools is not overlooked.
PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended: `busy` answers are still under way (0: the host is idle)."""

    host: str
    busy: int
    seconds: float


def cordon(paths: Paths, inventory: Inventory, hosts: Sequence[str], now: float) -> tuple[Aside, ...]:
    """No new questions for these hosts. Raises UsageError for one that the inventory does not have."""
    known(inventory, hosts)
    return tuple(set_aside(paths, host, "cordoned", now) for host in hosts)


def uncordon(paths: Paths, inventory: Inventory, hosts: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    """Take these hosts back; (host, whether it had been set aside). A host that left the inventory too."""
    known(inventory, [host for host in hosts if read_aside(paths, host) is None])
    return tuple((host, take_back(paths, host)) for host in hosts)


def drain(paths: Paths, inventory: Inventory, fleet: Fleet | None, host: str, *, timeout: float, now: float,
          say: Callable[[int], None]) -> Drained:
    """Cordon a host and wait until its servers are idle. `say` is told the number of answers under way as it
    changes.

    A host that serves nothing is idle. Raises RemoteError where it cannot be reached; it stays cordoned.
    """
    known(inventory, (host,))
    set_aside(paths, host, "draining", now)
    entry = next((each for each in fleet.hosts if each.name == host), None) if fleet else None
    began, last, idle = time.monotonic(), -1, 0
    while True:
        busy = _busy(paths, entry, fleet) if entry else 0
        if busy != last:
            say(busy)
        last, idle = busy, 0 if busy else idle + 1
        waited = time.monotonic() - began
        if idle == 2 or (not entry and idle) or waited >= timeout:
            break
        time.sleep(PAUSE)
    if last == 0:
        set_aside(paths, host, "cordoned", now)
    return Drained(host, last, waited)


def known(inventory: Inventory, hosts: Sequence[str]) -> None:
    """Raise UsageError for a name that the inventory does not have."""
    names = [host.name for host in inventory.hosts]
    unknown = [host for host in hosts if host not in names]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(names)}")


def _busy(paths: Paths, entry: HostEntry, fleet: Fleet | None) -> int:
    """Answers under way on a host. A server that is down has none; one that says nothing counts as one."""
    endpoints = _endpoints(paths, entry, fleet.ssh_config if fleet else None)
    return sum(_of_server(name, endpoint) for name, endpoint in endpoints)


def _of_server(name: str, endpoint: Endpoint) -> int:
    from swarmctl.runtimes.http import TunnelDown

    try:
        return runtime(name).load(endpoint, timeout=SLOTS_TIMEOUT).busy
    except TunnelDown:
        return 0
    except ServerError:
        return 1


def _endpoints(paths: Paths, entry: HostEntry, ssh_config: str | None) -> list[tuple[str, Endpoint]]:
    if entry.ssh == "local":
        return [(one.runtime, Endpoint(port=one.port, model=one.called)) for one in entry.served]
    from swarmctl.fleet.tunnels import open_tunnel

    try:
        sockets = open_tunnel(paths, host_name=entry.name, ssh=entry.ssh,
                              ports=[one.port for one in entry.served], ssh_config=ssh_config,
                              connect_timeout=entry.connect_timeout)
    except RemoteError as exc:
        raise SwarmError(f"whether it is idle cannot be seen: {exc.message}", host=entry.name,
                         hint=f"it takes no new questions any more; `swarmctl uncordon {entry.name}` "
                              "takes it back") from exc
    return [(one.runtime, Endpoint(socket=str(sockets[one.port]), model=one.called)) for one in entry.served]
