"""The chat template that a running server uses, as it says itself."""

from __future__ import annotations

import http.client
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.errors import ServerUnavailable
from swarmctl.runtimes.http import request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.runtimes.base import Endpoint

#: runtime → (method, path, key of the answer)
ASKED: Mapping[str, tuple[str, str, str]] = {
    "llamacpp": ("GET", "/props", "chat_template"), "ollama": ("POST", "/api/show", "template")}


def served_template(runtime: str, endpoint: Endpoint, *, timeout: float) -> str | None:
    """The sha256 of the server's template; None where it does not say. Loads nothing.

    Ollama shows the template of the weights where it uses that, and its own (a Go template) where a Modelfile
    or its guess replaced it: then the digests differ, which is the point.
    """
    if runtime not in ASKED:
        return None
    method, path, key = ASKED[runtime]
    body = {"model": endpoint.model} if method == "POST" else None
    try:
        with request(endpoint, method, path, body, connect_timeout=timeout, timeout=timeout) as reply:
            answer = reply.json() if reply.status == 200 else None
    except (ServerUnavailable, OSError, http.client.HTTPException):
        return None
    said = answer.get(key) if isinstance(answer, dict) else None
    return sha256(said.encode()).hexdigest() if isinstance(said, str) and said else None
