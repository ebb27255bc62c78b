"""A turn over HTTP: parsed by its surface, run by the engine, written as a stream or whole, with the headers
that say who answered. Whatever fails after the head was sent becomes the stream's last event."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from swarmctl.dispatch.question import as_request
from swarmctl.errors import StreamBroken, SwarmError
from swarmctl.gateway.call import Left
from swarmctl.gateway.surface import Meta
from swarmctl.gateway.turn import BadRequest, Called, Finished, Piece, Restarted, Routed, Thought, Whole
from swarmctl.routing.cost import DEFAULT_CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from swarmctl.exchange import Exchange
    from swarmctl.gateway.call import Call
    from swarmctl.gateway.engine import Engine
    from swarmctl.gateway.surface import Stream, Talk
    from swarmctl.gateway.turn import Event, Turn
    from swarmctl.routing.cost import Route


class Talking:
    """One turn of one call. `seconds` bound it from its first event to its last byte; `recorded` is told of
    the exchange before that."""

    def __init__(self, call: Call, talk: Talk, turn: Turn, *, identity: str, at: float, seconds: float,
                 recorded: Callable[[Exchange], None]) -> None:
        self.call = call
        self.talk = talk
        self.turn = turn
        self.identity = identity
        self.at = at
        self.seconds = seconds
        self._recorded = recorded
        self._pieces = 0
        self._exchange: Exchange | None = None
        self._open: Stream | None = None

    @property
    def tokens(self) -> int:
        """What a key pays, as the server counted. Of an answer that was cut before it did, that is its pieces
        so far, and what was asked by its characters; nothing before the first piece."""
        timings = self._exchange.timings if self._exchange else None
        counted = (timings.prompt_tokens or 0) + (timings.completion_tokens or 0) if timings else 0
        if counted or not self._pieces:
            return counted
        return self._pieces + round(as_request(self.turn.asked).characters() / DEFAULT_CHARACTERS_PER_TOKEN)

    async def answer(self, engine: Engine, terminal: str) -> Exchange | None:
        """Answer; the exchange, or None where the client left or a stream broke. Raises SwarmError while
        nothing was sent."""
        try:
            return await self.call.unless_gone(self._answer(engine, terminal))
        except Left:
            self.call.noted["finish"] = "cancelled"
            return None

    async def _answer(self, engine: Engine, terminal: str) -> Exchange | None:
        try:
            running = engine.run(self.turn, terminal=terminal, identity=self.identity,
                                 priority=self.call.priority)
            async with aclosing(running) as events:
                pour = self._stream if self.turn.stream else self._whole
                async with asyncio.timeout(self.seconds):
                    return await pour(events)
        except (SwarmError, TimeoutError) as exc:
            error = exc if isinstance(exc, SwarmError) else BadRequest(
                f"the answer took longer than {self.seconds:.0f} s", status=504)
            if self._open is None:
                raise error from exc
            self.call.noted["error"] = str(error)
            await self.call.write(self._open.failed(error), more=False)
        return None

    async def _whole(self, events: AsyncIterator[Event]) -> Exchange:
        whole, route = Whole(), None
        async for event in events:
            whole.take(event)
            self._count(event)
            if isinstance(event, Routed):
                route = event.route
            elif isinstance(event, Finished):
                route = route or event.answered.route
                await self.call.reply(200, self.talk.whole(self._meta(route), event.answered, whole),
                                      self._headers(route))
                return event.answered.exchange
        raise StreamBroken("the answer ended without its end")

    async def _stream(self, events: AsyncIterator[Event]) -> Exchange:
        route: Route | None = None
        async for event in events:
            if isinstance(event, Routed):
                route = event.route
                continue
            if isinstance(event, Restarted):
                raise StreamBroken(f"{event.attempt.host} failed in the middle of the answer: "
                                   f"{event.attempt.error}")
            if self._open is None:
                assert route is not None  # Routed comes first
                self._open = await self._begin(route)
            self._count(event)
            data = self._open.feed(event)
            if data or isinstance(event, Finished):
                await self.call.write(data, more=not isinstance(event, Finished))
            if isinstance(event, Finished):
                return event.answered.exchange
        raise StreamBroken("the answer ended without its end")

    def _count(self, event: Event) -> None:
        self._pieces += isinstance(event, Piece | Thought | Called)
        if isinstance(event, Finished):
            self._exchange = event.answered.exchange
            self._recorded(event.answered.exchange)

    async def _begin(self, route: Route) -> Stream:
        stream = self.talk.stream(self._meta(route))
        await self.call.begin(200, self.talk.media, self._headers(route))
        if head := stream.feed(Routed(route)):
            await self.call.write(head)
        return stream

    def _meta(self, route: Route) -> Meta:
        chosen = route.chosen.candidate
        return Meta(self.identity, self.at, chosen.model, chosen.host, self.turn)

    def _headers(self, route: Route) -> Mapping[str, str]:
        chosen = route.chosen
        said = {"x-swarmctl-host": chosen.candidate.host, "x-swarmctl-model": chosen.candidate.model,
                "x-swarmctl-exchange": self.identity, "x-swarmctl-cost-seconds": f"{chosen.total:.3f}"}
        return {**said, "cache-control": "no-store"} if self.turn.stream else said
