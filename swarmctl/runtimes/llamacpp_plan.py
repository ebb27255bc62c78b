"""From what was seen on a host to what is wanted of it, as steps. Pure.

Laws, each with a test: the same inputs give the same plan; `plan(want, seen-after-apply) == ()`; only servers
under data_dir/servers are ever stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.errors import DiskFull, SwarmError
from swarmctl.inventory import LlamaCppWish, placed_on
from swarmctl.runtimes.llamacpp_build import Build, choose_build
from swarmctl.runtimes.llamacpp_serve import RUNTIME_FOLDER, server_specs
from swarmctl.runtimes.versions import archive_hash, version_to_run
from swarmctl.steps import InstallRuntime, MeasureSpeed, PutBlob, ServerSpec, StartServer, Step, StopServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts import Facts, ServerSeen
    from swarmctl.runtimes.base import Want


UNWANTED = "the inventory no longer wants it here"


def plan_llamacpp(want: Want, seen: Facts, others: Sequence[ServerSpec] = ()) -> tuple[Step, ...]:
    """The steps that make a host what is wanted of llama.cpp; empty when it is. `others` are the servers of
    other runtimes that are wanted there: they are neither started here nor stopped, unless they hold a port
    that is needed.

    Raises SwarmError, naming every problem, where no steps could: a model that does not fit, a port that
    somebody else holds.
    """
    kept = {spec.name: spec for spec in others}
    if not placed_on(want.host, "llamacpp"):
        return tuple(_stops(seen, kept, UNWANTED if kept else "the inventory wants no model of it here"))
    specs, build = wanted_servers(want, seen)
    _check_ports(want, seen, [spec for spec, _ in specs])
    blobs = tuple(_blobs(want, seen))
    _check_disk(want, seen, sum(blob.size for blob in blobs))
    notes = {spec.name: note for spec, note in specs}
    wanted = {spec.name: spec for spec, _ in specs}
    return (
        *_stops(seen, {**kept, **wanted}, UNWANTED),
        *_install(want, seen, build),
        *blobs,
        *(step for spec in wanted.values() for step in _serve(spec, seen, notes[spec.name])),
    )


def wanted_servers(want: Want, seen: Facts) -> tuple[tuple[tuple[ServerSpec, str], ...], Build]:
    """The servers wanted on a host, each with a word on how it fits, and the build that would run them."""
    wish = want.host.llamacpp or LlamaCppWish()
    build = choose_build(wish.backend, seen, version_to_run("llamacpp", want, seen))
    try:
        return server_specs(want, seen, build), build
    except SwarmError as exc:
        raise type(exc)(exc.message, host=want.host.name, hint=exc.hint) from exc


def plan_removal(seen: Facts) -> tuple[Step, ...]:
    """Stop every server that swarmctl started on a host; blobs and runtimes stay."""
    return tuple(_stops(seen, {}, "swarmctl down"))


def _stops(seen: Facts, wanted: dict[str, ServerSpec], reason: str) -> Iterator[StopServer]:
    """Servers no longer wanted, and those that hold a port which another of ours is to have."""
    for server in seen.servers:
        if server.name not in wanted:
            yield StopServer(server.name, server.mode, reason)
        elif other := _port_heir(server, seen, wanted):
            yield StopServer(server.name, server.mode, f"it holds the port that {other} is to have")


def _port_heir(server: ServerSeen, seen: Facts, wanted: dict[str, ServerSpec]) -> str | None:
    held = {listener.port for listener in seen.listeners
            if server.pid is not None and listener.pid == server.pid}
    return next((name for name, spec in wanted.items() if name != server.name and spec.port in held), None)


def _install(want: Want, seen: Facts, build: Build) -> Iterator[InstallRuntime]:
    if any(runtime.name == "llamacpp" and runtime.key == build.key for runtime in seen.runtimes):
        return
    older = sorted(runtime.key for runtime in seen.runtimes if runtime.name == "llamacpp")
    have = f"{seen.data_dir}/{RUNTIME_FOLDER} holds " + (f"only {', '.join(older)}" if older else "no build")
    yield InstallRuntime(build.key, build.version, build.backend.name, build.cmake_flags,
                         f"{build.backend.name}: {build.backend.reason}; {have}",
                         sha256=archive_hash("llamacpp", want, build.version))


def _blobs(want: Want, seen: Facts) -> Iterator[PutBlob]:
    there = {blob.sha256: blob.size for blob in seen.blobs}
    planned: set[str] = set()
    for placement, _ in placed_on(want.host, "llamacpp"):
        model = want.models[placement.model]
        for file in (model, model.adapter):
            if file is None or there.get(file.sha256) == file.size or file.sha256 in planned:
                continue
            planned.add(file.sha256)
            yield PutBlob(model.name, file.sha256, file.size,
                          f"{seen.data_dir}/blobs has no {file.sha256[:12]} of {file.size} bytes")


def _serve(spec: ServerSpec, seen: Facts, note: str) -> Iterator[StartServer | MeasureSpeed]:
    server = next((server for server in seen.servers if server.name == spec.name), None)
    reason = _why_start(spec, server)
    if reason:
        yield StartServer(spec, f"{reason} ({note})" if note else reason)
    if reason or server is None or server.speed is None:
        yield MeasureSpeed(spec.name, spec.model, spec.port, spec.context,
                           "its speed here has not been measured")


def _why_start(spec: ServerSpec, server: ServerSeen | None) -> str | None:
    if server is None:
        return "it does not run here"
    if server.spec != spec.digest:
        return "what is wanted of it has changed"
    if server.supervisor is None:
        return "nothing supervises it"
    if server.pid is None:
        return f"it is down, after {server.restarts} restarts"
    return None


def _check_disk(want: Want, seen: Facts, new: int) -> None:
    """Refuse weights that the disk or `limits.disk` has no room for, before anything is changed."""
    used, limit = sum(blob.size for blob in seen.blobs), want.host.limits.disk
    if new and limit is not None and used + new > limit:
        raise SwarmError(f"the weights would take {(used + new) / 1e9:.2f} GB, and limits.disk is "
                         f"{limit / 1e9:.2f} GB", host=want.host.name,
                         hint="raise limits.disk, want fewer models there, or delete old files under "
                              f"{seen.data_dir}/blobs")
    if new > seen.disk.free:
        raise DiskFull(f"the weights need {new / 1e6:,.0f} MB at {seen.data_dir}, where "
                       f"{seen.disk.free / 1e6:,.0f} MB are free", host=want.host.name,
                       hint="free some space there, or name another data_dir in the inventory")


def _check_ports(want: Want, seen: Facts, specs: list[ServerSpec]) -> None:
    """Refuse a port that is not ours to take."""
    ours = {server.pid for server in seen.servers if server.pid is not None}
    problems = []
    for spec in specs:
        for listener in seen.listeners:
            if listener.port != spec.port or (listener.pid is not None and listener.pid in ours):
                continue
            who = " ".join(part for part in (
                listener.command or "another program", f"pid {listener.pid}" if listener.pid else "",
                f"of user {listener.user}" if listener.user else "") if part)
            problems.append(f"port {spec.port}, wanted for {spec.model}, is taken by {who} "
                            f"on {listener.address}")
    if problems:
        raise SwarmError("; ".join(dict.fromkeys(problems)), host=want.host.name,
                         hint="stop it, or say another `port:` in llamacpp or in the host's model")
