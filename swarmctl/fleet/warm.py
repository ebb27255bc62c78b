"""A host by the `ssh` command: over the master that its tunnels have up already, without a handshake; and for
who looks once, else on a connection that `ssh` makes: no SSH library to load, no handshake in Python.

Only for looking: a command that is cut or whose road breaks is simply run again, over a connection of the
library. The master has checked the host's key when it connected; it is used only if it leads to where the
inventory's name leads now. What `ssh` cannot open is left to the library, whose errors say more, unless it is
plain that nobody is there: that is waited for once.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.shell import ShellRemote, announcing, checked, without_announcement
from swarmctl.fleet.ssh_config import look_argv, resolve
from swarmctl.fleet.ssh_stderr import error_from_stderr
from swarmctl.fleet.tunnels import command_argv, leads_to, master_is_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.fleet.shell import Completed
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

#: what ssh ends with where its road broke
NO_ROAD = 255
NOBODY = re.compile(r"^ssh: (?:connect to host .* port \d+: |Could not resolve hostname)"
                    r"|^Connection timed out during banner exchange", re.MULTILINE)


def warm(cold: ShellRemote, host: Host, paths: Paths, ssh_config: str | None, *,
         once: bool = False) -> ShellRemote:
    """The same host by way of its master, for commands that may run twice. `cold` does the rest: it keeps its
    connection, which `once` says is not worth making."""
    return cold if host.local else WarmRemote(cold, host, paths, ssh_config, once=once)


class WarmRemote(ShellRemote):
    """Runs commands that may run twice over the host's master; `cold` where there is none."""

    def __init__(self, cold: ShellRemote, host: Host, paths: Paths, ssh_config: str | None, *,
                 once: bool) -> None:
        self.host = host.name
        self._once = once
        self._cold = cold
        self._target = host.ssh
        self._timeout = host.connect_timeout
        self._paths = paths
        self._ssh_config = ssh_config

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, check: bool = True,
            on_line: Callable[[str], None] | None = None) -> Completed:
        """See Remote.run."""
        done = None if on_line else self._by_ssh(argv, timeout, stdin)
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

    def _by_ssh(self, argv: Sequence[str], timeout: float, stdin: bytes | None) -> Completed | None:
        """How the command ended; None where `ssh` did not take it to its end. Raises HostUnreachable."""
        has_master = master_is_up(self._paths, self.host)
        if not has_master and not self._once:
            return None
        resolved = resolve(self._target, self._ssh_config, self._paths.state / "ssh")
        if resolved.jumps or resolved.option("proxycommand"):
            return None
        command = shlex.join(announcing(argv))
        if has_master and leads_to(self._paths, self.host, resolved):
            done = self._done(command_argv(self._paths, self.host, command), argv, timeout, stdin)
            if done or not self._once:
                return done
        line = look_argv(resolved, command, known_hosts=self._paths.known_hosts,
                         ssh_config=self._ssh_config, connect_timeout=self._timeout)
        return self._done(line, argv, timeout, stdin) if self._once else None

    def _done(self, line: Sequence[str], argv: Sequence[str], timeout: float,
              stdin: bytes | None) -> Completed | None:
        done = LocalRemote(self.host).run(line, timeout=timeout, stdin=stdin, check=False)
        said = without_announcement(done.stderr)
        if done.exit_status == NO_ROAD and said == done.stderr and NOBODY.search(said):
            raise error_from_stderr(said, self.host, self._target, ssh_config=self._ssh_config)
        if done.exit_status == NO_ROAD or said == done.stderr:
            return None
        return type(done)(tuple(argv), done.exit_status, done.stdout, said, done.seconds)
