"""HTTP/1.1 to a model server, over a unix socket (the near end of a tunnel) or a loopback port.

The standard library's client, because `ask` must start at once: it imports in a tenth of what httpx takes.
Closing a `Reply` closes the connection, and a model server stops working for a client that is gone.
"""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.runtimes.base import Endpoint

#: No line of a stream or body that a healthy server sends is longer; a longer one is not read into memory.
MAX_BODY = 64 << 20


class TunnelDown(ServerUnavailable):
    """Nothing listens on the endpoint: the tunnel is cold, or the server is down. Opening the tunnel may mend
    it."""


class Dropped(ServerUnavailable):
    """The connection was closed before a word came: a tunnel that leads nowhere, or a server that died."""


@dataclass(slots=True)
class Reply:
    """A response whose body has not been read. `lines` yields it line by line as it arrives."""

    status: int
    response: http.client.HTTPResponse
    connection: Connection

    def lines(self) -> Iterator[bytes]:
        """Yield the body's lines without their ends. Raises OSError or HTTPException as the connection
        breaks."""
        while line := self.response.readline(MAX_BODY):
            yield line.rstrip(b"\r\n")

    def json(self) -> Any:  # noqa: ANN401  whatever the server says
        """Read the whole body as JSON; None where it is not JSON."""
        try:
            return json.loads(self.response.read(MAX_BODY))
        except ValueError:
            return None

    def patience(self, seconds: float) -> None:
        """Wait at most this long for each further piece."""
        if self.connection.sock is not None:
            self.connection.sock.settimeout(seconds)


class Connection(http.client.HTTPConnection):
    """An HTTPConnection that can also dial a unix socket."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        super().__init__("127.0.0.1", endpoint.port or 80, timeout=timeout)
        self.endpoint = endpoint

    def connect(self) -> None:
        """Dial the endpoint."""
        if self.endpoint.socket is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.endpoint.socket)


@contextmanager
def request(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None = None, *,
            connect_timeout: float, timeout: float) -> Iterator[Reply]:
    """Send a request and hand out the reply as soon as its headers are there; `timeout` bounds that wait.

    Raises TunnelDown where nothing listens, ServerUnavailable where it does not answer. What breaks while the
    body is read is the caller's to translate: only it knows what had arrived.
    """
    connection = Connection(endpoint, connect_timeout)
    try:
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
        except OSError as exc:
            raise TunnelDown(f"nothing answers at {where(endpoint)}: {exc.strerror or exc}") from exc
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
        except TimeoutError as exc:
            raise ServerUnavailable(f"no answer within {timeout:.0f} s") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Dropped(f"the server dropped the request ({exc or type(exc).__name__})") from exc
        yield Reply(response.status, response, connection)
    finally:
        connection.close()


def where(endpoint: Endpoint) -> str:
    """The endpoint as a person reads it."""
    return endpoint.socket or f"127.0.0.1:{endpoint.port}"
