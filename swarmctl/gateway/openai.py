"""OpenAI's HTTP API: chat completions, completions, embeddings, models. What is read of a body is here; how
answers look is in openai_shape.

A parameter that would change the answer and that no runtime here knows is refused, by its name; what only
describes the caller (user, metadata, store …) is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from swarmctl.dispatch.question import Asked
from swarmctl.exchange import Message, Sampling, ToolCall
from swarmctl.gateway import images, reading
from swarmctl.gateway import openai_shape as shape
from swarmctl.gateway.resident import LEANINGS
from swarmctl.gateway.surface import Embed, Look, Surface, Talk, ToEmbed
from swarmctl.gateway.turn import BadRequest, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.gateway.surface import Wanted

MOST_TOKENS = 1 << 20
MOST_STOPS = 16
MOST_INPUTS = 2048
MOST_ALTERNATIVES = 20
ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
#: Parameters that change the answer, unless they have one of these values.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},), "functions": ([],),
    "function_call": (), "audio": (), "modalities": (["text"],), "web_search_options": (),
}


def parse_chat(body: Mapping[str, Any]) -> Turn:
    """A body of /v1/chat/completions. Raises BadRequest."""
    _refuse(body)
    messages = _messages(reading.entries(body, "messages"))
    tools = tuple(_tool(one, f"tools[{place}]") for place, one in enumerate(reading.entries(body, "tools")))
    wanted = reading.flag(body, "logprobs")
    alternatives = reading.count(body, "top_logprobs", 0, MOST_ALTERNATIVES)
    if alternatives and not wanted:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    asked = reading.converse(messages, **_given(body), schema=_schema(body), tools=tools,
                             tool_choice=_choice(body, tools), logprobs=wanted, top_logprobs=alternatives,
                             think=_effort(body))
    return _turn(body, asked)


def parse_completion(body: Mapping[str, Any]) -> Turn:
    """A body of /v1/completions: the model goes on from a text, without a chat template. Raises
    BadRequest."""
    _refuse(body)
    prompts = reading.strings(body, "prompt", 1)
    if not prompts or not prompts[0]:
        raise BadRequest("prompt must be a text", param="prompt")
    alternatives = reading.count(body, "logprobs", 0, MOST_ALTERNATIVES)
    asked = Asked(prompts[0], raw=True, logprobs=alternatives is not None, top_logprobs=alternatives,
                  **_given(body))
    return _turn(body, asked)


def parse_embeddings(body: Mapping[str, Any]) -> ToEmbed:
    """A body of /v1/embeddings. Raises BadRequest."""
    texts = reading.strings(body, "input", MOST_INPUTS)
    if not texts or not all(texts):
        raise BadRequest("input must be a text, or texts, none of them empty", param="input")
    if body.get("dimensions") is not None:
        raise BadRequest("dimensions cannot be chosen: vectors are as long as the model makes them",
                         param="dimensions")
    form = reading.text(body, "encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadRequest("encoding_format must be float or base64", param="encoding_format")
    return ToEmbed(texts, reading.model(body), {"form": form})


def models(swarm: Swarm, _: Wanted) -> Mapping[str, Any]:
    """GET /v1/models."""
    made = shape.created(swarm)
    return {"object": "list", "data": [shape.model(name, made) for name in names(swarm)]}


def model(swarm: Swarm, wanted: Wanted) -> Mapping[str, Any]:
    """GET /v1/models/NAME. Raises BadRequest."""
    known, asked = names(swarm), wanted.path["name"]
    name = asked if asked in known else asked.removesuffix(":latest")
    if name not in known:
        raise BadRequest(f"The model {name!r} does not exist", param="model", status=404)
    return shape.model(name, shape.created(swarm))


def key(headers: Mapping[str, str]) -> str | None:
    """The API key where no bearer is sent: Anthropic's clients list models at the same path."""
    return headers.get("x-api-key")


def names(swarm: Swarm) -> Sequence[str]:
    """Every name that a client may use for `model`: the routers', the models', their releases', and those
    that make vectors."""
    candidates = [c for c in swarm.candidates if not (c.canary and not c.share)]
    releases = [f"{c.model}:{c.release}" for c in swarm.candidates if c.release]
    embedding = [served.model for host in swarm.fleet.hosts for served in host.served if served.embedding]
    return tuple(dict.fromkeys([*LEANINGS, *(c.model for c in candidates), *releases, *embedding]))


def _refuse(body: Mapping[str, Any]) -> None:
    for key, allowed in REFUSED.items():
        if body.get(key) is not None and not any(body[key] == one for one in allowed):
            raise BadRequest(f"{key} is not supported here", param=key)


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """What both kinds of completion share, as fields of Asked."""
    limit = reading.count(body, "max_completion_tokens", 1, MOST_TOKENS)
    sampling = Sampling(
        top_p=reading.number(body, "top_p", 0, 1), top_k=reading.count(body, "top_k"),
        min_p=reading.number(body, "min_p", 0, 1),
        presence_penalty=reading.number(body, "presence_penalty", -2, 2),
        frequency_penalty=reading.number(body, "frequency_penalty", -2, 2),
        repeat_penalty=reading.number(body, "repeat_penalty", 0, 10))
    return {
        "max_tokens": reading.count(body, "max_tokens", 1, MOST_TOKENS) if limit is None else limit,
        "temperature": reading.number(body, "temperature", 0, 2),
        "seed": reading.count(body, "seed", -reading.LARGEST),
        "stop": reading.strings(body, "stop", MOST_STOPS),
        "sampling": sampling,
    }


def _turn(body: Mapping[str, Any], asked: Asked) -> Turn:
    options = reading.entry(body, "stream_options") or {}
    return Turn(asked, reading.model(body), reading.flag(body, "stream"),
                reading.flag(options, "include_usage"))


def _messages(raw: Sequence[Any]) -> list[Message]:
    called: dict[str, str] = {}
    found = []
    for place, one in enumerate(raw):
        if not isinstance(one, dict):
            raise BadRequest(f"messages[{place}] must be an object", param=f"messages[{place}]")
        found.append(_message(one, f"messages[{place}]", called))
        called.update((call.id, call.name) for call in found[-1].tool_calls)
    return found


def _message(raw: Mapping[str, Any], where: str, called: Mapping[str, str]) -> Message:
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    said, pictures = _content(raw.get("content"), f"{where}.content")
    if pictures and role != "user":
        raise BadRequest(f"{where}: only a user's message may hold images", param=f"{where}.content")
    calls = tuple(_call(one, f"{where}.tool_calls") for one in reading.entries(raw, "tool_calls"))
    if calls and role != "assistant":
        raise BadRequest(f"{where}: only the assistant calls tools", param=f"{where}.tool_calls")
    if role != "tool":
        return Message(ROLES[role], said, calls, images=pictures)
    answers = reading.text(raw, "tool_call_id")
    if not answers:
        raise BadRequest(f"{where}.tool_call_id is missing", param=f"{where}.tool_call_id")
    return Message("tool", said, tool_call_id=answers, name=called.get(answers) or reading.text(raw, "name"))


def _content(raw: object, where: str) -> tuple[str, tuple[str, ...]]:
    """Text and images of a message: a string, or parts."""
    if raw is None:
        return "", ()
    if isinstance(raw, str):
        return raw, ()
    if not isinstance(raw, list) or not all(isinstance(part, dict) for part in raw):
        raise BadRequest(f"{where} must be a string or an array of parts", param=where)
    texts, pictures = [], []
    for part in raw:
        kind = part.get("type")
        if kind in ("text", "refusal"):
            texts.append(reading.text(part, str(kind)) or "")
        elif kind == "image_url":
            url = (reading.entry(part, "image_url") or {}).get("url")
            pictures.append(images.from_url(url, where))
        else:
            raise BadRequest(f"{where}: parts of type {kind!r} are not supported here", param=where)
    return "\n".join(texts), tuple(pictures)


def _call(raw: object, where: str) -> ToolCall:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(function, dict):
        raise BadRequest(f"{where}: a call has an id and a function", param=where)
    identity, name, arguments = raw.get("id"), function.get("name"), function.get("arguments", "{}")
    if not all(isinstance(one, str) for one in (identity, name, arguments)):
        raise BadRequest(f"{where}: id, function.name and function.arguments are strings", param=where)
    return ToolCall(str(identity), str(name), str(arguments))


def _tool(raw: object, where: str) -> Mapping[str, Any]:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or raw.get("type") != "function" or not isinstance(function, dict):
        raise BadRequest(f"{where} must be a function: {{type, function}}", param=where)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRequest(f"{where}.function.name is missing", param=where)
    if not isinstance(function.get("parameters", {}), dict):
        raise BadRequest(f"{where}.function.parameters must be a JSON Schema", param=where)
    return raw


def _choice(body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str | None:
    raw = body.get("tool_choice")
    if raw is None or raw in ("auto", "none"):
        return raw
    if not tools:
        raise BadRequest("tool_choice needs tools", param="tool_choice")
    if raw == "required":
        return "required"
    function = raw.get("function") if isinstance(raw, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in [tool["function"]["name"] for tool in tools]:
        raise BadRequest("tool_choice must be auto, none, required, or the name of one of the tools",
                         param="tool_choice")
    return str(name)


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = reading.entry(body, "response_format")
    kind = form.get("type") if form else None
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = (reading.entry(form, "json_schema") or {}).get("schema") if kind == "json_schema" else None
    if not isinstance(schema, dict):
        raise BadRequest("response_format must be text, json_object, or json_schema with its schema",
                         param="response_format")
    return schema


def _effort(body: Mapping[str, Any]) -> bool | str | None:
    effort = reading.text(body, "reasoning_effort")
    if effort in ("none", "minimal"):
        return False
    if effort not in (None, "low", "medium", "high"):
        raise BadRequest("reasoning_effort must be none, minimal, low, medium or high",
                         param="reasoning_effort")
    return effort


SURFACE = Surface(
    name="openai",
    prefix="/",
    error=shape.error,
    talks=(
        Talk("/v1/chat/completions", parse_chat, shape.ChatStream, shape.chat),
        Talk("/v1/completions", parse_completion, shape.TextStream, shape.completion),
    ),
    embeds=(Embed("/v1/embeddings", parse_embeddings, shape.embeddings),),
    looks=(Look("GET", "/v1/models", models), Look("GET", "/v1/models/{name:path}", model)),
    key=key,
)
