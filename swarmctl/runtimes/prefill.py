"""An answer that was begun for the model. Both servers send the beginning again, in front of what is new.
Here it is taken off, so that a stream holds only what the model said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.runtimes.well_formed import well_formed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmctl.exchange import ChatRequest, Chunk


def begun(ask: ChatRequest) -> str:
    """What the answer begins with; empty where nothing was begun."""
    last = ask.messages[-1]
    return last.content if last.role == "assistant" and not last.tool_calls and not ask.raw else ""


def only_new(chunks: Iterable[Chunk], beginning: str) -> Iterator[Chunk]:
    """The chunks without `beginning`, whether the server repeats it in one piece, several or not at all.
    Raises as `well_formed`."""
    held = ""
    for chunk in well_formed(chunks):
        if not beginning or not (chunk.text or chunk.finish or chunk.tool_calls):
            yield chunk
            continue
        held += chunk.text
        if beginning.startswith(held) and not chunk.finish:
            continue
        text = held.removeprefix(beginning)
        held = beginning = ""
        yield replace(chunk, text=text)
