"""Hosts with all that is wanted and seen of them, for verbs that change what serves. Downloads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from swarmctl.fleet.converge import Supply
from swarmctl.fleet.holders import build_holders, ollama_holders
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.releases import read as read_releases
from swarmctl.fleet.releases import wanted
from swarmctl.fleet.remote import connect
from swarmctl.fleet.served import served_on
from swarmctl.fleet.snapshot import write_fleet
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.fleet.yard import Yard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from swarmctl.errors import SwarmError
    from swarmctl.facts import Facts
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import Want

SURVEY_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A host that answered."""

    host: Host
    remote: ShellRemote
    want: Want
    seen: Facts


def yard_of(paths: Paths, inventory: Path) -> Yard:
    """The inventory's hosts, each model by the release that serves it. Raises InventoryError."""
    return Yard(paths, wanted(read_inventory(inventory), read_releases(paths), paths), inventory.absolute())


def look(yard: Yard, hosts: Sequence[Host]) -> dict[str, Surveyed | SwarmError]:
    """Survey hosts at the same time; each or why not, by name."""
    wants = {host.name: yard.want(host) for host in hosts}

    def one(host: Host) -> Surveyed:
        remote = connect(host, yard.paths, yard.inventory.ssh_config)
        return Surveyed(host, remote, wants[host.name], survey(remote, host))

    return {host.name: result for host, result in over_hosts(hosts, one, timeout=SURVEY_LIMIT)}


def supply_of(yard: Yard, hosts: Iterable[Surveyed]) -> Supply:
    """What applying draws on, with these hosts to take runtimes from."""
    there = [(one.remote, one.seen) for one in hosts]
    return Supply(yard.paths, Store.of(yard.paths, yard.inventory.airgap), yard.inventory.ssh_config,
                  partial(build_holders, there), partial(ollama_holders, there))


def refresh(yard: Yard, one: Surveyed) -> None:
    """Write what a host serves now into the snapshot, where it is known there."""
    fleet = yard.fleet()
    if fleet is None:
        return
    served = tuple(served_on(one.want, survey(one.remote, one.host)))
    hosts = tuple(replace(entry, served=served) if entry.name == one.host.name else entry
                  for entry in fleet.hosts)
    write_fleet(yard.paths.fleet, replace(fleet, hosts=hosts))
