"""OpenAI's Responses API: POST /v1/responses. What is read of a body is here; how answers look is in
responses_shape.

`previous_response_id` goes on from an exchange of the journal, where every answer is recorded whatever
`store` says. What would run on OpenAI's servers (their tools, files, background) is refused by name.
Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from swarmctl.exchange import Message, Sampling, ToolCall
from swarmctl.gateway import images, reading
from swarmctl.gateway import responses_shape as shape
from swarmctl.gateway.openai_shape import error
from swarmctl.gateway.surface import Surface, Talk
from swarmctl.gateway.turn import BadRequest, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_TOKENS = 1 << 20
MOST_ALTERNATIVES = 20
ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: parameters that nothing here can honour, unless they have this value
REFUSED: Mapping[str, Any] = {"background": False, "conversation": None, "prompt": None,
                              "truncation": "disabled"}
TEXTS = ("input_text", "output_text", "text", "refusal")
LOGPROBS = "message.output_text.logprobs"


def parse(body: Mapping[str, Any]) -> Turn:
    """A body of /v1/responses. Raises BadRequest."""
    for field, allowed in REFUSED.items():
        if body.get(field) not in (None, allowed):
            raise BadRequest(f"{field} is not supported here", param=field)
    previous = reading.text(body, "previous_response_id")
    alternatives = reading.count(body, "top_logprobs", 0, MOST_ALTERNATIVES)
    tools = tuple(_tool(one, f"tools[{place}]") for place, one in enumerate(reading.entries(body, "tools")))
    asked = reading.converse(
        [*_instructions(body), *_input(body)], tools=tools, tool_choice=_choice(body, tools),
        schema=_schema(body), think=_effort(body),
        max_tokens=reading.count(body, "max_output_tokens", 1, MOST_TOKENS),
        temperature=reading.number(body, "temperature", 0, 2),
        sampling=Sampling(top_p=reading.number(body, "top_p", 0, 1)),
        logprobs=bool(alternatives) or LOGPROBS in reading.entries(body, "include"),
        top_logprobs=alternatives)
    return Turn(asked, reading.model(body), reading.flag(body, "stream"),
                continues=None if previous is None else _exchange(previous))


def _exchange(previous: str) -> str:
    if not previous.startswith(shape.PREFIX):
        raise BadRequest(f"{previous!r} is not the id of a response", param="previous_response_id")
    return previous.removeprefix(shape.PREFIX)


def _instructions(body: Mapping[str, Any]) -> list[Message]:
    said = reading.text(body, "instructions")
    return [Message("system", said)] if said else []


def _input(body: Mapping[str, Any]) -> list[Message]:
    given = body.get("input")
    if isinstance(given, str):
        return [Message("user", given)]
    found: list[Message] = []
    called: dict[str, str] = {}
    for place, item in enumerate(reading.entries(body, "input")):
        if not isinstance(item, dict):
            raise reading.wrong(f"input[{place}]", "an object", item)
        turn = _item(item, f"input[{place}]", called)
        if turn is not None and turn.tool_calls and found and found[-1].role == "assistant":
            found[-1] = replace(found[-1], tool_calls=(*found[-1].tool_calls, *turn.tool_calls))
        elif turn is not None:
            found.append(turn)
    return found


def _item(item: Mapping[str, Any], where: str, called: dict[str, str]) -> Message | None:
    """One item of a conversation; reasoning is shown to no model again."""
    kind = item.get("type") or "message"
    if kind == "reasoning":
        return None
    if kind == "function_call":
        call = ToolCall(*(_needed(item, field, where) for field in ("call_id", "name", "arguments")))
        called[call.id] = call.name
        return Message("assistant", "", (call,))
    if kind == "function_call_output":
        identity = _needed(item, "call_id", where)
        text, _ = _content(item.get("output"), f"{where}.output")
        return Message("tool", text, tool_call_id=identity, name=called.get(identity))
    role = item.get("role")
    if kind != "message" or not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}: items of type {kind!r} and role {role!r} are not supported here",
                         param=where)
    text, pictures = _content(item.get("content"), f"{where}.content")
    return Message(ROLES[role], text, images=pictures)


def _needed(item: Mapping[str, Any], field: str, where: str) -> str:
    found = reading.text(item, field)
    if found is None:
        raise BadRequest(f"{where}.{field} is missing", param=f"{where}.{field}")
    return found


def _content(raw: object, where: str) -> tuple[str, tuple[str, ...]]:
    """Text and images of a message: a string, or parts."""
    if raw is None or isinstance(raw, str):
        return raw or "", ()
    if not isinstance(raw, list) or not all(isinstance(part, dict) for part in raw):
        raise BadRequest(f"{where} must be a string or an array of parts", param=where)
    texts, pictures = [], []
    for part in raw:
        kind = part.get("type")
        if kind in TEXTS:
            texts.append(reading.text(part, "refusal" if kind == "refusal" else "text") or "")
        elif kind == "input_image":
            pictures.append(images.from_url(part.get("image_url"), where))
        else:
            raise BadRequest(f"{where}: parts of type {kind!r} are not supported here", param=where)
    return "\n".join(texts), tuple(pictures)


def _tool(raw: object, where: str) -> Mapping[str, Any]:
    """A function in the nested form of chat completions, as runtimes take it."""
    if not isinstance(raw, dict) or raw.get("type") != "function":
        kind = raw.get("type") if isinstance(raw, dict) else raw
        raise BadRequest(f"{where}: {kind!r} is not run here; only functions of yours can be called",
                         param=where)
    name = _needed(raw, "name", where)
    function = {"name": name, "description": reading.text(raw, "description") or "",
                "parameters": reading.entry(raw, "parameters") or {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def _choice(body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str | None:
    raw = body.get("tool_choice")
    if raw in (None, "auto", "none") or (raw == "required" and tools):
        return raw if isinstance(raw, str) else None
    name = raw.get("name") if isinstance(raw, dict) else None
    if name not in [tool["function"]["name"] for tool in tools]:
        raise BadRequest("tool_choice must be auto, none, required, or the name of one of the tools",
                         param="tool_choice")
    return str(name)


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = reading.entry(reading.entry(body, "text") or {}, "format") or {}
    kind = form.get("type") or "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = reading.entry(form, "schema") if kind == "json_schema" else None
    if schema is None:
        raise BadRequest("text.format must be text, json_object, or json_schema with its schema",
                         param="text.format")
    return schema


def _effort(body: Mapping[str, Any]) -> bool | str | None:
    effort = reading.text(reading.entry(body, "reasoning") or {}, "effort")
    if effort in ("none", "minimal"):
        return False
    if effort not in (None, "low", "medium", "high"):
        raise BadRequest("reasoning.effort must be none, minimal, low, medium or high",
                         param="reasoning.effort")
    return effort


SURFACE = Surface(name="responses", prefix="/v1/responses", error=error, talks=(
    Talk("/v1/responses", parse, shape.ResponseStream, shape.response),))
