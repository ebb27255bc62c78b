"""Steps on an Ollama: wait for it, make and pull models, measure them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import DiskFull, ServerError, ServerUnavailable, SwarmError
from swarmctl.facts.ollama import OWN
from swarmctl.fleet.blobs import Blob, Place, blob_path, into_ollama
from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.install import require_space, transfer_time
from swarmctl.fleet.measure import load_limit, measure, measure_embedding, wait_until
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.ollama_plan import speed_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swarmctl.facts import Speed
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.runtimes.base import Endpoint, Want
    from swarmctl.runtimes.ollama_models import Stage
    from swarmctl.steps import CreateModel, MeasureSpeed, PullModel

START_LIMIT = 60.0
CHUNK = 1 << 20
NO_SPACE = ("no space left on device", "disk quota exceeded")


def wait_answering(endpoint: Callable[[], Endpoint], still_alive: Callable[[], None]) -> float:
    """Wait until a server that was just started answers; the seconds it took. `still_alive` raises where it
    never will. Raises ServerUnavailable."""
    def amiss() -> str | None:
        try:
            ollama_models.tags(endpoint(), timeout=5.0)
        except ServerUnavailable as exc:
            return exc.message
        return None

    return wait_until(amiss, "answer", limit=START_LIMIT, still_alive=still_alive)


def create_model(remote: ShellRemote, want: Want, data_dir: str, endpoint: Endpoint, step: CreateModel, *,
                 at: Place | None, tell: Teller) -> None:
    """Make the model unless it is there whole; its bytes are taken from `at` on the host, else they go
    through the tunnel.

    Raises DiskFull, ToolMissing, ServerErrors and RemoteErrors.
    """
    if not step.anew and step.tag in {one.name for one in ollama_models.tags(endpoint)}:
        return
    require_space(remote, data_dir, 2 * step.size, f"making {step.tag} in Ollama (it writes its bytes twice)")
    place = at or Place(remote, blob_path(data_dir, step.sha256), data_dir, want.host.ssh)
    blob = Blob(step.model, step.sha256, step.size)
    try:
        if at is None and not ollama_models.has_blob(endpoint, step.sha256):
            _send(endpoint, want.models[step.model].file(step.sha256), blob, tell)
        into_ollama(place, step.port, endpoint, blob, step.tag, over=step.base,
                    recipe={"parameters": dict(step.parameters)} if step.parameters else None, tell=tell)
    except (ServerError, SwarmError) as exc:
        raise explained(remote, data_dir, exc) from exc


def made_already(endpoint: Endpoint, step: CreateModel) -> bool:
    """Whether no weights are needed any more: the model is there, or its blob is."""
    listed = not step.anew and step.tag in {one.name for one in ollama_models.tags(endpoint)}
    return listed or ollama_models.has_blob(endpoint, step.sha256)


def pull_model(remote: ShellRemote, data_dir: str, endpoint: Endpoint, step: PullModel, tell: Teller) -> None:
    """Have the server fetch the model unless it is there. Raises DiskFull, ServerErrors and RemoteErrors."""
    if not step.anew and step.tag in {one.name for one in ollama_models.tags(endpoint)}:
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
            speed = measure("ollama", named, context=step.context, limit=load_limit(size))
    except ServerError as exc:
        raise explained(remote, data_dir, exc) from exc
    on_host(remote, "ollama_speed", data_dir, speed_name(step.tag),
            payload=json.dumps(asdict(speed)).encode() + b"\n")
    return speed


def explained(remote: ShellRemote, data_dir: str, exc: SwarmError) -> SwarmError:
    """The error with its host; a full disk, of which Ollama tells its log alone, is named."""
    said = on_host(remote, "log", data_dir, OWN, "40")
    if not isinstance(exc, DiskFull) and any(mark in said.lower() for mark in NO_SPACE):
        return DiskFull(f"Ollama's disk is full: {exc.message}", host=remote.host,
                        hint="free some space there (`swarmctl models prune` finds what nobody wants), then "
                             "`swarmctl up`")
    return type(exc)(exc.message, host=remote.host, hint=exc.hint)


def _send(endpoint: Endpoint, path: str, blob: Blob, tell: Teller) -> None:
    """The bytes of a file of this machine, through the tunnel, once."""
    told = tell.bytes(blob.size)

    def pieces() -> Iterator[bytes]:
        sent = 0
        with Path(path).open("rb") as file:
            while data := file.read(CHUNK):
                yield data
                sent += len(data)
                told(sent)

    ollama_models.send_blob(endpoint, blob.sha256, blob.size, pieces(), timeout=transfer_time(blob.size))
