"""Applies a plan to one host. Every step can be cut anywhere and applied again.

The host's lock is held meanwhile, with a lease that is renewed before every step. A step that fails ends the
host's run: what came before it stays, and the next `up` goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import ServerError, ServerUnavailable, SwarmError
from swarmctl.fleet.blobs import Blob, Place, blob_path, from_here, passing_path
from swarmctl.fleet.host_shell import on_host, script
from swarmctl.fleet.install import BUILD_LIMIT, install_runtime, transfer_time
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.measure import load_limit, measure, measure_embedding, wait_ready
from swarmctl.fleet.ollama_install import install_ollama
from swarmctl.fleet.ollama_steps import create_model, made_already, measure_model, pull_model, wait_answering
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.tunnels import open_tunnel
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.ollama_models import SILENCE
from swarmctl.runtimes.supervision import archive, server_files, unit_name
from swarmctl.steps import (
    CreateModel,
    InstallRuntime,
    MeasureSpeed,
    PullModel,
    PutBlob,
    StartServer,
    Step,
    StopServer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from swarmctl.facts import Facts, Speed
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.sharing import Sharing
    from swarmctl.fleet.shell import Remote, ShellRemote
    from swarmctl.fleet.store import Store
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import Want

STOP_LIMIT = 60.0
#: a server that ended so often while we waited will not come up
TOO_OFTEN = 2


def no_siblings(_key: str) -> Iterable[tuple[Remote, str]]:
    """No other host to take a build from."""
    return ()


def no_holders(_version: str, _platform: str) -> Iterable[tuple[Remote, str, str]]:
    """No other host to take an Ollama from."""
    return ()


@dataclass(slots=True)
class Supply:
    """What applying draws on: this machine's folders and store, and the other hosts' builds."""

    paths: Paths
    store: Store
    ssh_config: str | None = None
    siblings: Callable[[str], Iterable[tuple[Remote, str]]] = no_siblings
    #: version and platform → hosts with that Ollama: data_dir, and the binary's path there
    holders: Callable[[str, str], Iterable[tuple[Remote, str, str]]] = no_holders
    #: weights that several hosts want leave this machine once
    sharing: Sharing | None = None
    #: server → seconds from its start to its first token, noted by StartServer for MeasureSpeed
    loads: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work:
    """All that applying one step needs."""

    remote: ShellRemote
    want: Want
    seen: Facts
    supply: Supply
    tell: Teller


def converge(remote: ShellRemote, want: Want, seen: Facts, plan: Sequence[Step], supply: Supply,
             tell: Callable[[Event], None]) -> None:
    """Apply the steps in order, holding the host's lock. Raises the first SwarmError; LockBusy before any."""
    if not plan:
        return
    lock = HostLock(remote, seen.data_dir, supply.paths.state)
    for step in plan:
        if supply.sharing and isinstance(step, PutBlob | CreateModel):
            supply.sharing.wants(step.sha256)
    lock.renew(60)
    try:
        for number, step in enumerate(plan, 1):
            lock.renew(_limit(step, want))
            teller = Teller(remote.host, number, len(plan), step.title, tell)
            teller("", state="begun")
            try:
                apply(Work(remote, want, seen, supply, teller), step)
            except SwarmError as exc:
                teller(exc.message, state="failed")
                raise
            teller("", 1.0, state="done")
    finally:
        _release(lock)


def apply(work: Work, step: Step) -> None:
    """Apply one step."""
    match step:
        case InstallRuntime(runtime="ollama"):
            install_ollama(work.remote, step, work.seen, work.supply.store, work.supply.holders, work.tell)
        case InstallRuntime():
            install_runtime(work.remote, step, work.seen, work.want.host.limits, work.supply.store,
                            work.supply.siblings, work.tell)
        case PutBlob():
            put_blob(work, step)
        case StartServer():
            start_server(work, step)
        case StopServer():
            stop_server(work, step)
        case MeasureSpeed() if step.tag:
            speed = measure_model(work.remote, work.seen.data_dir, _ollama(work, step.port), step,
                                  _size(work.want, step.model))
            work.tell(f"prefill {speed.prefill:,.0f}, decode {speed.decode:,.0f} tokens/s")
        case MeasureSpeed():
            measure_speed(work, step)
        case CreateModel():
            endpoint = _ollama(work, step.port)
            create_model(work.remote, work.want, work.seen.data_dir, endpoint, step,
                         at=_weights_there(work, step, endpoint), tell=work.tell)
        case PullModel():
            pull_model(work.remote, work.seen.data_dir, _ollama(work, step.port), step, work.tell)


def put_blob(work: Work, step: PutBlob) -> None:
    """Copy a model's bytes under their hash: resumed, verified, never twice; from another host where that
    goes."""
    here = Path(work.want.models[step.model].file(step.sha256))
    blob = Blob(step.model, step.sha256, step.size)
    to = _place(work, blob_path(work.seen.data_dir, step.sha256))
    if work.supply.sharing:
        work.tell(work.supply.sharing.bring(blob, to, work.tell, here=here).told)
    else:
        from_here(here, to, blob, work.tell)


def _weights_there(work: Work, step: CreateModel, endpoint: Endpoint) -> Place | None:
    """Where on the host Ollama can take the weights from: its blobs, or a copy that another host gives it;
    None where they go through the tunnel."""
    sharing, data_dir = work.supply.sharing, work.seen.data_dir
    if "curl" not in work.seen.tools:
        return None
    if any(blob.sha256 == step.sha256 and blob.size == step.size for blob in work.seen.blobs):
        return _place(work, blob_path(data_dir, step.sha256))
    if sharing is None or not sharing.shared(step.sha256) or made_already(endpoint, step):
        return None
    to = _place(work, passing_path(data_dir, step.sha256))
    came = sharing.bring(Blob(step.model, step.sha256, step.size), to, work.tell,
                         here=Path(work.want.models[step.model].file(step.sha256)))
    work.tell(came.told)
    sharing.passing(to)
    return to


def _place(work: Work, path: str) -> Place:
    return Place(work.remote, path, work.seen.data_dir, work.want.host.ssh, work.supply.ssh_config)


def start_server(work: Work, step: StartServer) -> None:
    """Replace the server's folder, start it, and wait until it generates a token; an Ollama, which has no
    model yet, until it answers."""
    spec, data_dir = step.spec, work.seen.data_dir
    files = server_files(spec, data_dir, script("supervise.sh"), work.want.host.limits.memory)
    work.tell("starting")
    on_host(work.remote, "start", data_dir, spec.name, spec.mode, unit_name(spec.name, data_dir),
            payload=archive(files), timeout=STOP_LIMIT)
    if not spec.model:
        _wait_ollama(work, spec.name, spec.port)
        return
    work.tell("loading the model")
    work.supply.loads[work.remote.host, spec.name] = _wait(work, spec.name, spec.model, spec.port)


def stop_server(work: Work, step: StopServer) -> None:
    """End a server of ours and forget it."""
    data_dir = work.seen.data_dir
    on_host(work.remote, "stop", data_dir, step.name, step.mode, unit_name(step.name, data_dir),
            timeout=STOP_LIMIT)


def measure_speed(work: Work, step: MeasureSpeed) -> None:
    """Time the server and keep the result beside it on the host."""
    embeds = work.want.embeds(step.model)
    work.tell("a batch of texts" if embeds else "a short prefill and decode")
    waited = _wait(work, step.server, step.model, step.port)
    load = work.supply.loads.get((work.remote.host, step.server), waited)
    try:
        speed = _measured(work, step, round(load, 3))
    except ServerError as exc:
        raise type(exc)(exc.message, host=work.remote.host, hint=_logs_hint(work, step.server)) from exc
    on_host(work.remote, "speed", work.seen.data_dir, step.server,
            payload=json.dumps(asdict(speed)).encode() + b"\n")
    decode = "" if embeds else f", decode {speed.decode:,.0f}"
    work.tell(f"prefill {speed.prefill:,.0f}{decode} tokens/s")


def _measured(work: Work, step: MeasureSpeed, load: float) -> Speed:
    endpoint = endpoint_of(work.want, step.port, work.supply)
    if work.want.embeds(step.model):
        return measure_embedding("llamacpp", endpoint, context=step.context, load=load)
    return measure("llamacpp", endpoint, context=step.context, load=load)


def endpoint_of(want: Want, port: int, supply: Supply) -> Endpoint:
    """Where a server of that host is reached from here: directly, or through a tunnel, opened if need be."""
    host = want.host
    if host.local:
        return Endpoint(port=port)
    found = open_tunnel(supply.paths, host_name=host.name, ssh=host.ssh, ports=[port],
                        ssh_config=supply.ssh_config, connect_timeout=host.connect_timeout)
    return Endpoint(socket=str(found[port]))


def _ollama(work: Work, port: int) -> Endpoint:
    return endpoint_of(work.want, port, work.supply)


def _size(want: Want, model: str) -> int:
    """Bytes of a model; of one that Ollama pulled a guess that is large enough."""
    return want.models[model].size if model in want.models else 20 << 30


def _wait_ollama(work: Work, server: str, port: int) -> None:
    try:
        wait_answering(lambda: _ollama(work, port), lambda: _still_alive(work, server))
    except ServerUnavailable as exc:
        raise _with_log(work, server, exc) from exc


def _still_alive(work: Work, server: str) -> None:
    said = on_host(work.remote, "state", work.seen.data_dir, server, "0")
    restarts = said.partition("\n")[0]
    if restarts.isdigit() and int(restarts) >= TOO_OFTEN:
        raise ServerUnavailable("it ends as soon as it starts")


def _with_log(work: Work, server: str, exc: ServerUnavailable) -> ServerUnavailable:
    tail = on_host(work.remote, "log", work.seen.data_dir, server, "10").rstrip()
    return ServerUnavailable(f"server {server}: {exc.message}; its log ends with\n{tail}",
                             host=work.remote.host, hint=_logs_hint(work, server))


def _wait(work: Work, server: str, model: str, port: int) -> float:
    """Wait for a token; an error comes with the end of the server's log."""
    try:
        return wait_ready(lambda: endpoint_of(work.want, port, work.supply),
                          limit=load_limit(work.want.models[model].size),
                          still_alive=lambda: _still_alive(work, server),
                          embedding=work.want.embeds(model))
    except ServerUnavailable as exc:
        raise _with_log(work, server, exc) from exc


def _limit(step: Step, want: Want) -> float:
    """Seconds a step may take: the lease of the host's lock."""
    match step:
        case InstallRuntime():
            return BUILD_LIMIT
        case PutBlob():
            return 2 * transfer_time(step.size)  # it may wait for another host to have it
        case StartServer():
            return load_limit(_size(want, step.spec.model)) + STOP_LIMIT
        case CreateModel():
            return 2 * transfer_time(step.size) + SILENCE
        case PullModel():
            return BUILD_LIMIT
        case _:
            return 600.0


def _release(lock: HostLock) -> None:
    """Give the lock back. A host that is gone by now lets it expire."""
    try:
        lock.release()
    except SwarmError:
        return


def _logs_hint(work: Work, server: str) -> str:
    return f"`swarmctl logs {work.remote.host} {server}` shows more"
