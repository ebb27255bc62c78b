"""Where a server's HTTP is from here, and how its tunnel is opened when it is found cold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.runtimes.base import Endpoint

if TYPE_CHECKING:
    from swarmctl.fleet.snapshot import Fleet, HostEntry
    from swarmctl.paths import Paths


def endpoint(paths: Paths, entry: HostEntry, port: int, called: str) -> Endpoint:
    """Where a server of a host is reached; the tunnel behind it may be cold."""
    if entry.ssh == "local":
        return Endpoint(port=port, model=called)
    from swarmctl.fleet.tunnels import socket_path

    return Endpoint(socket=str(socket_path(paths, entry.name, port)), model=called)


def open_way(paths: Paths, fleet: Fleet, entry: HostEntry) -> None:
    """Warm the tunnel to all servers of a host. Raises RemoteError."""
    if entry.ssh == "local":
        return
    from swarmctl.fleet.tunnels import open_tunnel

    open_tunnel(paths, host_name=entry.name, ssh=entry.ssh, ports=[served.port for served in entry.served],
                ssh_config=fleet.ssh_config, connect_timeout=entry.connect_timeout)
