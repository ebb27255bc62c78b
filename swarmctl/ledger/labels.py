"""What the ledger holds of ratings and comparisons, for learning: all votes, and the answers they were given
to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import Message, ToolCall
from swarmctl.learning.labels import Answer, Choice, Labels, Vote
from swarmctl.learning.topics import Prompt
from swarmctl.ledger import store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.paths import Paths

#: Parameters that bind an answer as the prompt does.
BINDING = ("tool_choice", "schema", "stop")
#: Parameters with which the turns are not what was asked.
UNTOLD = {"images": "asked of a picture or a file", "raw": "asked without a conversation"}

ANSWERS = """
    WITH wanted AS (SELECT exchange AS id FROM ratings UNION SELECT a FROM comparisons
                    UNION SELECT b FROM comparisons)
    SELECT e.id, strftime(e.at_utc, '%Y-%m-%dT%H:%M:%S.%gZ'), e.answer, e.finish, e.model, e.digest,
           e.params::VARCHAR, e.tool_calls::VARCHAR, e.error,
           (SELECT to_json(list({'role': m.role, 'content': m.content, 'tool_calls': m.tool_calls,
                                 'tool_call_id': m.tool_call_id,
                                 'name': m.name} ORDER BY m.position))::VARCHAR
            FROM messages m WHERE m.exchange = e.id)
    FROM exchanges e SEMI JOIN wanted ON wanted.id = e.id ORDER BY e.id"""
VOTES = """
    SELECT id, exchange, terminal, epoch(at_utc), score, stars, correction, undoes FROM ratings ORDER BY id"""
CHOICES = """SELECT id, terminal, epoch(at_utc), a, b, choice FROM comparisons ORDER BY id"""
QUESTIONS = """
    SELECT e.id, epoch(e.at_utc), e.question, e.model, e.digest, r.score
    FROM exchanges e LEFT JOIN current_ratings r ON r.exchange = e.id
    WHERE e.question IS NOT NULL AND trim(e.question) <> '' ORDER BY e.id"""


def read_labels(paths: Paths) -> Labels:
    """Bring the ledger up to date and read every vote and choice. Raises LedgerError."""
    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        answers = connection.execute(ANSWERS).fetchall()
        votes = connection.execute(VOTES).fetchall()
        choices = connection.execute(CHOICES).fetchall()
    return Labels({row[0]: _answer(*row) for row in answers},
                  tuple(Vote(one, exchange, terminal or "", seconds or 0.0, score, stars, correction, undoes)
                        for one, exchange, terminal, seconds, score, stars, correction, undoes in votes),
                  tuple(Choice(one, terminal or "", seconds or 0.0, a, b, side)
                        for one, terminal, seconds, a, b, side in choices))


def read_prompts(paths: Paths) -> tuple[Prompt, ...]:
    """Bring the ledger up to date and read every question that was asked, oldest first. Raises
    LedgerError."""
    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        rows = connection.execute(QUESTIONS).fetchall()
    return tuple(Prompt(one, seconds or 0.0, text, model, digest or "", score)
                 for one, seconds, text, model, digest, score in rows)


def _answer(identity: str, at: str | None, text: str | None, finish: str | None, model: str,
            digest: str | None, params: str | None, calls: str | None, error: str | None,
            messages: str | None) -> Answer:
    asked = _mapping(params)
    tools = asked.get("tools")
    binding = {key: asked[key] for key in BINDING if asked.get(key) is not None}
    return Answer(identity, at or "", tuple(_message(one) for one in json.loads(messages or "[]")),
                  text or "", "error" if error else finish or "error", model, digest or "",
                  tools=_canonical(tools) if tools else "", asked=_canonical(binding) if binding else "",
                  calls=bool(calls and calls not in ("null", "[]")),
                  untold=next((why for key, why in UNTOLD.items() if asked.get(key)), ""))


def _message(record: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(*(str(one.get(key, "")) for key in ("id", "name", "arguments")))
                  for one in record.get("tool_calls") or () if isinstance(one, dict))
    return Message(record["role"], record["content"] or "", calls, record.get("tool_call_id"),
                   record.get("name"))


def _mapping(text: str | None) -> dict[str, Any]:
    found = json.loads(text) if text else None
    return found if isinstance(found, dict) else {}


def _canonical(value: Any) -> str:  # noqa: ANN401  any JSON
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
