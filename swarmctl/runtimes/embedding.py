"""Vectors from a model server: llama-server's /v1/embeddings and Ollama's /api/embed, one batch a request.

Both give vectors of length one. Neither may cut a text that is too long: half a text has another vector, and
nobody would see it. Facts checked against real servers: llama-server refuses a text longer than its batch
with 500, one longer than its context with 400, and with it the whole request; Ollama refuses with 400 where
`truncate` is false.
"""

from __future__ import annotations

import http.client
import sys
import time
from array import array
from base64 import b64decode
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from swarmctl.errors import RequestRejected, ServerUnavailable
from swarmctl.runtimes.base import Health, Speaker
from swarmctl.runtimes.http import Reply, TunnelDown, request
from swarmctl.runtimes.llamacpp import LlamaCpp
from swarmctl.runtimes.ollama import Ollama

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.exchange import ChatRequest, Chunk
    from swarmctl.runtimes.base import Endpoint

WORD = ("a",)
#: statuses that speak of the server and not of the text
ANOTHER_TIME = (404, 408, 429, 503)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector for each text, in float32, and the tokens that all of them had."""

    vectors: tuple[array[float], ...]
    tokens: int


class Embedder(Speaker, Protocol):
    """How a server with an embedding model is spoken to. It is well when it embedded a word."""

    def embed(self, endpoint: Endpoint, texts: Sequence[str], *, connect_timeout: float,
              timeout: float) -> Embedded:
        """Embed texts. Raises RequestRejected where it refuses one of them (and so the batch),
        ServerUnavailable (TunnelDown where nothing listens) where it cannot."""
        ...


class LlamaCppEmbedding(LlamaCpp):
    """A llama-server that was started with --embeddings."""

    def health(self, endpoint: Endpoint, *, timeout: float) -> Health:
        """Embed a word. A server that is loading says so with 503 and is asked no more."""
        found = _health(self, endpoint, timeout, Health("loading", "Loading model"))
        return found if found.state != "degraded" else self._busy(endpoint) or found

    def chat(self, endpoint: Endpoint, ask: ChatRequest, *, connect_timeout: float,  # noqa: ARG002
             first_token_timeout: float, token_timeout: float) -> Iterator[Chunk]:  # noqa: ARG002
        """An embedding model answers nothing. Raises RequestRejected."""
        _no_chat()

    def embed(self, endpoint: Endpoint, texts: Sequence[str], *, connect_timeout: float,
              timeout: float) -> Embedded:
        """See Embedder.embed."""
        body = {"input": list(texts), "encoding_format": "base64"}
        answer = _asked(endpoint, "/v1/embeddings", body, connect_timeout, timeout)
        rows = sorted(_objects(answer.get("data")), key=lambda row: int(row.get("index") or 0))
        usage = answer.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
        return _checked([row.get("embedding") for row in rows], tokens, len(texts))


class OllamaEmbedding(Ollama):
    """An embedding model of an Ollama server."""

    def health(self, endpoint: Endpoint, *, timeout: float) -> Health:
        """Embed a word, where the model is loaded; one that is not is idle, and stays so."""
        return _health(self, endpoint, timeout, Health("idle", "not loaded; the next text loads it"))

    def chat(self, endpoint: Endpoint, ask: ChatRequest, *, connect_timeout: float,  # noqa: ARG002
             first_token_timeout: float, token_timeout: float) -> Iterator[Chunk]:  # noqa: ARG002
        """An embedding model answers nothing. Raises RequestRejected."""
        _no_chat()

    def embed(self, endpoint: Endpoint, texts: Sequence[str], *, connect_timeout: float,
              timeout: float) -> Embedded:
        """See Embedder.embed."""
        body = {"model": endpoint.model, "input": list(texts), "truncate": False}
        answer = _asked(endpoint, "/api/embed", body, connect_timeout, timeout)
        found = answer.get("embeddings")
        return _checked(found if isinstance(found, list) else [], answer.get("prompt_eval_count"), len(texts))


def _health(server: LlamaCppEmbedding | OllamaEmbedding, endpoint: Endpoint, timeout: float,
            not_loaded: Health) -> Health:
    started = time.monotonic()
    try:
        if not server.ping(endpoint, timeout=timeout):
            return not_loaded
        server.embed(endpoint, WORD, connect_timeout=timeout, timeout=timeout)
    except TunnelDown as exc:
        return Health("unreachable", str(exc))
    except (ServerUnavailable, RequestRejected) as exc:
        return Health("degraded", f"no vector: {exc}")
    return Health("ready", seconds=time.monotonic() - started)


def _asked(endpoint: Endpoint, path: str, body: Mapping[str, Any], connect_timeout: float,
           timeout: float) -> dict[str, Any]:
    with request(endpoint, "POST", path, body, connect_timeout=connect_timeout, timeout=timeout) as reply:
        answer = _object(reply)
    if reply.status == 200:
        return answer
    error = answer.get("error")
    message = str(error.get("message") if isinstance(error, dict) else error or f"HTTP {reply.status}")
    raise (ServerUnavailable if reply.status in ANOTHER_TIME else RequestRejected)(message)


def _object(reply: Reply) -> dict[str, Any]:
    try:
        found = reply.json()
    except (OSError, http.client.HTTPException) as exc:
        raise ServerUnavailable(f"the server dropped the request ({exc or type(exc).__name__})") from exc
    return found if isinstance(found, dict) else {}


def _objects(found: Any) -> list[dict[str, Any]]:  # noqa: ANN401  whatever the server says
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _checked(found: Sequence[Any], tokens: Any, wanted: int) -> Embedded:  # noqa: ANN401
    """As many vectors as texts, all of one width, of numbers that are numbers. Raises ServerUnavailable."""
    try:
        vectors = tuple(map(_vector, found))
    except (ValueError, TypeError, OverflowError) as exc:
        raise ServerUnavailable(f"the server gave something that is no vector: {exc}") from exc
    if len(vectors) != wanted or len({len(vector) for vector in vectors}) > 1:
        raise ServerUnavailable(f"the server gave {len(vectors)} vectors for {wanted} texts")
    if not all(vector and all(map(isfinite, vector)) for vector in vectors):
        raise ServerUnavailable("the server gave a vector that is empty or holds no numbers")
    return Embedded(vectors, tokens if isinstance(tokens, int) else 0)


def _vector(found: Any) -> array[float]:  # noqa: ANN401
    """A list of numbers, or float32 in little-endian bytes as base64."""
    if not isinstance(found, str):
        return array("f", found)
    vector = array("f")
    vector.frombytes(b64decode(found, validate=True))
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def _no_chat() -> NoReturn:
    raise RequestRejected("an embedding model makes vectors and answers no questions",
                          hint="swarmctl embed")
