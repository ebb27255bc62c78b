"""Waking a sleeping host because of a question, without the question waiting for it.

A host with `wake_on_demand` is woken where nobody else can answer, or where all others are so much more
likely to answer badly that the difference is worth waking a machine. The waking is a process of its own
(`swarmctl wake --wait`), which sends the packet, waits for the host and verifies it; the next question finds
it ready. Speed alone wakes nobody: an answer that comes somewhat later costs less than a machine that idles.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from swarmctl.dispatch.marks import read_mark
from swarmctl.errors import NoCandidate
from swarmctl.fleet.asleep import read_asleep
from swarmctl.fleet.standing import read_aside
from swarmctl.routing.cost import Standing, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.routing.cost import Candidate, Question, Route

#: Seconds of a person's time by which its expected harm must be less to be worth waking a machine.
WORTH = 5.0
#: As long as `swarmctl wake --wait` tries; nobody sends a second packet meanwhile.
WAKE_PAUSE = 180.0


def wake_for(swarm: Swarm, question: Question, candidates: Sequence[Candidate], way: Route | None,
             now: float, start: Callable[[Swarm, str], None] | None = None) -> str | None:
    """Wake the host that would answer this question well and sleeps; its name, or None where none is worth
    it.

    `way` is how the question goes meanwhile, None where nobody can take it. Never waits.
    """
    for host in _dormant(swarm, candidates, now):
        try:
            awake = choose(question, [(c, Standing(loaded=False)) for c in candidates if c.host == host],
                           swarm.tariff)
        except NoCandidate:
            continue  # it could not take the question awake either
        if way is None or way.chosen.risk - awake.chosen.risk >= WORTH:
            (start or start_waking)(swarm, host)
            return host
    return None


def start_waking(swarm: Swarm, host: str) -> None:
    """Wake a host in a process that outlives this one. What it says is kept, with the time, in
    state/wake/HOST.log."""
    log = _log(swarm, host)
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = (sys.executable, "-m", "swarmctl", "--inventory", swarm.fleet.inventory, "wake", host, "--wait",
            "--timeout", f"{WAKE_PAUSE:.0f}")
    with log.open("wb") as said:
        said.write(time.strftime("%Y-%m-%dT%H:%M:%S%z woken for a question\n").encode())
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)


def _dormant(swarm: Swarm, candidates: Sequence[Candidate], now: float) -> list[str]:
    """Hosts that are away, may be woken, and are not being woken already."""
    found = []
    for host in dict.fromkeys(c.host for c in candidates):
        if not swarm.host(host).wake_on_demand:
            continue
        mark = read_mark(swarm.paths, host)
        away = read_asleep(swarm.paths, host) or (mark and mark.verify)
        if away and not read_aside(swarm.paths, host) \
                and now - _last_tried(_log(swarm, host)) > WAKE_PAUSE:
            found.append(host)
    return found


def _last_tried(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except OSError:
        return 0.0


def _log(swarm: Swarm, host: str) -> Path:
    return swarm.paths.state / "wake" / f"{host}.log"
