"""Whether hosts that train together still have each other: a TCP connection of each to the first, for as long
as it trains, which the kernel tests.

gloo and NCCL hear at once of a process that ends, and of a network that swallows packets only after half an
hour, where they wait for something to come. This is quicker, on both ends. A host that cannot open the
connection trains without.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from swarmctl.jobs.meet import listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.jobs.spec import Node

ABOVE = 1000  # the port's distance from the one on which torchrun meets
AGAIN = 1.0
HELLO_LIMIT = 10.0
#: seconds of silence, and between probes. How many probes is the kernel's to say (Linux: 9, two minutes in
#: all)
IDLE, BETWEEN = 10, 12
DONE = b"done"


class Bond:
    """One host's part. `lost` becomes true, and `end` is called, where another host or the road to it is
    gone."""

    def __init__(self, node: Node, run: str, end: Callable[[], None]) -> None:
        self.lost = False
        self._where = node.address, node.port + ABOVE
        self._hello = f"swarmctl {run}\n".encode()
        self._end = end
        self._over = threading.Event()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._join if node.rank else self._lead, daemon=True).start()

    def close(self, *, well: bool) -> None:
        """This host's part is over; the others are told where it ended well."""
        self._over.set()
        for sock in self._held:
            with contextlib.suppress(OSError):
                if well:
                    sock.sendall(DONE)
                sock.shutdown(socket.SHUT_RDWR)

    def _lead(self) -> None:
        with contextlib.suppress(OSError), listen(*self._where) as server:
            server.settimeout(AGAIN)
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    threading.Thread(target=self._greet, args=(server.accept()[0],), daemon=True).start()

    def _join(self) -> None:
        """Be greeted by the first host, which may start later."""
        while not self._over.wait(AGAIN):
            with contextlib.suppress(OSError):
                if self._greet(socket.create_connection(self._where, timeout=HELLO_LIMIT)):
                    return

    def _greet(self, sock: socket.socket) -> bool:
        """Say hello, hear the same, and hold on to the connection; False where somebody else is there."""
        with sock, contextlib.suppress(OSError):
            sock.settimeout(HELLO_LIMIT)
            sock.sendall(self._hello)
            if sock.recv(len(self._hello), socket.MSG_WAITALL) != self._hello:
                return False
            sock.settimeout(None)
            keep_alive(sock)
            self._held.append(sock)
            self._hold(sock)
            return True
        return False

    def _hold(self, sock: socket.socket) -> None:
        said = b""
        with contextlib.suppress(OSError):
            said = sock.recv(len(DONE))
        if said != DONE and not self._over.is_set():
            self.lost = True
            self._end()


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out whether the other end is there still."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, BETWEEN)
