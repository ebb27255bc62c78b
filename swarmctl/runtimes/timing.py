"""One request of so many tokens, timed by the server's own clock.

Here is what differs between runtimes in how a server is made to read and to write just that many, and in how
it tells its times.
"""

from __future__ import annotations

import http.client
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from swarmctl.errors import ServerError, ServerUnavailable, SwarmError
from swarmctl.facts import Speed
from swarmctl.runtimes.http import request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.runtimes.base import Endpoint

NANO = 1e-9
#: a schema whose shortest answer is longer than what is asked for
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 200}


def timed(runtime: str, endpoint: Endpoint, lengths: tuple[int, int], *, context: int, limit: float,
          number: int) -> Speed:
    """One request with a prompt and an answer of those lengths in tokens, less where the context is small.
    Its `load` is how long the model took to load for it, as far as the server says.

    Requests of different `number`s have different prompts, so that no cache shortens the second. Raises
    ServerErrors, and SwarmError for a runtime that this version does not know.
    """
    match runtime:
        case "llamacpp":
            return _llamacpp(endpoint, lengths, context, limit)
        case "ollama":
            return _ollama(endpoint, lengths, context, limit, number)
    raise SwarmError(f"no runtime is called {runtime}")


def _llamacpp(endpoint: Endpoint, lengths: tuple[int, int], context: int, limit: float) -> Speed:
    """llama-server takes token numbers, reads them uncached when told, and goes on past an end."""
    answer = max(1, min(lengths[1], context // 4))
    prompt = max(1, min(lengths[0], context - answer - 8))
    body = {"prompt": [3 + (n * 7919) % 200 for n in range(prompt)], "n_predict": answer, "ignore_eos": True,
            "cache_prompt": False, "temperature": 0.0}
    said, wall = _posted(endpoint, "/completion", body, limit)
    timings = said.get("timings") or {}
    return _speed(_number(timings, "prompt_n"), _number(timings, "prompt_ms") / 1000,
                  _number(timings, "predicted_n"), _number(timings, "predicted_ms") / 1000, wall)


def _ollama(endpoint: Endpoint, lengths: tuple[int, int], context: int, limit: float, number: int) -> Speed:
    """Ollama takes text, and caches a prompt's beginning: each begins with a word that no prompt had before.

    It cannot be told to go on past a model's end; a schema makes it, at a little cost in speed, where the
    model would end at once.
    """
    answer = max(2, min(lengths[1], context // 4))
    words = max(1, min(lengths[0], (context - answer) // 2) - 2)
    text = " ".join(chr(97 + (place * 7 + number) % 26) for place in range(words))
    body = {"model": endpoint.model, "prompt": f"{token_hex(4)} {text}", "raw": True, "stream": False,
            "options": {"num_predict": answer, "temperature": 0, "seed": number}}
    said, wall = _posted(endpoint, "/api/generate", body, limit)
    cold = _number(said, "load_duration")
    if _number(said, "eval_count") < answer // 2:
        said, wall = _posted(endpoint, "/api/generate",
                             {**body, "prompt": f"{token_hex(4)} {text}", "format": ENDLESS}, limit)
    load = _number(said, "load_duration")
    prompt_seconds = max(_number(said, "prompt_eval_duration") * NANO, 1e-6)
    return _speed(_number(said, "prompt_eval_count"), prompt_seconds,
                  _number(said, "eval_count"), _number(said, "eval_duration") * NANO, wall - load * NANO,
                  load=max(cold, load) * NANO)


def _posted(endpoint: Endpoint, path: str, body: Mapping[str, Any],
            limit: float) -> tuple[dict[str, Any], float]:
    """What the server said, whole, and the seconds that took on this clock."""
    began = time.monotonic()
    with request(endpoint, "POST", path, body, connect_timeout=5.0, timeout=limit) as reply:
        try:
            said = reply.json()
        except (OSError, http.client.HTTPException) as exc:
            raise ServerUnavailable(f"the server dropped the measurement: {exc}") from exc
        wall = time.monotonic() - began
    if reply.status != 200 or not isinstance(said, dict):
        why = said.get("error") if isinstance(said, dict) else None
        because = f": {why}" if why else ""
        raise ServerUnavailable(f"the server refused to be measured (HTTP {reply.status}{because})")
    return said, wall


def _speed(prompt: float, prompt_seconds: float, answer: float, answer_seconds: float, wall: float, *,
           load: float = 0.0) -> Speed:
    """The speeds of one request; what of its time is neither reading nor writing is overhead."""
    if answer < 1 or answer_seconds <= 0 or prompt_seconds <= 0:
        raise ServerError("the server gives no timings")
    return Speed(round(max(prompt, 1.0) / prompt_seconds, 2), round(answer / answer_seconds, 2),
                 round(max(wall - prompt_seconds - answer_seconds, 0.0), 4), round(load, 3))


def _number(said: Mapping[str, Any], name: str) -> float:
    return float(said.get(name) or 0.0)
