"""A host over the master that its tunnels have up already: no handshake, and no SSH library to load.

Only for looking: a command that is cut or whose road breaks is simply run again, over a connection of its
own. The master has checked the host's key when it connected; it is used only if it leads to where the
inventory's name leads now.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.shell import ShellRemote, announcing, checked, without_announcement
from swarmctl.fleet.ssh_config import resolve
from swarmctl.fleet.tunnels import command_argv, leads_to, master_is_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.fleet.shell import Completed
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

#: what ssh ends with where its road broke
NO_ROAD = 255


def warm(cold: ShellRemote, host: Host, paths: Paths, ssh_config: str | None) -> ShellRemote:
    """The same host by way of its master, for commands that may run twice. `cold` does the rest."""
    return cold if host.local else WarmRemote(cold, host, paths, ssh_config)


class WarmRemote(ShellRemote):
    """Runs commands that may run twice over the host's master; `cold` where there is none."""

    def __init__(self, cold: ShellRemote, host: Host, paths: Paths, ssh_config: str | None) -> None:
        self.host = host.name
        self._cold = cold
        self._target = host.ssh
        self._paths = paths
        self._ssh_config = ssh_config

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, check: bool = True,
            on_line: Callable[[str], None] | None = None) -> Completed:
        """See Remote.run."""
        done = None if on_line else self._over_master(argv, timeout, stdin)
        if done is None:
            return self._cold.run(argv, timeout=timeout, stdin=stdin, check=check, on_line=on_line)
        return checked(self.host, done) if check else done

    def execute(self, argv: Sequence[str], *, timeout: float, source: Iterator[bytes] | None = None,
                sink: Callable[[bytes], None] | None = None) -> Completed:
        """See ShellRemote.execute: on a connection of its own, as this may not be run twice."""
        return self._cold.execute(argv, timeout=timeout, source=source, sink=sink)

    def close(self) -> None:
        """See Remote.close. The master stays."""
        self._cold.close()

    def _over_master(self, argv: Sequence[str], timeout: float, stdin: bytes | None) -> Completed | None:
        """How the command ended; None where no master took it to its end."""
        if not master_is_up(self._paths, self.host):
            return None
        resolved = resolve(self._target, self._ssh_config, self._paths.state / "ssh")
        if not leads_to(self._paths, self.host, resolved):
            return None
        line = command_argv(self._paths, self.host, shlex.join(announcing(argv)))
        done = LocalRemote(self.host).run(line, timeout=timeout, stdin=stdin, check=False)
        said = without_announcement(done.stderr)
        if done.exit_status == NO_ROAD or said == done.stderr:
            return None
        return type(done)(tuple(argv), done.exit_status, done.stdout, said, done.seconds)
