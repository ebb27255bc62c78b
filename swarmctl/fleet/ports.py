"""Ports of this machine that nobody listens on, and that nobody is likely to take by chance."""

from __future__ import annotations

import random
import socket

from swarmctl.errors import SwarmError

#: Below the range that Linux and macOS take outgoing ports from, so that a kept port stays free.
PORTS = range(20_000, 32_000)


def free_ports(count: int, width: int = 1) -> tuple[int, ...]:
    """The first ports of `count` runs of `width` ports that nobody listens on, none of them overlapping."""
    found: list[int] = []
    for _ in range(200 * count):
        first = random.randrange(PORTS.start, PORTS.stop - width)  # noqa: S311  nothing secret about a port
        apart = all(abs(first - other) >= width for other in found)
        if apart and all(_is_free(port) for port in range(first, first + width)):
            found.append(first)
        if len(found) == count:
            return tuple(found)
    raise SwarmError(f"no {count * width} free ports between {PORTS.start} and {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
