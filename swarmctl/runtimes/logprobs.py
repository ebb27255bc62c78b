"""How likely a model held each piece of its answer, as both servers write it beside the text.

llama-server and Ollama use the same entries ({token, logprob, top_logprobs: [{token, logprob}, …]}), with the
probabilities before temperature and all other sampling. Neither counts the token that ends the answer.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import Token

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: the token itself and the likeliest other
BEST = 2


def read_logprobs(entries: Any) -> tuple[float | None, float | None]:  # noqa: ANN401  whatever the server says
    """The log-probability of a piece, and that of the likeliest other token in its first one's place. None
    where the server does not say."""
    said = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    values = [value for entry in said if (value := _value(entry)) is not None]
    return (sum(values) if values else None, _rival(said[0]) if said else None)


def read_tokens(entries: Any) -> tuple[Token, ...]:  # noqa: ANN401  whatever the server says
    """A piece's tokens one by one, each with the likeliest at its place; one without a number is left out."""
    said = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return tuple(Token(str(entry.get("token") or ""), value, tuple(_top(entry)))
                 for entry in said if (value := _value(entry)) is not None)


def _top(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for other in entry.get("top_logprobs") or ():
        if isinstance(other, dict) and (value := _value(other)) is not None:
            yield str(other.get("token") or ""), value


def _rival(entry: Mapping[str, Any]) -> float | None:
    others = [other for other in entry.get("top_logprobs") or () if isinstance(other, dict)
              and (other.get("token"), other.get("bytes")) != (entry.get("token"), entry.get("bytes"))]
    return max((value for other in others if (value := _value(other)) is not None), default=None)


def _value(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        return None
    return min(0.0, float(value))
