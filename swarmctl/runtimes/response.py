"""An HTTP/1.1 response, read from its socket as it arrives.

The standard library's own reads headers as an e-mail's, and lines of a chunked body through several layers of
Python. Read like this, with the request sent in one piece, the gateway's first token came 0.1 to 0.2 ms
earlier (measured on loopback). Its exceptions are raised here too (http.client), so that callers need not
know which of the two reads.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

#: Bounds on a head, as the standard library has them.
LONGEST_LINE, MOST_HEADERS = 1 << 16, 100
READ = 1 << 16


class Response:
    """Status and body of one response. `will_close` says that the connection cannot be used again."""

    def __init__(self, line: socket.socket, method: str) -> None:
        """Read the head. Raises OSError, and HTTPException for what is no HTTP."""
        self._file = line.makefile("rb")
        self._rest = bytearray()
        #: bytes left of the body, or of its chunk; None where it ends with the connection
        self._left: int | None = 0
        self._ended = False
        try:
            version, self.status = self._status()
            while self.status == 100:
                self._headers()
                version, self.status = self._status()
            headers = self._headers()
            self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
            self._frame(method, headers)
        except BaseException:
            self._file.close()
            raise
        asked = headers.get(b"connection", b"").lower()
        self.will_close = b"close" in asked or self._left is None or (
            version == b"HTTP/1.0" and b"keep-alive" not in asked)

    def readline(self, limit: int) -> bytes:
        """The next line of the body, or `limit` bytes of it; b"" at the end. Raises OSError, and
        IncompleteRead where the connection ends before a chunked body does."""
        searched = 0
        while not (end := self._rest.find(b"\n", searched) + 1):
            searched = len(self._rest)
            if searched >= limit or not (piece := self._piece()):
                return self._take(limit)
            self._rest += piece
        return self._take(min(end, limit))

    def read(self, limit: int) -> bytes:
        """So much of the body, less only at its end. Raises as readline does."""
        while len(self._rest) < limit and (piece := self._piece()):
            self._rest += piece
        return self._take(limit)

    def isclosed(self) -> bool:
        """Whether the body was read to its end."""
        return self._ended

    def close(self) -> None:
        """Leave the rest unread."""
        self._file.close()

    def _take(self, size: int) -> bytes:
        found = bytes(self._rest[:size])
        del self._rest[:size]
        return found

    def _piece(self) -> bytes:
        """What is there of the body, at least a byte; b"" at its end."""
        if self._ended:
            return b""
        if self._chunked and not self._left and not self._next_chunk():
            return b""
        piece = self._file.read1(READ if self._left is None else min(self._left, READ))
        if not piece:
            if self._chunked:
                raise http.client.IncompleteRead(b"", self._left)
            self._ended = self.will_close = True
        if self._left is not None:
            self._left -= len(piece)
            self._ended = self._ended or not (self._left or self._chunked)
        return piece

    def _next_chunk(self) -> bool:
        """Go on to the next chunk; False where that was the last."""
        line = self._head_line()
        if line in (b"\r\n", b"\n"):  # the end of the chunk before
            line = self._head_line()
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise http.client.IncompleteRead(b"") from None
        if self._left < 0:
            raise http.client.IncompleteRead(b"")
        if self._left == 0:
            self._headers()
            self._ended = True
        return not self._ended

    def _frame(self, method: str, headers: dict[bytes, bytes]) -> None:
        """How long the body is."""
        length = headers.get(b"content-length", b"")
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            self._chunked, self._left = False, 0
        elif not self._chunked:
            self._left = int(length) if length.isdigit() else None
        self._ended = not self._chunked and self._left == 0

    def _status(self) -> tuple[bytes, int]:
        line = self._file.readline(LONGEST_LINE + 1)
        if not line:
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        version, _, rest = line.partition(b" ")
        code = rest[:3]
        if not version.startswith(b"HTTP/") or not code.isdigit() or len(code) < 3:
            raise http.client.BadStatusLine(line[:100].decode("latin-1"))
        return version, int(code)

    def _headers(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for _ in range(MOST_HEADERS + 1):
            line = self._head_line()
            if line in (b"\r\n", b"\n", b""):
                return found
            name, _, value = line.partition(b":")
            found.setdefault(name.strip().lower(), value.strip())
        raise http.client.HTTPException(f"got more than {MOST_HEADERS} headers")

    def _head_line(self) -> bytes:
        line = self._file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise http.client.LineTooLong("header line")
        return line
