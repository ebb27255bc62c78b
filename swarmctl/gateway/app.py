"""The ASGI application: every surface's routes, and what all of them have in common.

A request is let in by the guard (host, key, limits), read within bounds, answered by its surface, and logged
as one line. Failures are said in the shape of the API whose path was asked.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from swarmctl.dispatch.question import SERVED
from swarmctl.dispatch.record import fresh_id
from swarmctl.errors import Busy, SwarmError
from swarmctl.gateway import feedback
from swarmctl.gateway.access_log import PROMPT_LENGTH
from swarmctl.gateway.call import Call
from swarmctl.gateway.conversations import Conversations
from swarmctl.gateway.embedding import embed as embed_texts
from swarmctl.gateway.guard import demand
from swarmctl.gateway.limits import OverLimit
from swarmctl.gateway.openapi import document
from swarmctl.gateway.surface import Wanted
from swarmctl.gateway.talking import Talking
from swarmctl.gateway.turn import BadRequest, Turn
from swarmctl.monitor.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from starlette.types import Receive, Scope, Send

    from swarmctl.exchange import Exchange
    from swarmctl.gateway.bounds import Bounds
    from swarmctl.gateway.engine import Engine
    from swarmctl.gateway.guard import Guard
    from swarmctl.gateway.health import Health
    from swarmctl.gateway.limits import Limits
    from swarmctl.gateway.surface import Embed, Look, Surface, Talk
    from swarmctl.monitor.metrics import Metrics

    Handler = Callable[[Call], Awaitable[None]]

#: The modules whose SURFACE is served.
SURFACES = ("swarmctl.gateway.openai", "swarmctl.gateway.ollama", "swarmctl.gateway.anthropic",
            "swarmctl.gateway.responses")
CALL = "swarmctl.call"
#: What a request whose client left before an answer is counted as; nginx's number for it.
GONE = 499
#: What belongs to no API, by the name that it is counted under.
OWN, OWN_PATHS = "swarmctl", ("/healthz", "/metrics", "/v1/feedback", "/openapi.json")
#: Refusals that are counted, and what for.
REJECTED = {401: "key", 403: "forbidden", 408: "slow", 413: "size"}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What requests are answered with."""

    engine: Engine
    bounds: Bounds
    clock: Callable[[], float]
    guard: Guard
    limits: Limits
    health: Health
    metrics: Metrics
    log: Callable[[Call], None]
    log_prompts: bool = False
    conversations: Conversations = field(default_factory=Conversations)


def surfaces() -> tuple[Surface, ...]:
    """All APIs that are served."""
    return tuple(import_module(name).SURFACE for name in SURFACES)


class App:
    """The application. Its surfaces' routes come first, in their order."""

    def __init__(self, gateway: Gateway, served: tuple[Surface, ...]) -> None:
        self.gateway = gateway
        self._served = sorted(served, key=lambda one: len(one.prefix), reverse=True)
        self._router = Router([*(route for surface in served for route in self._routes(surface)),
                               *self._own()], redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        call = Call(scope, receive, send)
        surface = next(one for one in self._served if call.path.startswith(one.prefix))
        scope[CALL] = call
        scope["app"] = self  # a route then raises where it would answer 405 in its own shape
        name = OWN if call.path in OWN_PATHS else surface.name
        try:
            with self.gateway.metrics.under_way(name):
                await self._answer(call, surface)
        finally:  # what ended by a defect is counted and logged too
            self.gateway.metrics.request(name, call.status or GONE, time.monotonic() - call.began)
            self.gateway.log(call)

    async def _answer(self, call: Call, surface: Surface) -> None:
        try:
            call.access = self.gateway.guard.admit(call, surface)
            await self._router(call.scope, call.receive, call.send)
        except SwarmError as exc:
            await self._refuse(call, surface, exc)
        except HTTPException as exc:
            await self._refuse(call, surface, BadRequest(_said(exc, call), status=exc.status_code))
        except Exception:  # a client hears of a defect in its API's own shape, uvicorn's log where it is
            await self._refuse(call, surface, BadRequest("a defect in the gateway; its log says where",
                                                         status=500))
            raise

    async def _refuse(self, call: Call, surface: Surface, exc: SwarmError) -> None:
        call.noted["error"] = str(exc)
        if call.status or (isinstance(exc, BadRequest) and exc.status == GONE):
            return
        status, body = surface.error(exc)
        headers = {}
        if isinstance(exc, Busy):
            headers["retry-after"] = f"{max(1, math.ceil(exc.retry_after))}"
            self.gateway.metrics.rejected(surface.name, "limit" if isinstance(exc, OverLimit) else "busy")
        elif status in REJECTED:
            self.gateway.metrics.rejected(surface.name, REJECTED[status])
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        await call.reply(status, body, headers)

    def _routes(self, surface: Surface) -> Iterator[Route]:
        for talk in surface.talks:
            yield _route(talk.path, "POST", self._talk(talk))
        for embed in surface.embeds:
            yield _route(embed.path, "POST", self._embed(embed))
        for look in surface.looks:
            yield _route(look.path, look.method, self._look(look))

    def _own(self) -> Iterator[Route]:
        yield _route("/healthz", "GET", self._healthz)
        yield _route("/metrics", "GET", self._metrics)
        yield _route("/v1/feedback", "POST", self._feedback)
        yield _route("/openapi.json", "GET", self._openapi)

    def _talk(self, talk: Talk) -> Handler:
        async def handle(call: Call) -> None:
            gateway = self.gateway
            demand(call.access, "ask")
            turn = talk.parse(await call.body(gateway.bounds))
            if not isinstance(turn, Turn):
                await call.reply(200, turn)
                return
            now = gateway.clock()
            terminal = call.key or SERVED
            asked = gateway.conversations.continued(turn.asked, terminal)
            turn = turn if asked is turn.asked else replace(turn, asked=asked)
            talking = Talking(call, talk, turn, identity=fresh_id(now), at=now, seconds=gateway.bounds.turn,
                              recorded=partial(gateway.conversations.remember, terminal=terminal))
            call.noted |= {"exchange": talking.identity, "model": turn.model, "stream": turn.stream}
            if gateway.log_prompts:
                call.noted["prompt"] = turn.asked.prompt[:PROMPT_LENGTH]
            with self._allowed(call, now, lambda: talking.tokens):
                exchange = await talking.answer(gateway.engine, terminal)
            if exchange is not None:
                call.noted |= _told(exchange)

        return handle

    def _embed(self, embed: Embed) -> Handler:
        async def handle(call: Call) -> None:
            gateway = self.gateway
            demand(call.access, "ask")
            asked = embed.parse(await call.body(gateway.bounds))
            call.noted |= {"model": asked.model, "texts": len(asked.texts)}
            read: list[int] = []
            with self._allowed(call, gateway.clock(), lambda: sum(read)):
                swarm = gateway.engine.resident.swarm()
                made = await call.unless_gone(gateway.engine.claiming(
                    partial(embed_texts, swarm, asked, call.priority, read.append)))
            call.noted |= {"answered": made.model, "host": made.host, "prompt_tokens": made.tokens}
            await call.reply(200, embed.whole(asked, made), {
                "x-swarmctl-host": made.host, "x-swarmctl-model": made.model,
                "x-swarmctl-cost-seconds": f"{made.seconds:.3f}"})

        return handle

    def _look(self, look: Look) -> Handler:
        async def handle(call: Call) -> None:
            demand(call.access, "ask")
            body: Mapping[str, Any] = await call.body(self.gateway.bounds) if look.method == "POST" else {}
            wanted = Wanted(call.scope.get("path_params", {}), call.query(), body)
            await call.reply(200, look.answer(self.gateway.engine.resident.swarm(), wanted))

        return handle

    async def _healthz(self, call: Call) -> None:
        seen = await self.gateway.engine.apart(self.gateway.health.seen)
        ready = seen["status"] == "ready"
        known = call.access is not None or not self.gateway.guard.locked()
        await call.reply(200 if ready else 503, seen if known else {"status": seen["status"]})

    async def _metrics(self, call: Call) -> None:
        demand(call.access, "metrics")
        text = await self.gateway.engine.apart(self.gateway.metrics.exposition)
        await call.reply(200, text.decode(), media=CONTENT_TYPE)

    async def _feedback(self, call: Call) -> None:
        demand(call.access, "rate" if call.access and "rate" in call.access.scopes else "feedback")
        body = await call.body(self.gateway.bounds)
        engine = self.gateway.engine
        done = await engine.apart(partial(
            feedback.take, engine.resident.paths, body, call.access, self.gateway.clock()))
        await call.reply(200, done)

    async def _openapi(self, call: Call) -> None:
        await call.reply(200, document(self._served))

    @contextmanager
    def _allowed(self, call: Call, now: float, tokens: Callable[[], int]) -> Iterator[None]:
        """While the block runs, the request counts against its key's limits; its `tokens` are paid however it
        ends. Raises Busy."""
        if call.access is None:
            yield
            return
        limits = self.gateway.limits
        with limits.turn(call.access, now):
            try:
                yield
            finally:
                limits.spend(call.access, tokens(), self.gateway.clock())


class _Door:
    """A route's endpoint: an ASGI app, so that starlette wraps nothing around it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self._handler(scope[CALL])


def _route(path: str, method: str, handler: Handler) -> Route:
    return Route(path, _Door(handler), methods=[method])


def _told(exchange: Exchange) -> dict[str, Any]:
    return {"host": exchange.host, "answered": exchange.model, "finish": exchange.finish,
            "prompt_tokens": exchange.timings.prompt_tokens,
            "completion_tokens": exchange.timings.completion_tokens}


def _said(exc: HTTPException, call: Call) -> str:
    if exc.status_code == 405:
        return f"{call.method} is not allowed for {call.path}"
    return f"there is nothing at {call.path}"
