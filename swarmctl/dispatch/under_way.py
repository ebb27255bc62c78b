"""The answers that are under way on a host: how many, and waiting until there are none.

`drain`, and whatever is about to take a host's servers away, ask here. llama.cpp's servers count for
themselves; Ollama's requests are counted on the host, as connections to its runners (facts.runners), whoever
asked. Where those cannot be seen (macOS, another container), an Ollama counts as idle.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from swarmctl.dispatch.slots import TELLING
from swarmctl.errors import RemoteError, ServerError, SwarmError
from swarmctl.facts.runners import of_ollama
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import HostEntry, Served
    from swarmctl.paths import Paths

SLOTS_TIMEOUT = 5.0
#: Idle twice in a row, so that a question between two turns of a conversation's tools is not overlooked.
PAUSE = 0.5


def await_idle(paths: Paths, entry: HostEntry | None, ssh_config: str | None, *, timeout: float,
               say: Callable[[int], None]) -> tuple[int, float]:
    """Wait until a host's servers are idle; (answers still under way after `timeout`, seconds waited).

    `say` is told the number as it changes. A host that serves nothing (None) is idle. Raises SwarmError where
    it cannot be seen.
    """
    began, last, idle = time.monotonic(), -1, 0
    with contextlib.closing(_Look(paths, entry, ssh_config)) as look:
        while True:
            busy = look.count()
            if busy != last:
                say(busy)
            last, idle = busy, 0 if busy else idle + 1
            waited = time.monotonic() - began
            if idle == 2 or (not entry and idle) or waited >= timeout:
                return last, waited
            time.sleep(PAUSE)


def under_way(paths: Paths, entry: HostEntry, ssh_config: str | None) -> int:
    """Answers under way on a host. A server that is down has none; one that says nothing counts as one."""
    with contextlib.closing(_Look(paths, entry, ssh_config)) as look:
        return look.count()


class _Look:
    """One host looked at again and again over one connection."""

    def __init__(self, paths: Paths, entry: HostEntry | None, ssh_config: str | None) -> None:
        self._place = (paths, entry, ssh_config)
        self._remote: Remote | None = None

    def count(self) -> int:
        paths, entry, ssh_config = self._place
        if entry is None:
            return 0
        telling = [one for one in entry.served if one.runtime in TELLING]
        busy = sum(_of_server(one.runtime, where) for one, where in
                   _endpoints(paths, entry, telling, ssh_config))
        return busy + (self._in_ollama(entry) if len(telling) < len(entry.served) else 0)

    def _in_ollama(self, entry: HostEntry) -> int:
        """Requests that Ollama's runners answer; a load is one too, as somebody waits for it."""
        host = Host(entry.name, entry.ssh, data_dir=entry.data_dir, connect_timeout=entry.connect_timeout)
        try:
            facts = survey(self._connect(host), host, glance=True)
        except RemoteError as exc:
            raise _unseen(entry, exc) from exc
        return sum(max(runner.busy or 0, runner.state == "loading") for runner in of_ollama(facts))

    def _connect(self, host: Host) -> Remote:
        if self._remote is None:
            from swarmctl.fleet.remote import connect

            self._remote = connect(host, self._place[0], self._place[2])
        return self._remote

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()


def _of_server(name: str, endpoint: Endpoint) -> int:
    try:
        return runtime(name).load(endpoint, timeout=SLOTS_TIMEOUT).busy
    except TunnelDown:
        return 0
    except ServerError:
        return 1


def _endpoints(paths: Paths, entry: HostEntry, served: list[Served],
               ssh_config: str | None) -> list[tuple[Served, Endpoint]]:
    if entry.ssh == "local" or not served:
        return [(one, Endpoint(port=one.port, model=one.called)) for one in served]
    from swarmctl.fleet.tunnels import open_tunnel

    try:
        sockets = open_tunnel(paths, host_name=entry.name, ssh=entry.ssh,
                              ports=[one.port for one in entry.served], ssh_config=ssh_config,
                              connect_timeout=entry.connect_timeout)
    except RemoteError as exc:
        raise _unseen(entry, exc) from exc
    return [(one, Endpoint(socket=str(sockets[one.port]), model=one.called)) for one in served]


def _unseen(entry: HostEntry, exc: RemoteError) -> SwarmError:
    return SwarmError(f"whether it is idle cannot be seen: {exc.message}", host=entry.name,
                      hint=f"it takes no new questions any more; `swarmctl uncordon {entry.name}` "
                           "takes it back")
