"""The runtime that a snapshot names. Each is imported when it is first spoken to."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from swarmctl.runtimes.base import Speaker

RUNTIMES = {"llamacpp": "swarmctl.runtimes.llamacpp:LlamaCpp", "ollama": "swarmctl.runtimes.ollama:Ollama"}


def runtime(name: str) -> Speaker:
    """The runtime of that name. Raises SwarmError for one that this version does not know."""
    if name not in RUNTIMES:
        raise SwarmError(f"no runtime is called {name}", hint=f"there are {', '.join(RUNTIMES)}")
    module, _, attribute = RUNTIMES[name].partition(":")
    return cast("Speaker", getattr(import_module(module), attribute)())
