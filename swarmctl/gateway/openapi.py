"""The gateway described as an OpenAPI 3.1 document, made from its route table; for tools and for fuzzing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from swarmctl import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.gateway.surface import Surface

_TEXT: Mapping[str, Any] = {"type": "string"}
_OPEN: Mapping[str, Any] = {"type": "object"}
_MESSAGE = {
    "type": "object", "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _OPEN}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": _OPEN}, "tool_call_id": _TEXT}}
_SHARED = {
    "model": _TEXT, "stream": {"type": "boolean"}, "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2}, "seed": {"type": "integer"},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 16}]}}
#: What each path reads; any other takes an object.
BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"type": "object", "required": ["messages"], "properties": {
        **_SHARED, "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "tools": {"type": "array", "items": _OPEN}, "response_format": _OPEN,
        "logprobs": {"type": "boolean"}, "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20}}},
    "/v1/completions": {"type": "object", "required": ["prompt"], "properties": {**_SHARED, "prompt": _TEXT}},
    "/v1/embeddings": {"type": "object", "required": ["input"], "properties": {
        "model": _TEXT, "input": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
        "encoding_format": {"enum": ["float", "base64"]}}},
    "/v1/feedback": {"type": "object", "required": ["exchange"], "properties": {
        "exchange": _TEXT, "rating": {"enum": ["up", "down"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "score": {"type": "number", "minimum": -1, "maximum": 1}, "comment": _TEXT, "correction": _TEXT}},
}
ANSWERS = {"200": "answered", "400": "not allowed by this API", "401": "no key that is known",
           "403": "this key, or this origin, may not", "404": "no such model or answer", "408": "too slow",
           "413": "too large", "415": "compressed", "429": "too much, or too busy; see Retry-After",
           "500": "not recorded", "501": "done with swarmctl on the controller",
           "502": "every server failed", "503": "nobody can take it now",
           "504": "it took too long"}


def document(surfaces: Sequence[Surface]) -> Mapping[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, tag in _routes(surfaces):
        shown = re.sub(r":\w+}", "}", path)
        paths.setdefault(shown, {})[method.lower()] = _operation(method, shown, tag)
    return {"openapi": "3.1.0", "info": {"title": "swarmctl serve", "version": __version__}, "paths": paths,
            "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}}


def _routes(surfaces: Sequence[Surface]) -> Iterator[tuple[str, str, str]]:
    for surface in surfaces:
        for talk in surface.talks:
            yield "POST", talk.path, surface.name
        for embed in surface.embeds:
            yield "POST", embed.path, surface.name
        for look in surface.looks:
            yield look.method, look.path, surface.name
    yield from (("POST", "/v1/feedback", "swarmctl"), ("GET", "/healthz", "swarmctl"),
                ("GET", "/metrics", "swarmctl"))


def _operation(method: str, path: str, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = {"tags": [tag], "responses": {
        status: {"description": why} for status, why in ANSWERS.items()}}
    if named := re.findall(r"{(\w+)}", path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT}
                               for name in named]
    if method == "POST":
        schema = BODIES.get(path, _OPEN)
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found
