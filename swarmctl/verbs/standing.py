"""`cordon`, `drain`, `uncordon`: take a host out for new questions, wait until it is idle, and take it back.

Nothing is stopped: answers that are under way end as they would. Other terminals of this machine see it at
their next question; another person's controller does not (the word is kept here, not on the host).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.dispatch.under_way import await_idle
from swarmctl.errors import UsageError
from swarmctl.fleet.standing import Aside, read_aside, set_aside, take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths


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
    busy, waited = await_idle(paths, entry, fleet.ssh_config if fleet else None, timeout=timeout, say=say)
    if busy == 0:
        set_aside(paths, host, "cordoned", now)
    return Drained(host, busy, waited)


def known(inventory: Inventory, hosts: Sequence[str]) -> None:
    """Raise UsageError for a name that the inventory does not have."""
    names = [host.name for host in inventory.hosts]
    unknown = [host for host in hosts if host not in names]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(names)}")
