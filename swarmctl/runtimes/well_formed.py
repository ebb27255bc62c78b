"""A server's stream may be JSON of another shape than any version of it writes: of a proxy before it, or of a
server that is none of ours. That is a failure of that server, and another one is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.errors import ServerUnavailable, StreamBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmctl.exchange import Chunk

#: What reading a field that is not there, or is of another kind, raises.
OTHER_SHAPE = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError)


def well_formed(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Chunks as they are read. Raises ServerUnavailable where what comes first has another shape,
    StreamBroken for what comes later."""
    begun = False
    try:
        for chunk in chunks:
            if not (isinstance(chunk.text, str) and isinstance(chunk.thought, str)):
                raise TypeError(chunk)
            yield chunk
            begun = True
    except OTHER_SHAPE as exc:
        why = "the server sent JSON of another shape"
        raise (StreamBroken(why) if begun else ServerUnavailable(why)) from exc
