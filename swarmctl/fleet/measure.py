"""A server's readiness and speed, from one token and from two short requests with its own timings.

An embedding server is ready when it embedded a word. It has no decode speed, and as it gives no timings its
prefill speed is by this clock.
"""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING, Any

from swarmctl.errors import ServerError, ServerUnavailable
from swarmctl.facts import Speed
from swarmctl.runtimes.http import request
from swarmctl.runtimes.named import embedder, runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.runtimes.base import Endpoint

POLL = 0.15
#: a request that is expected to take longer is not made; seconds
PATIENCE = 8.0
LIMIT = 300.0
SHORT = (24, 8)  # prompt and answer tokens of the first look
LONG = (384, 48)
#: texts in a batch that times an embedding server, and the words of each
BATCH, WORDS = 8, 128


def wait_ready(endpoint: Callable[[], Endpoint], *, limit: float, still_alive: Callable[[], None],
               embedding: bool = False) -> float:
    """Wait until the server generates a token, or embeds a word; the seconds it took. `still_alive` raises
    where it never will.

    Raises ServerUnavailable past `limit` seconds.
    """
    began = time.monotonic()
    looked = began
    while True:
        state = runtime("llamacpp", embedding=embedding).health(endpoint(), timeout=max(5.0, limit / 4))
        waited = time.monotonic() - began
        if state.state == "ready":
            return waited
        if waited > limit:
            what = "vector" if embedding else "token"
            raise ServerUnavailable(f"no {what} within {limit:.0f} s ({state.state}: {state.detail})")
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            still_alive()
        time.sleep(min(POLL * (1 + waited), 1.0))


def load_limit(size: int) -> float:
    """Seconds a model of `size` bytes may take from start to first token: a slow disk reads 30 MB/s."""
    return 60.0 + size / 30e6


def measure(endpoint: Endpoint, *, context: int, load: float) -> Speed:
    """Time prefill and decode: the best of a few requests, as whatever else the machine does only slows them.

    A slow server gets only short ones. Raises ServerError.
    """
    found = [_timed(endpoint, *SHORT, context), _timed(endpoint, *SHORT, context)]
    expected = LONG[0] / max(found[-1].prefill, 0.1) + LONG[1] / max(found[-1].decode, 0.1)
    if expected < PATIENCE:
        found = [_timed(endpoint, *LONG, context) for _ in range(_rounds(expected))]
    return Speed(max(one.prefill for one in found), max(one.decode for one in found),
                 min(one.overhead for one in found), load)


def measure_embedding(name: str, endpoint: Endpoint, *, context: int, load: float) -> Speed:
    """Time an embedding server of that runtime: the tokens a second of a batch of texts, and the seconds that
    one word takes. Raises ServerError.
    """
    server = embedder(name)

    def timed(texts: list[str]) -> tuple[float, int]:
        began = time.monotonic()
        found = server.embed(endpoint, texts, connect_timeout=5.0, timeout=LIMIT)
        return time.monotonic() - began, found.tokens

    overhead = min(timed(["a"])[0] for _ in range(3))
    text = " ".join(["a"] * max(1, min(WORDS, context // 2)))
    seconds, tokens = timed([text])
    if seconds * BATCH < PATIENCE:
        seconds, tokens = min(timed([text] * BATCH) for _ in range(_rounds(seconds * BATCH)))
    return Speed(round(tokens / max(seconds, 1e-6), 2), 0.0, round(overhead, 4), load)


def _rounds(expected: float) -> int:
    """As many requests as fit into a second, three at least, twenty at most."""
    return max(3, min(20, int(1.0 / max(expected, 0.01))))


def _timed(endpoint: Endpoint, prompt: int, answer: int, context: int) -> Speed:
    """One uncached request of so many tokens, less where the context is small."""
    answer = max(1, min(answer, context // 4))
    prompt = max(1, min(prompt, context - answer - 8))
    body = {"prompt": [3 + (n * 7919) % 200 for n in range(prompt)], "n_predict": answer, "ignore_eos": True,
            "cache_prompt": False, "temperature": 0.0}
    began = time.monotonic()
    with request(endpoint, "POST", "/completion", body, connect_timeout=5.0, timeout=LIMIT) as reply:
        try:
            found = reply.json()
        except (OSError, http.client.HTTPException) as exc:
            raise ServerUnavailable(f"the server dropped the measurement: {exc}") from exc
        wall = time.monotonic() - began
        if reply.status != 200 or not isinstance(found, dict):
            raise ServerError(f"the server refused to be measured (HTTP {reply.status})")
    return _speed(found.get("timings") or {}, wall)


def _speed(timings: dict[str, Any], wall: float) -> Speed:
    prefill_seconds = float(timings.get("prompt_ms") or 0.0) / 1000
    decode_seconds = float(timings.get("predicted_ms") or 0.0) / 1000
    if prefill_seconds <= 0 or decode_seconds <= 0:
        raise ServerError("the server gives no timings")
    return Speed(prefill=round(float(timings.get("prompt_n") or 1) / prefill_seconds, 2),
                 decode=round(float(timings.get("predicted_n") or 1) / decode_seconds, 2),
                 overhead=round(max(wall - prefill_seconds - decode_seconds, 0.0), 4))
