"""The hosts of an inventory and how they are reached, for the verbs that look after models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.fleet.holdings import holdings, known_models, take_stock
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.releases import read, wanted
from swarmctl.fleet.remote import connect
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.tunnels import open_tunnel
from swarmctl.runtimes.base import Endpoint, Want
from swarmctl.runtimes.ollama_names import full_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from swarmctl.errors import SwarmError
    from swarmctl.fleet.holdings import Holding, Known, Stock
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

LOOK_LIMIT = 90.0


@dataclass(frozen=True, slots=True)
class Yard:
    """The hosts and how they are reached, for one run of a verb."""

    paths: Paths
    inventory: Inventory
    source: Path
    #: the inventory with what a rollback would return to, which hosts are to keep too
    kept: Inventory | None = None

    @classmethod
    def of(cls, paths: Paths, source: Path) -> Yard:
        """The hosts of an inventory, with its models' releases. Raises InventoryError."""
        inventory, records = read_inventory(source), read(paths)
        return cls(paths, wanted(inventory, records, paths), source,
                   wanted(inventory, records, paths, previous=True))

    def fleet(self) -> Fleet | None:
        """The snapshot of this inventory."""
        found = read_fleet(self.paths.fleet)
        return found if found and found.inventory == str(self.source) else None

    def known(self) -> Known:
        """What is known of models without asking a host."""
        return known_models(self.inventory, self.source.parent, self.paths, self.fleet())

    def want(self, host: Host) -> Want:
        """What is wanted of a host, as far as it is known without asking anybody."""
        known = self.known()
        names = sorted({placement.model for placement in host.models})
        return Want(host, {name: known.files[name] for name in names if name in known.files},
                    {name: self.inventory.models[name] for name in names})

    def chosen(self, names: Sequence[str]) -> tuple[Host, ...]:
        """The hosts of those names; all where none is named. Raises UsageError."""
        there = [host.name for host in self.inventory.hosts]
        unknown = [name for name in names if name not in there]
        if unknown:
            raise UsageError(f"the inventory has no host {', '.join(unknown)}",
                             hint=f"it has {', '.join(there)}")
        return tuple(host for host in self.inventory.hosts if not names or host.name in names)

    def endpoint(self, host: Host, port: int) -> Endpoint:
        """Where a server of that host is reached from here."""
        if host.local:
            return Endpoint(port=port)
        found = open_tunnel(self.paths, host_name=host.name, ssh=host.ssh, ports=[port],
                            ssh_config=self.inventory.ssh_config, connect_timeout=host.connect_timeout)
        return Endpoint(socket=str(found[port]))

    def remote(self, name: str) -> ShellRemote | None:
        """A host by name; None where the inventory has no such host."""
        host = next((one for one in self.inventory.hosts if one.name == name), None)
        return connect(host, self.paths, self.inventory.ssh_config) if host else None

    def stock(self, host: Host) -> Stock:
        """Look at a host."""
        return take_stock(host, connect(host, self.paths, self.inventory.ssh_config), self.endpoint)

    def stocks(self, hosts: Sequence[Host]) -> Iterator[tuple[Host, Stock | SwarmError]]:
        """Look at several at once; each as it answers."""
        yield from over_hosts(hosts, self.stock, timeout=LOOK_LIMIT)

    def named(self, name: str, host: Host) -> tuple[Stock, tuple[Holding, ...]]:
        """What a host holds under a name: a model's, an Ollama tag, or the beginning of a digest. Raises
        UsageError where it holds none."""
        stock = self.stock(host)
        there = holdings(stock, self.inventory, self.known())
        found = tuple(one for one in there if answers_to(one, name))
        if not found:
            have = ", ".join(sorted({one.tag or one.model or one.digest[:12] for one in there})) or "no model"
            raise UsageError(f"{host.name} holds no {name}", hint=f"it holds {have}")
        return stock, found


def answers_to(one: Holding, name: str) -> bool:
    """Whether a person means this holding by that name."""
    if one.tag and one.tag == full_name(name):
        return True
    start = name.removeprefix("sha256-").lower()
    return name == one.model or (len(start) >= 6 and one.digest.startswith(start))
