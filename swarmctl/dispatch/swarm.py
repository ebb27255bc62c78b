"""The swarm as a question sees it: the snapshot, what was learned since, and how to reach each server."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING

from swarmctl.dispatch.habits import read_habits
from swarmctl.dispatch.reach import endpoint, open_way
from swarmctl.errors import SwarmError
from swarmctl.exchange import CATEGORIES
from swarmctl.fleet.snapshot import Fleet, read_fleet
from swarmctl.ledger.routers import read_weights, shared
from swarmctl.ledger.scores import scores_by_digest
from swarmctl.routing.cost import Candidate, Tariff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from swarmctl.dispatch.habits import Learned
    from swarmctl.fleet.snapshot import HostEntry, Served
    from swarmctl.paths import Paths
    from swarmctl.routing.beliefs import Weights
    from swarmctl.routing.cost import Standing
    from swarmctl.runtimes.base import Endpoint


UNRATED: Mapping[tuple[str, str, str], tuple[float, float]] = MappingProxyType({})


@dataclass(slots=True)
class Sighting:
    """How a server was found, when, and when a question last wanted to know (monotonic seconds)."""

    standing: Standing
    at: float
    wanted: float


@dataclass(frozen=True, slots=True)
class Swarm:
    """Everything a question may be sent to. `seen` is how servers were found, by (host, server), in a process
    that stays and need not look before every question; `learned` what it has learned of them. `weights` are
    what the router learned from ratings."""

    paths: Paths
    fleet: Fleet
    candidates: tuple[Candidate, ...]
    seen: dict[tuple[str, str], Sighting] | None = None
    learned: dict[tuple[str, str], Learned] | None = None
    weights: Weights | None = None

    @property
    def tariff(self) -> Tariff:
        """What time and bad answers cost here."""
        return Tariff(self.fleet.value_of_time, self.fleet.cost_of_bad_answer)

    def host(self, name: str) -> HostEntry:
        """The snapshot's entry of a host; KeyError where there is none."""
        return next(entry for entry in self.fleet.hosts if entry.name == name)

    def endpoint(self, candidate: Candidate) -> Endpoint:
        """Where a candidate's HTTP is; the tunnel behind it may be cold."""
        called = candidate.tag or candidate.model
        return endpoint(self.paths, self.host(candidate.host), candidate.port, called)

    def open(self, candidate: Candidate) -> None:
        """Warm the tunnel to a candidate. Raises RemoteError."""
        open_way(self.paths, self.fleet, self.host(candidate.host))


def read_swarm(paths: Paths, inventory: Path, say: Callable[[str], None]) -> Swarm | None:
    """Read the snapshot for this inventory; None where there is neither inventory nor snapshot.

    `say` is told when the inventory has changed since `up`. Raises SwarmError where an inventory is there but
    was never brought up.
    """
    fleet = read_fleet(paths.fleet)
    digest = _digest(inventory)
    if fleet is None and digest is None:
        return None
    if fleet is not None and digest is None:
        what = "as it was" if fleet.inventory == str(inventory) else f"that {fleet.inventory} describes"
        say(f"{inventory} is not there; asking the swarm {what}")
    elif fleet is None or fleet.inventory != str(inventory):
        raise SwarmError(f"{inventory} has not been brought up yet", hint="swarmctl up")
    elif digest != fleet.inventory_sha256:
        say(f"{inventory} has changed since the last `swarmctl up`; asking the swarm as it was")
    return make_swarm(paths, fleet)


def make_swarm(paths: Paths, fleet: Fleet) -> Swarm:
    """Join the snapshot with what ratings and exchanges taught since."""
    return Swarm(paths, fleet, tuple(_candidates(paths, fleet)), weights=read_weights(paths))


def _candidates(paths: Paths, fleet: Fleet) -> Iterator[Candidate]:
    known = scores_by_digest(paths)
    for entry in fleet.hosts:
        for served in entry.served:
            if not served.embedding:
                yield make_candidate(paths, entry, served, known)


def make_candidate(paths: Paths, entry: HostEntry, served: Served,
                   known: Mapping[tuple[str, str, str], tuple[float, float]] = UNRATED) -> Candidate:
    """One server of the snapshot, with what exchanges and ratings (`known`, by model, category and digest)
    taught of it."""
    rated = {category: shared(known, served.model, category, served.digest) for category in CATEGORIES}
    return Candidate(
        host=entry.name, runtime=served.runtime, server=served.server, model=served.model,
        digest=served.digest,
        template=served.template, port=served.port, context=served.context, parallel=served.parallel,
        parameters=served.parameters, habits=read_habits(paths, entry.name, served),
        load_seconds=served.load_seconds, idle_watts=entry.idle_watts, load_watts=entry.load_watts,
        energy_price=entry.energy_price, prior=served.quality,
        good={category: pair[0] for category, pair in rated.items()},
        bad={category: pair[1] for category, pair in rated.items()}, tag=served.tag,
        release=served.release, share=served.share, canary=served.canary,
    )


def _digest(inventory: Path) -> str | None:
    try:
        return sha256(inventory.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SwarmError(f"{inventory} cannot be read: {exc.strerror}") from exc
