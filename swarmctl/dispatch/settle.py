"""Leaving a release that nobody is sent to any more: it answers what it was asked, and gives its memory
back."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from swarmctl.errors import RemoteError, ServerError
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime
from swarmctl.runtimes.ollama_models import unload

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.routing.cost import Candidate

PATIENCE = 60.0
SLOTS_TIMEOUT = 2.0
#: idle so often in a row, for an `ask` that read the old snapshot a moment ago
QUIET, PAUSE = 3, 0.5


def settle(swarm: Swarm, model: str, release: str, note: Callable[[str], None],
           patience: float = PATIENCE) -> int:
    """Wait until no server of a release answers anybody; how many answers are still under way after
    `patience` seconds. Ollama, whose models stay when they leave, is not waited for."""
    servers = [one for one in swarm.candidates
               if (one.model, one.release, one.runtime) == (model, release, "llamacpp")]
    until, quiet, told = time.monotonic() + patience, 0, 0
    while servers:
        busy = sum(_busy(swarm, one) for one in servers)
        quiet = 0 if busy else quiet + 1
        if busy and busy != told:
            note(f"waiting for {busy} answer{'s' if busy > 1 else ''} of {release or 'the weights before'}")
        told = busy
        if quiet >= QUIET or time.monotonic() > until:
            return busy
        time.sleep(PAUSE)
    return 0


def let_go(swarm: Swarm, model: str, release: str) -> None:
    """Have every Ollama take a release out of its memory, once it has answered what it was asked: the longest
    keep-alive is for ever. One that does not answer is left alone."""
    for one in swarm.candidates:
        if release and (one.model, one.release, one.runtime) == (model, release, "ollama"):
            with suppress(ServerError, RemoteError):
                _unload(swarm, one)


def _unload(swarm: Swarm, candidate: Candidate) -> None:
    endpoint = swarm.endpoint(candidate)
    try:
        unload(endpoint, endpoint.model)
    except TunnelDown:
        if swarm.host(candidate.host).ssh == "local":
            raise
        swarm.open(candidate)
        unload(endpoint, endpoint.model)


def _busy(swarm: Swarm, candidate: Candidate) -> int:
    """Answers that a server gives now; none of one that does not say."""
    try:
        return runtime(candidate.runtime).load(swarm.endpoint(candidate), timeout=SLOTS_TIMEOUT).busy
    except (ServerError, RemoteError):
        return 0
