"""Open WebUI's exports: feedbacks (Admin, Evaluations, Feedbacks: /api/v1/evaluations/feedbacks/all/export)
and chats. Pure.

A feedback is a rating of one message (1 or -1, and 1 to 10 in `details`) with a snapshot of its chat. A chat
is a tree of messages (`history.messages`, by parentId); a message may carry the rating itself, as
`annotation`, and what the model had said before a person edited it, as `originalContent`. Where several
models answered side by side, a rating of one that is not matched by one of another is a choice between them,
which is how Open WebUI's own leaderboard reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import Message
from swarmctl.learning.imported import Malformed, Unusable, clean
from swarmctl.learning.labels import Answer, Choice, Vote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.learning.imported import Imported

Item = dict[str, Any]

#: What a reasoning model thought, as Open WebUI keeps it inside the answer.
THOUGHTS = re.compile(r"<details\s+type=\"reasoning\".*?</details>\s*", re.DOTALL)


def is_feedback(item: Item) -> bool:
    """Whether an object is a feedback."""
    return isinstance(item.get("data"), dict) and "rating" in item["data"] and "type" in item


def is_chat(item: Item) -> bool:
    """Whether an object is an exported chat."""
    return isinstance(item.get("chat"), dict) and ("history" in item["chat"] or "messages" in item["chat"])


def feedback(where: str, item: Item, into: Imported) -> None:
    """Take in one feedback. Raises Malformed, Unusable."""
    data, meta = item["data"], _mapping(item.get("meta"))
    score, stars = _score(data)
    snapshot = _mapping(_mapping(item.get("snapshot")).get("chat"))
    if not snapshot:
        raise Unusable("a feedback without its chat")
    tree = _tree(where, snapshot, str(meta.get("chat_id") or snapshot.get("id") or ""), _user(item))
    message = tree.messages.get(str(meta.get("message_id")))
    if message is None:
        raise Unusable("a feedback on a message that its chat does not hold")
    at = _seconds(item.get("updated_at") or item.get("created_at"))
    answer = tree.answer(message, str(data.get("model_id") or ""), at)
    into.answers[answer.id] = answer
    into.votes.append(Vote(f"owui:{int(at):012d}:{item.get('id')}", answer.id, tree.rater, at, score, stars,
                           tree.correction(message)))
    if data.get("sibling_model_ids"):
        _side_by_side(tree, message, answer, at, score > 0, into)


def chat(where: str, item: Item, into: Imported) -> None:
    """Take in every message of a chat that was rated or edited. Raises Malformed, Unusable."""
    tree = _tree(where, item, str(item.get("id") or where), _user(item))
    found = 0
    for message in tree.messages.values():
        annotation = _mapping(message.get("annotation"))
        rated = message.get("role") == "assistant" and annotation.get("rating") is not None
        correction = tree.correction(message)
        if not rated and correction is None:
            continue
        at = _seconds(message.get("timestamp") or item.get("updated_at"))
        answer = tree.answer(message, "", at)
        score, stars = _score(annotation) if rated else (-1.0, None)
        into.answers.setdefault(answer.id, answer)
        into.votes.append(Vote(f"owui:{int(at):012d}:{answer.id}", answer.id, tree.rater, at, score, stars,
                               correction))
        found += 1
    if not found:
        raise Unusable("a chat in which nothing was rated")


@dataclass(frozen=True, slots=True)
class Tree:
    """A chat's messages by id, and what they have in common."""

    where: str
    chat: str
    rater: str
    system: str
    messages: Mapping[str, Item]

    def answer(self, message: Item, model: str, at: float) -> Answer:
        """A message of an assistant as the answer that it was. Raises Unusable."""
        if message.get("role") != "assistant":
            raise Unusable("a rating of something that is no answer")
        prompt = self.prompt(message)
        failed = bool(message.get("error")) or message.get("done") is False
        said = message.get("originalContent") or message.get("content")
        name = model or str(message.get("selectedModelId") or message.get("model") or "")
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return Answer(f"owui:{self.chat}:{message.get('id')}", moment, prompt, _said(said),
                      "error" if failed else "stop", clean(name), origin=self.where)

    def prompt(self, message: Item) -> tuple[Message, ...]:
        """All turns before a message, from the root down. Raises Unusable."""
        found: list[Message] = []
        seen = {message.get("id")}
        parent = message.get("parentId")
        while parent is not None and parent not in seen:
            seen.add(parent)
            before = self.messages.get(str(parent))
            if before is None:
                raise Unusable("a chat with a hole in it")
            if before.get("files"):
                raise Unusable("asked of a picture or a file")
            said = _said(before.get("content"))
            found.append(Message("assistant" if before.get("role") == "assistant" else "user", said))
            parent = before.get("parentId")
        if not found or found[0].role != "user":
            raise Unusable("a chat with a hole in it")
        system = (Message("system", self.system),) if self.system.strip() else ()
        return (*system, *reversed(found))

    def correction(self, message: Item) -> str | None:
        """What a person made of the answer; None where nobody edited it."""
        original, text = message.get("originalContent"), message.get("content")
        edited = message.get("role") == "assistant" and isinstance(original, str) and isinstance(text, str)
        return _said(text) if edited and _said(text).strip() != _said(original).strip() else None


def _tree(where: str, item: Item, chat_id: str, rater: str) -> Tree:
    inner = _mapping(item.get("chat")) or item
    history = _mapping(inner.get("history"))
    messages = history.get("messages")
    if not isinstance(messages, dict):
        listed = inner.get("messages")
        if not isinstance(listed, list):
            raise Malformed("a chat without messages")
        messages = {str(one.get("id")): one for one in listed if isinstance(one, dict)}
    kept = {str(key): {**one, "id": str(key)} for key, one in messages.items() if isinstance(one, dict)}
    system = inner.get("system") or _mapping(inner.get("params")).get("system") or ""
    return Tree(where, chat_id, rater, clean(system) if isinstance(system, str) else "", kept)


def _side_by_side(tree: Tree, message: Item, answer: Answer, at: float, liked: bool, into: Imported) -> None:
    """Choices against the answers that stood beside this one and were not rated themselves."""
    parent = tree.messages.get(str(message.get("parentId")), {})
    for identity in parent.get("childrenIds") or ():
        other = tree.messages.get(str(identity))
        if other is None or other["id"] == message["id"] or _mapping(other.get("annotation")).get("rating"):
            continue
        beside = tree.answer(other, "", at)
        into.answers.setdefault(beside.id, beside)
        into.choices.append(Choice(f"owui:{int(at):012d}:{answer.id}:{identity}", tree.rater, at, answer.id,
                                   beside.id, "a" if liked else "b"))


def _score(data: Mapping[str, Any]) -> tuple[float, int | None]:
    """1 or -1 as a score, and 1 to 10 in `details` as 1 to 5 stars."""
    rating = str(data.get("rating"))
    if rating not in ("1", "-1"):
        raise Malformed(f"a rating of {rating}: it must be 1 or -1")
    fine = _mapping(data.get("details")).get("rating")
    stars = (fine + 1) // 2 if isinstance(fine, int) and 1 <= fine <= 10 else None
    return float(rating), stars


def _user(item: Item) -> str:
    return f"owui:{item.get('user_id') or 'unknown'}"


def _said(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str):
        raise Unusable("asked of a picture or a file")
    return clean(THOUGHTS.sub("", value))


def _seconds(value: Any) -> float:  # noqa: ANN401
    """Seconds since 1970; Open WebUI has written nanoseconds in places."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        return 0.0
    while value > 1e11:
        value /= 1000
    return float(value)


def _mapping(value: Any) -> Item:  # noqa: ANN401
    return value if isinstance(value, dict) else {}
