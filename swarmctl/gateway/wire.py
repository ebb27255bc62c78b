"""HTTP/1.1 as uvicorn speaks it, with bounds on clients that are slow or endless on purpose.

A request's head must come within `bounds.head` seconds and bytes, also on a connection that was used before;
a client that does not read its answer for `bounds.stall` seconds is dropped. What is not HTTP is answered in
JSON, and who would rather speak another protocol in this one. httptools, in C, reads it: each first token
waits for that.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from httptools import HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from swarmctl.gateway.bounds import Bounds


def protocol(bounds: Bounds) -> type[HttpToolsProtocol]:
    """The protocol with these bounds, as uvicorn makes one for each connection."""

    class Wire(_Wire):
        limits = bounds

    return Wire


class _Wire(HttpToolsProtocol):
    """One connection."""

    limits: Bounds
    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    #: when it was made, on the loop's clock
    _since = 0.0
    #: bytes since the last request's head was whole
    _head_bytes = 0
    _received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._make_room()
        if not transport.is_closing():
            self._await_head()

    def _make_room(self) -> None:
        """Drop who has been silent for longest, those first who never said anything; where all others are
        being answered that is this one."""
        silent = [one for one in self.connections if isinstance(one, _Wire) and one.silent]
        min(silent, key=lambda one: (one.cycle is not None, one._since), default=self)._drop()

    @property
    def silent(self) -> bool:
        """Whether no request is under way here."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head)
        _cancel(self._stall)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received = data
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_bytes = 0
            _cancel(self._head)
            self._head = None
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.head_bytes:
            self.send_400_response("the request's head is too long")
        elif self._head is None:
            self._await_head()

    def _should_upgrade(self) -> bool:
        """Of a request that asks for another protocol: it is not begun, but handed to what comes next."""
        return True

    def handle_websocket_upgrade(self) -> None:
        """Read it once more as if it had not asked. Java asks for HTTP/2 so with every request, and may be
        answered in HTTP/1.1 (RFC 9110, 7.8); but the parser took it for one without a body."""
        wanted, scope = sys.exception(), self.scope
        if wanted is None or scope["method"] == "CONNECT":
            self.send_400_response("CONNECT is not for this server")
            return
        headers = b"".join(b"%b: %b\r\n" % pair for pair in scope["headers"] if pair[0] != b"upgrade")
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (scope["method"].encode(), self.url, headers)
        self.parser = HttpRequestParser(self)
        super().data_received(head + self._received[wanted.args[0]:])

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall, self._drop)

    def resume_writing(self) -> None:
        _cancel(self._stall)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What could not be read as HTTP. Where an answer is under way, only its end is left to say."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": {"message": msg, "type": "invalid_request_error"}}).encode()
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                                 b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        self.transport.close()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self.limits.head, self._no_head)

    def _no_head(self) -> None:
        """No request's head came in time. A connection that waits for a next one has uvicorn's own clock."""
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self._drop()

    def _drop(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
