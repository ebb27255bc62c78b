"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens. What is read of a body is here; how
answers look is in anthropic_shape.

What would run on Anthropic's servers (their tools, containers, files) is refused by name. Thinking that is
`enabled` or `adaptive` is left to the model: those that reason do so unless told otherwise. Source:
https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.canary import named
from swarmctl.dispatch.question import as_request
from swarmctl.exchange import Message, Sampling, ToolCall
from swarmctl.gateway import anthropic_shape as shape
from swarmctl.gateway import images, reading
from swarmctl.gateway.resident import LEANINGS
from swarmctl.gateway.surface import Look, Surface, Talk
from swarmctl.gateway.turn import BadRequest, Turn
from swarmctl.routing.cost import DEFAULT_CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.dispatch.question import Asked
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.gateway.surface import Wanted

MOST_TOKENS = 1 << 20
MOST_STOPS = 16
#: parameters that nothing here can honour. context_management only makes long prompts shorter.
REFUSED = ("container", "mcp_servers")
#: blocks of the assistant's own turns that no model here is shown again
PASSED_OVER = ("thinking", "redacted_thinking")

Blocks = list[Any]


def parse(body: Mapping[str, Any]) -> Turn:
    """A body of /v1/messages. Raises BadRequest."""
    most = reading.count(body, "max_tokens", 1, MOST_TOKENS)
    if most is None:
        raise BadRequest("max_tokens: Field required", param="max_tokens")
    return Turn(_asked(body, max_tokens=most), _model(body), reading.flag(body, "stream"))


def count_tokens(swarm: Swarm, wanted: Wanted) -> Mapping[str, Any]:
    """How many tokens a body's messages have, estimated from their characters by what earlier exchanges with
    the model taught. Images are not counted. Raises BadRequest."""
    name, asked = _model(wanted.body), _asked(wanted.body)
    meant = [c for c in swarm.candidates if name in LEANINGS or named(c, name)]
    if not meant:
        raise BadRequest(f"model: {name}", param="model", status=404)
    per_token = min((c.habits.characters_per_token for c in meant), default=DEFAULT_CHARACTERS_PER_TOKEN)
    return {"input_tokens": max(1, round(as_request(asked).characters() / per_token))}


def key(headers: Mapping[str, str]) -> str | None:
    """The API key, where this API sends it."""
    return headers.get("x-api-key")


def _model(body: Mapping[str, Any]) -> str:
    if not body.get("model"):
        raise BadRequest("model: Field required", param="model")
    return reading.model(body)


def _asked(body: Mapping[str, Any], **given: Any) -> Asked:  # noqa: ANN401  fields of Asked
    for field in REFUSED:
        if body.get(field):
            raise BadRequest(f"{field} is not supported by this gateway", param=field)
    if not reading.entries(body, "messages"):
        raise BadRequest("messages: at least one message is required", param="messages")
    messages = [*_system(body), *_messages(body)]
    tools = tuple(_tool(one, number) for number, one in enumerate(reading.entries(body, "tools")))
    return reading.converse(
        messages, tools=tools, tool_choice=_choice(body, tools), schema=_schema(body), think=_thinking(body),
        temperature=reading.number(body, "temperature", 0, 2),
        stop=reading.strings(body, "stop_sequences", MOST_STOPS),
        sampling=Sampling(top_p=reading.number(body, "top_p", 0, 1), top_k=reading.count(body, "top_k")),
        **given)


def _system(body: Mapping[str, Any]) -> Iterator[Message]:
    said = "\n".join(text for text, _ in map(_plain, _blocks(body.get("system"), "system")) if text)
    if said:
        yield Message("system", said)


def _messages(body: Mapping[str, Any]) -> Iterator[Message]:
    called: dict[str, str] = {}
    for number, one in enumerate(reading.entries(body, "messages")):
        where = f"messages.{number}"
        role = one.get("role") if isinstance(one, dict) else None
        if role == "assistant":
            turn = _spoken(_blocks(one.get("content"), where), where)
            called.update((call.id, call.name) for call in turn.tool_calls)
            yield turn
        elif role == "user":
            yield from _heard(_blocks(one.get("content"), where), where, called)
        elif role == "system":
            yield Message("system", _joined(_blocks(one.get("content"), where))[0])
        else:
            raise BadRequest(f"{where}.role: must be user or assistant", param=where)


def _blocks(content: object, where: str) -> Blocks:
    """Content as blocks; a string is one block of text."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        return content
    raise BadRequest(f"{where}.content: must be a string or a list of blocks", param=where)


def _spoken(blocks: Blocks, where: str) -> Message:
    """The assistant's turn: its words and its calls."""
    calls = tuple(_call(one, where) for one in blocks if one.get("type") == "tool_use")
    words = [one for one in blocks if one.get("type") not in ("tool_use", *PASSED_OVER)]
    return Message("assistant", _joined(words)[0], calls)


def _heard(blocks: Blocks, where: str, called: Mapping[str, str]) -> Iterator[Message]:
    """The user's turn: results of calls first, each a message of its own, then words and images. Images of a
    result go with the words, because models look at what a user shows."""
    shown: list[str] = []
    for one in blocks:
        if one.get("type") != "tool_result":
            continue
        identity = reading.text(one, "tool_use_id")
        if not identity:
            raise BadRequest(f"{where}: a tool_result needs its tool_use_id", param=where)
        text, pictures = _joined(_blocks(one.get("content"), where))
        shown.extend(pictures)
        yield Message("tool", f"Error: {text}" if one.get("is_error") else text, tool_call_id=identity,
                      name=called.get(identity))
    text, pictures = _joined([one for one in blocks if one.get("type") != "tool_result"])
    if text or pictures or shown or not blocks:
        yield Message("user", text, images=(*shown, *pictures))


def _joined(blocks: Blocks) -> tuple[str, tuple[str, ...]]:
    """The text and the images of blocks."""
    parts = [_plain(one) for one in blocks]
    return "\n".join(text for text, _ in parts if text), tuple(image for _, image in parts if image)


def _plain(block: Mapping[str, Any]) -> tuple[str, str]:
    """The text of a block, or its image."""
    kind = block.get("type")
    if kind == "text":
        return reading.text(block, "text") or "", ""
    source = reading.entry(block, "source") or {}
    if kind == "image" and source.get("type") == "base64":
        return "", images.from_base64(source.get("data"), "image", reading.text(source, "media_type") or "")
    if kind == "document" and source.get("type") == "text":
        return reading.text(source, "data") or "", ""
    if kind in ("image", "document"):
        raise BadRequest(f"this gateway takes no {kind} by {source.get('type')}: send an image as base64, a "
                         "document as text", param=str(kind))
    raise BadRequest(f"blocks of type {kind} are not supported by this gateway", param="content")


def _call(block: Mapping[str, Any], where: str) -> ToolCall:
    identity, name = reading.text(block, "id"), reading.text(block, "name")
    if not identity or not name:
        raise BadRequest(f"{where}: a tool_use needs id and name", param=where)
    return ToolCall(identity, name, json.dumps(reading.entry(block, "input") or {}, ensure_ascii=False))


def _tool(raw: object, number: int) -> Mapping[str, Any]:
    """A tool in OpenAI's form, as runtimes take it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise BadRequest(f"tools.{number}.name: Field required", param="tools")
    if raw.get("type") not in (None, "custom"):
        raise BadRequest(f"tools.{number}: {raw['type']} runs at Anthropic; this gateway runs no tools",
                         param="tools")
    schema = reading.entry(raw, "input_schema")
    if schema is None:
        raise BadRequest(f"tools.{number}.input_schema: Field required", param="tools")
    function = {"name": raw["name"], "description": reading.text(raw, "description") or "",
                "parameters": schema}
    return {"type": "function", "function": function}


def _choice(body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str | None:
    choice = reading.entry(body, "tool_choice")
    if choice is None:
        return None
    kind = choice.get("type")
    found = {"auto": "auto", "any": "required", "none": "none", "tool": reading.text(choice, "name")}.get(
        kind if isinstance(kind, str) else "")
    if not found:
        raise BadRequest("tool_choice.type: must be auto, any, tool (with a name) or none",
                         param="tool_choice")
    if kind in ("any", "tool") and not tools:
        raise BadRequest("tool_choice: needs tools", param="tool_choice")
    if kind == "tool" and found not in [tool["function"]["name"] for tool in tools]:
        raise BadRequest(f"tool_choice.name: no tool is called {found}", param="tool_choice")
    return found


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = reading.entry(reading.entry(body, "output_config") or {}, "format")
    if form is None:
        return None
    schema = reading.entry(form, "schema")
    if form.get("type") != "json_schema" or schema is None:
        raise BadRequest("output_config.format: must be json_schema with its schema", param="output_config")
    return schema


def _thinking(body: Mapping[str, Any]) -> bool | None:
    said = reading.entry(body, "thinking")
    return False if said and said.get("type") == "disabled" else None


SURFACE = Surface(
    name="anthropic", prefix="/v1/messages", error=shape.error, key=key,
    talks=(Talk("/v1/messages", parse, shape.MessageStream, shape.message),),
    looks=(Look("POST", "/v1/messages/count_tokens", count_tokens),))
