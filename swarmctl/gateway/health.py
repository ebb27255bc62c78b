"""Whether the gateway could answer a question now: some candidate is reachable, and which.

Looked at as the ask path looks before it asks, for a few candidates at most, and not more often than every
FRESH_SECONDS, however often it is asked.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.marks import read_mark
from swarmctl.dispatch.probe import look
from swarmctl.errors import SwarmError
from swarmctl.fleet.standing import read_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.gateway.resident import Resident
    from swarmctl.routing.cost import Candidate

FRESH_SECONDS = 2.0
#: Candidates that are looked at; one that is usable is enough to be ready.
LOOKED_AT = 8


class Health:
    """The last look, and a new one when it is stale. Threads may share it."""

    def __init__(self, resident: Resident, clock: Callable[[], float]) -> None:
        self._resident = resident
        self._clock = clock
        self._lock = threading.Lock()
        self._at = -FRESH_SECONDS
        self._seen: dict[str, Any] = {}

    def seen(self) -> dict[str, Any]:
        """{"status": "ready" or "unready", "candidates": [{host, model, usable, why?}]}."""
        with self._lock:
            if time.monotonic() - self._at >= FRESH_SECONDS:
                self._seen = self._look()
                self._at = time.monotonic()
            return self._seen

    def _look(self) -> dict[str, Any]:
        try:
            swarm = self._resident.swarm()
        except SwarmError as exc:
            return {"status": "unready", "why": str(exc), "candidates": []}
        now = self._clock()
        front = sorted(swarm.candidates, key=lambda one: bool(_down(swarm, one, now)))[:LOOKED_AT]
        standing = look(swarm, front, now)
        rows = []
        for one in front:
            why = _down(swarm, one, now) or standing[one.host, one.server].out
            rows.append({"host": one.host, "model": one.model, "usable": not why,
                         **({"why": why} if why else {})})
        return {"status": "ready" if any(row["usable"] for row in rows) else "unready", "candidates": rows}


def _down(swarm: Swarm, candidate: Candidate, now: float) -> str:
    """Why a candidate's host is left alone, as it was written down."""
    if aside := read_aside(swarm.paths, candidate.host):
        return aside.why
    mark = read_mark(swarm.paths, candidate.host)
    return mark.why if mark and mark.until > now else ""
