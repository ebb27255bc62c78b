"""How answers look in OpenAI's API: whole, as server-sent events, and as errors. Pure."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import datetime
from typing import TYPE_CHECKING, Any

from swarmctl.errors import Busy, ContextExceeded, PromptTooLong, UsageError, VectorsOnly
from swarmctl.gateway.surface import status_of, told
from swarmctl.gateway.turn import BadRequest, Called, Finished, Piece, Thought

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.dispatch.question import Answered
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.errors import SwarmError
    from swarmctl.exchange import Exchange, Timings, Token, ToolCall
    from swarmctl.gateway.surface import Meta, ToEmbed, Vectors
    from swarmctl.gateway.turn import Event, Whole

DONE = b"data: [DONE]\n\n"
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
         429: "rate_limit_error"}


def chat(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """A chat.completion object."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(whole.text), "refusal": None}
    if whole.thoughts:
        message["reasoning_content"] = "".join(whole.thoughts)
    if whole.calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [_call(call) for call in whole.calls]
    choice = {"index": 0, "message": message, "logprobs": _logprobs(whole.tokens) if whole.tokens else None,
              "finish_reason": answered.exchange.finish}
    return {"id": f"chatcmpl-{meta.id}", "object": "chat.completion", "created": int(meta.at),
            "model": meta.model, "choices": [choice], "usage": usage(answered.exchange.timings),
            "system_fingerprint": fingerprint(answered.exchange)}


def completion(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """A text_completion object."""
    choice = {"index": 0, "text": "".join(whole.text), "finish_reason": answered.exchange.finish,
              "logprobs": _old_logprobs(whole.tokens, 0) if whole.tokens else None}
    return {"id": f"cmpl-{meta.id}", "object": "text_completion", "created": int(meta.at),
            "model": meta.model, "choices": [choice], "usage": usage(answered.exchange.timings),
            "system_fingerprint": fingerprint(answered.exchange)}


class ChatStream:
    """chat.completion.chunk objects as server-sent events."""

    def __init__(self, meta: Meta) -> None:
        self._usage = meta.turn.usage
        self._calls = 0
        self._begun = False
        self._head = {"id": f"chatcmpl-{meta.id}", "object": "chat.completion.chunk",
                      "created": int(meta.at), "model": meta.model}

    def feed(self, event: Event) -> bytes:
        """See surface.Stream."""
        if isinstance(event, Piece):
            return self._first() + self._chunk({"content": event.text}, tokens=event.tokens)
        if isinstance(event, Thought):
            return self._first() + self._chunk({"reasoning_content": event.text})
        if isinstance(event, Called):
            self._calls += 1
            call = {"index": self._calls - 1, **_call(event.call)}
            return self._first() + self._chunk({"tool_calls": [call]})
        return self._last(event.answered.exchange) if isinstance(event, Finished) else b""

    def failed(self, exc: SwarmError) -> bytes:
        """See surface.Stream: an error as the official clients raise it."""
        return sse(error(exc)[1])

    def _first(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _last(self, exchange: Exchange) -> bytes:
        end = self._first() + self._chunk({}, finish=exchange.finish)
        counts = sse({**self._head, "choices": [], "usage": usage(exchange.timings)}) if self._usage else b""
        return end + counts + DONE

    def _chunk(self, delta: Mapping[str, Any], *, tokens: Sequence[Token] = (),
               finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs(tokens) if tokens else None,
                  "finish_reason": finish}
        return sse({**self._head, "choices": [choice]})


class TextStream:
    """text_completion objects as server-sent events."""

    def __init__(self, meta: Meta) -> None:
        self._usage = meta.turn.usage
        self._offset = 0
        self._head = {"id": f"cmpl-{meta.id}", "object": "text_completion", "created": int(meta.at),
                      "model": meta.model}

    def feed(self, event: Event) -> bytes:
        """See surface.Stream."""
        if isinstance(event, Piece):
            logprobs = _old_logprobs(event.tokens, self._offset) if event.tokens else None
            self._offset += len(event.text)
            return self._chunk(event.text, logprobs)
        if not isinstance(event, Finished):
            return b""
        exchange = event.answered.exchange
        counts = sse({**self._head, "choices": [], "usage": usage(exchange.timings)}) if self._usage else b""
        return self._chunk("", None, exchange.finish) + counts + DONE

    def failed(self, exc: SwarmError) -> bytes:
        """See surface.Stream."""
        return sse(error(exc)[1])

    def _chunk(self, text: str, logprobs: Mapping[str, Any] | None, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "choices": [choice]})


def embeddings(asked: ToEmbed, made: Vectors) -> Mapping[str, Any]:
    """A list of embedding objects; base64 is of little-endian float32, as OpenAI's own client asks for it."""
    plain = asked.extra["form"] == "float"
    data = [{"object": "embedding", "index": place,
             "embedding": vector.tolist() if plain else b64encode(vector.tobytes()).decode()}
            for place, vector in enumerate(made.vectors)]
    return {"object": "list", "data": data, "model": made.model,
            "usage": {"prompt_tokens": made.tokens, "total_tokens": made.tokens}}


def error(exc: SwarmError) -> tuple[int, Mapping[str, Any]]:
    """Any failure as OpenAI would say it."""
    status = status_of(exc)
    code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    if isinstance(exc, UsageError) and status == 404:
        code = "model_not_found"
    param = "model" if isinstance(exc, VectorsOnly) else exc.param if isinstance(exc, BadRequest) else None
    if isinstance(exc, ContextExceeded | PromptTooLong):
        code = "context_length_exceeded"
    return status, {"error": {
        "message": told(exc),
        "type": TYPES.get(status, "server_error") if not isinstance(exc, Busy) else "rate_limit_error",
        "param": param, "code": code}}


def model(name: str, made: int) -> Mapping[str, Any]:
    """A model object."""
    return {"id": name, "object": "model", "created": made, "owned_by": "swarmctl"}


def created(swarm: Swarm) -> int:
    """When `up` last made the swarm what it is, in seconds since 1970."""
    try:
        return int(datetime.fromisoformat(swarm.fleet.written).timestamp())
    except ValueError:
        return 0


def usage(timings: Timings) -> Mapping[str, Any] | None:
    """Tokens as the server counted them; None where it did not."""
    read, made = timings.prompt_tokens, timings.completion_tokens
    if read is None or made is None:
        return None
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": timings.cached_tokens or 0}}


def fingerprint(exchange: Exchange) -> str:
    """What answers that may be compared have in common: the weights."""
    return f"fp_{exchange.digest.removeprefix('sha256:')[:12]}"


def sse(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(tokens: Sequence[Token]) -> Mapping[str, Any]:
    return {"content": [{**_one(token.text, token.logprob), "top_logprobs": [
        _one(text, value) for text, value in token.top]} for token in tokens], "refusal": None}


def _one(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}


def _old_logprobs(tokens: Sequence[Token], offset: int) -> Mapping[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {"tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens], "text_offset": offsets}
