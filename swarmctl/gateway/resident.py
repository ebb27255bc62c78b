"""The swarm as the gateway keeps it in memory: read anew when `up` wrote another snapshot, and from time to
time for what ratings and exchanges taught. While requests come, a thread does that beside them, and looks
again at the servers that they want, so that no request pays for it: one that had to look itself waited
1.2 ms longer for its first token (measured on loopback; further away it is two round trips).
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.probe import ageing, renew
from swarmctl.dispatch.swarm import Swarm, read_swarm
from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.dispatch.habits import Learned
    from swarmctl.dispatch.swarm import Sighting
    from swarmctl.paths import Paths

#: Seconds after which speeds and ratings are read anew.
REFRESH_SECONDS = 1.0
#: How often it is looked what has aged, and for how long after the last request.
KEEP_SECONDS, ATTENDED_SECONDS = 0.2, 10.0
#: What a bad answer costs to who asks for auto:fast or auto:best, as multiples of the inventory's.
LEANINGS = {"auto": 1.0, "auto:fast": 0.0, "auto:best": 20.0}

Stamp = tuple[int, int, int] | None


class Resident:
    """Reads the swarm once, and again when it changed. Threads may share it."""

    def __init__(self, paths: Paths, inventory: Path, say: Callable[[str], None]) -> None:
        self.paths = paths
        self._inventory = inventory
        self._say = say
        self._said = ""
        self._lock = threading.Lock()
        self._swarm: Swarm | None = None
        self._seen: dict[tuple[str, str], Sighting] = {}
        self._learned: dict[tuple[str, str], Learned] = {}
        self._stamp: Stamp = None
        self._read = 0.0
        self._asked = 0.0
        self._keeping = threading.Lock()

    def swarm(self) -> Swarm:
        """The swarm. After a change of the snapshot it is the new one; ratings and speeds that were learned
        since are read beside the requests. Raises SwarmError where none was brought up."""
        swarm, stamp = self._swarm, _stamp(self.paths.fleet)
        self._asked = time.monotonic()
        if self._keeping.acquire(blocking=False):
            threading.Thread(target=self._keep, name="swarmctl-keep", daemon=True).start()
        if swarm is None or stamp != self._stamp:
            with self._lock:
                return self._renewed(stamp)
        return swarm

    def _renewed(self, stamp: Stamp) -> Swarm:
        """The new swarm; the old one, said once, where a snapshot is there that cannot be read."""
        try:
            return self._renew(stamp)
        except SwarmError as exc:
            if self._swarm is None or stamp is None:
                raise
            self._tell(f"{exc}\n  the gateway serves on as it was before")
            self._stamp = stamp
            return self._swarm

    def leaning(self, model: str) -> Swarm:
        """The swarm for a model's name: `auto:fast` does not mind a bad answer, `auto:best` minds it much."""
        swarm = self.swarm()
        weight = LEANINGS.get(model, 1.0)
        if weight == 1.0:
            return swarm
        fleet = replace(swarm.fleet, cost_of_bad_answer=swarm.fleet.cost_of_bad_answer * weight)
        return replace(swarm, fleet=fleet)

    def _renew(self, stamp: Stamp) -> Swarm:
        """Read it, unless another thread just did."""
        if self._swarm is None or stamp != self._stamp or time.monotonic() - self._read >= REFRESH_SECONDS:
            self._swarm, self._stamp, self._read = self._fresh(), stamp, time.monotonic()
        return self._swarm

    def _keep(self) -> None:
        """Keep everything young as long as requests come."""
        try:
            while time.monotonic() - self._asked < ATTENDED_SECONDS:
                time.sleep(KEEP_SECONDS)
                if time.monotonic() - self._read >= REFRESH_SECONDS:
                    self._beside()
                if (swarm := self._swarm) is not None:
                    for candidate in ageing(swarm, time.monotonic()):
                        renew(swarm, candidate)
        finally:
            self._keeping.release()

    def _beside(self) -> None:
        """Read what was learned since."""
        try:
            with self._lock:
                self._renew(_stamp(self.paths.fleet))
        except SwarmError as exc:  # the old one serves on
            self._read = time.monotonic()
            self._tell(str(exc))

    def _fresh(self) -> Swarm:
        swarm = read_swarm(self.paths, self._inventory, self._tell)
        if swarm is None:
            raise SwarmError("no swarm has been brought up yet", hint="swarmctl init, then swarmctl up")
        return replace(swarm, seen=self._seen, learned=self._learned)

    def _tell(self, line: str) -> None:
        """Say a thing once, not once a second."""
        if line != self._said:
            self._said = line
            self._say(line)


def _stamp(path: Path) -> Stamp:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size, seen.st_ino
