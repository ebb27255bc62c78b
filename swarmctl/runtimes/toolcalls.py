"""Tools on their way to a model server, and the calls on their way back. Nothing is ever called here.

Both runtimes take OpenAI's form of a function definition; they differ in how calls and results are written,
in what they can be told to do, and in how a message holds its images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarmctl.errors import Unsupported
from swarmctl.exchange import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from swarmctl.exchange import ChatRequest, Message

#: what `tool_choice` may be beside the name of a tool
CHOICES = ("auto", "none", "required")


@dataclass(slots=True)
class Gathered:
    """Puts the pieces of streamed calls together. A call is whole when the next one begins or the answer
    ends."""

    parts: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, deltas: Iterable[Any]) -> Iterator[ToolCall]:
        """Take a piece of a stream in; yields the calls that are whole by it."""
        for delta in deltas:
            if not isinstance(delta, dict):
                continue
            index = int(delta.get("index") or 0)
            if index not in self.parts:
                yield from self.rest()
                self.parts[index] = {"id": "", "name": "", "arguments": ""}
            part, function = self.parts[index], delta.get("function") or {}
            part["id"] = part["id"] or str(delta.get("id") or "")
            part["name"] = part["name"] or str(function.get("name") or "")
            part["arguments"] += str(function.get("arguments") or "")

    def rest(self, *, cut: bool = False) -> Iterator[ToolCall]:
        """The calls that have not been yielded. Of an answer `cut` at its limit, not the one that it was cut
        in."""
        for index, part in self.parts.items():
            if part["name"] and not (cut and not _is_json(part["arguments"])):
                yield ToolCall(part["id"] or f"call_{index + 1}", part["name"], part["arguments"] or "{}")
                part["name"] = ""


def openai_message(turn: Message) -> dict[str, Any]:
    """A turn as OpenAI writes it; arguments are text, and images stand before a message's words."""
    said: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        said["content"] = [*({"type": "image_url", "image_url": {"url": url}} for url in turn.images),
                           {"type": "text", "text": turn.content}]
    if turn.tool_calls:
        said["tool_calls"] = [{"id": call.id, "type": "function",
                               "function": {"name": call.name, "arguments": call.arguments}}
                              for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        said["tool_call_id"] = turn.tool_call_id
    return said | ({"name": turn.name} if turn.name is not None else {})


def ollama_message(turn: Message) -> dict[str, Any]:
    """A turn as Ollama writes it; arguments are an object, a result names its function, and images are bare
    base64."""
    said: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        said["images"] = [url.partition(";base64,")[2] for url in turn.images]
    if turn.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": arguments_of(call)}}
            for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        said["tool_call_id"] = turn.tool_call_id
    return said | ({"tool_name": turn.name} if turn.name is not None else {})


def cannot_see(message: str) -> bool:
    """Whether a server's error means that its model takes no images. Its status is 500 or 400, by where the
    template was applied."""
    return " input is not supported" in message or "does not support multimodal requests" in message


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as an object; text that is none stands under the name `arguments`."""
    try:
        found = json.loads(call.arguments)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"arguments": call.arguments}


def ollama_calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls in a line of Ollama's stream; it sends only whole ones."""
    found = []
    for raw in message.get("tool_calls") or ():
        function = raw.get("function") or {}
        written = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        found.append(ToolCall(str(raw.get("id") or f"call_{function.get('index', 0)}"),
                              str(function.get("name") or ""), written))
    return tuple(call for call in found if call.name)


def named(tools: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The tools of a name: one, or none."""
    return [tool for tool in tools if (tool.get("function") or {}).get("name") == name]


def refuse_schema(ask: ChatRequest) -> None:
    """Raise Unsupported for a request with tools and a schema: llama.cpp would bind the whole answer to the
    schema, and no call could ever come."""
    if ask.tools and ask.tool_choice != "none" and ask.schema is not None:
        raise Unsupported("llama.cpp takes tools or a schema for an answer, not both at once",
                          hint="leave --schema out, or say --tool-choice none")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
