"""How the hosts and their servers fare, looked at in the background: what the metrics and the dashboard show.

A few threads take the hosts as they fall due. A host is looked at by one thread at a time, over the master
that its tunnels have anyway, and every wait has a limit; one that does not answer is left alone longer and
longer, so that a host that is off costs a connection attempt every few minutes and delays nobody. Nothing is
loaded, started, marked or woken by looking, and nothing is kept in memory by it: an Ollama is not asked for
tokens, as each would begin its keep-alive anew.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.habits import last_used
from swarmctl.dispatch.reach import endpoint, open_way
from swarmctl.errors import ServerError, SwarmError
from swarmctl.facts.pulse import busy_share
from swarmctl.fleet.asleep import read_asleep
from swarmctl.fleet.remote import connect
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.survey import pulse
from swarmctl.fleet.warm import warm
from swarmctl.inventory import Host
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.facts.pulse import Pulse
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.paths import Paths

FEWEST, THREADS = 4, 16
#: Looks a second at all hosts together; with many hosts each has its turn less often.
LOOKS_A_SECOND = 10.0
#: runtimes that load a model when it is asked, and let it go when it is not
ON_DEMAND = ("ollama",)
PING_TIMEOUT, SLOTS_TIMEOUT, TOKEN_TIMEOUT = 2.0, 1.0, 20.0
#: Seconds until a host that did not answer is tried again: doubling from the first to the second.
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 300.0
#: One that was put to sleep comes back by `wake`, which says so; only a person at its keyboard does not.
ASLEEP_PAUSE = 600.0


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """A model server at the last look. `up`: it answers; `loaded`: its model is in memory; slots where it
    counts them. `generates` is whether it made a token when it was last asked for one, by us or by a
    question; `token_seconds` is how long ours took. None before."""

    served: Served
    up: bool = False
    loaded: bool = False
    busy: int | None = None
    slots: int | None = None
    generates: bool | None = None
    token_seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host at its last look, `at` seconds since 1970 (0: not looked at yet). `up` is whether it answered,
    `why` what it said else; `pulse` stays that of the last time it did, at `answered`. `busy` is the share of
    its processors' time at work since the look before."""

    entry: HostEntry
    at: float = 0.0
    up: bool = False
    why: str = ""
    answered: float = 0.0
    seconds: float = 0.0
    pulse: Pulse | None = None
    busy: float | None = None
    servers: tuple[ServerSeen, ...] = ()
    failures: int = 0


@dataclass(slots=True)
class _Kept:
    """What one host needs from look to look."""

    seen: HostSeen
    remote: ShellRemote
    tokens_due: float = 0.0
    gone: threading.Event = field(default_factory=threading.Event)


class HostPoller:
    """Looks at every host of the snapshot every `every` seconds, and asks each server for a token that has
    answered no question for `tokens_every` (0: never). `start` and `stop` it; `hosts` gives what is known at
    any time."""

    def __init__(self, paths: Paths, *, every: float = 15.0, tokens_every: float = 120.0,
                 clock: Callable[[], float] = time.time) -> None:
        self._paths = paths
        self._every = every
        self._tokens_every = tokens_every
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._due: list[tuple[float, str]] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._fleet: Fleet | None = None
        self._read = (0, 0)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, where it has not begun. Returns at once."""
        self._refresh()
        with self._wake:
            if self._threads or self._stopped:
                return
            for number in range(min(THREADS, max(FEWEST, len(self._kept)))):
                self._threads.append(threading.Thread(target=self._serve, daemon=True,
                                                      name=f"swarmctl-watch-{number}"))
            for thread in self._threads:
                thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End. Looks under way are left to their own limits where they take longer than `timeout`."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for kept in self._kept.values():
            kept.remote.close()

    def hosts(self) -> tuple[HostSeen, ...]:
        """Every host of the snapshot, in its order, as last seen."""
        self._refresh()
        with self._wake:
            order = self._fleet.hosts if self._fleet else ()
            return tuple(self._kept[entry.name].seen for entry in order if entry.name in self._kept)

    def once(self) -> tuple[HostSeen, ...]:
        """Look at every host now, all at the same time, and wait for the answers."""
        self._refresh()
        names = list(self._kept)
        threads = [threading.Thread(target=self._look, args=(name,), daemon=True) for name in names]
        for start in range(0, len(threads), THREADS):
            batch = threads[start:start + THREADS]
            for thread in batch:
                thread.start()
            for thread in batch:
                thread.join(60.0)
        return self.hosts()

    def _refresh(self) -> None:
        """Take in a new snapshot: `up` has run."""
        with contextlib.suppress(OSError):
            stat = self._paths.fleet.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._read:
                return
            with contextlib.suppress(SwarmError):
                self._take(read_fleet(self._paths.fleet))
            self._read = (stat.st_mtime_ns, stat.st_size)

    def _take(self, fleet: Fleet | None) -> None:
        entries = {entry.name: entry for entry in fleet.hosts} if fleet else {}
        with self._wake:
            self._fleet = fleet
            for name in [name for name, kept in self._kept.items() if kept.seen.entry != entries.get(name)]:
                self._drop(name)
            for name, entry in entries.items():
                if name not in self._kept:
                    self._kept[name] = _Kept(HostSeen(entry), self._remote(entry, fleet))
                    heapq.heappush(self._due, (0.0, name))
            self._wake.notify_all()

    def _drop(self, name: str) -> None:
        """Look no more at a host as it was. Whoever looks at it just now hangs up afterwards."""
        kept = self._kept.pop(name)
        kept.gone.set()
        left = [one for one in self._due if one[1] != name]
        if len(left) < len(self._due):
            kept.remote.close()
        self._due = left
        heapq.heapify(self._due)

    def _remote(self, entry: HostEntry, fleet: Fleet | None) -> ShellRemote:
        host = Host(entry.name, entry.ssh, data_dir=entry.data_dir, connect_timeout=entry.connect_timeout)
        config = fleet.ssh_config if fleet else None
        return warm(connect(host, self._paths, config), host, self._paths, config)

    def _serve(self) -> None:
        while (name := self._next()) is not None:
            if kept := self._look(name):
                pause = self._pause(kept.seen)
                with self._wake:
                    if kept.gone.is_set():
                        kept.remote.close()
                        continue
                    heapq.heappush(self._due, (time.monotonic() + pause, name))
                    self._wake.notify()

    def _next(self) -> str | None:
        """The next host that is due; waits for one. None at the end."""
        with self._wake:
            while not self._stopped:
                left = self._due[0][0] - time.monotonic() if self._due else 60.0
                if left <= 0:
                    return heapq.heappop(self._due)[1]
                self._wake.wait(left)
            return None

    def _pause(self, seen: HostSeen) -> float:
        every = max(self._every, len(self._kept) / LOOKS_A_SECOND)
        if seen.up:
            return every
        if read_asleep(self._paths, seen.entry.name):
            return ASLEEP_PAUSE
        return max(every, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(seen.failures - 1, 10)))

    def _look(self, name: str) -> _Kept | None:
        with self._wake:
            kept, fleet = self._kept.get(name), self._fleet
        if kept is None or fleet is None:
            return None
        before, began = kept.seen, time.monotonic()
        now = self._clock()
        try:
            seen = self._ask(kept, fleet, before)
        except SwarmError as exc:
            down = tuple(ServerSeen(one.served, detail=exc.message) for one in before.servers)
            seen = replace(before, up=False, why=exc.message, busy=None, servers=down,
                           failures=before.failures + 1)
        kept.seen = replace(seen, at=now, seconds=time.monotonic() - began)
        return kept

    def _ask(self, kept: _Kept, fleet: Fleet, before: HostSeen) -> HostSeen:
        entry = before.entry
        if entry.served:
            open_way(self._paths, fleet, entry)
        found = pulse(kept.remote, entry.data_dir)
        now = self._clock()
        ask = bool(self._tokens_every) and kept.tokens_due <= now
        if ask:
            kept.tokens_due = now + self._tokens_every
        known = {one.served.server + one.served.model: one for one in before.servers}
        servers = tuple(_server(self._paths, entry, one, known.get(one.server + one.model),
                                self._worth_asking(entry, one, now) if ask else None)
                        for one in entry.served)
        return replace(before, up=True, why="", answered=now, pulse=found,
                       busy=busy_share(before.pulse, found), servers=servers, failures=0)


    def _worth_asking(self, entry: HostEntry, served: Served, now: float) -> bool | None:
        """Whether a server is to be asked for a token; False where a question has just shown that it makes
        them, None where that would keep its model in memory."""
        if served.runtime in ON_DEMAND:
            return None
        used = last_used(self._paths, entry.name, served.server)
        return used is None or used < now - self._tokens_every


def _server(paths: Paths, entry: HostEntry, served: Served, before: ServerSeen | None,
            ask: bool | None) -> ServerSeen:
    where = endpoint(paths, entry, served.port, served.called)
    speaker = runtime(served.runtime, embedding=served.embedding)
    seen = ServerSeen(served)
    try:
        seen = replace(seen, loaded=speaker.ping(where, timeout=PING_TIMEOUT), up=True)
    except ServerError as exc:
        return replace(seen, detail=exc.message)
    with contextlib.suppress(ServerError):
        load = speaker.load(where, timeout=SLOTS_TIMEOUT)
        seen = replace(seen, busy=load.busy, slots=load.slots)
    if ask and seen.loaded:
        health = speaker.health(where, timeout=TOKEN_TIMEOUT)
        return replace(seen, generates=health.state == "ready", token_seconds=health.seconds,
                       detail=health.detail)
    if ask is False:
        return replace(seen, generates=True, token_seconds=before.token_seconds if before else None)
    if before is None or not before.up:
        return seen
    return replace(seen, generates=before.generates, token_seconds=before.token_seconds,
                   detail=before.detail)
