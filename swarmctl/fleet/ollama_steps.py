"""Steps on an Ollama: wait for it, make and pull models, measure them with its own timings."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import DiskFull, ServerError, ServerUnavailable, SwarmError
from swarmctl.facts import Speed
from swarmctl.facts.ollama import OWN
from swarmctl.fleet.blobs import Blob, Place, blob_path, into_ollama
from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.install import require_space, transfer_time
from swarmctl.fleet.measure import LONG, PATIENCE, SHORT, load_limit, measure_embedding
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.http import request
from swarmctl.runtimes.ollama_plan import speed_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.runtimes.base import Endpoint, ModelFile, Want
    from swarmctl.runtimes.ollama_models import Stage
    from swarmctl.steps import CreateModel, MeasureSpeed, PullModel

POLL = 0.15
START_LIMIT = 60.0
CHUNK = 1 << 20
NO_SPACE = ("no space left on device", "disk quota exceeded")
NANO = 1e-9
#: a schema whose shortest answer is longer than what is asked for
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 200}


def wait_answering(endpoint: Callable[[], Endpoint], still_alive: Callable[[], None]) -> float:
    """Wait until a server that was just started answers; the seconds it took. `still_alive` raises where it
    never will. Raises ServerUnavailable."""
    began = looked = time.monotonic()
    while True:
        try:
            ollama_models.tags(endpoint(), timeout=5.0)
        except ServerUnavailable as exc:
            if time.monotonic() - began > START_LIMIT:
                raise ServerUnavailable(f"no answer within {START_LIMIT:.0f} s ({exc.message})") from exc
        else:
            return time.monotonic() - began
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            still_alive()
        time.sleep(POLL)


def create_model(remote: ShellRemote, want: Want, data_dir: str, endpoint: Endpoint, step: CreateModel, *,
                 blob_there: bool, tell: Teller) -> None:
    """Make the model unless it is there; its bytes go from the host's own blobs, else through the tunnel.

    Raises DiskFull, ToolMissing, ServerErrors and RemoteErrors.
    """
    if step.tag in {one.name for one in ollama_models.tags(endpoint)}:
        return
    require_space(remote, data_dir, 2 * step.size, f"making {step.tag} in Ollama (it writes its bytes twice)")
    place = Place(remote, blob_path(data_dir, step.sha256), data_dir, want.host.ssh)
    blob = Blob(step.model, step.sha256, step.size)
    try:
        if not blob_there and not ollama_models.has_blob(endpoint, step.sha256):
            _send(endpoint, want.models[step.model], tell)
        into_ollama(place, step.port, endpoint, blob, step.tag,
                    recipe={"parameters": dict(step.parameters)} if step.parameters else None, tell=tell)
    except (ServerError, SwarmError) as exc:
        raise explained(remote, data_dir, exc) from exc


def pull_model(remote: ShellRemote, data_dir: str, endpoint: Endpoint, step: PullModel, tell: Teller) -> None:
    """Have the server fetch the model unless it is there. Raises DiskFull, ServerErrors and RemoteErrors."""
    if step.tag in {one.name for one in ollama_models.tags(endpoint)}:
        return

    def told(stage: Stage) -> None:
        fraction = stage.done / stage.total if stage.done is not None and stage.total else None
        tell(f"Ollama: {stage.status[:60]}", fraction)

    try:
        ollama_models.pull(endpoint, step.tag, told)
    except (ServerError, SwarmError) as exc:
        raise explained(remote, data_dir, exc) from exc


def measure_model(remote: ShellRemote, data_dir: str, endpoint: Endpoint, step: MeasureSpeed,
                  size: int) -> Speed:
    """Time the model and keep the result on the host, under the model's name. Raises ServerErrors and
    RemoteErrors."""
    named = replace(endpoint, model=step.tag)
    try:
        if step.embedding:
            speed = measure_embedding("ollama", named, context=step.context, load=0.0)
        else:
            speed = measured(named, context=step.context, limit=load_limit(size))
    except ServerError as exc:
        raise explained(remote, data_dir, exc) from exc
    on_host(remote, "ollama_speed", data_dir, speed_name(step.tag),
            payload=json.dumps(asdict(speed)).encode() + b"\n")
    return speed


def measured(endpoint: Endpoint, *, context: int, limit: float) -> Speed:
    """Time prefill and decode by Ollama's own clock: the best of a few requests, each with a prompt of its
    own, as a prompt's beginning may be cached. Raises ServerUnavailable."""
    first, load = _timed(endpoint, SHORT, context, limit, 0)
    found = [first, _timed(endpoint, SHORT, context, limit, 1)[0]]
    expected = LONG[0] / max(found[-1].prefill, 0.1) + LONG[1] / max(found[-1].decode, 0.1)
    if expected < PATIENCE:
        found = [_timed(endpoint, LONG, context, limit, number)[0] for number in (2, 3, 4)]
    return Speed(max(one.prefill for one in found), max(one.decode for one in found),
                 min(one.overhead for one in found), round(load, 3))


def explained(remote: ShellRemote, data_dir: str, exc: SwarmError) -> SwarmError:
    """The error with its host; a full disk, of which Ollama tells its log alone, is named."""
    said = on_host(remote, "log", data_dir, OWN, "40")
    if not isinstance(exc, DiskFull) and any(mark in said.lower() for mark in NO_SPACE):
        return DiskFull(f"Ollama's disk is full: {exc.message}", host=remote.host,
                        hint="free some space there (`swarmctl models prune` finds what nobody wants), then "
                             "`swarmctl up`")
    return type(exc)(exc.message, host=remote.host, hint=exc.hint)


def _send(endpoint: Endpoint, model: ModelFile, tell: Teller) -> None:
    """The bytes of a file of this machine, through the tunnel, once."""
    told = tell.bytes(model.size)

    def pieces() -> Iterator[bytes]:
        sent = 0
        with Path(model.path).open("rb") as file:
            while data := file.read(CHUNK):
                yield data
                sent += len(data)
                told(sent)

    ollama_models.send_blob(endpoint, model.sha256, model.size, pieces(), timeout=transfer_time(model.size))


def _timed(endpoint: Endpoint, lengths: tuple[int, int], context: int, limit: float,
           number: int) -> tuple[Speed, float]:
    """One request, and the seconds the model took to load for it.

    Ollama cannot be told to go on past a model's end; a schema makes it, at a little cost in speed, where the
    model would end at once.
    """
    answer = max(2, min(lengths[1], context // 4))
    words = max(1, min(lengths[0], (context - answer) // 2) - 2)
    text = f"{number} " + " ".join(chr(97 + (place * 7 + number) % 26) for place in range(words))
    body = {"model": endpoint.model, "prompt": text, "raw": True, "stream": False,
            "options": {"num_predict": answer, "temperature": 0, "seed": number}}
    said, wall = _generated(endpoint, body, limit)
    if int(said.get("eval_count") or 0) < answer // 2:
        load = said.get("load_duration")
        said, wall = _generated(endpoint, {**body, "prompt": f"{text} {number}", "format": ENDLESS}, limit)
        said["first_load"] = load
    if not said.get("eval_count"):
        raise ServerUnavailable(f"no token from {endpoint.model}")
    return _speed(said, wall)


def _generated(endpoint: Endpoint, body: dict[str, Any], limit: float) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    with request(endpoint, "POST", "/api/generate", body, connect_timeout=5.0, timeout=limit) as reply:
        try:
            said = reply.json()
        except (OSError, http.client.HTTPException) as exc:
            raise ServerUnavailable(f"the server dropped the measurement: {exc}") from exc
        wall = time.monotonic() - began
    if reply.status != 200 or not isinstance(said, dict):
        why = said.get("error") if isinstance(said, dict) else None
        raise ServerUnavailable(f"no token from {endpoint.model}: {why or f'HTTP {reply.status}'}")
    return said, wall


def _speed(said: dict[str, Any], wall: float) -> tuple[Speed, float]:
    def seconds(name: str) -> float:
        return max(float(said.get(f"{name}_duration") or 0) * NANO, 1e-6)

    load = float(said.get("load_duration") or 0) * NANO
    cold = max(load, float(said.get("first_load") or 0) * NANO)
    rest = max(wall - load - seconds("prompt_eval") - seconds("eval"), 0.0)
    return Speed(prefill=round(int(said.get("prompt_eval_count") or 1) / seconds("prompt_eval"), 2),
                 decode=round(int(said["eval_count"]) / seconds("eval"), 2), overhead=round(rest, 4)), cold
