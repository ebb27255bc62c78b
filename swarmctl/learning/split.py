"""Which prompts are held out for ever: decided by the prompt alone, so that no later dataset can train on
what an earlier one was measured with. Pure, and frozen: changing either function would leak.
"""

from __future__ import annotations

import unicodedata
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.exchange import Message

#: Of a hundred groups, so many are held out.
HELD_OUT_PERCENT = 15


def group_of(messages: Sequence[Message]) -> str:
    """The group of a prompt: sha256 (hex) of its system messages and its last user message, without case and
    white space."""
    system = [_folded(turn.content) for turn in messages if turn.role == "system"]
    asked = [_folded(turn.content) for turn in messages if turn.role == "user"]
    parts = ("\n".join(system), asked[-1] if asked else "")
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def held_out(group: str) -> bool:
    """Whether a group is held out: about 15 of a hundred are."""
    return int(sha256(f"heldout:{group}".encode()).hexdigest()[:8], 16) % 100 < HELD_OUT_PERCENT


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
