"""Which exchange a conversation goes on from. APIs send the whole conversation each time and no id; what was
said before finds it again, so that a conversation stays with its host's cache, its release and its record.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.dispatch.question import Asked
    from swarmctl.exchange import Exchange, Message

#: Conversations that are remembered; the one that was silent for longest is forgotten first.
KEPT = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a conversation stands."""

    exchange: str
    conversation: str
    holder: tuple[str, str]


class Conversations:
    """Places by what was said, each terminal's apart. Used from the event loop alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._places: OrderedDict[bytes, Place] = OrderedDict()

    def continued(self, asked: Asked, terminal: str) -> Asked:
        """The question in its conversation, where that is known."""
        if not asked.history or asked.history[-1].role != "assistant":
            return asked
        place = self._places.get(_digest(terminal, asked.history))
        if place is None:
            return asked
        return replace(asked, previous=place.exchange, conversation=place.conversation, holder=place.holder)

    def remember(self, exchange: Exchange, terminal: str) -> None:
        """An answer was given: who sends it back goes on from it."""
        said = (*exchange.messages, exchange.answer_message())
        digest = _digest(terminal, said)
        self._places[digest] = Place(exchange.id, exchange.conversation, (exchange.host, exchange.model))
        self._places.move_to_end(digest)
        if len(self._places) > self._kept:
            self._places.popitem(last=False)


def _digest(terminal: str, said: Sequence[Message]) -> bytes:
    found = sha256(terminal.encode())
    for turn in said:
        calls = "".join(f"{call.name}{call.arguments}" for call in turn.tool_calls)
        for part in (turn.role, turn.content.strip(), calls):
            raw = part.encode("utf-8", "surrogatepass")
            found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()
