"""The swarm as the gateway keeps it in memory: read anew when `up` wrote another snapshot, and from time to
time for what ratings and exchanges taught, so that no request pays for reading it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.swarm import Swarm, read_swarm
from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.dispatch.habits import Learned
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Standing

#: Seconds after which speeds and ratings are read anew.
REFRESH_SECONDS = 1.0
ASIDE_SECONDS = 0.1
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
        self._seen: dict[tuple[str, str], tuple[float, Standing]] = {}
        self._learned: dict[tuple[str, str], Learned] = {}
        self._stamp: Stamp = None
        self._read = 0.0

    def swarm(self) -> Swarm:
        """The swarm. After a change of the snapshot it is the new one; ratings and speeds that were learned
        since are read beside the requests. Raises SwarmError where none was brought up."""
        swarm, stamp = self._swarm, _stamp(self.paths.fleet)
        if swarm is None or stamp != self._stamp:
            with self._lock:
                return self._renew(stamp)
        if time.monotonic() - self._read >= REFRESH_SECONDS and self._lock.acquire(blocking=False):
            threading.Thread(target=self._beside, args=(stamp,), name="swarmctl-read", daemon=True).start()
        return swarm

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

    def _beside(self, stamp: Stamp) -> None:
        """Read what was learned since, with the lock that the request took for us; a moment later, not to be
        in that request's way."""
        time.sleep(ASIDE_SECONDS)
        try:
            self._renew(stamp)
        except SwarmError as exc:  # the old one serves on
            self._read = time.monotonic()
            self._tell(str(exc))
        finally:
            self._lock.release()

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
