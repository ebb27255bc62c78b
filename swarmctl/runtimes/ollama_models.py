"""Models in an Ollama server over its HTTP API: listed, created from blobs, copied, pulled, removed.

Checked against a real server (0.33): a streamed create or pull answers 200 and may still end with an
`{"error": …}` line; a GGUF is rewritten at create, so the model's own blob has another digest than the one
that was sent; what no model names is pruned at the server's next start. Hence the name: a model that swarmctl
makes from a GGUF is called `<model>:<first 12 hex of the GGUF's sha256>`, and the list of names alone says
whether these very weights are there.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import DiskFull, RequestRejected, ServerUnavailable
from swarmctl.runtimes.http import Connection, request, where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from swarmctl.runtimes.base import Endpoint
    from swarmctl.runtimes.http import Reply

TIMEOUT = 10.0
#: between two lines of a create or pull: a server that rewrites a large model is silent for long
SILENCE = 900.0
WEIGHTS = re.compile(r"^FROM\s+(?P<path>/.*sha256[-:](?P<digest>[0-9a-f]{64}))\s*$", re.MULTILINE)
NO_ROAD = re.compile(r"lookup|dial tcp|no such host|connection refused|timeout|unreachable", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OllamaTag:
    """A model as /api/tags lists it. `digest` is that of its manifest, `size` bytes of all its layers."""

    name: str
    digest: str
    size: int
    quantisation: str = ""
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class OllamaRunning:
    """A loaded model as /api/ps lists it: bytes in all, and of them in the memory of GPUs."""

    name: str
    size: int
    size_vram: int
    context: int | None = None


@dataclass(frozen=True, slots=True)
class OllamaCard:
    """What /api/show says that making the model again elsewhere needs. `weights` is the path of its blob on
    the server's machine, `sha256` that blob's hash, `recipe` the fields of a create request."""

    weights: str
    sha256: str
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of a create or pull: what is being done, and bytes done of all where they are told."""

    status: str
    done: int | None = None
    total: int | None = None


def tags(endpoint: Endpoint, *, timeout: float = TIMEOUT) -> tuple[OllamaTag, ...]:
    """The models there are. Raises TunnelDown and ServerUnavailable."""
    return tuple(OllamaTag(str(raw.get("name")), str(raw.get("digest") or ""), int(raw.get("size") or 0),
                           str((raw.get("details") or {}).get("quantization_level") or ""),
                           str((raw.get("details") or {}).get("parameter_size") or ""))
                 for raw in _listed(endpoint, "/api/tags", timeout))


def running(endpoint: Endpoint, *, timeout: float = TIMEOUT) -> tuple[OllamaRunning, ...]:
    """The models that are loaded. Raises TunnelDown and ServerUnavailable."""
    return tuple(OllamaRunning(str(raw.get("name")), int(raw.get("size") or 0),
                               int(raw.get("size_vram") or 0), raw.get("context_length"))
                 for raw in _listed(endpoint, "/api/ps", timeout))


def card(endpoint: Endpoint, name: str, *, timeout: float = TIMEOUT) -> OllamaCard:
    """What a model is made of. Raises RequestRejected where there is none, or where it has an adapter."""
    said = _call(endpoint, "POST", "/api/show", {"model": name}, timeout)
    modelfile = str(said.get("modelfile") or "")
    found = WEIGHTS.search(modelfile)
    if not found:
        raise RequestRejected(f"{name}: its server does not say where its weights lie",
                              hint="a cloud model has none; push the GGUF itself instead")
    if re.search(r"^ADAPTER\s", modelfile, re.MULTILINE):
        raise RequestRejected(f"{name} has an adapter, which cannot be copied yet",
                              hint="merge it into its base, or push both files anew")
    template = str(said.get("template") or "")
    if "{%" in template:
        template = ""  # the weights' own Jinja, which create takes from them and refuses from us
    recipe = {"template": template, "system": said.get("system"),
              "parameters": _parameters(str(said.get("parameters") or "")), "license": said.get("license")}
    return OllamaCard(found["path"], found["digest"], {key: value for key, value in recipe.items() if value})


def metadata(endpoint: Endpoint, name: str, *, timeout: float = TIMEOUT) -> Mapping[str, Any]:
    """The key-value pairs of a model's GGUF, without its long lists. Raises RequestRejected where there is
    none."""
    found = _call(endpoint, "POST", "/api/show", {"model": name}, timeout).get("model_info")
    return found if isinstance(found, dict) else {}


def has_blob(endpoint: Endpoint, sha256: str, *, timeout: float = TIMEOUT) -> bool:
    """Whether the server holds these bytes."""
    with request(endpoint, "HEAD", f"/api/blobs/sha256:{sha256}", connect_timeout=timeout,
                 timeout=timeout) as reply:
        return reply.status == 200


def send_blob(endpoint: Endpoint, sha256: str, size: int, pieces: Iterable[bytes], *,
              timeout: float) -> None:
    """Send a blob in one request; cut, it begins anew. Raises RequestRejected where the bytes have another
    hash, ServerUnavailable where they do not arrive."""
    connection = Connection(endpoint, TIMEOUT)
    try:
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request("POST", f"/api/blobs/sha256:{sha256}", pieces, {"Content-Length": str(size)})
        response = connection.getresponse()
        said = response.read(1 << 16)
    except (OSError, http.client.HTTPException) as exc:
        raise ServerUnavailable(f"the blob did not arrive at {where(endpoint)} ({exc or type(exc).__name__})",
                                hint="is its disk full? Its own log says so") from exc
    finally:
        connection.close()
    if response.status not in (200, 201):
        raise _refused(response.status, _error_in(said))


def create(endpoint: Endpoint, name: str, files: Mapping[str, str], *,
           recipe: Mapping[str, Any] | None = None, adapters: Mapping[str, str] | None = None,
           quantize: str | None = None, tell: Callable[[Stage], None] = lambda _: None) -> None:
    """Make a model of blobs the server holds: file name → sha256; without any the recipe says `from`. Raises
    RequestRejected, ServerUnavailable, DiskFull."""
    body: dict[str, Any] = {"model": name, **({"files": _digests(files)} if files else {}), **(recipe or {})}
    if adapters:
        body["adapters"] = _digests(adapters)
    if quantize:
        body["quantize"] = quantize
    _follow(endpoint, "/api/create", body, tell)


def pull(endpoint: Endpoint, name: str, tell: Callable[[Stage], None] = lambda _: None) -> None:
    """Have the server fetch a model from its registry. Raises ServerUnavailable where that is out of
    reach."""
    try:
        _follow(endpoint, "/api/pull", {"model": name}, tell)
    except (ServerUnavailable, RequestRejected) as exc:
        if NO_ROAD.search(exc.message):
            raise ServerUnavailable(f"it cannot reach the registry for {name}: {exc.message}",
                                    hint="give that host a road to it, or bring the weights yourself: "
                                         "`swarmctl models push FILE --to HOST`, `swarmctl models copy`"
                                    ) from exc
        if "file does not exist" in exc.message or "not found" in exc.message:
            raise RequestRejected(f"the registry has no {name} ({exc.message})",
                                  hint="check the name and its tag") from exc
        raise


def copy(endpoint: Endpoint, source: str, destination: str, *, timeout: float = TIMEOUT) -> None:
    """Give a model another name on the same server; no bytes move."""
    _call(endpoint, "POST", "/api/copy", {"source": source, "destination": destination}, timeout)


def delete(endpoint: Endpoint, name: str, *, timeout: float = 60.0) -> None:
    """Remove a model, and the blobs that no other one uses. Raises RequestRejected where there is none."""
    _call(endpoint, "DELETE", "/api/delete", {"model": name}, timeout)


def unload(endpoint: Endpoint, name: str, *, timeout: float = 60.0) -> None:
    """Take a model out of memory; it stays on the disk."""
    _call(endpoint, "POST", "/api/generate", {"model": name, "keep_alive": 0}, timeout)


def _digests(files: Mapping[str, str]) -> dict[str, str]:
    return {file: f"sha256:{sha256}" for file, sha256 in files.items()}


def _listed(endpoint: Endpoint, path: str, timeout: float) -> tuple[dict[str, Any], ...]:
    models = _call(endpoint, "GET", path, None, timeout).get("models")
    if not isinstance(models, list):
        raise ServerUnavailable(f"what listens at {where(endpoint)} does not answer as Ollama does")
    return tuple(model for model in models if isinstance(model, dict))


def _call(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None,
          timeout: float) -> dict[str, Any]:
    with request(endpoint, method, path, body, connect_timeout=min(timeout, TIMEOUT),
                 timeout=timeout) as reply:
        said = _read(reply)
    answer = _object(said)
    if reply.status >= 400:
        raise _refused(reply.status, str(answer.get("error") or ""))
    return answer


def _follow(endpoint: Endpoint, path: str, body: Mapping[str, Any], tell: Callable[[Stage], None]) -> None:
    """Follow a stream of statuses to its `success`."""
    with request(endpoint, "POST", path, body, connect_timeout=TIMEOUT, timeout=SILENCE) as reply:
        if reply.status >= 400:
            raise _refused(reply.status, _error_in(_read(reply)))
        last = ""
        for event in _events(reply):
            if "error" in event:
                raise _refused(500, str(event["error"]))
            last = str(event.get("status") or last)
            tell(Stage(last, event.get("completed"), event.get("total")))
    if last != "success":
        raise ServerUnavailable(f"the server broke off after {last!r}")


def _events(reply: Reply) -> Iterator[dict[str, Any]]:
    try:
        for line in reply.lines():
            yield _object(line)
    except (OSError, http.client.HTTPException) as exc:
        raise ServerUnavailable(f"the server broke off ({exc or type(exc).__name__})") from exc


def _read(reply: Reply) -> bytes:
    try:
        return reply.response.read(64 << 20)
    except (OSError, http.client.HTTPException) as exc:
        raise ServerUnavailable(f"the server broke off ({exc or type(exc).__name__})") from exc


def _object(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error_in(said: bytes) -> str:
    return str(_object(said).get("error") or said.decode(errors="replace").strip()[:300])


def _refused(status: int, why: str) -> ServerUnavailable | RequestRejected | DiskFull:
    if "no space left" in why or "disk quota" in why.lower():
        return DiskFull(f"Ollama's disk is full: {why}",
                        hint="`swarmctl models prune`, or free some space there")
    if 400 <= status < 500:
        return RequestRejected(why or f"HTTP {status}")
    return ServerUnavailable(why or f"HTTP {status}")


def _parameters(text: str) -> dict[str, Any]:
    """Lines `key   value`, as show has them; a key that comes more than once (stop) is a list."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        if not key or not rest.strip():
            continue
        value = _value(rest.strip())
        if key == "stop":
            found.setdefault(key, []).append(str(value))
        else:
            found[key] = value
    return found


def _value(text: str) -> Any:  # noqa: ANN401  number, boolean or text
    try:
        return json.loads(text)
    except ValueError:
        return text.strip('"')
