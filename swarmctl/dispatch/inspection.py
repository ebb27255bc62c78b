"""A release on the servers that are to answer with it: the template they apply, and whether their answers
end.

Asked of each server through its own endpoint, before anybody's question goes there.
"""

from __future__ import annotations

import http.client
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, cast

from swarmctl.errors import ServerError, ServerUnavailable, SwarmError
from swarmctl.exchange import ChatRequest, Message
from swarmctl.runtimes.http import TunnelDown, request
from swarmctl.runtimes.named import runtime
from swarmctl.runtimes.template import served_template

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import Chunk
    from swarmctl.routing.cost import Candidate
    from swarmctl.runtimes.base import Endpoint

    Role = Literal["system", "user", "assistant", "tool"]

CONNECT_TIMEOUT = 10.0
#: a model that has to be loaded first, of any size
FIRST_TOKEN = 900.0
TOKEN = 60.0
SHOWN = 100
#: runtime → path and key of what it makes of messages; Ollama's is for debugging, and it may be refused
RENDER: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "llamacpp": ("/apply-template", lambda said: said.get("prompt")),
    "ollama": ("/api/chat", lambda said: (said.get("_debug_info") or {}).get("rendered_template")),
}


def inspect(swarm: Swarm, candidate: Candidate, rendered: Sequence[Mapping[str, Any]], bos: str,
            prompts: Sequence[Sequence[Mapping[str, str]]], bound: int) -> tuple[str, ...]:
    """What is wrong with a release on a server; empty where nothing is.

    `rendered` is what training makes of conversations. Raises RemoteError, ServerError where it does not
    answer.
    """
    def all_of_it() -> tuple[str, ...]:
        endpoint = swarm.endpoint(candidate)
        wrong = [told for one in rendered if (told := _template(candidate, endpoint, one, bos))]
        return (*wrong[:1], *(told for prompt in prompts if (told := _ends(candidate, endpoint, prompt,
                                                                           bound))))

    try:
        return all_of_it()
    except TunnelDown:
        if swarm.host(candidate.host).ssh == "local":
            raise
        swarm.open(candidate)
        return all_of_it()


def _template(candidate: Candidate, endpoint: Endpoint, one: Mapping[str, Any], bos: str) -> str | None:
    path, read = RENDER[candidate.runtime]
    body = {"model": endpoint.model, "messages": one["messages"], "stream": False, "_debug_render_only": True}
    try:
        with request(endpoint, "POST", path, body, connect_timeout=CONNECT_TIMEOUT,
                     timeout=FIRST_TOKEN) as reply:
            said = reply.json()
    except (OSError, http.client.HTTPException) as exc:
        raise ServerUnavailable(f"the server broke off ({exc or type(exc).__name__})") from exc
    text = read(said) if isinstance(said, dict) else None
    if not isinstance(text, str):
        return _by_its_source(candidate, endpoint)
    if text.removeprefix(bos) == one["text"].removeprefix(bos):
        return None
    return f"it renders {one['messages']!r} as {text[:SHOWN]!r}, and training as {one['text'][:SHOWN]!r}"


def _by_its_source(candidate: Candidate, endpoint: Endpoint) -> str | None:
    """Of a server that does not render for us (an older Ollama): whether it holds the very template."""
    digest = served_template(candidate.runtime, endpoint, timeout=CONNECT_TIMEOUT)
    if digest == candidate.template:
        return None
    return f"its template has the sha256 {str(digest)[:12]}, and the release's {candidate.template[:12]}"


def _ends(candidate: Candidate, endpoint: Endpoint, prompt: Sequence[Mapping[str, str]],
          bound: int) -> str | None:
    turns = tuple(Message(cast("Role", turn["role"]), turn["content"]) for turn in prompt)
    asked = ChatRequest(turns, bound, 0.0, 0)
    stream = cast("Generator[Chunk]", runtime(candidate.runtime).chat(
        endpoint, asked, connect_timeout=CONNECT_TIMEOUT, first_token_timeout=FIRST_TOKEN,
        token_timeout=TOKEN))
    with closing(stream) as chunks:
        said = list(chunks)
    finish = said[-1].finish if said else None
    answer = "".join(chunk.text for chunk in said)
    if finish != "stop":
        return (f"its answer to {turns[-1].content[:60]!r} did not end within {bound} tokens: "
                f"{answer[:SHOWN]!r}")
    return None if answer.strip() else f"its answer to {turns[-1].content[:60]!r} is empty"


def problem_of(exc: SwarmError) -> str:
    """Why a server could not be inspected."""
    return f"it does not answer: {exc.message}" if isinstance(exc, ServerError) else exc.message
