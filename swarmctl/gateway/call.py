"""One HTTP request and its answer, over ASGI, with the bounds of the gateway."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from swarmctl.gateway.turn import BadRequest
from swarmctl.typed import too_deep

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from starlette.types import Receive, Scope, Send

    from swarmctl.gateway.bounds import Bounds
    from swarmctl.gateway.keys import Key

T = TypeVar("T")

JSON, PLAIN = "application/json", "text/plain; charset=utf-8"
#: Levels of a body; a record of it has a few more, and must be read by all who read the journal.
DEEPEST = 100
NOT_JSON = "the body is not JSON"


class Left(BadRequest):
    """The client is gone. Its status is nginx's number for that, which nobody sees but the log."""

    def __init__(self) -> None:
        super().__init__("the client left", status=499)


class Call:
    """A request. What was answered so far is kept for the log."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.client: str = (scope.get("client") or ("",))[0]
        #: the key's name as exchanges have it, and the key itself
        self.key: str | None = None
        self.access: Key | None = None
        self.began = time.monotonic()
        self.status = 0
        self.sent = 0
        self.first: float | None = None
        self.noted: dict[str, Any] = {}
        #: whether the body was read to its end, or there is none
        self.read = self.method in ("GET", "HEAD") and "content-length" not in self.headers
        self.receive = receive
        self.send = send

    @property
    def priority(self) -> int:
        """That of its key."""
        return self.access.priority if self.access else 0

    def query(self) -> Mapping[str, str]:
        """The parameters of the URL; the last of several with one name."""
        return dict(parse_qsl(self.scope.get("query_string", b"").decode("latin-1")))

    async def body(self, bounds: Bounds) -> Mapping[str, Any]:
        """The JSON object of the body. Raises BadRequest: too large, too slow, another coding, not JSON."""
        if self.headers.get("content-encoding", "identity") != "identity":
            raise BadRequest("a compressed body is not read here", status=415)
        try:
            async with asyncio.timeout(bounds.upload):
                raw = await self._raw(bounds.body)
        except TimeoutError as exc:
            raise BadRequest(f"the body did not come within {bounds.upload:.0f} s", status=408) from exc
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise BadRequest(NOT_JSON) from exc
        if too_deep(found, raw, DEEPEST):
            raise BadRequest(f"the body is nested deeper than {DEEPEST} levels")
        if not isinstance(found, dict):
            raise BadRequest("the body must be a JSON object")
        return found

    async def _raw(self, limit: int) -> bytes:
        announced = self.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise BadRequest(f"the body may have {limit >> 20} MiB at most", status=413)
        raw, more = bytearray(), True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Left
            raw += message.get("body", b"")
            more = message.get("more_body", False)
            if len(raw) > limit:
                raise BadRequest(f"the body may have {limit >> 20} MiB at most", status=413)
        self.read = True
        return bytes(raw)

    async def gone(self) -> None:
        """Return once the client has left. Only after the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` comes to. Where the client leaves before, it is cancelled. Raises Left then."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self.gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
        raise Left

    async def begin(self, status: int, media: str, headers: Mapping[str, str],
                    length: int | None = None) -> None:
        """Send the head of the answer. A connection whose request was not read to its end is of no more
        use."""
        self.status = status
        pairs = {"content-type": media, **headers, **({} if self.read else {"connection": "close"})}
        if length is not None:
            pairs["content-length"] = str(length)
        await self.send({"type": "http.response.start", "status": status, "headers": [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in pairs.items()]})

    async def write(self, data: bytes, more: bool = True) -> None:
        """Send a piece of the answer's body; waits while the client does not read."""
        if data and self.first is None:
            self.first = time.monotonic() - self.began
        self.sent += len(data)
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(self, status: int, body: Mapping[str, Any] | str,
                    headers: Mapping[str, str] | None = None, media: str = "") -> None:
        """Answer whole: an object as JSON, a str as plain text."""
        media = media or (PLAIN if isinstance(body, str) else JSON)
        data = body.encode() if isinstance(body, str) else json.dumps(body, separators=(",", ":")).encode()
        await self.begin(status, media, headers or {}, len(data))
        await self.write(data, more=False)
