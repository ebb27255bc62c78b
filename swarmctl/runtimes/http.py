"""HTTP/1.1 to a model server, over a unix socket (the near end of a tunnel) or a loopback port.

The standard library's client, because `ask` must start at once: it imports in a tenth of what httpx takes.
Closing a `Reply` closes the connection, and a model server stops working for a client that is gone. A thread
that waits for a server is released by another through a `Hangup`. A process that stays keeps idle connections
(`keeping`): through a tunnel each new one is a round trip.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmctl.runtimes.base import Endpoint

#: No line of a stream or body that a healthy server sends is longer; a longer one is not read into memory.
MAX_BODY = 64 << 20
#: Idle connections kept to one endpoint and for how many seconds. Few: each holds one of llama-server's few
#: threads (5 with one slot), and who finds them all held waits until it hangs up, after five seconds.
IDLE_KEPT, IDLE_SECONDS = 2, 4.0
#: Seconds in which the end of a body must follow its last word for the connection to be kept.
DRAIN_SECONDS = 0.05
#: Seconds in which a stream that was given up is still read where its server must not be cut off (`gently`).
LINGER = 0.25
#: How often a thread that pauses looks whether it is still wanted.
LOOK_UP = 0.1


class TunnelDown(ServerUnavailable):
    """Nothing listens on the endpoint: the tunnel is cold, or the server is down. Opening the tunnel may mend
    it."""


class Dropped(ServerUnavailable):
    """The connection was closed before a word came: a tunnel that leads nowhere, or a server that died."""


class HungUp(KeyboardInterrupt):
    """Whoever asked is gone (see Hangup). As with Ctrl-C, nothing else is tried."""


class Hangup:
    """Ends, from another thread, the requests that one thread makes within `until(hangup)`: at once, also
    while it waits for a first token. Requests made afterwards raise HungUp too."""

    def __init__(self) -> None:
        self.done = False
        self._lock = threading.Lock()
        self._open: set[Connection | Hangup] = set()

    def now(self) -> None:
        """Hang up. Any thread may call it, any number of times."""
        with self._lock:
            self.done = True
            waiting = tuple(self._open)
        for connection in waiting:
            connection.hang_up()

    def hang_up(self) -> None:
        """As a connection is hung up on; see beneath."""
        self.now()

    def check(self) -> None:
        """Raise HungUp once it is done."""
        if self.done:
            raise HungUp

    def add(self, connection: Connection | Hangup) -> None:
        """Count a connection among those to be ended."""
        with self._lock:
            self.check()
            self._open.add(connection)

    def drop(self, connection: Connection | Hangup) -> None:
        """The connection's request is over."""
        with self._lock:
            self._open.discard(connection)


_hangup: ContextVar[Hangup | None] = ContextVar("hangup", default=None)


@contextmanager
def until(hangup: Hangup) -> Iterator[None]:
    """Let `hangup` end what this thread (or context) asks of servers."""
    token = _hangup.set(hangup)
    try:
        yield
    finally:
        _hangup.reset(token)


def beneath() -> tuple[Hangup, Callable[[], None]]:
    """A Hangup for another thread that works for this one, ended with this one's; and what parts them once
    that work is over. Raises HungUp."""
    child, parent = Hangup(), _hangup.get()
    if parent is None:
        return child, lambda: None
    parent.add(child)
    return child, lambda: parent.drop(child)


def check_hangup() -> None:
    """Raise HungUp where whoever this thread works for is gone; for whoever waits without a request."""
    if (hangup := _hangup.get()) is not None:
        hangup.check()


def pause(seconds: float) -> None:
    """Sleep, and raise HungUp soon after whoever this thread works for is gone."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check_hangup()
        time.sleep(min(left, LOOK_UP))
    check_hangup()


@dataclass(slots=True)
class Reply:
    """A response whose body has not been read. `lines` yields it line by line as it arrives."""

    status: int
    response: http.client.HTTPResponse
    connection: Connection

    def lines(self) -> Iterator[bytes]:
        """Yield the body's lines without their ends. Raises OSError or HTTPException as the connection
        breaks."""
        while line := self._line():
            check_hangup()
            yield line.rstrip(b"\r\n")
        check_hangup()

    def _line(self) -> bytes:
        try:
            return self.response.readline(MAX_BODY)
        except (OSError, http.client.HTTPException):
            check_hangup()
            raise

    def json(self) -> Any:  # noqa: ANN401  whatever the server says
        """Read the whole body as JSON; None where it is not JSON."""
        try:
            return json.loads(self.response.read(MAX_BODY))
        except ValueError:
            return None

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Whoever gives the stream up within the block goes on at once, and the rest of it is read in the
        background for LINGER seconds: for a server that does not bear being cut off between two pieces."""
        self.connection.gentle = True
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt):
            self.connection.lingers = True
            threading.Thread(target=self._linger, daemon=True).start()
            raise

    def _linger(self) -> None:
        """Read until it ends or time is up, and close just after a piece, when the server awaits the next."""
        until_ = time.monotonic() + LINGER
        with suppress(OSError, http.client.HTTPException, ValueError):
            while (left := until_ - time.monotonic()) > 0:
                self.patience(left)
                if not self.response.readline(MAX_BODY):
                    break
        self.response.close()
        self.connection.close()

    def patience(self, seconds: float) -> None:
        """Wait at most this long for each further piece."""
        line = self.connection.line
        if line is not None and line.gettimeout() != seconds:
            line.settimeout(seconds)


class Connection(http.client.HTTPConnection):
    """An HTTPConnection that can also dial a unix socket."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        super().__init__("127.0.0.1", endpoint.port or 80, timeout=timeout)
        self.endpoint = endpoint
        #: the socket, also when http.client has handed it to a response
        self.line: socket.socket | None = None
        self.idle_since = 0.0
        #: whether it is hung up on with a moment's patience, and whether the rest is being read now
        self.gentle = self.lingers = False
        #: requests so far
        self.asked = 0

    def connect(self) -> None:
        """Dial the endpoint."""
        path = self.endpoint.socket
        self.sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        if path:
            self.sock.connect(path)
        else:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.connect((self.host, self.port))
        self.line = self.sock

    def ask(self, method: str, path: str, payload: bytes) -> http.client.HTTPResponse:
        """Send a request, in one piece, and read the head of its response."""
        assert self.line is not None
        self.gentle = False
        self.asked += 1
        host = f"{self.host}:{self.port}" if self.endpoint.socket is None else self.host
        head = (f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n")
        self.line.sendall(head.encode("ascii") + payload)
        response = http.client.HTTPResponse(self.line, method=method)
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        return response

    def ended(self) -> bool:
        """Whether the server has closed it while it was idle, as llama-server does after every stream: there
        is something to be read, and nothing was asked."""
        if self.line is None:
            return True
        seen = select.poll()
        seen.register(self.line, select.POLLIN)
        return bool(seen.poll(0))

    def hang_up(self) -> None:
        """End it from another thread: whoever reads it sees its end at once, or with the next piece."""
        if not self.gentle:
            self._end(self.asked)
            return
        self.gentle = False
        timer = threading.Timer(LINGER, self._end, (self.asked,))
        timer.daemon = True
        timer.start()

    def _end(self, asked: int) -> None:
        """End it, unless it serves another request by now."""
        with suppress(OSError):
            if self.line is not None and self.asked == asked:
                self.line.shutdown(socket.SHUT_RDWR)


class Idle:
    """Connections that nobody uses, to be used again; a bounded number for a bounded time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str | None, int | None], list[Connection]] = {}

    def take(self, endpoint: Endpoint) -> Connection | None:
        """The connection that was used last; those that are too old are closed."""
        with self._lock:
            kept = self._kept.get((endpoint.socket, endpoint.port), [])
            while kept:
                connection = kept.pop()
                if time.monotonic() - connection.idle_since < IDLE_SECONDS and not connection.ended():
                    return connection
                connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Keep a connection whose response has been read to its end."""
        where_ = (connection.endpoint.socket, connection.endpoint.port)
        connection.idle_since = time.monotonic()
        with self._lock:
            kept = self._kept.setdefault(where_, [])
            kept.append(connection)
            oldest = kept.pop(0) if len(kept) > IDLE_KEPT else None
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for connection in (one for kept in self._kept.values() for one in kept):
                connection.close()
            self._kept.clear()


_idle: Idle | None = None


@contextmanager
def keeping() -> Iterator[None]:
    """Keep idle connections of this process until the block ends."""
    global _idle
    _idle = Idle()
    try:
        yield
    finally:
        kept, _idle = _idle, None
        kept.close()


@contextmanager
def request(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None = None, *,
            connect_timeout: float, timeout: float) -> Iterator[Reply]:
    """Send a request and hand out the reply as soon as its headers are there; `timeout` bounds that wait.

    Raises TunnelDown where nothing listens, ServerUnavailable where it does not answer, HungUp where whoever
    asks is gone. What breaks while the body is read is the caller's to translate: only it knows what had
    arrived.
    """
    payload = b"" if body is None else json.dumps(body).encode()
    hangup = _hangup.get() or Hangup()
    connection, response = _answered(endpoint, (method, path, payload), hangup, connect_timeout, timeout)
    whole = False
    try:
        yield Reply(response.status, response, connection)
        whole = True
    finally:
        hangup.drop(connection)
        if not connection.lingers:
            kept = whole and _kept(connection, response)
            response.close()
            if not kept:
                connection.close()


def where(endpoint: Endpoint) -> str:
    """The endpoint as a person reads it."""
    return endpoint.socket or f"127.0.0.1:{endpoint.port}"


def _answered(endpoint: Endpoint, asked: tuple[str, str, bytes], hangup: Hangup,
              connect_timeout: float, timeout: float) -> tuple[Connection, http.client.HTTPResponse]:
    """Ask on an idle connection, where one is; on a new one where that had been closed meanwhile."""
    if _idle is not None and (kept := _idle.take(endpoint)) is not None:
        try:
            return kept, _exchange(kept, asked, hangup, timeout)
        except Dropped:
            pass
    connection = Connection(endpoint, connect_timeout)
    try:
        connection.connect()
    except OSError as exc:
        connection.close()
        raise TunnelDown(f"nothing answers at {where(endpoint)}: {exc.strerror or exc}") from exc
    return connection, _exchange(connection, asked, hangup, timeout)


def _exchange(connection: Connection, asked: tuple[str, str, bytes], hangup: Hangup,
              timeout: float) -> http.client.HTTPResponse:
    try:
        hangup.add(connection)
        if connection.line is not None:
            connection.line.settimeout(timeout)
        return connection.ask(*asked)
    except BaseException as exc:
        hangup.drop(connection)
        connection.close()
        hangup.check()
        if isinstance(exc, TimeoutError):
            raise ServerUnavailable(f"no answer within {timeout:g} s") from exc
        if isinstance(exc, OSError | http.client.HTTPException):
            said = getattr(exc, "strerror", None) or exc or type(exc).__name__
            raise Dropped(f"the server dropped the request ({said})") from exc
        raise


def _kept(connection: Connection, response: http.client.HTTPResponse) -> bool:
    """Keep a connection whose response is read to its end, or nearly."""
    if _idle is None or response.will_close or connection.line is None:
        return False
    try:
        if not response.isclosed():
            connection.line.settimeout(DRAIN_SECONDS)
            response.read(1 << 16)
        if not response.isclosed():
            return False
    except (OSError, http.client.HTTPException, ValueError):
        return False
    if response.will_close:
        return False
    _idle.give(connection)
    return True
