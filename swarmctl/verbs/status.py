"""`status`: every host and model server, and whether it generates.

Health means that it generated a token. Nothing is loaded, started or restarted by looking. All hosts are
asked at once, so one that is off delays nobody; a host that answers loses its mark and is asked again by the
next question. An intermittent host loses it only when all of it is well, and may be off without being at
fault.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.marks import clear_mark, mark_down
from swarmctl.dispatch.verify import gpus_lost
from swarmctl.errors import CommandTimeout, ConnectionLost, HostUnreachable, ServerUnavailable, SwarmError
from swarmctl.facts.ollama import OWN
from swarmctl.facts.runners import of_ollama, runner_of, share_read
from swarmctl.fleet.asleep import read_asleep, seen_awake
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.standing import read_aside
from swarmctl.fleet.survey import survey
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.runtimes.ollama import weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmctl.facts import Facts, RunnerSeen, ServerSeen
    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import Health

HEALTH_TIMEOUT = 20.0
SLOTS_TIMEOUT = 2.0
#: A host's survey, its tunnel and its servers' tokens together.
HOST_TIMEOUT = 90.0
#: states of a host in which some model of it cannot answer though it was brought up
FAILED = ("unreachable", "degraded", "loading", "starting")


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A model server: `state` as in runtimes.base.Health, slots at work, speeds in tokens per second. An
    embedding model embeds a word in `seconds`, and has a prefill speed only.

    What the host's own facts add: down (nothing runs or restarts it), no runtime (what it runs on is gone),
    and of a load its `progress`, the share of the weights that is read (0 to 0.99). `release`, `share` and
    `canary` as in the snapshot.
    """

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
    progress: float | None = None
    release: str = ""
    share: float = 1.0
    canary: bool = False


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host: `state` is ready, degraded (some server does not generate), loading or starting (what does not
    generate is on its way), idle (nothing wanted here), stopped (wanted, not up), no runtime (nor is anything
    installed), cordoned or draining (set aside, and otherwise well), off (intermittent) or unreachable.
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

    def look(host: Host) -> HostStatus:
        with contextlib.closing(connect(host)) as remote:
            return _look(paths, host, known.get(host.name), remote, fleet.ssh_config if fleet else None)

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
    if host.intermittent and found.state in FAILED:
        mark_down(paths, host.name, found.detail, now, verify=True)
    else:
        clear_mark(paths, host.name)
        seen_awake(paths, host.name, now)


def _aside(paths: Paths, found: HostStatus) -> HostStatus:
    """Say that a host is set aside, unless something is wrong with it, which says more."""
    aside = read_aside(paths, found.host)
    if aside is None or found.state in FAILED:
        return found
    return replace(found, state=aside.state, detail=f"since {aside.since_words}",
                   hint=f"swarmctl uncordon {found.host}")


def _look(paths: Paths, host: Host, entry: HostEntry | None, remote: Remote,
          ssh_config: str | None) -> HostStatus:
    facts = survey(remote, host, glance=True)
    served = entry.served if entry else ()
    servers = tuple(_server(one, endpoint, facts)
                    for one, endpoint in _endpoints(paths, host, served, ssh_config))
    state, detail, hint = _state(host, servers, facts)
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


def _server(served: Served, endpoint: Endpoint, facts: Facts) -> ServerStatus:
    speaker = runtime(served.runtime, embedding=served.embedding)
    health = speaker.health(endpoint, timeout=HEALTH_TIMEOUT)
    busy = slots = None
    if health.state == "ready":
        try:
            load = speaker.load(endpoint, timeout=SLOTS_TIMEOUT)
            busy, slots = load.busy, load.slots
        except ServerUnavailable:
            pass  # it generated a token a moment ago; how busy it is stays unknown
    name = OWN if served.runtime == "ollama" else served.server
    seen = next((server for server in facts.servers if server.name == name), None)
    state, detail, progress = _stage(served, health, endpoint, facts, seen)
    return ServerStatus(served.model, served.runtime, served.port, state, detail, health.seconds, busy, slots,
                        seen.restarts if seen else 0, served.decode_speed, served.prefill_speed,
                        served.embedding, progress, served.release, served.share, served.canary)


def _stage(served: Served, health: Health, endpoint: Endpoint, facts: Facts,
           seen: ServerSeen | None) -> tuple[str, str, float | None]:
    """What a server said, made exact by what its host knows: how far a load is, why nothing listens."""
    if health.state in ("loading", "idle"):
        runner = _runner(served, endpoint, facts, seen)
        if runner is None or (health.state == "idle" and runner.state != "loading"):
            return health.state, health.detail, None
        share = share_read(runner, served.size)
        far = f": {share:.0%} of {served.size / 1e9:.1f} GB read" if share is not None else ""
        return "loading", f"loading its weights{far}", share
    if health.state != "unreachable" or seen is None:
        return health.state, health.detail, None
    if not any(one.name == served.runtime for one in facts.runtimes):
        return "no runtime", f"{served.runtime} is not installed there any more", None
    again = f", after {seen.restarts} restart{'s' * (seen.restarts > 1)}" if seen.restarts else ""
    if seen.pid is not None:
        return "starting", f"its process runs and does not listen yet{again}", None
    if seen.supervisor is not None:
        return "starting", f"its supervisor is about to start it{again}", None
    return "down", "nothing runs it, and nothing would start it again", None


def _runner(served: Served, endpoint: Endpoint, facts: Facts, seen: ServerSeen | None) -> RunnerSeen | None:
    """The process that holds a model, or is about to."""
    if served.runtime != "ollama":
        return runner_of(facts, seen.pid) if seen else None
    runners = of_ollama(facts)
    weights = weights_of(endpoint, timeout=SLOTS_TIMEOUT) if runners else None
    return next((one for one in runners if weights and one.weights == weights), None)


def _state(host: Host, servers: tuple[ServerStatus, ...], facts: Facts) -> tuple[str, str, str | None]:
    if not servers:
        if not host.models:
            return "idle", "no model is wanted here", None
        if not facts.runtimes:
            return "no runtime", "no runtime is installed, and its models are not up", "swarmctl up"
        return "stopped", "its models are not up", "swarmctl up"
    bad = [server for server in servers if server.state not in ("ready", "idle")]
    if not bad:
        return "ready", "", None
    detail = "; ".join(f"{server.model}: {server.detail or server.state}" for server in bad)
    states = {server.state for server in bad}
    if states <= {"loading", "starting"}:
        return "loading" if "loading" in states else "starting", detail, None
    if states == {"no runtime"} or states == {"down"}:
        return "degraded", detail, "swarmctl up"
    return "degraded", detail, f"swarmctl logs {host.name}, then swarmctl up"


def _problems(facts: Facts) -> tuple[str, ...]:
    gpu = tuple(f"{gpu.name}: {gpu.problem}" for gpu in facts.gpus if gpu.problem)
    return (*facts.problems, *gpu)
