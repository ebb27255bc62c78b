"""Bytes that several hosts want cross this machine's uplink once.

The first host that asks gets them from where they are; the others wait for it and get them from it, straight
over SSH: by the trust there is between the two, else by a one-time key. A host that cannot be reached so, or
whose giver breaks off, gets them from here after all, and the way says why. `between_hosts` in the inventory
bounds this: auto (both), trusted (no one-time keys), never (always from here).
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from swarmctl.errors import DiskFull, RemoteError, SwarmError
from swarmctl.fleet.blobs import forget, from_here, from_host, reaches
from swarmctl.fleet.install import transfer_time
from swarmctl.fleet.one_time_key import NoWay, OneTimeKeys, receiving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from swarmctl.fleet.blobs import Blob, Place
    from swarmctl.fleet.progress import Teller
    from swarmctl.paths import Paths

WAIT = 1.0
LOCAL = "local"  # what the inventory's `ssh` says of this very machine


class Road(NamedTuple):
    """How one host's SSH gets to another: its `ssh`, what to tell that to run, and by whose key."""

    ssh: tuple[str, ...]
    command: Callable[[tuple[str, ...]], str] = shlex.join
    by: str = ""


@dataclass(frozen=True, slots=True)
class Brought:
    """How bytes came to a host: how many were `sent`, by which `way`, whether `straight` from another host,
    and `why` not, where that was tried."""

    sent: int
    way: str
    straight: bool = False
    why: str = ""

    @property
    def moved(self) -> bool:
        """Whether any had to."""
        return self.sent > 0

    @property
    def told(self) -> str:
        """Way and reason, as a person reads it."""
        return f"{self.way} ({self.why})" if self.why else self.way


class Sharing:
    """Who has which bytes in this run, and who gets them next. Used from several threads; leaving the block
    removes every one-time key."""

    def __init__(self, paths: Paths, between: str = "auto") -> None:
        self._between = between
        self._keys = OneTimeKeys(paths)
        self._turn = threading.Condition()
        self._holders: dict[str, list[Place]] = {}
        self._coming: dict[str, str] = {}
        self._wanted: dict[str, int] = {}
        self._passing: list[Place] = []
        self._over = False

    def __enter__(self) -> Sharing:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over = True
        self._keys.__exit__(kind, exc, trace)
        for place in self._passing:
            with contextlib.suppress(SwarmError):  # what is forgotten there goes after a week
                forget(place)

    def wants(self, sha256: str) -> None:
        """One more host will ask for these bytes."""
        with self._turn:
            self._wanted[sha256] = self._wanted.get(sha256, 0) + 1

    def shared(self, sha256: str) -> bool:
        """Whether several want these bytes or somebody has them, so that they need not all go from here."""
        with self._turn:
            return self._between != "never" and (self._wanted.get(sha256, 0) > 1 or sha256 in self._holders)

    def passing(self, place: Place) -> None:
        """A file that is no longer needed once nobody takes it from there: it goes with this block."""
        with self._turn:
            self._passing.append(place)

    def holds(self, sha256: str, place: Place) -> None:
        """Somebody has these bytes. A host that is this machine gives none: it would cost the same
        uplink."""
        with self._turn:
            if place.ssh != LOCAL:
                self._holders.setdefault(sha256, []).append(place)
            self._turn.notify_all()

    def bring(self, blob: Blob, to: Place, tell: Teller, *, here: Path | None = None,
              there: Place | None = None) -> Brought:
        """Bring bytes to a host from whoever has them; they are in the file `here`, or `there` on a host.

        Raises DiskFull with the numbers, before any byte, and RemoteErrors.
        """
        why: list[str] = []
        for giver in self._givers(blob, to, tell, there):
            try:
                found = self._straight(giver, to, blob, tell)
            except NoWay as exc:
                why.append(exc.message)
                continue
            except DiskFull:
                raise
            except RemoteError as exc:
                if self._over:
                    raise  # it was us: an interrupt has taken the key away
                why.append(f"{giver.remote.host} broke off: {exc.message}")
                continue
            self.holds(blob.sha256, to)
            return found
        return self._ourselves(blob, to, tell, here, there, "; ".join(why))

    def _givers(self, blob: Blob, to: Place, tell: Teller, there: Place | None) -> Iterator[Place]:
        """Hosts that may give the bytes, one after the other; waits for one that is getting them. Ends where
        they shall come from here: it is this host's turn, or a fellow could not give them."""
        limit = time.monotonic() + transfer_time(blob.size)
        tried = {to.remote.host}
        apart = {to.remote.host, there.remote.host if there else ""}
        while to.ssh != LOCAL and self._between != "never" and not tried - apart and time.monotonic() < limit:
            with self._turn:
                giver = next((one for one in self._holders.get(blob.sha256, ())
                              if one.remote.host not in tried), None)
                if giver is None and blob.sha256 not in self._coming:
                    self._coming[blob.sha256] = to.remote.host
                    return
                if giver is None:
                    tell(f"waiting for {self._coming[blob.sha256]} to have it")
                    self._turn.wait(WAIT)
                    continue
            tried.add(giver.remote.host)
            yield giver

    def _ourselves(self, blob: Blob, to: Place, tell: Teller, here: Path | None, there: Place | None,
                   why: str) -> Brought:
        try:
            if here:
                found = Brought(blob.size * from_here(here, to, blob, tell), "from this machine", why=why)
            elif there:
                found = Brought(blob.size * from_host(there, to, blob, tell),
                                f"from {there.remote.host} through this machine", why=why)
            else:
                raise ValueError("the bytes are somewhere")
            self.holds(blob.sha256, to)
            return found
        finally:
            with self._turn:
                if self._coming.get(blob.sha256) == to.remote.host:
                    del self._coming[blob.sha256]
                self._turn.notify_all()

    def _straight(self, giver: Place, to: Place, blob: Blob, tell: Teller) -> Brought:
        with self._road(giver, to, blob) as (ssh, command, by):
            return Brought(blob.size * from_host(giver, to, blob, tell, ssh, command),
                           f"straight from {giver.remote.host}{by}", straight=True)

    @contextlib.contextmanager
    def _road(self, giver: Place, to: Place, blob: Blob) -> Iterator[Road]:
        """How the giver's SSH gets to the other, for as long as the block runs. Raises NoWay."""
        trusted = reaches(giver, to)
        if trusted:
            yield Road(trusted)
            return
        if self._between == "trusted":
            raise NoWay(f"{giver.remote.host} has no SSH access to it, and `between_hosts: trusted` "
                        "makes none")
        key, ssh = self._keys.make(giver, to, blob.size)
        try:
            yield Road(ssh, receiving, ", by a one-time key")
        finally:
            self._keys.close(key)
