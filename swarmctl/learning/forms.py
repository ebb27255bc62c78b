"""The common JSON forms of chats and preferences, recognised by their keys. Pure.

| form | keys |
|---|---|
| preference (TRL) | prompt?, chosen, rejected; texts, or lists of messages |
| preference (OpenAI) | input.messages, preferred_output, non_preferred_output |
| label (TRL's KTO) | prompt, completion, label |
| prompt and completion | prompt, completion; texts, or lists of messages |
| messages (OpenAI) | messages: role, content |
| ShareGPT | conversations: from, value |
| Alpaca | instruction, input?, output |

`system` may hold a system prompt beside any form whose prompt is a text. Open WebUI's exports have a module
of their own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swarmctl.learning import open_webui
from swarmctl.learning.imported import (
    Bad,
    Imported,
    Malformed,
    Unusable,
    asked,
    clean,
    items,
    split_last,
    turns,
)
from swarmctl.learning.labels import Answer, Vote
from swarmctl.learning.pairs import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.exchange import Message

Item = dict[str, Any]


def read(name: str, text: str, into: Imported) -> None:
    """Take in one file. What is in none of the forms goes to `into.bad`; nothing is raised for it."""
    for where, item in items(text, name, into.bad):
        try:
            _take(where, item, into)
        except Unusable as exc:
            into.dropped[str(exc)] += 1
        except Malformed as exc:
            into.bad.append(Bad(where, str(exc)))


def _take(where: str, item: Item, into: Imported) -> None:
    if open_webui.is_feedback(item):
        open_webui.feedback(where, item, into)
    elif open_webui.is_chat(item):
        open_webui.chat(where, item, into)
    elif "label" in item and "completion" in item:
        _label(where, item, into)
    else:
        into.rows.append(_row(where, item))


def _row(where: str, item: Item) -> Row:
    if {"chosen", "rejected"} <= item.keys():
        return _preference(where, item, item.get("prompt"), item["chosen"], item["rejected"])
    if {"preferred_output", "non_preferred_output"} <= item.keys():
        source = item.get("input")
        prompt = source.get("messages") if isinstance(source, dict) else None
        found = _preference(where, item, prompt, item["preferred_output"], item["non_preferred_output"])
        tools = source.get("tools") if isinstance(source, dict) else None
        return found if not tools else _with_tools(found, tools)
    if {"prompt", "completion"} <= item.keys():
        prompt, completion = _example(item, item["prompt"], item["completion"])
    elif "messages" in item:
        prompt, completion = split_last(turns(item["messages"]))
    elif "conversations" in item:
        prompt, completion = split_last(_sharegpt(item))
    elif {"instruction", "output"} <= item.keys():
        more = item.get("input")
        question = f"{item['instruction']}\n\n{more}" if more else item["instruction"]
        prompt, completion = _example(item, question, item["output"])
    else:
        keys = ", ".join(sorted(map(str, item))[:6]) or "none"
        raise Malformed(f"none of the known forms (its keys: {keys})")
    row = Row(prompt, completion, "import", origin=where, corrected=False)
    return _with_tools(row, item["tools"]) if item.get("tools") else row


def _preference(where: str, item: Item, prompt: Any, chosen: Any, rejected: Any) -> Row:  # noqa: ANN401
    better, worse = _side(item, prompt, chosen), _side(item, prompt, rejected)
    if better[0] != worse[0]:
        raise Malformed("chosen and rejected do not answer the same prompt")
    return Row(better[0], better[1], "import", worse[1], origin=where)


def _side(item: Item, prompt: Any, said: Any) -> tuple[tuple[Message, ...], str]:  # noqa: ANN401
    """One side of a preference: an answer alone, or the whole conversation that ends with it."""
    if isinstance(said, list) and (whole := turns(said))[0].role != "assistant":
        return split_last(whole)
    return _example(item, prompt, said)


def _example(item: Item, prompt: Any, completion: Any) -> tuple[tuple[Message, ...], str]:  # noqa: ANN401
    before = asked(prompt, item.get("system")) if isinstance(prompt, str) else turns(prompt)
    if isinstance(completion, str):
        answer = turns([{"role": "assistant", "content": completion}])
    elif isinstance(completion, dict):
        answer = turns([completion])
    else:
        answer = turns(completion)
    if len(answer) != 1:
        raise Unusable("an answer of several turns")
    if not any(turn.content.strip() for turn in before if turn.role == "user"):
        raise Malformed("an empty prompt")
    return split_last((*before, *answer))


def _sharegpt(item: Item) -> tuple[Message, ...]:
    said = turns(item["conversations"], "from", "value")
    system = item.get("system")
    if isinstance(system, str) and system.strip() and said[0].role != "system":
        return (*asked("", system)[:1], *said)
    return said


def _label(where: str, item: Item, into: Imported) -> None:
    if not isinstance(item["label"], bool):
        raise Malformed("label must be true or false")
    prompt, completion = _example(item, item.get("prompt"), item["completion"])
    into.answers[where] = Answer(where, "", prompt, completion, "stop", _model(item), origin=where)
    into.votes.append(Vote(f"import:{where}", where, "", 0.0, 1.0 if item["label"] else -1.0))


def _model(item: Mapping[str, Any]) -> str:
    return clean(item["model"]) if isinstance(item.get("model"), str) else ""


def _with_tools(row: Row, tools: Any) -> Row:  # noqa: ANN401
    text = tools if isinstance(tools, str) else json.dumps(tools, sort_keys=True, ensure_ascii=False)
    return replace(row, tools=clean(text))
