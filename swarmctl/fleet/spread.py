"""One model to several hosts: each byte over this machine's uplink as seldom as can be.

How they come to each host is decided in sharing.py. What is there already, by its hash, is not sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.blobs import Place, blob_path, forget, into_ollama, passing_path
from swarmctl.fleet.install import require_space, transfer_time
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from swarmctl.fleet.blobs import Blob
    from swarmctl.fleet.folder_cargo import FolderCargo
    from swarmctl.fleet.holdings import OllamaStock, Stock
    from swarmctl.fleet.progress import Event
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

HOST_LIMIT = 24 * 3600.0
MAKE_LIMIT = 1800.0


@dataclass(frozen=True, slots=True)
class Moved:
    """How it went on a host: `state` is there (nothing had to move), moved or failed; `way` is how the bytes
    came, `why` not straight from another host, where that was tried, and `sent` how many; `name` is what the
    host calls the model now."""

    host: str
    state: str
    runtime: str = ""
    name: str = ""
    way: str = ""
    why: str = ""
    straight: bool = False
    sent: int = 0
    seconds: float = 0.0
    error: SwarmError | None = None


@dataclass(frozen=True, slots=True)
class Cargo:
    """The bytes, and where they are: a file `here`, or a place on a host. `tag` and `recipe` make the Ollama
    model. A `folder` is of several files instead: `blob` then is the whole of them, and only Ollama makes a
    model of it."""

    blob: Blob
    tag: str
    here: Path | None = None
    there: Place | None = None
    recipe: Mapping[str, Any] | None = None
    folder: FolderCargo | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One destination as it was found: where the bytes go, and the Ollama that makes a model of them, if
    any. `passing` bytes are removed once that is done. `recipe` is this host's own, over the cargo's."""

    stock: Stock
    place: Place
    ollama: OllamaStock | None
    has: bool
    passing: bool
    recipe: Mapping[str, Any] | None = None


def target(cargo: Cargo, stock: Stock, runtime: str | None, ssh_config: str | None,
           recipe: Mapping[str, Any] | None = None) -> Target:
    """Where a model goes on a host. Raises UsageError where that host has no such runtime."""
    host, data_dir, sha = stock.host, stock.seen.data_dir, cargo.blob.sha256
    blob = any(one.sha256 == sha and one.size == cargo.blob.size for one in stock.seen.blobs)
    if runtime_for(host, runtime) == "llamacpp":
        place = Place(stock.remote, blob_path(data_dir, sha), data_dir, host.ssh, ssh_config)
        return Target(stock, place, None, has=blob, passing=False)
    ollama = ollama_of(stock)
    path = blob_path(data_dir, sha) if blob else passing_path(data_dir, sha)
    there = any(tag.name == cargo.tag for tag in ollama.tags)
    return Target(stock, Place(stock.remote, path, data_dir, host.ssh, ssh_config), ollama, has=there,
                  passing=not blob, recipe=recipe)


def runtime_for(host: Host, runtime: str | None) -> str:
    """Whose model it becomes on a host: as told, else Ollama's where that is all there is."""
    return runtime or ("ollama" if host.ollama is not None and host.llamacpp is None else "llamacpp")


def ollama_of(stock: Stock) -> OllamaStock:
    """The Ollama of a host: the inventory's, else the only one that answers. Raises UsageError."""
    port = stock.host.ollama.port if stock.host.ollama else None
    found = [one for one in stock.ollamas if port in (None, one.port)]
    if not found:
        where = f" on port {port}" if port else ""
        raise UsageError(f"{stock.host.name}: no Ollama answers there{where}",
                         hint="start it, or name `ollama:` for that host in the inventory and run `up`")
    return found[0]


def spread(cargo: Cargo, targets: Sequence[Target], paths: Paths, event: Callable[[Event], None], *,
           between: str = "auto") -> dict[str, Moved | SwarmError]:
    """Bring the cargo to every target; what became of it by host. The hosts are locked meanwhile. `between`
    is the inventory's `between_hosts`."""
    done: dict[str, Moved | SwarmError] = {
        one.stock.host.name: Moved(one.stock.host.name, "there", _runtime(one), _name(cargo, one))
        for one in targets if one.has}
    waiting = [one for one in targets if not one.has]
    try:
        with Sharing(paths, between) as sharing:
            for place in (cargo.there, *(one.place for one in targets if one.has and one.ollama is None)):
                if place:
                    sharing.holds(cargo.blob.sha256, place)
            done |= _all(waiting, lambda one: _land(cargo, one, sharing, paths.state, event))
        arrived = [one for one in waiting
                   if one.ollama and not isinstance(done[one.stock.host.name], SwarmError)]
        done |= _all(arrived, lambda one: _make(cargo, one, done[one.stock.host.name], event))
    finally:
        for one in targets:
            _leave(cargo, one, done.get(one.stock.host.name), paths.state)
    return done


def reports(hosts: Sequence[Host], done: Mapping[str, Moved | SwarmError]) -> tuple[Moved, ...]:
    """One report a host, in that order."""
    return tuple(Moved(host.name, "failed", error=found) if isinstance(found := done[host.name], SwarmError)
                 else found for host in hosts)


def _all(targets: Sequence[Target],
         work: Callable[[Target], Moved]) -> dict[str, Moved | SwarmError]:
    return {one.stock.host.name: found for one, found in over_hosts(targets, work, timeout=HOST_LIMIT)}


def _land(cargo: Cargo, to: Target, sharing: Sharing, state: Path,
          event: Callable[[Event], None]) -> Moved:
    """Bring the bytes to a host, under its lock. Nothing is sent where there is too little room."""
    began, host, blob = time.monotonic(), to.stock.host.name, cargo.blob
    tell = Teller(host, 1, 2 if to.ollama else 1, f"copy {blob.name}", event)
    tell("", state="begun")
    try:
        _lock(to, state).renew(2 * transfer_time(blob.size) + MAKE_LIMIT)
        if to.ollama:
            require_space(to.place.remote, to.place.data_dir, blob.size * (3 if to.passing else 2),
                          f"model {blob.name}, which Ollama copies and rewrites,")
        came = cargo.folder.bring(to.place, to.ollama, sharing, tell) if cargo.folder and to.ollama else \
            sharing.bring(blob, to.place, tell, here=cargo.here, there=cargo.there)
    except SwarmError as exc:
        tell(exc.message, state="failed")
        raise
    tell(came.told, 1.0, state="done")
    return Moved(host, "moved" if came.moved or to.ollama else "there", _runtime(to), _name(cargo, to),
                 came.way, came.why, came.straight, came.sent, time.monotonic() - began)


def _make(cargo: Cargo, at: Target, landed: Moved | SwarmError, event: Callable[[Event], None]) -> Moved:
    """Have Ollama make the model of the bytes that have landed."""
    if isinstance(landed, SwarmError) or at.ollama is None:
        raise TypeError("only what has landed is made into a model")
    began, tell = time.monotonic(), Teller(at.stock.host.name, 2, 2, f"create {cargo.tag}", event)
    tell("", state="begun")
    try:
        recipe = at.recipe or cargo.recipe
        if cargo.folder:
            cargo.folder.make(at.place, at.ollama, cargo.tag, recipe, tell)
        else:
            into_ollama(at.place, at.ollama.port, at.ollama.endpoint, cargo.blob, cargo.tag, recipe=recipe,
                        tell=tell)
    except SwarmError as exc:
        tell(exc.message, state="failed")
        raise
    tell("", 1.0, state="done")
    return replace(landed, seconds=landed.seconds + time.monotonic() - began)


def _leave(cargo: Cargo, one: Target, found: Moved | SwarmError | None, state: Path) -> None:
    """Give the host back; bytes on their way into Ollama stay only where a next run would resume them."""
    if one.has or found is None:
        return
    try:
        if one.passing and one.ollama and not isinstance(found, SwarmError):
            for place in cargo.folder.places(one.place) if cargo.folder else (one.place,):
                forget(place)
        _lock(one, state).release()
    except SwarmError:
        return  # a host that is gone by now lets its lease expire


def _lock(one: Target, state: Path) -> HostLock:
    return HostLock(one.stock.remote, one.stock.seen.data_dir, state)


def _runtime(one: Target) -> str:
    return "ollama" if one.ollama else "llamacpp"


def _name(cargo: Cargo, one: Target) -> str:
    return cargo.tag if one.ollama else f"blob {cargo.blob.sha256[:12]}"
