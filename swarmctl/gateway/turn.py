"""What a client asked for, and what comes back piece by piece: the seam between an API and the ask path.

A surface (openai, ollama, anthropic) reads a body into a `Turn` and writes events in its own API's shape. It
touches no network, no disk and no thread; the engine alone runs turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from swarmctl.dispatch.question import Answered, Asked
    from swarmctl.exchange import Attempt, Token, ToolCall
    from swarmctl.routing.cost import Route


class BadRequest(SwarmError):
    """A body that this API does not allow. `param` is the offending field, where one is."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True, slots=True)
class Turn:
    """A question as the ask path takes it, and how its client wants it answered. `model` is the name that the
    client used: auto, auto:fast, auto:best, or a real one. `usage` asks for token counts in a stream.
    `continues` is the exchange whose conversation goes on, where the client named one instead of sending it
    all."""

    asked: Asked
    model: str = "auto"
    stream: bool = False
    usage: bool = False
    continues: str | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """Sent before the first piece: who is asked first; and again when somebody else is asked instead."""

    route: Route


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of the answer, and its tokens' log-probabilities where they were asked for and the server gave
    them."""

    text: str
    logprob: float | None = None
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning that comes before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A whole tool call."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Restarted:
    """Part of an answer was sent, then its server failed, and the answer begins again elsewhere."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole and recorded. Always the last event of a turn that did not fail; a turn that
    fails raises a SwarmError instead."""

    answered: Answered


Event = Routed | Piece | Thought | Called | Restarted | Finished


@dataclass(slots=True)
class Whole:
    """The events of one turn, put together, for a client that does not stream."""

    text: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Fold one event in; what was said before a restart is void."""
        if isinstance(event, Piece):
            self.text.append(event.text)
            self.tokens.extend(event.tokens)
        elif isinstance(event, Thought):
            self.thoughts.append(event.text)
        elif isinstance(event, Called):
            self.calls.append(event.call)
        elif isinstance(event, Restarted):
            self.text.clear()
            self.thoughts.clear()
            self.calls.clear()
            self.tokens.clear()
