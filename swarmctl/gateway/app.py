"""The ASGI application: every surface's routes, and what all of them have in common.

A request is let in by the guard (host, key, limits), read within bounds, answered by its surface, and logged
as one line. Failures are said in the shape of the API whose path was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from swarmctl.dispatch.record import fresh_id
from swarmctl.errors import Busy, SwarmError
from swarmctl.gateway.call import Call
from swarmctl.gateway.surface import Wanted
from swarmctl.gateway.talking import Talking
from swarmctl.gateway.turn import BadRequest, Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from starlette.types import Receive, Scope, Send

    from swarmctl.gateway.bounds import Bounds
    from swarmctl.gateway.engine import Engine
    from swarmctl.gateway.surface import Look, Surface, Talk

    Handler = Callable[[Call], Awaitable[None]]

#: The modules whose SURFACE is served.
SURFACES = ("swarmctl.gateway.openai", "swarmctl.gateway.ollama", "swarmctl.gateway.anthropic")
CALL = "swarmctl.call"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What requests are answered with."""

    engine: Engine
    bounds: Bounds
    clock: Callable[[], float]
    log: Callable[[Call], None]


def surfaces() -> tuple[Surface, ...]:
    """All APIs that are served."""
    return tuple(import_module(name).SURFACE for name in SURFACES)


class App:
    """The application. Its surfaces' routes come first, in their order."""

    def __init__(self, gateway: Gateway, served: tuple[Surface, ...]) -> None:
        self.gateway = gateway
        self._served = sorted(served, key=lambda one: len(one.prefix), reverse=True)
        self._router = Router([route for surface in served for route in self._routes(surface)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])  # no websockets here; uvicorn closes it
        call = Call(scope, receive, send)
        scope[CALL] = call
        scope["app"] = self  # a route then raises where it would answer 405 in its own shape
        try:
            await self._router(scope, receive, send)
        except SwarmError as exc:
            await self._refuse(call, exc)
        except HTTPException as exc:
            await self._refuse(call, BadRequest(_said(exc, call), status=exc.status_code))
        finally:
            self.gateway.log(call)

    async def _refuse(self, call: Call, exc: SwarmError) -> None:
        call.noted["error"] = str(exc)
        if call.status or (isinstance(exc, BadRequest) and exc.status == 499):
            return
        status, body = self._surface(call.path).error(exc)
        headers = {"retry-after": f"{max(1, round(exc.retry_after))}"} if isinstance(exc, Busy) else {}
        await call.reply(status, body, headers)

    def _surface(self, path: str) -> Surface:
        return next(one for one in self._served if path.startswith(one.prefix))

    def _routes(self, surface: Surface) -> Iterator[Route]:
        for talk in surface.talks:
            yield _route(talk.path, "POST", self._talk(talk))
        for look in surface.looks:
            yield _route(look.path, look.method, self._look(look))

    def _talk(self, talk: Talk) -> Handler:
        async def handle(call: Call) -> None:
            gateway = self.gateway
            turn = talk.parse(await call.body(gateway.bounds))
            if not isinstance(turn, Turn):
                await call.reply(200, turn)
                return
            now = gateway.clock()
            identity = fresh_id(now)
            call.noted |= {"exchange": identity, "model": turn.model, "stream": turn.stream}
            talking = Talking(call, talk, turn, identity=identity, at=now, seconds=gateway.bounds.turn)
            exchange = await talking.answer(gateway.engine, call.key or "serve")
            if exchange is not None:
                call.noted |= _told(exchange)

        return handle

    def _look(self, look: Look) -> Handler:
        async def handle(call: Call) -> None:
            body: Mapping[str, Any] = await call.body(self.gateway.bounds) if look.method == "POST" else {}
            wanted = Wanted(call.scope.get("path_params", {}), call.query(), body)
            await call.reply(200, look.answer(self.gateway.engine.resident.swarm(), wanted))

        return handle


class _Door:
    """A route's endpoint: an ASGI app, so that starlette wraps nothing around it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self._handler(scope[CALL])


def _route(path: str, method: str, handler: Handler) -> Route:
    return Route(path, _Door(handler), methods=[method])


def _told(exchange: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"host": exchange.host, "answered": exchange.model, "finish": exchange.finish,
            "prompt_tokens": exchange.timings.prompt_tokens,
            "completion_tokens": exchange.timings.completion_tokens}


def _said(exc: HTTPException, call: Call) -> str:
    if exc.status_code == 405:
        return f"{call.method} is not allowed for {call.path}"
    return f"there is nothing at {call.path}"
