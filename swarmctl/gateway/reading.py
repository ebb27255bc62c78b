"""Fields of a client's JSON body, read with the API's own patience: what is absent or null is None, what has
another type is a BadRequest that names the field. Shared by every surface."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.question import Asked
from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Message

#: JSON numbers past this are no counts of anything here.
LARGEST = 1 << 53
MODEL_LENGTH = 256


def text(body: Mapping[str, Any], key: str) -> str | None:
    """A string."""
    value = body.get(key)
    if value is None or isinstance(value, str):
        return value
    raise wrong(key, "a string", value)


def flag(body: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A boolean."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise wrong(key, "a boolean", value)


def number(body: Mapping[str, Any], key: str, low: float, high: float) -> float | None:
    """A number within bounds, both included."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(key, "a number", value)
    if abs(value) > LARGEST or not isfinite(value) or not low <= value <= high:
        raise BadRequest(f"{key} must be between {low:g} and {high:g}", param=key)
    return float(value)


def count(body: Mapping[str, Any], key: str, low: int = 0, high: int = LARGEST) -> int | None:
    """A whole number within bounds, both included; 3.0 is one."""
    value = number(body, key, low, high)
    if value is None:
        return None
    if value != int(value):
        raise wrong(key, "an integer", value)
    return int(body[key])


def entries(body: Mapping[str, Any], key: str) -> Sequence[Any]:
    """A list; empty where there is none."""
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, list):
        return value
    raise wrong(key, "an array", value)


def entry(body: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """An object."""
    value = body.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise wrong(key, "an object", value)


def strings(body: Mapping[str, Any], key: str, most: int) -> tuple[str, ...]:
    """A string, or a list of so many at most."""
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong(key, "a string or an array of strings", value)
    if len(value) > most:
        raise BadRequest(f"{key} may hold at most {most} strings, not {len(value)}", param=key)
    return tuple(value)


def model(body: Mapping[str, Any]) -> str:
    """The model's name; `auto` where the client gave none. A client that learnt names from Ollama's list says
    them with `:latest` here too (Open WebUI does), and an Ollama takes them on its /v1 paths."""
    name = text(body, "model") or "auto"
    if len(name) > MODEL_LENGTH:
        raise BadRequest(f"model must be at most {MODEL_LENGTH} characters long", param="model")
    return name.removesuffix(":latest")


def converse(messages: Sequence[Message], **given: Any) -> Asked:  # noqa: ANN401  fields of Asked
    """A whole conversation as a question: its last user's message (or results of calls) is asked, what the
    assistant has begun after it is gone on from, all before is history. Raises BadRequest where there is
    nothing to answer."""
    said = list(messages)
    begun = said.pop().content if said and said[-1].role == "assistant" and not said[-1].tool_calls else ""
    after = len(said)
    while after and said[after - 1].role == "tool":
        after -= 1
    results = tuple(said[after:])
    if results:
        return Asked("", history=tuple(said[:after]), results=results, prefill=begun, **given)
    last = said.pop() if said else None
    if last is None or last.role != "user":
        raise BadRequest("the conversation must end with a message of the user, or results of its tool calls",
                         param="messages")
    return Asked(last.content, history=tuple(said), prefill=begun, images=last.images, **given)


def wrong(key: str, wanted: str, value: object) -> BadRequest:
    """A field of another type than it should have."""
    return BadRequest(f"{key} must be {wanted}, not {_name(value)}", param=key)


def _name(value: object) -> str:
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "an array",
             dict: "an object"}
    return names.get(type(value), "null")
