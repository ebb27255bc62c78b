"""How likely a model held each piece of its answer, as both servers write it beside the text.

llama-server and Ollama use the same entries ({token, logprob, top_logprobs: [{token, logprob}, …]}), with the
probabilities before temperature and all other sampling. Neither counts the token that ends the answer.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: the token itself and the likeliest other
BEST = 2


def read_logprobs(entries: Any) -> tuple[float | None, float | None]:  # noqa: ANN401  whatever the server says
    """The log-probability of a piece, and that of the likeliest other token in its first one's place. None
    where the server does not say."""
    said = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    values = [value for entry in said if (value := _value(entry)) is not None]
    return (sum(values) if values else None, _rival(said[0]) if said else None)


def _rival(entry: Mapping[str, Any]) -> float | None:
    others = [other for other in entry.get("top_logprobs") or () if isinstance(other, dict)
              and (other.get("token"), other.get("bytes")) != (entry.get("token"), entry.get("bytes"))]
    return max((value for other in others if (value := _value(other)) is not None), default=None)


def _value(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("logprob")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(0.0, float(value)) if number and isfinite(value) else None
