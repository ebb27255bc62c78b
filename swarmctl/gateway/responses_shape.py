"""How answers look in OpenAI's Responses API: whole, and as server-sent events. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swarmctl.gateway.openai_shape import error
from swarmctl.gateway.turn import Called, Finished, Piece, Routed, Thought

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.dispatch.question import Answered, Asked
    from swarmctl.errors import SwarmError
    from swarmctl.exchange import Exchange, Timings, Token, ToolCall
    from swarmctl.gateway.surface import Meta
    from swarmctl.gateway.turn import Event, Whole

#: a response's id is its exchange's, behind this
PREFIX = "resp_"


def response(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """A response object: reasoning, words, calls, each as an item."""
    output: list[dict[str, Any]] = []
    if whole.thoughts:
        output.append(_reasoning(f"rs_{meta.id}", "".join(whole.thoughts)))
    if whole.text or not whole.calls:
        output.append(_message(f"msg_{meta.id}", "".join(whole.text), _logprobs(whole.tokens, meta)))
    output += [_call(f"fc_{meta.id}_{number}", call) for number, call in enumerate(whole.calls)]
    return _ended(meta, answered.exchange, output)


class ResponseStream:
    """The events of one response: its items one after the other, each opened, filled and closed."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.number = -1
        self.output: list[dict[str, Any]] = []
        self.kind = ""
        self.text: list[str] = []
        self.tokens: list[Token] = []

    def feed(self, event: Event) -> bytes:
        """See surface.Stream."""
        if isinstance(event, Routed):
            if self.number >= 0:
                return b""
            begun = _response(self.meta, self.meta.model, [])
            return (self._say("response.created", response=begun)
                    + self._say("response.in_progress", response=begun))
        if isinstance(event, Thought):
            return self._into("reasoning") + self._add("response.reasoning_text.delta", event.text)
        if isinstance(event, Piece):
            return self._into("message") + self._piece(event)
        if isinstance(event, Called):
            return self._close() + self._call(event.call)
        return self._end(event.answered.exchange) if isinstance(event, Finished) else b""

    def failed(self, exc: SwarmError) -> bytes:
        """See surface.Stream."""
        said = error(exc)[1]["error"]
        broken = _response(self.meta, self.meta.model, self.output) | {
            "status": "failed", "error": {"code": "server_error", "message": said["message"]}}
        return self._say("response.failed", response=broken)

    def _say(self, kind: str, **said: Any) -> bytes:  # noqa: ANN401  any JSON
        self.number += 1
        event = {"type": kind, "sequence_number": self.number, **said}
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()

    @property
    def _place(self) -> dict[str, Any]:
        prefix = "rs" if self.kind == "reasoning" else "msg"
        number = f"_{len(self.output)}" if any(one["type"] == self.kind for one in self.output) else ""
        return {"item_id": f"{prefix}_{self.meta.id}{number}", "output_index": len(self.output)}

    def _into(self, kind: str) -> bytes:
        """Be in an item of this kind, closing the one before."""
        if self.kind == kind:
            return b""
        closed = self._close()
        self.kind = kind
        place = self._place
        item = _item(kind, place["item_id"], "", []) | {"status": "in_progress", "content": []}
        opened = self._say("response.output_item.added", output_index=place["output_index"], item=item)
        part = _part(kind, "", [])
        return closed + opened + self._say("response.content_part.added", **place, content_index=0, part=part)

    def _add(self, kind: str, text: str, **more: Any) -> bytes:  # noqa: ANN401  any JSON
        self.text.append(text)
        return self._say(kind, **self._place, content_index=0, delta=text, **more)

    def _piece(self, piece: Piece) -> bytes:
        self.tokens.extend(piece.tokens)
        likely = _logprobs(piece.tokens, self.meta)
        return self._add("response.output_text.delta", piece.text, logprobs=likely)

    def _close(self) -> bytes:
        """End the item that is open."""
        if not self.kind:
            return b""
        kind, place, text = self.kind, self._place, "".join(self.text)
        likely = _logprobs(self.tokens, self.meta)
        done = {"message": ("response.output_text.done", {"logprobs": likely}),
                "reasoning": ("response.reasoning_text.done", {})}[kind]
        item = _item(kind, place["item_id"], text, likely)
        said = (self._say(done[0], **place, content_index=0, text=text, **done[1])
                + self._say("response.content_part.done", **place, content_index=0,
                            part=_part(kind, text, likely))
                + self._say("response.output_item.done", output_index=place["output_index"], item=item))
        self.output.append(item)
        self.kind = ""
        self.text.clear()
        self.tokens.clear()
        return said

    def _call(self, call: ToolCall) -> bytes:
        index = len(self.output)
        item = _call(f"fc_{self.meta.id}_{index}", call)
        place = {"item_id": item["id"], "output_index": index}
        self.output.append(item)
        return (self._say("response.output_item.added", output_index=index,
                          item=item | {"arguments": "", "status": "in_progress"})
                + self._say("response.function_call_arguments.delta", **place, delta=call.arguments)
                + self._say("response.function_call_arguments.done", **place, name=call.name,
                            arguments=call.arguments)
                + self._say("response.output_item.done", output_index=index, item=item))

    def _end(self, exchange: Exchange) -> bytes:
        """An answer without a word has one empty message."""
        last = self._into("message") if not self.output and not self.kind else b""
        closed = last + self._close()
        whole = _ended(self.meta, exchange, self.output)
        return closed + self._say(f"response.{whole['status']}", response=whole)


def usage(timings: Timings) -> dict[str, Any]:
    """Tokens read and written. Reasoning is not counted apart by any server here."""
    read, written = timings.prompt_tokens or 0, timings.completion_tokens or 0
    return {"input_tokens": read,
            "input_tokens_details": {"cached_tokens": timings.cached_tokens or 0, "cache_write_tokens": 0},
            "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written}


def _ended(meta: Meta, exchange: Exchange, output: list[dict[str, Any]]) -> dict[str, Any]:
    cut = exchange.finish == "length"
    if cut and output and output[-1]["type"] == "message":
        output = [*output[:-1], output[-1] | {"status": "incomplete"}]
    return _response(meta, exchange.model, output) | {
        "status": "incomplete" if cut else "completed", "usage": usage(exchange.timings),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "completed_at": None if cut else meta.at + (exchange.timings.total_seconds or 0.0)}


def _response(meta: Meta, model: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    asked, turn = meta.turn.asked, meta.turn
    return {
        "id": f"{PREFIX}{meta.id}", "object": "response", "created_at": meta.at, "completed_at": None,
        "status": "in_progress", "background": False, "error": None, "incomplete_details": None,
        "instructions": _instructions(asked), "max_output_tokens": asked.max_tokens, "max_tool_calls": None,
        "model": model, "output": output, "parallel_tool_calls": True,
        "previous_response_id": f"{PREFIX}{turn.continues}" if turn.continues else None,
        "reasoning": {"effort": asked.think if isinstance(asked.think, str) else None, "summary": None},
        "service_tier": "default", "store": True, "temperature": asked.temperature,
        "text": {"format": _format(asked)}, "tool_choice": _choice(asked), "tools": _tools(asked),
        "top_logprobs": asked.top_logprobs or 0, "top_p": asked.sampling.top_p, "truncation": "disabled",
        "usage": None, "user": None, "metadata": {}}


def _instructions(asked: Asked) -> str | None:
    first = asked.history[0] if asked.history else None
    return first.content if first is not None and first.role == "system" else None


def _format(asked: Asked) -> dict[str, Any]:
    if asked.schema is None:
        return {"type": "text"}
    return {"type": "json_schema", "name": "answer", "schema": asked.schema, "strict": True}


def _choice(asked: Asked) -> str | dict[str, Any]:
    choice = asked.tool_choice or "auto"
    return choice if choice in ("auto", "none", "required") else {"type": "function", "name": choice}


def _tools(asked: Asked) -> list[dict[str, Any]]:
    return [{"type": "function", "strict": None, **tool["function"]} for tool in asked.tools]


def _item(kind: str, identity: str, text: str, likely: list[dict[str, Any]]) -> dict[str, Any]:
    return _reasoning(identity, text) if kind == "reasoning" else _message(identity, text, likely)


def _part(kind: str, text: str, likely: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": likely}


def _message(identity: str, text: str, likely: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": identity, "type": "message", "status": "completed", "role": "assistant",
            "content": [_part("message", text, likely)]}


def _reasoning(identity: str, text: str) -> dict[str, Any]:
    return {"id": identity, "type": "reasoning", "status": "completed", "summary": [],
            "content": [_part("reasoning", text, [])]}


def _call(identity: str, call: ToolCall) -> dict[str, Any]:
    return {"id": identity, "type": "function_call", "status": "completed", "call_id": call.id,
            "name": call.name, "arguments": call.arguments}


def _logprobs(tokens: Sequence[Token], meta: Meta) -> list[dict[str, Any]]:
    """Only where they were asked for: the cascade reads them too."""
    asked = meta.turn.asked
    if not asked.logprobs:
        return []
    return [_token(token.text, token.logprob) | {"top_logprobs": [
        _token(*other) for other in token.top[:asked.top_logprobs or 0]]} for token in tokens]


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode("utf-8", "replace")), "logprob": logprob}
