"""Tools for `ask`: their definitions from a file, and the results of calls on their way back."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import UsageError
from swarmctl.exchange import Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import ToolCall

CHOICES = ("auto", "none", "required")
#: as OpenAI has it; other names break the grammars of some runtimes
NAME = r"[A-Za-z0-9_-]{1,64}"
#: A bigger result would not fit any context.
MAX_RESULT = 8 << 20
EXAMPLE = ('[{"type": "function", "function": {"name": "weather", "description": "...", '
           '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]')


def read_tools(given: str) -> tuple[dict[str, Any], ...]:
    """Read definitions of tools from a file, or as they stand: a JSON list in OpenAI's form, or of bare
    functions. Raises UsageError."""
    source, text = "--tools", given
    if not given.lstrip().startswith(("[", "{")):
        source = given
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            said = getattr(exc, "strerror", None) or exc
            raise UsageError(f"{given}: cannot be read as tools: {said}") from exc
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{source}: not JSON: {exc}") from exc
    listed = raw.get("tools", [raw]) if isinstance(raw, dict) else raw
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{source}: tools are a list, and not an empty one", hint=EXAMPLE)
    tools = tuple(_tool(source, number, one) for number, one in enumerate(listed, 1))
    names = [tool["function"]["name"] for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{source}: two tools are named {twice[0]}")
    return tools


def check_choice(choice: str | None, tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError for a choice of a tool that is not there."""
    names = [tool["function"]["name"] for tool in tools]
    if choice is None or (tools and choice in (*CHOICES, *names)):
        return
    if not tools:
        raise UsageError("--tool-choice needs --tools")
    raise UsageError(f"--tool-choice is {choice!r}", hint=f"one of {', '.join((*CHOICES, *names))}")


def read_results(given: Sequence[str], history: Sequence[Message]) -> tuple[Message, ...]:
    """The results of the calls that the conversation's last answer asked for, in the calls' order. Each is
    given as CALL=FILE, or as FILE where there was one call; a call goes by its id, or by its function's name
    where that was called once.

    Raises UsageError where a call has no result, or a result no call.
    """
    calls = history[-1].tool_calls if history and history[-1].role == "assistant" else ()
    if not calls and not given:
        return ()
    if not calls:
        raise UsageError("--tool-result: the last answer asked for no call",
                         hint="ask with --tools first; the results belong to the calls that come back")
    files: dict[str, str] = {}
    for one in given:
        call, file = _addressed(one, calls)
        if call.id in files:
            raise UsageError(f"--tool-result: two results for {call.id}")
        files[call.id] = file
    if missing := [call for call in calls if call.id not in files]:
        raise UsageError("the last answer asked for calls that have no result yet", hint="\n".join(
            [_line(call) for call in missing] + ["give each: swarmctl ask --tool-result ID=FILE",
                                                 "or begin anew, without -c"]))
    if list(files.values()).count("-") > 1:
        raise UsageError("--tool-result: stdin can be one result only")
    return tuple(Message("tool", _content(files[call.id]), tool_call_id=call.id, name=call.name)
                 for call in calls)


def reads_stdin(given: Sequence[str]) -> bool:
    """Whether a result comes from stdin."""
    return any(one == "-" or one.endswith("=-") for one in given)


def _tool(source: str, number: int, raw: object) -> dict[str, Any]:
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{source}: tool {number} has no function with a name", hint=EXAMPLE)
    if not re.fullmatch(NAME, function["name"]):
        raise UsageError(f"{source}: tool {number} is named {function['name']!r}",
                         hint="letters, digits, _ and -, at most 64")
    if not isinstance(function.get("parameters", {}), dict):
        raise UsageError(f"{source}: the parameters of {function['name']} are no JSON Schema (an object)")
    return {"type": "function", "function": function}


def _addressed(given: str, calls: Sequence[ToolCall]) -> tuple[ToolCall, str]:
    """The call that a result is for, and the file that holds it."""
    label, mark, file = given.partition("=")
    named = [call for call in calls if call.id == label] or [call for call in calls if call.name == label]
    if mark and len(named) == 1:
        return named[0], file
    if len(calls) == 1 and (not mark or not named):
        return calls[0], given
    what = f"{label} was called more than once" if named else f"{given!r} names none of the calls"
    raise UsageError(f"--tool-result: {what}", hint="\n".join(_line(call) for call in calls))


def _line(call: ToolCall) -> str:
    return f"{call.id}: {call.name} {call.arguments}"


def _content(file: str) -> str:
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(MAX_RESULT + 1)
        else:
            with Path(file).open("rb") as source:
                raw = source.read(MAX_RESULT + 1)
        if len(raw) > MAX_RESULT:
            raise UsageError(f"--tool-result: {file} is longer than {MAX_RESULT >> 20} MiB")
        return raw.decode("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--tool-result: {file} cannot be read as text: {exc}") from exc
