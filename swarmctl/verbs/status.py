"""`status`: every host and model server, and whether it generates.

Health means that it generated a token. Nothing is loaded, started or restarted by looking. All hosts are
asked at once, so one that is off delays nobody; a host that answers loses its mark and is asked again by the
next question. An intermittent host loses it only when all of it is well, and may be off without being at
fault.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.marks import clear_mark, mark_down
from swarmctl.dispatch.verify import gpus_lost
from swarmctl.errors import CommandTimeout, ConnectionLost, HostUnreachable, ServerUnavailable, SwarmError
from swarmctl.fleet.asleep import read_asleep, seen_awake
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.standing import read_aside
from swarmctl.fleet.survey import survey
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmctl.facts import Facts
    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

HEALTH_TIMEOUT = 20.0
SLOTS_TIMEOUT = 2.0
#: A host's survey, its tunnel and its servers' tokens together.
HOST_TIMEOUT = 90.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A model server: `state` as in runtimes.base.Health, slots at work, speeds in tokens per second. An
    embedding model embeds a word in `seconds`, and has a prefill speed only."""

    model: str
    runtime: str
    port: int
    state: str
    detail: str = ""
    seconds: float | None = None
    busy: int | None = None
    slots: int | None = None
    restarts: int = 0
    decode_speed: float | None = None
    prefill_speed: float | None = None
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host: `state` is ready, degraded (some server does not generate), idle (nothing wanted here), stopped
    (wanted, not up), cordoned or draining (set aside, and otherwise well), off (intermittent) or unreachable.
    Memory and disk are bytes."""

    host: str
    ssh: str
    state: str
    detail: str = ""
    hint: str | None = None
    servers: tuple[ServerStatus, ...] = ()
    cpu: str = ""
    threads: int | None = None
    gpus: tuple[str, ...] = ()
    memory: int | None = None
    memory_available: int | None = None
    disk_free: int | None = None
    problems: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """The row for --json."""
        return asdict(self)


def status(paths: Paths, inventory: Inventory, fleet: Fleet | None, connect: Callable[[Host], Remote],
           now: float) -> Iterator[HostStatus]:
    """Look at every host of the inventory; yields each as its answer comes."""
    known = {entry.name: entry for entry in fleet.hosts} if fleet else {}
    remotes = {host.name: connect(host) for host in inventory.hosts}

    def look(host: Host) -> HostStatus:
        return _look(paths, host, known.get(host.name), remotes[host.name],
                     fleet.ssh_config if fleet else None)

    for host, found in over_hosts(inventory.hosts, look, timeout=HOST_TIMEOUT):
        if isinstance(found, SwarmError):
            yield _absent(paths, host, found, now)
        else:
            _remember(paths, host, found, now)
            yield _aside(paths, found)


def _absent(paths: Paths, host: Host, why: SwarmError, now: float) -> HostStatus:
    """A host that does not answer. One that is there but refuses us is no absent one, intermittent or not."""
    gone = isinstance(why, HostUnreachable | ConnectionLost | CommandTimeout)
    if isinstance(why, HostUnreachable) or (gone and host.intermittent):
        mark_down(paths, host.name, why.message, now, verify=host.intermittent)
    if gone and host.intermittent:
        hint = f"swarmctl wake {host.name}" if host.mac else None
        asleep = read_asleep(paths, host.name)
        return HostStatus(host.name, host.ssh, "off", asleep.why if asleep else why.message, hint)
    return HostStatus(host.name, host.ssh, "unreachable", why.message, why.hint)


def _remember(paths: Paths, host: Host, found: HostStatus, now: float) -> None:
    if host.intermittent and found.state == "degraded":
        mark_down(paths, host.name, found.detail, now, verify=True)
    else:
        clear_mark(paths, host.name)
        seen_awake(paths, host.name, now)


def _aside(paths: Paths, found: HostStatus) -> HostStatus:
    """Say that a host is set aside, unless something is wrong with it, which says more."""
    aside = read_aside(paths, found.host)
    if aside is None or found.state == "degraded":
        return found
    return replace(found, state=aside.state, detail=f"since {aside.since_words}",
                   hint=f"swarmctl uncordon {found.host}")


def _look(paths: Paths, host: Host, entry: HostEntry | None, remote: Remote,
          ssh_config: str | None) -> HostStatus:
    facts = survey(remote, host, glance=True)
    served = entry.served if entry else ()
    restarts = {server.name: server.restarts for server in facts.servers}
    servers = tuple(_server(one, endpoint, restarts.get(one.server, 0))
                    for one, endpoint in _endpoints(paths, host, served, ssh_config))
    state, detail, hint = _state(host, servers)
    if entry and host.intermittent and (lost := gpus_lost(entry, facts)):
        state, detail, hint = "degraded", lost, f"swarmctl doctor {host.name}"
    return HostStatus(
        host=host.name, ssh=host.ssh, state=state, detail=detail, hint=hint, servers=servers,
        cpu=facts.cpu.model,
        threads=facts.cpu.threads, gpus=tuple(gpu.name for gpu in facts.gpus), memory=facts.memory,
        memory_available=facts.memory_available, disk_free=facts.disk.free, problems=_problems(facts))


def _endpoints(paths: Paths, host: Host, served: tuple[Served, ...],
               ssh_config: str | None) -> list[tuple[Served, Endpoint]]:
    if host.local or not served:
        return [(one, Endpoint(port=one.port, model=one.called)) for one in served]
    from swarmctl.fleet.tunnels import open_tunnel

    sockets: Mapping[int, Any] = open_tunnel(
        paths, host_name=host.name, ssh=host.ssh, ports=[one.port for one in served], ssh_config=ssh_config,
        connect_timeout=host.connect_timeout)
    return [(one, Endpoint(socket=str(sockets[one.port]), model=one.called)) for one in served]


def _server(served: Served, endpoint: Endpoint, restarts: int) -> ServerStatus:
    speaker = runtime(served.runtime, embedding=served.embedding)
    health = speaker.health(endpoint, timeout=HEALTH_TIMEOUT)
    busy = slots = None
    if health.state == "ready":
        try:
            load = speaker.load(endpoint, timeout=SLOTS_TIMEOUT)
            busy, slots = load.busy, load.slots
        except ServerUnavailable:
            pass  # it generated a token a moment ago; how busy it is stays unknown
    return ServerStatus(served.model, served.runtime, served.port, health.state, health.detail,
                        health.seconds,
                        busy, slots, restarts, served.decode_speed, served.prefill_speed, served.embedding)


def _state(host: Host, servers: tuple[ServerStatus, ...]) -> tuple[str, str, str | None]:
    if not servers:
        if not host.models:
            return "idle", "no model is wanted here", None
        return "stopped", "its models are not up", "swarmctl up"
    bad = [server for server in servers if server.state not in ("ready", "idle")]
    if not bad:
        return "ready", "", None
    detail = "; ".join(f"{server.model}: {server.state}" for server in bad)
    return "degraded", detail, f"swarmctl logs {host.name}, then swarmctl up"


def _problems(facts: Facts) -> tuple[str, ...]:
    gpu = tuple(f"{gpu.name}: {gpu.problem}" for gpu in facts.gpus if gpu.problem)
    return (*facts.problems, *gpu)


def failed(rows: list[HostStatus]) -> bool:
    """Whether the report calls for exit code 3."""
    return any(row.state in ("unreachable", "degraded") for row in rows)
