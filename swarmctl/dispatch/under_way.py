"""The answers that are under way on a host: how many, and waiting until there are none.

`drain`, and whatever is about to take a host's servers away, ask here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from swarmctl.errors import RemoteError, ServerError, SwarmError
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.fleet.snapshot import HostEntry
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
    while True:
        busy = under_way(paths, entry, ssh_config) if entry else 0
        if busy != last:
            say(busy)
        last, idle = busy, 0 if busy else idle + 1
        waited = time.monotonic() - began
        if idle == 2 or (not entry and idle) or waited >= timeout:
            return last, waited
        time.sleep(PAUSE)


def under_way(paths: Paths, entry: HostEntry, ssh_config: str | None) -> int:
    """Answers under way on a host. A server that is down has none; one that says nothing counts as one."""
    return sum(_of_server(name, endpoint) for name, endpoint in _endpoints(paths, entry, ssh_config))


def _of_server(name: str, endpoint: Endpoint) -> int:
    try:
        return runtime(name).load(endpoint, timeout=SLOTS_TIMEOUT).busy
    except TunnelDown:
        return 0
    except ServerError:
        return 1


def _endpoints(paths: Paths, entry: HostEntry, ssh_config: str | None) -> list[tuple[str, Endpoint]]:
    if entry.ssh == "local":
        return [(one.runtime, Endpoint(port=one.port, model=one.called)) for one in entry.served]
    from swarmctl.fleet.tunnels import open_tunnel

    try:
        sockets = open_tunnel(paths, host_name=entry.name, ssh=entry.ssh,
                              ports=[one.port for one in entry.served], ssh_config=ssh_config,
                              connect_timeout=entry.connect_timeout)
    except RemoteError as exc:
        raise SwarmError(f"whether it is idle cannot be seen: {exc.message}", host=entry.name,
                         hint=f"it takes no new questions any more; `swarmctl uncordon {entry.name}` "
                              "takes it back") from exc
    return [(one.runtime, Endpoint(socket=str(sockets[one.port]), model=one.called)) for one in entry.served]
