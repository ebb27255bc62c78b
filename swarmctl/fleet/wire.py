"""The bytes under an SSH connection: a TCP socket, or a process that carries them through jump hosts; and
those that a command says over one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Protocol

from swarmctl.fleet.ssh_config import jump_argv, proxy_command, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from threading import Event

    from swarmctl.fleet.shell import Output
    from swarmctl.fleet.ssh_config import Resolved

DEAD_AFTER = 20_000  # milliseconds without an acknowledgement before the kernel calls the connection broken
GRACE = 3.0
PIECE = 1 << 18
#: paramiko's reader may never be woken for what came (its OrPipe is set and cleared without a lock: 3 of
#: 30,000 crossings lost one): every so many seconds a look is taken without having been woken.
UNHEARD = 0.5


def open_tcp(resolved: Resolved, timeout: float) -> socket.socket:
    """A TCP connection to its address, each address of the name in turn within one `timeout`. Raises
    OSError."""
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(resolved.option("addressfamily") or "", 0)
    found = socket.getaddrinfo(resolved.hostname, resolved.port, family, socket.SOCK_STREAM)
    bind = resolved.option("bindaddress")
    failure: OSError = OSError("the name has no address")
    for _, _, _, _, address in found:
        try:
            sock = socket.create_connection((str(address[0]), int(address[1])), timeout / len(found),
                                            source_address=(bind, 0) if bind else None)
        except OSError as exc:
            failure = exc
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER)
        return sock
    raise failure


def open_proxy(resolved: Resolved, known_hosts: Path, ssh_config: str | None, timeout: float) -> Proxy | None:
    """The process that carries the connection where the SSH config names ProxyJump or ProxyCommand, else
    None."""
    argv = jump_argv(resolved, lookup=lambda hop: resolve(hop, ssh_config), known_hosts=known_hosts,
                     ssh_config=ssh_config, connect_timeout=timeout)
    if argv:
        return Proxy(argv)
    line = proxy_command(resolved)
    return Proxy((os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {line}")) if line else None


class Proxy:
    """A process whose stdin and stdout are the connection: `ssh -W` through jump hosts, or ProxyCommand.

    paramiko's own ProxyCommand spins at the end of the stream and cannot tell what the process said.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.socket, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        with theirs:
            self._process = subprocess.Popen(tuple(argv), stdin=theirs.fileno(), stdout=theirs.fileno(),
                                             stderr=self._stderr,
                                             start_new_session=True)

    def failure(self) -> str | None:
        """What it said, where it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        if self._process.poll() is None:
            return None
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def close(self) -> None:
        """End the process."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stderr.close()


class Streams(Protocol):
    """What is read of a command: paramiko's Channel."""

    eof_received: int
    closed: bool
    status_event: Event

    def fileno(self) -> int:
        """What may be read when there is something to read."""

    def recv_ready(self) -> bool:
        """Whether stdout has more."""

    def recv_stderr_ready(self) -> bool:
        """Whether stderr has more."""

    def recv(self, nbytes: int) -> bytes:
        """The next bytes of stdout."""

    def recv_stderr(self, nbytes: int) -> bytes:
        """The next bytes of stderr."""


def drain(channel: Streams, output: Output, error: Output, deadline: float) -> bool:
    """Read both streams to their end and wait for the status; False past the deadline (time.monotonic)."""
    with selectors.PollSelector() as selector:
        selector.register(channel.fileno(), selectors.EVENT_READ)
        while True:
            over = channel.eof_received or channel.closed
            while channel.recv_ready():
                output.add(channel.recv(PIECE))
            while channel.recv_stderr_ready():
                error.add(channel.recv_stderr(PIECE))
            if over:
                break
            left = deadline - time.monotonic()
            if not selector.select(max(0.0, min(left, UNHEARD))) and left <= UNHEARD:
                return False
    return bool(channel.status_event.wait(max(0.0, deadline - time.monotonic())))
