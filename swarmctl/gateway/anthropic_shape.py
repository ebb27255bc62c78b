"""How answers look in Anthropic's Messages API: whole, as server-sent events, and as errors. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swarmctl.gateway.surface import status_of, told
from swarmctl.gateway.turn import Called, Finished, Piece, Routed, Thought
from swarmctl.runtimes.toolcalls import arguments_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.dispatch.question import Answered
    from swarmctl.errors import SwarmError
    from swarmctl.exchange import Exchange, Timings, ToolCall
    from swarmctl.gateway.surface import Meta
    from swarmctl.gateway.turn import Event, Whole

#: why an answer ended. Which stop sequence was met no server here tells; it is the end of the turn.
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
         504: "timeout_error"}


def message(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """A message object: reasoning, words, calls, each as a block."""
    thought, text = "".join(whole.thoughts), "".join(whole.text)
    blocks: list[dict[str, Any]] = []
    if thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text or not whole.calls:
        blocks.append({"type": "text", "text": text, "citations": None})
    blocks += [_tool_use(call) | {"input": arguments_of(call)} for call in whole.calls]
    return _message(meta.id, answered.exchange.model, blocks) | {
        "stop_reason": _reason(answered.exchange), "usage": usage(answered.exchange.timings)}


class MessageStream:
    """The events of one message: message_start, its blocks one after the other, message_delta,
    message_stop."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.index = -1
        self.kind = ""
        self.begun = False

    def feed(self, event: Event) -> bytes:
        """See surface.Stream."""
        if isinstance(event, Routed):
            return b"" if self.begun else self._start()
        if isinstance(event, Thought):
            return self._into("thinking") + self._delta({"type": "thinking_delta", "thinking": event.text})
        if isinstance(event, Piece):
            return self._into("text") + self._delta({"type": "text_delta", "text": event.text})
        if isinstance(event, Called):
            return self._call(event.call)
        return self._end(event.answered.exchange) if isinstance(event, Finished) else b""

    def failed(self, exc: SwarmError) -> bytes:
        """See surface.Stream: the clients raise it."""
        return sse(error(exc)[1])

    def _start(self) -> bytes:
        self.begun = True
        begun = _message(self.meta.id, self.meta.model, [])
        return sse({"type": "message_start", "message": begun}) + sse({"type": "ping"})

    def _into(self, kind: str) -> bytes:
        """Be in a block of this kind, closing the one before."""
        if self.kind == kind:
            return b""
        empty = {"thinking": {"type": "thinking", "thinking": "", "signature": ""},
                 "text": {"type": "text", "text": ""}}
        return self._close() + self._open(kind, empty[kind])

    def _call(self, call: ToolCall) -> bytes:
        delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments_of(call))}
        return self._close() + self._open("tool_use", _tool_use(call)) + self._delta(delta)

    def _open(self, kind: str, block: Mapping[str, Any]) -> bytes:
        self.index, self.kind = self.index + 1, kind
        return sse({"type": "content_block_start", "index": self.index, "content_block": block})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return sse({"type": "content_block_delta", "index": self.index, "delta": delta})

    def _close(self) -> bytes:
        if not self.kind:
            return b""
        self.kind = ""
        return sse({"type": "content_block_stop", "index": self.index})

    def _end(self, exchange: Exchange) -> bytes:
        """An answer without a word has one empty block, as clients read the first."""
        last = self._into("text") if self.index < 0 else b""
        delta = {"stop_reason": _reason(exchange), "stop_sequence": None}
        return (last + self._close()
                + sse({"type": "message_delta", "delta": delta, "usage": usage(exchange.timings)})
                + sse({"type": "message_stop"}))


def usage(timings: Timings) -> dict[str, int]:
    """Tokens that were read anew, read from the cache, and written."""
    cached = timings.cached_tokens or 0
    return {"input_tokens": max(0, (timings.prompt_tokens or 0) - cached), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached, "output_tokens": timings.completion_tokens or 0}


def error(exc: SwarmError) -> tuple[int, Mapping[str, Any]]:
    """Any failure: status and body, as Anthropic's clients make their exceptions from them."""
    status = status_of(exc)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    said = told(exc)
    return status, {"type": "error", "error": {"type": kind, "message": said}, "request_id": None}


def sse(event: Mapping[str, Any]) -> bytes:
    """A server-sent event, named by its type."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _message(identity: str, model: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{identity}", "type": "message", "role": "assistant", "model": model,
            "content": blocks, "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                      "output_tokens": 0}}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _reason(exchange: Exchange) -> str:
    return REASONS.get(exchange.finish, "end_turn")
