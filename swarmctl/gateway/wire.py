"""HTTP/1.1 as uvicorn speaks it, with clocks on clients that are slow on purpose.

A request's head must come within `bounds.head` seconds, also on a connection that was used before; a client
that does not read its answer for `bounds.stall` seconds is dropped. What is not HTTP is answered in JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

if TYPE_CHECKING:
    import asyncio

    from swarmctl.gateway.bounds import Bounds


def protocol(bounds: Bounds) -> type[H11Protocol]:
    """The protocol with these bounds, as uvicorn makes one for each connection."""

    class Wire(_Wire):
        limits = bounds

    return Wire


class _Wire(H11Protocol):
    """One connection."""

    limits: Bounds
    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._drop()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head)
        _cancel(self._stall)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._head is None:
                self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall, self._drop)

    def resume_writing(self) -> None:
        _cancel(self._stall)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What could not be read as HTTP."""
        body = json.dumps({"error": {"message": msg, "type": "invalid_request_error"}}).encode()
        head: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close"),
                           (b"content-length", str(len(body)).encode())]
        for event in (h11.Response(status_code=400, headers=head, reason=STATUS_PHRASES[400]),
                      h11.Data(data=body), h11.EndOfMessage()):
            try:
                self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                break  # an answer is under way already: only the end is left to say
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
