"""Turns and answers made by hand, for the pure half of the gateway's APIs."""

from __future__ import annotations

import json
from typing import Any

from swarmctl.dispatch.question import Answered
from swarmctl.errors import StreamBroken
from swarmctl.exchange import Exchange, Timings, Token, ToolCall
from swarmctl.gateway.surface import Meta
from swarmctl.gateway.turn import Called, Finished, Piece, Routed, Thought, Turn, Whole

AT = 1795451098.25
CALL = ToolCall("call_1", "weather", '{"city": "Paris"}')
BROKEN = StreamBroken("the server went away", host="worlock")
TIMINGS = Timings(15, 14, 0.0016, 4, 0.0025, 0.26, 0.01, 0.269750840)


def meta(turn: Turn) -> Meta:
    return Meta("01m84m910d34fczy", AT, "tooly", "spinoza", turn)


def answered(finish: str = "stop", **more: Any) -> Answered:
    row = Exchange("01m84m910d34fczy", "2026-11-23T16:24:58.250Z", (), "", finish, "routine", "spinoza",
                   "llamacpp", "tooly", "digest", "template", "01m84m910d34fczy",
                   **{"timings": TIMINGS, **more})
    return Answered(row, None, None)


def told(*, thought: str = "", text: tuple[str, ...] = ("P", "ar", "is"), calls: tuple[ToolCall, ...] = (),
         finish: str = "stop", likely: bool = False) -> list:
    """The events of a turn."""
    thoughts = [Thought(thought)] if thought else []
    pieces = [Piece(one, tokens=(_token(one),) if likely else ()) for one in text]
    return [Routed(None), *thoughts, *pieces, *map(Called, calls), Finished(answered(finish))]


def _token(text: str) -> Token:
    return Token(text, -0.5, ((text, -0.5), ("x", -2.0)))


def whole(events: list) -> Whole:
    found = Whole()
    for event in events:
        found.take(event)
    return found


def sse(raw: bytes) -> list[dict]:
    """The events of a stream of server-sent events; each is named by its type."""
    found = []
    for block in raw.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def lines(raw: bytes) -> list[dict]:
    return [json.loads(line) for line in raw.decode().splitlines()]


def shape(value: Any) -> Any:
    """Names and kinds, without what they hold."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, float) else type(value).__name__
