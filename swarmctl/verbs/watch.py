"""`status --watch`: all of a swarm at a glance, again and again, gathered without waiting for anybody.

Hosts are looked at in the background, so that one that is off or hangs delays nothing; the rest are a few
small files of this machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.dispatch import queue
from swarmctl.dispatch.breakers import read_breaker
from swarmctl.dispatch.marks import read_mark
from swarmctl.errors import SwarmError
from swarmctl.fleet.asleep import read_asleep
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.standing import read_aside
from swarmctl.learning.approval import wilson
from swarmctl.ledger.scores import scores
from swarmctl.monitor.alerts import seen_now
from swarmctl.monitor.hosts import ON_DEMAND, HostPoller
from swarmctl.monitor.recent import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from swarmctl.learning.approval import Approval
    from swarmctl.monitor.hosts import HostSeen
    from swarmctl.monitor.recent import Recent
    from swarmctl.paths import Paths

#: Each server is asked for a token this often: health means that it generated one.
TOKENS_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as it is shown. `state` as in verbs.status, or `looking` before its first look."""

    seen: HostSeen
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment. `recent` is the newest first, with the score of each that was rated in
    `scores`; `alerts` are (host, what is wrong)."""

    now: float
    hosts: tuple[HostView, ...]
    waiting: int
    recent: tuple[Recent, ...]
    scores: dict[str, float]
    approval: tuple[tuple[str, str, Approval], ...]
    alerts: tuple[tuple[str, str], ...]


class Watching:
    """Looks until it is closed. Raises SwarmError where `up` has never run."""

    def __init__(self, paths: Paths, inventory: Path, every: float,
                 clock: Callable[[], float] = time.time) -> None:
        fleet = read_fleet(paths.fleet)
        if fleet is None or fleet.inventory != str(inventory):
            raise SwarmError(f"{inventory} has not been brought up yet", hint="swarmctl up")
        self._paths = paths
        self._clock = clock
        self._tail = Tail(paths)
        self._poller = HostPoller(paths, every=every, tokens_every=TOKENS_EVERY, clock=clock)
        self._poller.start()

    def picture(self) -> Picture:
        """How everything stands, at once. Raises LedgerError."""
        now = self._clock()
        seen = self._poller.hosts()
        recent = self._tail.read_on(now)
        rated = {row.id: score for row in recent if (score := self._tail.score(row.id)) is not None}
        return Picture(now, tuple(_view(self._paths, host) for host in seen), queue.length(self._paths),
                       recent, rated, _approval(self._paths), tuple(self._alerts(seen, now)))

    def close(self) -> None:
        """Look no more."""
        self._poller.stop(0.2)

    def _alerts(self, hosts: tuple[HostSeen, ...], now: float) -> Iterator[tuple[str, str]]:
        for host in hosts:
            name = host.entry.name
            if host.at and not host.up and not (host.entry.intermittent or read_asleep(self._paths, name)):
                yield name, host.why
            mark = read_mark(self._paths, name)
            if mark and mark.until > now and host.up:
                yield name, f"questions leave it alone for {mark.until - now:.0f} s: {mark.why}"
            for server in host.entry.served:
                breaker = read_breaker(self._paths, name, server.server)
                if breaker.state(now) == "open":
                    yield name, f"{server.model} is left alone: {breaker.why}"
        yield from seen_now(hosts)


def _view(paths: Paths, host: HostSeen) -> HostView:
    name = host.entry.name
    if not host.at:
        return HostView(host, "looking")
    if not host.up:
        asleep = read_asleep(paths, name)
        state = "asleep" if asleep else "off" if host.entry.intermittent else "unreachable"
        return HostView(host, state, asleep.why if asleep else host.why)
    if not host.servers:
        return HostView(host, "idle", "no model is served here")
    bad = [server for server in host.servers if not server.up or server.generates is False]
    if bad:
        return HostView(host, "degraded", bad[0].detail)
    aside = read_aside(paths, name)
    if aside:
        return HostView(host, aside.state, f"since {aside.since_words}")
    loading = any(not one.loaded and one.served.runtime not in ON_DEMAND for one in host.servers)
    return HostView(host, "loading" if loading else "ready")


def _approval(paths: Paths) -> tuple[tuple[str, str, Approval], ...]:
    """Of each model and category, the most votes first."""
    found = ((model, category, wilson(good, good + bad)) for (model, category), (good, bad)
             in scores(paths).items() if good + bad)
    return tuple(sorted(found, key=lambda row: (-row[2].votes, row[0], row[1])))
