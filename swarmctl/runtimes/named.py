"""The runtime that a snapshot names. Each is imported when it is first spoken to."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.runtimes.base import Speaker
    from swarmctl.runtimes.embedding import Embedder

RUNTIMES = {"llamacpp": "swarmctl.runtimes.llamacpp:LlamaCpp", "ollama": "swarmctl.runtimes.ollama:Ollama"}
#: the same servers, spoken to for vectors
EMBEDDERS = {"llamacpp": "swarmctl.runtimes.embedding:LlamaCppEmbedding",
             "ollama": "swarmctl.runtimes.embedding:OllamaEmbedding"}


def runtime(name: str, *, embedding: bool = False) -> Speaker:
    """The runtime of that name, for a model that answers or one that makes vectors. Raises SwarmError for one
    that this version does not know."""
    return embedder(name) if embedding else cast("Speaker", _made(RUNTIMES, name))


def embedder(name: str) -> Embedder:
    """The runtime of that name, spoken to for vectors. Raises SwarmError as `runtime` does."""
    return cast("Embedder", _made(EMBEDDERS, name))


def _made(table: Mapping[str, str], name: str) -> object:
    if name not in table:
        raise SwarmError(f"no runtime is called {name}", hint=f"there are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)()
