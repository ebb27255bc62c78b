"""Ollama over its native HTTP API: health, load, streamed chat. Its timings feed the router.

Facts checked against a real server (0.33): /api/chat streams JSON lines and ends with `done`; a stream
without it is a failure; an `{"error": …}` line may come at any point of an answer that began with 200; times
are nanoseconds. Models load on demand, so looking must not load: only a model that /api/ps lists is asked for
a token. While a model loads, /api/ps says nothing at all, and /api/version answers as ever.

A stream that is cut off between two pieces can cost Ollama the model: its handler waits for ever to pass the
next piece on, and nobody else is answered (github ollama/ollama #17131; seen with 0.33 and 0.34: with tiny
models one cut in twenty). So streams are given up gently, and a loaded model that answers nobody is
unloaded; the next question loads it afresh.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from contextlib import suppress
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
from swarmctl.runtimes.toolcalls import cannot_see, ollama_calls, ollama_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.exchange import ChatRequest, Finish
    from swarmctl.runtimes.base import Endpoint

NANO = 1e-9
#: seconds within which an Ollama that loads nothing lists its models, busy as it may be
PS_TIMEOUT = 1.5
FINISH: Mapping[str, Finish] = {"stop": "stop", "length": "length"}


class Ollama:
    """The Ollama runtime, as far as questions go: servers that run already are spoken to."""

    name = "ollama"

    def ping(self, endpoint: Endpoint, *, timeout: float) -> bool:
        """Whether the model is loaded, as far as Ollama says: nothing is while it loads another.

        Raises TunnelDown and ServerUnavailable.
        """
        loaded = _loaded(endpoint, timeout)
        return loaded is not None and endpoint.model in loaded

    def health(self, endpoint: Endpoint, *, timeout: float) -> Health:
        """Ask a loaded model for one token; a model that is not loaded is idle, and stays so."""
        started = time.monotonic()
        try:
            loaded = _loaded(endpoint, timeout)
            if loaded is None:
                return Health("loading", "Ollama is loading a model, and says no more until it has")
            if endpoint.model not in loaded:
                return Health("idle", "not loaded; the next question loads it")
            body = {"model": endpoint.model, "prompt": "a", "raw": True, "stream": False,
                    "options": {"num_predict": 1}}
            with request(endpoint, "POST", "/api/generate", body, connect_timeout=timeout,
                         timeout=timeout) as reply:
                answer = _object(reply)
        except (TunnelDown, Dropped) as exc:
            return Health("unreachable", str(exc))
        except ServerUnavailable as exc:
            return Health("degraded", f"no token: {exc}")
        if reply.status != 200 or not answer.get("eval_count"):
            return Health("degraded", f"no token: {answer.get('error', f'HTTP {reply.status}')}")
        return Health("ready", seconds=time.monotonic() - started)

    def load(self, endpoint: Endpoint, *, timeout: float) -> Load:
        """Ollama tells no queue; a server that answers counts as having a slot free. Raises
        ServerUnavailable."""
        self.ping(endpoint, timeout=timeout)
        return Load(busy=0, slots=1)

    def chat(self, endpoint: Endpoint, ask: ChatRequest, *, connect_timeout: float,
             first_token_timeout: float, token_timeout: float) -> Iterator[Chunk]:
        """Stream an answer; see Runtime.chat."""
        path = "/api/generate" if ask.raw else "/api/chat"
        try:
            with request(endpoint, "POST", path, _body(endpoint, ask), connect_timeout=connect_timeout,
                         timeout=first_token_timeout) as reply:
                if reply.status != 200:
                    raise _refusal(reply, endpoint)
                with reply.gently():
                    yield from only_new(_chunks(reply, token_timeout), begun(ask))
        except ServerUnavailable as exc:
            if isinstance(exc.__cause__, TimeoutError) and _unloaded(endpoint):
                raise ServerUnavailable(f"{exc}, though the model was loaded; it was unloaded, and the next "
                                        "question loads it afresh") from exc
            raise


def _loaded(endpoint: Endpoint, timeout: float) -> frozenset[str] | None:
    """Names of the models in memory; None from an Ollama that lives and does not say, as it loads one."""
    try:
        with request(endpoint, "GET", "/api/ps", connect_timeout=timeout,
                     timeout=min(timeout, PS_TIMEOUT)) as reply:
            models = _object(reply).get("models")
    except (TunnelDown, Dropped):
        raise
    except ServerUnavailable:
        with request(endpoint, "GET", "/api/version", connect_timeout=timeout, timeout=timeout) as reply:
            if "version" in _object(reply):
                return None
        raise
    if reply.status != 200 or not isinstance(models, list):
        raise ServerUnavailable(f"it does not answer as Ollama does (HTTP {reply.status})")
    names = {str(model.get("name")) for model in models if isinstance(model, dict)}
    return frozenset(names | {name.removesuffix(":latest") for name in names})


def _unloaded(endpoint: Endpoint) -> bool:
    """Unload a model, if it is loaded: without harm to whoever it answers at the moment, as Ollama waits for
    them. Whether it was told so."""
    with suppress(ServerUnavailable):
        if endpoint.model not in (_loaded(endpoint, PS_TIMEOUT) or ()):
            return False
        with request(endpoint, "POST", "/api/generate", {"model": endpoint.model, "keep_alive": 0},
                     connect_timeout=PS_TIMEOUT, timeout=PS_TIMEOUT) as reply:
            return reply.status == 200
    return False


def weights_of(endpoint: Endpoint, *, timeout: float) -> str | None:
    """The file that a model's runner is started with, on the host; None where Ollama does not say. Loads
    nothing."""
    try:
        with request(endpoint, "POST", "/api/show", {"model": endpoint.model}, connect_timeout=timeout,
                     timeout=timeout) as reply:
            said = str(_object(reply).get("modelfile") or "")
    except ServerUnavailable:
        return None
    found = re.search(r"^FROM (/\S+)$", said, re.MULTILINE)
    return found[1] if found else None


def _body(endpoint: Endpoint, ask: ChatRequest) -> dict[str, Any]:
    options = {"num_predict": ask.max_tokens, "temperature": ask.temperature, "seed": ask.seed,
               "stop": list(ask.stop) or None, **ask.sampling.params()}
    said = ({"prompt": ask.messages[-1].content, "raw": True} if ask.raw
            else {"messages": [ollama_message(turn) for turn in ask.messages]})
    body: dict[str, Any] = {
        "model": endpoint.model,
        **said,
        "stream": True,
        "options": {key: value for key, value in options.items() if value is not None},
    }
    if ask.schema is not None:
        body["format"] = ask.schema
    if ask.logprobs:
        body |= {"logprobs": True, "top_logprobs": max(BEST, ask.top_logprobs or 0)}
    if ask.think is not None:
        body["think"] = ask.think
    if ask.tools and ask.tool_choice != "none":
        if ask.tool_choice not in (None, "auto"):
            raise Unsupported(f"Ollama leaves it to the model whether it calls a tool; {ask.tool_choice!r} "
                              "cannot be asked of it",
                              hint="leave --tool-choice out, or ask a llama.cpp host")
        body["tools"] = list(ask.tools)
    return body


def _chunks(reply: Reply, token_timeout: float) -> Iterator[Chunk]:
    """Turn lines into chunks. Ollama ends an answer of calls with `stop`; what it means is tool_calls."""
    tokens, called = 0, False
    lines = reply.lines()
    while True:
        try:
            line = next(lines, None)
        except (OSError, http.client.HTTPException) as exc:
            raise _broken(tokens, str(exc) or type(exc).__name__) from exc
        if line is None:
            raise _broken(tokens, "the stream ended without its closing record")
        event = _parse(line)
        if "error" in event:
            raise _broken(tokens, str(event["error"]))
        message = event.get("message") or {}
        text, thought = message.get("content") or event.get("response") or "", _thought(event, message)
        calls = ollama_calls(message)
        if text or thought or calls:
            tokens, called = tokens + 1, called or bool(calls)
            reply.patience(token_timeout)
            logprob, rival = read_logprobs(event.get("logprobs"))
            yield Chunk(text=text, logprob=logprob, rival=rival, tool_calls=calls,
                        tokens=read_tokens(event.get("logprobs")), thought=thought)
        if event.get("done"):
            finish = FINISH.get(str(event.get("done_reason")), "stop")
            yield Chunk(finish="tool_calls" if called and finish == "stop" else finish,
                        timings=_timings(event))
            return


def _thought(event: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    return str(message.get("thinking") or event.get("thinking") or "")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line) if line else {}
    except ValueError:
        return {"error": "the server sent something that is not JSON"}
    return event if isinstance(event, dict) else {}


def _broken(tokens: int, why: str) -> ServerUnavailable | StreamBroken:
    return StreamBroken(why) if tokens else ServerUnavailable(why)


def _timings(event: Mapping[str, Any]) -> Timings:
    """Ollama counts the whole prompt, cached or not, in prompt_eval_count; its duration is of the fresh
    part."""
    return Timings(
        prompt_tokens=int(event.get("prompt_eval_count") or 0),
        prompt_seconds=float(event.get("prompt_eval_duration") or 0) * NANO,
        completion_tokens=int(event.get("eval_count") or 0),
        decode_seconds=float(event.get("eval_duration") or 0) * NANO,
        load_seconds=float(event.get("load_duration") or 0) * NANO,
    )


def _refusal(reply: Reply, endpoint: Endpoint) -> ServerUnavailable | RequestRejected:
    message, kind = _reason(reply)
    if kind == "exceed_context_size_error":
        return ContextExceeded(message)
    if cannot_see(message):
        return Unsupported(f"{endpoint.model} cannot see images",
                           hint="ask a model that was made for images (-m)")
    if reply.status == 400 and "does not support thinking" in message:
        return Unsupported(f"{endpoint.model} does not reason before it answers",
                           hint="ask for no thinking, or a model that was trained for it (-m)")
    if reply.status == 400 and "does not support tools" in message:
        return Unsupported(f"{endpoint.model} cannot call tools: its chat template has none",
                           hint="ask a model that was trained for tools (-m)")
    if 400 <= reply.status < 500 and reply.status not in (404, 408, 429):
        return RequestRejected(message)
    if reply.status == 429 or (reply.status == 503 and "maximum pending requests" in message):
        return ServerFull(message)
    return ServerUnavailable(message)


def _reason(reply: Reply) -> tuple[str, str]:
    """What is wrong, and its type where the runner says one: Ollama wraps the JSON of its runner in a
    string."""
    said = str(_object(reply).get("error") or f"HTTP {reply.status}")
    inner = _parse(said.encode()).get("error") if said.startswith("{") else None
    if isinstance(inner, dict):
        return str(inner.get("message") or said), str(inner.get("type") or "")
    return said, ""


def _object(reply: Reply) -> dict[str, Any]:
    try:
        body = reply.json()
    except (OSError, http.client.HTTPException):
        return {}
    return body if isinstance(body, dict) else {}
