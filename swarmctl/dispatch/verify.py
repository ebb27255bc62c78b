"""An intermittent host that was away gets no question until it has shown that it is well.

Well means: its GPUs are as many as `up` recorded, and each of its servers generated a token (or would load
its model on demand). It is looked at beside the question, never in its way: while other hosts can answer, the
verification runs in a thread and only the next question profits; only where nobody else is left does the
question wait, up to PATIENCE.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING

from swarmctl.dispatch.marks import clear_mark, mark_down
from swarmctl.errors import HostUnreachable, SwarmError
from swarmctl.fleet.asleep import read_asleep, seen_awake
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.facts import Facts
    from swarmctl.fleet.snapshot import HostEntry
    from swarmctl.routing.cost import Candidate

#: Seconds that a process which has answered stays for a verification under way, and that a question waits
#: where there is nobody else.
PATIENCE = 3.0
TOKEN_TIMEOUT = 10.0


_under_way: dict[tuple[object, ...], Verification] = {}
_lock = threading.Lock()


def verification(swarm: Swarm, candidates: tuple[Candidate, ...], now: float) -> Verification:
    """That of these candidates, all of one host, which is under way in this process; else a new one."""
    key = (str(swarm.paths.state), candidates[0].host, *(candidate.server for candidate in candidates))
    with _lock:
        found = _under_way.get(key)
        if found is None or found.ended:
            found = _under_way[key] = Verification(swarm, candidates, now)
        return found


@atexit.register
def _stay() -> None:
    """A process that has answered stays for what is under way, for as long as PATIENCE lets it."""
    for one in tuple(_under_way.values()):
        one.wait()


class Verification:
    """One host being verified in the background. `why` is what is wrong, once it has ended."""

    def __init__(self, swarm: Swarm, candidates: tuple[Candidate, ...], now: float,
                 patience: float = PATIENCE) -> None:
        self.host = candidates[0].host
        self.why = "it was away and is being verified; the next question may use it"
        self._work = (swarm, candidates, now)
        self._thread = threading.Thread(target=self._run, name="swarmctl-verify", daemon=True)
        self._until = time.monotonic() + patience
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether `why` says how it is."""
        return not self._thread.is_alive()

    def wait(self) -> bool:
        """Wait for the end, up to `patience` from the start; whether the host is well."""
        self._thread.join(max(0.0, self._until - time.monotonic()))
        return not self.why

    def _run(self) -> None:
        swarm, candidates, now = self._work
        try:
            why = _wrong(swarm, candidates)
        except HostUnreachable as exc:
            asleep = read_asleep(swarm.paths, self.host)
            why = asleep.why if asleep else f"off ({exc.message})"
        except SwarmError as exc:
            why = exc.message
        if why:
            mark_down(swarm.paths, self.host, why, now, verify=True)
        else:
            clear_mark(swarm.paths, self.host)
            seen_awake(swarm.paths, self.host, now)
        self.why = why


def gpus_working(facts: Facts) -> int:
    """Accelerators that a driver serves; integrated graphics are none."""
    return sum(1 for gpu in facts.gpus if gpu.problem is None)


def gpus_lost(entry: HostEntry, facts: Facts) -> str:
    """In words, where fewer GPUs work than `up` recorded; empty where all is as it was."""
    if entry.gpus is None or gpus_working(facts) >= entry.gpus:
        return ""
    said = "; ".join(dict.fromkeys(gpu.problem for gpu in facts.gpus if gpu.problem)) or "no word from it"
    return f"{gpus_working(facts)} of {entry.gpus} GPUs work ({said})"


def _wrong(swarm: Swarm, candidates: tuple[Candidate, ...]) -> str:
    entry = swarm.host(candidates[0].host)
    if entry.gpus and (lost := gpus_lost(entry, _survey(swarm, entry))):
        return lost
    swarm.open(candidates[0])
    for candidate in candidates:
        health = runtime(candidate.runtime).health(swarm.endpoint(candidate), timeout=TOKEN_TIMEOUT)
        if health.state not in ("ready", "idle"):
            return f"{candidate.model}: {health.detail or health.state}"
    return ""


def _survey(swarm: Swarm, entry: HostEntry) -> Facts:
    from swarmctl.fleet.remote import connect
    from swarmctl.fleet.survey import survey
    from swarmctl.inventory import Host

    host = Host(entry.name, entry.ssh, data_dir=entry.data_dir, connect_timeout=entry.connect_timeout)
    remote = connect(host, swarm.paths, swarm.fleet.ssh_config)
    try:
        return survey(remote, host)
    finally:
        remote.close()
