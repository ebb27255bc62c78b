"""Ollama's native API: /api/chat and /api/generate as JSON lines, vectors, and the models of the swarm.

Shapes are those of Ollama 0.33 (api/types.go, server/routes.go), compared field by field with a real one in
tests. What a host is told of memory and threads (num_ctx, num_gpu, keep_alive …) is the inventory's business:
such options are read over. Source: https://docs.ollama.com/api
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import Message, Sampling, Timings, ToolCall
from swarmctl.gateway import images, reading
from swarmctl.gateway.ollama_models import LOOKS
from swarmctl.gateway.surface import Embed, Surface, Talk, ToEmbed, status_of, told
from swarmctl.gateway.turn import BadRequest, Called, Finished, Piece, Thought, Turn
from swarmctl.runtimes.toolcalls import arguments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Literal

    from swarmctl.dispatch.question import Answered, Asked
    from swarmctl.errors import SwarmError
    from swarmctl.exchange import Exchange, Token
    from swarmctl.gateway.surface import Meta, Vectors
    from swarmctl.gateway.turn import Event, Whole

NANO = 1_000_000_000
HIGHEST = float(1 << 31)
TOP_LOGPROBS = 20
MOST_TEXTS = 1 << 16
EFFORTS = ("low", "medium", "high", "max")
NDJSON = "application/x-ndjson"
#: Ollama takes any role, and templates take a strange one for the user
ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system", "assistant": "assistant", "tool": "tool"}


def parse_chat(body: Mapping[str, Any]) -> Turn | Mapping[str, Any]:
    """A body of /api/chat. Without messages it asks to load or unload a model; that is the swarm's business,
    and the client is told that it is done."""
    name = model_of(body)
    said = tuple(_messages(reading.entries(body, "messages")))
    if not said:
        return _loaded(body, name, {"message": {"role": "assistant", "content": ""}})
    return _turn(body, name, reading.converse(said, **_given(body), tools=_tools(body)))


def parse_generate(body: Mapping[str, Any]) -> Turn | Mapping[str, Any]:
    """A body of /api/generate: a prompt, with a system message or raw."""
    name = model_of(body)
    for field in ("suffix", "template"):
        if reading.text(body, field):
            raise BadRequest(f"{field} is not supported by this gateway", param=field)
    if body.get("context"):
        raise BadRequest("context is not supported by this gateway: send the conversation to /api/chat",
                         param="context")
    prompt, system = reading.text(body, "prompt") or "", reading.text(body, "system") or ""
    pictures = _images(body)
    if not prompt and not pictures:
        return _loaded(body, name, {"response": ""})
    before = (Message("system", system),) if system and not reading.flag(body, "raw") else ()
    asked = reading.converse((*before, Message("user", prompt, images=pictures)), **_given(body))
    return _turn(body, name, replace(asked, raw=reading.flag(body, "raw")))


def parse_embed(body: Mapping[str, Any]) -> ToEmbed:
    """A body of /api/embed. Without a text it asks to load the model, and gets no vectors."""
    texts = reading.strings(body, "input", MOST_TEXTS)
    return ToEmbed(() if body.get("input") == "" else texts, model_of(body),
                   {"dimensions": reading.count(body, "dimensions") or 0})


def parse_embeddings(body: Mapping[str, Any]) -> ToEmbed:
    """A body of the older /api/embeddings: one prompt, or none to load the model."""
    prompt = reading.text(body, "prompt")
    return ToEmbed((prompt,) if prompt else (), model_of(body))


def model_of(body: Mapping[str, Any]) -> str:
    """The model that is meant: `model`, or `name` as older clients write; `:latest` says nothing."""
    name = reading.text(body, "model") or reading.text(body, "name")
    if not name:
        raise BadRequest("model is required", param="model")
    if len(name) > reading.MODEL_LENGTH:
        raise BadRequest("invalid model name", param="model")
    return name.removesuffix(":latest")


def _turn(body: Mapping[str, Any], name: str, asked: Asked) -> Turn:
    return Turn(asked, name, stream=reading.flag(body, "stream", default=True))


def _loaded(body: Mapping[str, Any], name: str, said: Mapping[str, Any]) -> Mapping[str, Any]:
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    return {"model": name, "created_at": moment(time.time()), **said, "done": True, "done_reason": reason}


def _messages(raw: Sequence[Any]) -> Iterator[Message]:
    """The conversation. A result of a call belongs to the call of its id; without one, to the next that waits
    for a result of that function."""
    waiting: list[ToolCall] = []
    for number, one in enumerate(raw):
        if not isinstance(one, dict):
            raise reading.wrong(f"messages[{number}]", "an object", one)
        role = ROLES.get((reading.text(one, "role") or "").lower(), "user")
        content = reading.text(one, "content") or ""
        if role == "assistant":
            waiting = list(_calls(one, number))
            yield Message(role, content, tuple(waiting))
        elif role == "tool":
            call = _answered(waiting, reading.text(one, "tool_call_id"), reading.text(one, "tool_name"))
            yield Message(role, content, tool_call_id=call.id, name=call.name)
        else:
            yield Message(role, content, images=_images(one))


def _calls(message: Mapping[str, Any], number: int) -> Iterator[ToolCall]:
    for index, raw in enumerate(reading.entries(message, "tool_calls")):
        function = reading.entry(raw, "function") if isinstance(raw, dict) else None
        if function is None:
            raise BadRequest(f"messages[{number}].tool_calls[{index}] has no function", param="messages")
        arguments = json.dumps(reading.entry(function, "arguments") or {}, ensure_ascii=False)
        identity = reading.text(raw, "id") or f"call_{number}_{index}"
        yield ToolCall(identity, reading.text(function, "name") or "", arguments)


def _answered(waiting: list[ToolCall], identity: str | None, name: str | None) -> ToolCall:
    for call in waiting:
        if call.id == identity or (not identity and name in (None, call.name)):
            waiting.remove(call)
            return call
    return ToolCall(identity or "", name or "", "")


def _images(one: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(images.from_base64(text, "images") for text in reading.entries(one, "images"))


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = reading.entries(body, "tools")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest("each of tools must be a function with a name", param="tools")
    return tuple({"type": "function", **tool} for tool in tools)


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """What /api/chat and /api/generate share, as fields of Asked."""
    options = reading.entry(body, "options") or {}
    most = reading.count(options, "num_predict", -2, reading.LARGEST)
    return {
        "max_tokens": most if most is not None and most >= 0 else None,
        "temperature": reading.number(options, "temperature", 0, HIGHEST),
        "seed": reading.count(options, "seed", -reading.LARGEST, reading.LARGEST),
        "stop": reading.strings(options, "stop", 64),
        "schema": _format(body.get("format")),
        "sampling": Sampling(
            top_p=reading.number(options, "top_p", 0, HIGHEST),
            top_k=reading.count(options, "top_k"),
            min_p=reading.number(options, "min_p", 0, 1),
            presence_penalty=reading.number(options, "presence_penalty", -HIGHEST, HIGHEST),
            frequency_penalty=reading.number(options, "frequency_penalty", -HIGHEST, HIGHEST),
            repeat_penalty=reading.number(options, "repeat_penalty", 0, HIGHEST)),
        "logprobs": reading.flag(body, "logprobs"),
        "top_logprobs": _top(body),
        "think": _think(body.get("think")),
    }


def _format(value: object) -> Mapping[str, Any] | None:
    if value in (None, ""):
        return None
    if value == "json":
        return {"type": "object"}
    if isinstance(value, dict):
        return value
    raise BadRequest(f'invalid format: {json.dumps(value)}; expected "json" or a valid JSON Schema object',
                     param="format")


def _top(body: Mapping[str, Any]) -> int | None:
    value = reading.count(body, "top_logprobs", -reading.LARGEST, reading.LARGEST)
    if value is not None and not 0 <= value <= TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS}", param="top_logprobs")
    return value


def _think(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool) or value in EFFORTS:
        return value
    raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
                     param="think")


def moment(at: float) -> str:
    """A time as Go writes it: RFC 3339 in UTC, without needless zeros."""
    whole = datetime.fromtimestamp(at, UTC)
    fraction = f"{whole.microsecond:06d}".rstrip("0")
    return f"{whole:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}Z"


class Lines:
    """One answer as JSON lines. `generate` says what /api/generate says, otherwise it is /api/chat."""

    def __init__(self, meta: Meta, *, generate: bool, clock: Callable[[], float] = time.time) -> None:
        self.meta = meta
        self.generate = generate
        self.clock = clock
        self.calls = 0

    def feed(self, event: Event) -> bytes:
        """One line for each piece, thought or call."""
        if isinstance(event, Piece):
            return self._line(_said(event.text, generate=self.generate), _logprobs(event.tokens, self.meta))
        if isinstance(event, Thought):
            return self._line(_said(thought=event.text, generate=self.generate))
        if isinstance(event, Called):
            self.calls += 1
            return self._line(_said(calls=[_call(event.call, self.calls - 1)], generate=self.generate))
        if isinstance(event, Finished):
            return self._last(event.answered)
        return b""

    def failed(self, exc: SwarmError) -> bytes:
        """An error as a line of its own, as Ollama ends a stream that broke."""
        return _encoded(error(exc)[1])

    def _line(self, said: Mapping[str, Any], likely: Sequence[Mapping[str, Any]] = ()) -> bytes:
        row = {"model": self.meta.model, "created_at": moment(self.clock()), **said, "done": False}
        return _encoded(row | ({"logprobs": likely} if likely else {}))

    def _last(self, answered: Answered) -> bytes:
        return _encoded({"model": answered.exchange.model, "created_at": moment(self.clock()),
                         **_said(generate=self.generate), **_end(answered.exchange)})


def whole_chat(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """The answer of /api/chat in one piece."""
    return _whole(meta, answered, whole, generate=False)


def whole_generate(meta: Meta, answered: Answered, whole: Whole) -> Mapping[str, Any]:
    """The answer of /api/generate in one piece."""
    return _whole(meta, answered, whole, generate=True)


def _whole(meta: Meta, answered: Answered, whole: Whole, *, generate: bool) -> Mapping[str, Any]:
    calls = [_call(call, number) for number, call in enumerate(whole.calls)]
    said = _said("".join(whole.text), "".join(whole.thoughts), calls, generate=generate)
    likely = _logprobs(whole.tokens, meta)
    end = _end(answered.exchange)
    counts = {key: end.pop(key) for key in tuple(end) if key not in ("done", "done_reason")}
    return {"model": answered.exchange.model, "created_at": moment(time.time()), **said, **end,
            **({"logprobs": likely} if likely else {}), **counts}


def _said(text: str = "", thought: str = "", calls: Sequence[Mapping[str, Any]] = (), *,
          generate: bool) -> dict[str, Any]:
    thinking = {"thinking": thought} if thought else {}
    if generate:
        return {"response": text, **thinking}
    called = {"tool_calls": calls} if calls else {}
    return {"message": {"role": "assistant", "content": text, **thinking, **called}}


def _call(call: ToolCall, index: int) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments_of(call)}}


def _end(exchange: Exchange) -> dict[str, Any]:
    """How it ended and what it took, in nanoseconds. An answer of calls ends with `stop`."""
    timings: Timings = exchange.timings
    counts = {"total_duration": _nano(timings.total_seconds), "load_duration": _nano(timings.load_seconds),
              "prompt_eval_count": timings.prompt_tokens or 0,
              "prompt_eval_duration": _nano(timings.prompt_seconds),
              "eval_count": timings.completion_tokens or 0, "eval_duration": _nano(timings.decode_seconds)}
    reason = "length" if exchange.finish == "length" else "stop"
    return {"done": True, "done_reason": reason, **{key: value for key, value in counts.items() if value}}


def _nano(seconds: float | None) -> int:
    return round((seconds or 0.0) * NANO)


def _logprobs(tokens: Sequence[Token], meta: Meta) -> list[dict[str, Any]]:
    asked = meta.turn.asked
    if not asked.logprobs:
        return []
    return [_token(token.text, token.logprob)
            | ({"top_logprobs": [_token(*other) for other in token.top[:asked.top_logprobs]]}
               if asked.top_logprobs else {}) for token in tokens]


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def whole_embed(asked: ToEmbed, found: Vectors) -> Mapping[str, Any]:
    """The answer of /api/embed."""
    vectors = [_cut(vector, asked.extra["dimensions"]) for vector in found.vectors]
    return {"model": found.model, "embeddings": vectors, "total_duration": _nano(found.seconds),
            "prompt_eval_count": found.tokens}


def _cut(vector: Sequence[float], dimensions: int) -> list[float]:
    """The first so many numbers of a vector, made as long as one again; all of them where none are asked."""
    if not 0 < dimensions < len(vector):
        return list(vector)
    length = math.hypot(*vector[:dimensions]) or 1.0
    return [value / length for value in vector[:dimensions]]


def whole_embeddings(_asked: ToEmbed, found: Vectors) -> Mapping[str, Any]:
    """The answer of /api/embeddings."""
    return {"embedding": list(found.vectors[0]) if found.vectors else []}


def error(exc: SwarmError) -> tuple[int, Mapping[str, Any]]:
    """A failure as Ollama says it: text alone."""
    return status_of(exc), {"error": told(exc)}


def _encoded(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _chat_lines(meta: Meta) -> Lines:
    return Lines(meta, generate=False)


def _generate_lines(meta: Meta) -> Lines:
    return Lines(meta, generate=True)


SURFACE = Surface(
    name="ollama", prefix="/api", error=error,
    talks=(Talk("/api/chat", parse_chat, _chat_lines, whole_chat, NDJSON),
           Talk("/api/generate", parse_generate, _generate_lines, whole_generate, NDJSON)),
    embeds=(Embed("/api/embed", parse_embed, whole_embed),
            Embed("/api/embeddings", parse_embeddings, whole_embeddings)),
    looks=LOOKS)
