"""llama-server over HTTP: health, load, streamed chat. What is planned for it lives in llamacpp_plan.

Its own timings (`cache_n`, `prompt_n`, `prompt_ms`, `predicted_n`, `predicted_ms`) come with the last piece
of a stream and feed the router. Source: tools/server/README.md of the pinned llama.cpp.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

from swarmctl.errors import (
    ContextExceeded,
    RequestRejected,
    ServerFull,
    ServerUnavailable,
    StreamBroken,
    Unsupported,
)
from swarmctl.exchange import Chunk, Timings
from swarmctl.runtimes.base import Health, Load
from swarmctl.runtimes.http import Dropped, Reply, TunnelDown, request
from swarmctl.runtimes.logprobs import BEST, read_logprobs, read_tokens
from swarmctl.runtimes.prefill import begun, only_new
from swarmctl.runtimes.toolcalls import CHOICES, Gathered, cannot_see, named, openai_message, refuse_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.exchange import ChatRequest, Finish
    from swarmctl.facts import Facts
    from swarmctl.runtimes.base import Endpoint, Want
    from swarmctl.steps import Step

ONE_TOKEN = {"prompt": "a", "n_predict": 1, "cache_prompt": False}
BUSY_TIMEOUT = 2.0
#: more tokens, or milliseconds, than any answer has
MOST = 1e12
FINISH: Mapping[str, Finish] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
PROPS_TIMEOUT = 5.0


class LlamaCpp:
    """The llama.cpp runtime."""

    name = "llamacpp"

    def plan(self, want: Want, seen: Facts) -> tuple[Step, ...]:
        """See llamacpp_plan."""
        from swarmctl.runtimes.llamacpp_plan import plan_llamacpp

        return plan_llamacpp(want, seen)

    def ping(self, endpoint: Endpoint, *, timeout: float) -> bool:
        """Whether the model is loaded. /health is answered beside the model's work."""
        with request(endpoint, "GET", "/health", connect_timeout=timeout, timeout=timeout) as reply:
            return reply.status == 200

    def health(self, endpoint: Endpoint, *, timeout: float) -> Health:
        """Ask for one token. A server that is loading says so with 503 and is asked no more."""
        started = time.monotonic()
        try:
            with request(endpoint, "GET", "/health", connect_timeout=timeout, timeout=timeout) as reply:
                if reply.status != 200:
                    return Health("loading", _message(reply))
            with request(endpoint, "POST", "/completion", ONE_TOKEN, connect_timeout=timeout,
                         timeout=timeout) as reply:
                answer = reply.json() if reply.status == 200 else None
        except (TunnelDown, Dropped) as exc:
            return Health("unreachable", str(exc))
        except (ServerUnavailable, OSError, http.client.HTTPException) as exc:
            return self._busy(endpoint) or Health("degraded", f"no token: {exc}")
        if not isinstance(answer, dict) or not answer.get("tokens_predicted"):
            return Health("degraded", "it answers but generates no token")
        return Health("ready", seconds=time.monotonic() - started)

    def _busy(self, endpoint: Endpoint) -> Health | None:
        """A server whose slots are all at work for others is busy, not broken."""
        try:
            load = self.load(endpoint, timeout=BUSY_TIMEOUT)
        except ServerUnavailable:
            return None
        return Health("ready", "busy: every slot is at work") if load.busy >= load.slots else None

    def load(self, endpoint: Endpoint, *, timeout: float) -> Load:
        """Count the slots at work. Requests that wait for a slot are not in the list: llama-server keeps them
        aside."""
        with request(endpoint, "GET", "/slots", connect_timeout=timeout, timeout=timeout) as reply:
            slots = _read(reply)
        if reply.status != 200 or not isinstance(slots, list):
            raise ServerUnavailable(f"no slots to be seen (HTTP {reply.status})")
        return Load(busy=sum(bool(slot.get("is_processing")) for slot in slots), slots=len(slots))

    def chat(self, endpoint: Endpoint, ask: ChatRequest, *, connect_timeout: float,
             first_token_timeout: float, token_timeout: float) -> Iterator[Chunk]:
        """Stream an answer; see Runtime.chat."""
        if ask.tools and ask.tool_choice != "none":
            refuse_schema(ask)
            _check_template(endpoint, connect_timeout)
        path = "/v1/completions" if ask.raw else "/v1/chat/completions"
        with request(endpoint, "POST", path, _body(ask), connect_timeout=connect_timeout,
                     timeout=first_token_timeout) as reply:
            if reply.status != 200:
                raise _refusal(reply)
            yield from only_new(_chunks(reply, token_timeout), begun(ask))


def _body(ask: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "cache_prompt": True, **ask.sampling.params()}
    for key in ("max_tokens", "temperature", "seed"):
        if (value := getattr(ask, key)) is not None:
            body[key] = value
    if ask.stop:
        body["stop"] = list(ask.stop)
    best = max(BEST, ask.top_logprobs or 0) if ask.logprobs else 0
    if ask.raw:
        return body | {"prompt": ask.messages[-1].content} | ({"n_probs": best} if best else {}) | (
            {"json_schema": ask.schema} if ask.schema is not None else {})
    if ask.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": ask.schema}}
    if best and not ask.tools:  # with tools llama-server refuses to stream them
        body |= {"logprobs": True, "top_logprobs": best}
    return body | {"messages": [openai_message(turn) for turn in ask.messages]} | _tools(ask) | _thinking(ask)


def _thinking(ask: ChatRequest) -> dict[str, Any]:
    if isinstance(ask.think, bool):
        return {"chat_template_kwargs": {"enable_thinking": ask.think}}
    return {} if ask.think is None else {"reasoning_effort": ask.think}


def _tools(ask: ChatRequest) -> dict[str, Any]:
    """llama-server knows no choice of one tool by name: only that one is offered then, and required."""
    if not ask.tools:
        return {}
    choice = ask.tool_choice or "auto"
    if choice in CHOICES:
        return {"tools": list(ask.tools), "tool_choice": choice}
    return {"tools": named(ask.tools, choice), "tool_choice": "required"}


def _check_template(endpoint: Endpoint, timeout: float) -> None:
    """Raise Unsupported for a model whose template has no tools: llama-server would leave them out, and say
    nothing."""
    with request(endpoint, "GET", "/props", connect_timeout=timeout, timeout=PROPS_TIMEOUT) as reply:
        said = _read(reply)
    able = said.get("chat_template_caps") if isinstance(said, dict) else None
    if isinstance(able, dict) and not able.get("supports_tool_calls", True):
        raise Unsupported(f"{endpoint.model or 'the model'} cannot call tools: its chat template has none",
                          hint="ask a model that was trained for tools (-m)")


def _chunks(reply: Reply, token_timeout: float) -> Iterator[Chunk]:
    """Turn server-sent events into chunks; the last one carries finish and timings."""
    tokens = 0
    finish: Finish | None = None
    timings: Timings | None = None
    gathered = Gathered()
    for event in _events(reply):
        if "error" in event:
            said = event["error"]
            raise _broken(tokens, str(said.get("message", said) if isinstance(said, dict) else said))
        text, thought, deltas, reason = _delta(event)
        if isinstance(event.get("timings"), dict):
            timings = _timings(event["timings"])
        finish = FINISH.get(reason, "stop") if reason else finish
        if text or thought or deltas:
            reply.patience(token_timeout)
        calls = (*gathered.add(deltas), *(gathered.rest(cut=finish == "length") if reason else ()))
        if text or thought or calls:
            tokens += 1
            logprob, rival = read_logprobs(_logprobs(event))
            yield Chunk(text=text, logprob=logprob, rival=rival, tool_calls=calls,
                        tokens=read_tokens(_logprobs(event)), thought=thought)
    if finish is None:
        raise _broken(tokens, "the stream ended without its closing record")
    yield Chunk(finish=finish, timings=timings)


def _events(reply: Reply) -> Iterator[dict[str, Any]]:
    lines = reply.lines()
    seen = 0
    while True:
        try:
            line = next(lines, None)
        except (OSError, http.client.HTTPException) as exc:
            raise _broken(seen, str(exc) or type(exc).__name__) from exc
        if line is None or line == b"data: [DONE]":
            return
        kind, _, payload = line.partition(b": ")
        if kind not in (b"data", b"error"):
            continue
        event = _parse(payload)
        seen += any(_delta(event)[:2])
        yield event if kind == b"data" else {"error": event.get("error", event)}


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        event = json.loads(payload)
    except ValueError:
        return {"error": {"message": "the server sent something that is not JSON"}}
    return event if isinstance(event, dict) else {}


def _delta(event: Mapping[str, Any]) -> tuple[str, str, list[Any], str | None]:
    """Text, reasoning, pieces of tool calls, and why the answer ended."""
    choice = (event.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    text, thought = delta.get("content") or choice.get("text") or "", delta.get("reasoning_content") or ""
    return text, thought, delta.get("tool_calls") or [], choice.get("finish_reason")


def _logprobs(event: Mapping[str, Any]) -> Any:  # noqa: ANN401  whatever the server says
    said = (event.get("choices") or [{}])[0].get("logprobs")
    return said.get("content") if isinstance(said, dict) else None


def _broken(tokens: int, why: str) -> ServerUnavailable | StreamBroken:
    return StreamBroken(why) if tokens else ServerUnavailable(why)


def _timings(raw: Mapping[str, Any]) -> Timings:
    cached, fresh, prompt_ms, predicted, predicted_ms = (
        _count(raw.get(name)) for name in ("cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"))
    return Timings(
        prompt_tokens=int(cached + fresh),
        cached_tokens=int(cached),
        prompt_seconds=prompt_ms / 1000,
        completion_tokens=int(predicted),
        decode_seconds=predicted_ms / 1000,
    )


def _count(said: object) -> float:
    """A number of tokens or milliseconds; 0 for what is none, as from a server that says anything at all."""
    return said if isinstance(said, int | float) and 0 <= said < MOST else 0.0


def _refusal(reply: Reply) -> ServerUnavailable | RequestRejected:
    body = _read(reply)
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    message = str(error.get("message") or f"HTTP {reply.status}")
    if error.get("type") == "exceed_context_size_error":
        return ContextExceeded(message)
    if cannot_see(message):
        return Unsupported(f"the model cannot see images ({message.partition(' - ')[0]})",
                           hint="ask a model that was made for images (-m)")
    if 400 <= reply.status < 500 and reply.status not in (408, 429):
        return RequestRejected(message)
    if reply.status == 429:  # llama-server's own queue has no end; what stands before one may say it
        return ServerFull(message)
    return ServerUnavailable(message)


def _message(reply: Reply) -> str:
    body = _read(reply)
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else f"HTTP {reply.status}"


def _read(reply: Reply) -> Any:  # noqa: ANN401  whatever the server says
    try:
        return reply.json()
    except (OSError, http.client.HTTPException):
        return None
