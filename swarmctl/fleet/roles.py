"""Who is champion and who is canary, in the snapshot that `ask` reads.

A promotion or a rollback turns the roles of servers that run already, which takes milliseconds; the `up` that
follows starts and stops what is left to do.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from swarmctl.errors import SwarmError
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.releases import read, standing
from swarmctl.fleet.snapshot import read_fleet, write_fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.fleet.releases import Release, Standing
    from swarmctl.fleet.snapshot import Fleet, Served
    from swarmctl.paths import Paths

LOCK_WAIT = 60.0
#: a deploy converts a whole model under the model's lock
DEPLOY_WAIT = 4 * 3600.0


class Reported(Protocol):
    """How `up` went on a host."""

    @property
    def host(self) -> str:
        """Its name."""

    @property
    def state(self) -> str:
        """`unchanged`, `changed`, `off` or `failed`."""

    @property
    def error(self) -> SwarmError | None:
        """Why it failed."""


class BringUp(Protocol):
    """The `up` verb, handed to those that change what is wanted: verbs do not import each other."""

    def __call__(self, *, only: Sequence[str] = (), previous: bool = False) -> Sequence[Reported]:
        """Make these hosts what is wanted of them now."""
        ...


@contextmanager
def alone(paths: Paths, model: str, note: Callable[[str], None]) -> Iterator[None]:
    """Be the only deploy of a model, in any terminal. Raises LockBusy."""
    lock = paths.state / f"deploy-{model.replace('/', '-')}.lock"
    with local_lock(lock, f"a deploy of {model}", wait=DEPLOY_WAIT, on_wait=note):
        yield


@contextmanager
def deciding(paths: Paths) -> Iterator[None]:
    """Be the only one, for a moment, that reads how models stand and records what follows. No deploy or `up`
    holds it while it works, so a rollback need not wait for them. Raises LockBusy."""
    with local_lock(paths.state / "releases.lock", "the releases", wait=LOCK_WAIT, on_wait=lambda _: None):
        yield


@contextmanager
def rewriting(paths: Paths) -> Iterator[None]:
    """Be the only one, for a moment, that reads the snapshot and writes it anew. Raises LockBusy."""
    with local_lock(paths.state / "fleet.lock", "the snapshot", wait=LOCK_WAIT, on_wait=lambda _: None):
        yield


def turn(paths: Paths) -> bool:
    """Give the servers of the snapshot their roles by the records; whether any changed. Raises LockBusy."""
    with rewriting(paths):
        try:
            fleet = read_fleet(paths.fleet)
        except SwarmError:
            return False
        turned = as_it_stands(fleet, read(paths)) if fleet else None
        if fleet is None or turned is None or turned == fleet:
            return False
        write_fleet(paths.fleet, turned)
        return True


def as_it_stands(fleet: Fleet, records: Sequence[Release]) -> Fleet:
    """The snapshot with everybody's role. What is neither champion nor canary is asked nothing, unless no
    host serves the champion: an older release is better than none. Pure."""
    models = {served.model for entry in fleet.hosts for served in entry.served}
    found = {model: standing(records, model) for model in models}
    there = {(served.model, served.release) for entry in fleet.hosts for served in entry.served}

    def role(served: Served) -> Served:
        how = found[served.model]
        return _role(served, how, champion_there=(served.model, champion_of(how)) in there)

    return replace(fleet, hosts=tuple(
        replace(entry, served=tuple(role(served) for served in entry.served)) for entry in fleet.hosts))


def champion_of(how: Standing) -> str:
    """The champion's release; empty where the inventory's own source is it."""
    return how.champion.release if how.champion else ""


def _role(served: Served, how: Standing, *, champion_there: bool) -> Served:
    if served.release == champion_of(how):
        return replace(served, canary=False, share=1.0)
    if how.canary and served.release == how.canary.release:
        return replace(served, canary=True, share=how.share)
    return replace(served, canary=True, share=0.0) if champion_there else served
