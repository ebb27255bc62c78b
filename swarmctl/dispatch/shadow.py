"""Work that a question starts and does not wait for: another model's answer beside the one that was given,
and fitting the router anew. Each is a process that outlives this one; where it cannot be started, nothing is
lost.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from swarmctl.errors import LedgerError
from swarmctl.ledger import routers

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

#: `via` of an answer that was given beside another one; its parent is that one
SHADOW_VIA = "shadow"
#: So many at a time of one process: a gateway whose swarm is busy would pile up those that wait for a slot.
AT_ONCE = 2

_room = threading.BoundedSemaphore(AT_ONCE)


def ask_in_shadow(swarm: Swarm, exchange: str, candidate: Candidate) -> bool:
    """Have another model answer what an exchange asked; False where AT_ONCE do so already. Nobody waits for
    it; it gives way to all others."""
    room = _room.acquire(blocking=False)
    if room:
        _start(swarm.paths, "shadow", ("--inventory", swarm.fleet.inventory, "route", "shadow", exchange,
                                       "--model", candidate.model, "--host", candidate.host), _room.release)
    return room


def fit_when_due(paths: Paths) -> None:
    """Fit the router anew where enough new ratings came. Where another process is at it, nothing happens."""
    with suppress(LedgerError):  # no rating failed because of it
        if routers.due(paths):
            _start(paths, "fit", ("route", "fit", "--background"))


def _start(paths: Paths, name: str, argv: tuple[str, ...], ended: Callable[[], None] = lambda: None) -> None:
    """Start a process; `ended` is told of its end, or that it could not be started."""
    log = paths.state / "routing" / f"{name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        said = log.open("wb")
        with said:
            started = subprocess.Popen((sys.executable, "-m", "swarmctl", *argv), stdin=subprocess.DEVNULL,
                                       stdout=said, stderr=said, start_new_session=True)
    except OSError:
        ended()
        return
    threading.Thread(target=_await, args=(started, ended), daemon=True).start()


def _await(started: subprocess.Popen[bytes], ended: Callable[[], None]) -> None:
    started.wait()  # a gateway leaves no zombie
    ended()
