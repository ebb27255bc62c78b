"""Whether a marked host is back, looked at beside the questions that come meanwhile: a mark lasts up to ten
minutes, so that no question waits for a host that is off, and a host that is on again need not wait for its
end. One look at a time over all processes, and one every so often; none at a host that we put to sleep.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from swarmctl.dispatch.marks import clear_mark
from swarmctl.errors import SwarmError
from swarmctl.fleet.asleep import read_asleep
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

#: Seconds between two looks at a host.
EVERY = 15.0
PING_TIMEOUT = 5.0


def look_whether_back(swarm: Swarm, candidate: Candidate) -> None:
    """Start a look at a marked candidate's host, where one is due; if it answers, its mark is gone for the
    next question. Waits for nothing."""
    if read_asleep(swarm.paths, candidate.host):
        return
    turn = _turn(swarm.paths, candidate.host)
    if turn is not None:
        threading.Thread(target=_look, args=(swarm, candidate, turn), name="swarmctl-back",
                         daemon=True).start()


def _look(swarm: Swarm, candidate: Candidate, turn: int) -> None:
    try:
        swarm.open(candidate)
        runtime(candidate.runtime).ping(swarm.endpoint(candidate), timeout=PING_TIMEOUT)
    except SwarmError:
        return  # the mark says why, and stays
    else:
        clear_mark(swarm.paths, candidate.host)
    finally:
        os.close(turn)


def _turn(paths: Paths, host: str) -> int | None:
    """A lock that says that we are the one who looks; None where another does, or has just done so. Its
    file's time is that of the last look."""
    try:
        turn = os.open(paths.state / "down" / f"{host}.look", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not 0 <= time.time() - os.fstat(turn).st_mtime < EVERY:
            os.utime(turn)
            return turn
    except OSError:
        pass
    os.close(turn)
    return None
