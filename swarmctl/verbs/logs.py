"""`swarmctl logs`: the log of a host's model servers, from its end, and on as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.errors import CommandTimeout, SwarmError, UsageError
from swarmctl.fleet.host_shell import on_host, script
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.remote import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from swarmctl.fleet.remote import Remote
    from swarmctl.paths import Paths

#: a day; who follows longer starts again
FOLLOW_LIMIT = 86_400.0


def logs(paths: Paths, inventory_path: Path, host_name: str, server: str | None, *, lines: int, follow: bool,
         sink: Callable[[str], None]) -> None:
    """Give the last `lines` lines of a server's log (of every server's, where none is named) to `sink`.

    With `follow`, go on over rotations until interrupted. Raises UsageError for an unknown host or server.
    """
    inventory = read_inventory(inventory_path)
    known = {host.name: host for host in inventory.hosts}
    if host_name not in known:
        raise UsageError(f"the inventory has no host {host_name}", hint=f"it has {', '.join(known)}")
    host = known[host_name]
    remote = connect(host, paths, inventory.ssh_config)
    try:
        servers = _servers(remote, host.data_dir, server)
        if follow:
            _follow(remote, host.data_dir, servers, lines, sink)
        else:
            _show(remote, host.data_dir, servers, lines, sink)
    finally:
        remote.close()


def _servers(remote: Remote, data_dir: str, server: str | None) -> Sequence[str]:
    there = on_host(remote, "servers", data_dir).split()
    if server is None and there:
        return there
    if server in there:
        return [server]
    if not there:
        raise SwarmError("no server of swarmctl's is here", host=remote.host,
                         hint="`swarmctl up` starts them")
    raise UsageError(f"there is no server {server}", host=remote.host, hint=f"there are {', '.join(there)}")


def _show(remote: Remote, data_dir: str, servers: Sequence[str], lines: int,
          sink: Callable[[str], None]) -> None:
    for number, name in enumerate(servers):
        if len(servers) > 1:
            sink(("\n" if number else "") + f"==> {name} <==")
        for line in on_host(remote, "log", data_dir, name, str(lines)).splitlines():
            sink(line)


def _follow(remote: Remote, data_dir: str, servers: Sequence[str], lines: int,
            sink: Callable[[str], None]) -> None:
    argv = ("sh", "-s", "--", "follow", data_dir, str(lines), *servers)
    try:
        remote.run(argv, timeout=FOLLOW_LIMIT, stdin=script("host.sh").encode(), on_line=sink)
    except CommandTimeout:
        return
