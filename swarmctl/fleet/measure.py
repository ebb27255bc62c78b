"""A server's readiness and speed, from one token and from a few requests with its own timings.

An embedding server is ready when it embedded a word. It has no decode speed, and as it gives no timings its
prefill speed is by this clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from swarmctl.errors import ServerUnavailable
from swarmctl.facts import Speed
from swarmctl.runtimes.named import embedder, runtime
from swarmctl.runtimes.timing import timed

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
    def amiss() -> str | None:
        state = runtime("llamacpp", embedding=embedding).health(endpoint(), timeout=max(5.0, limit / 4))
        return None if state.state == "ready" else f"{state.state}: {state.detail}"

    return wait_until(amiss, "vector" if embedding else "token", limit=limit, still_alive=still_alive)


def wait_until(amiss: Callable[[], str | None], what: str, *, limit: float,
               still_alive: Callable[[], None]) -> float:
    """Look, less and less often, until nothing is amiss; the seconds it took. Raises ServerUnavailable past
    `limit` seconds, saying what did not come and why, and what `still_alive` raises."""
    began = looked = time.monotonic()
    while why := amiss():
        waited = time.monotonic() - began
        if waited > limit:
            raise ServerUnavailable(f"no {what} within {limit:.0f} s ({why})")
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            still_alive()
        time.sleep(min(POLL * (1 + waited), 1.0))
    return time.monotonic() - began


def load_limit(size: int) -> float:
    """Seconds a model of `size` bytes may take from start to first token: a slow disk reads 30 MB/s."""
    return 60.0 + size / 30e6


def measure(name: str, endpoint: Endpoint, *, context: int, load: float | None = None,
            limit: float = LIMIT) -> Speed:
    """Time prefill and decode of a server of that runtime: the best of a few requests, as whatever else the
    machine does only slows them. `load` is what the model took to load, where the caller knows it.

    A slow server gets only short ones. Raises ServerError.
    """
    def once(lengths: tuple[int, int], number: int) -> Speed:
        return timed(name, endpoint, lengths, context=context, limit=limit, number=number)

    found = [once(SHORT, 0), once(SHORT, 1)]
    loaded = found[0].load if load is None else load
    expected = LONG[0] / max(found[-1].prefill, 0.1) + LONG[1] / max(found[-1].decode, 0.1)
    if expected < PATIENCE:
        found = [once(LONG, number) for number in range(2, 2 + _rounds(expected))]
    return Speed(max(one.prefill for one in found), max(one.decode for one in found),
                 min(one.overhead for one in found), loaded)


def measure_embedding(name: str, endpoint: Endpoint, *, context: int, load: float) -> Speed:
    """Time an embedding server of that runtime: the tokens a second of a batch of texts, and the seconds that
    one word takes. Raises ServerError.
    """
    server = embedder(name)

    def embedded(texts: list[str]) -> tuple[float, int]:
        began = time.monotonic()
        found = server.embed(endpoint, texts, connect_timeout=5.0, timeout=LIMIT)
        return time.monotonic() - began, found.tokens

    overhead = min(embedded(["a"])[0] for _ in range(3))
    text = " ".join(["a"] * max(1, min(WORDS, context // 2)))
    seconds, tokens = embedded([text])
    if seconds * BATCH < PATIENCE:
        seconds, tokens = min(embedded([text] * BATCH) for _ in range(_rounds(seconds * BATCH)))
    return Speed(round(tokens / max(seconds, 1e-6), 2), 0.0, round(overhead, 4), load)


def _rounds(expected: float) -> int:
    """As many requests as fit into a second, three at least, twenty at most."""
    return max(3, min(20, int(1.0 / max(expected, 0.01))))
