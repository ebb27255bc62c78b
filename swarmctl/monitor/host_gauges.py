"""From what is known of the hosts to gauges by metric and labels."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

from swarmctl.dispatch import queue
from swarmctl.dispatch.breakers import read_breaker
from swarmctl.dispatch.habits import read_habits
from swarmctl.dispatch.marks import read_mark
from swarmctl.dispatch.slots import claimed
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.fleet.asleep import read_asleep
from swarmctl.fleet.standing import read_aside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts.pulse import GpuPulse
    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.monitor.hosts import HostSeen, ServerSeen
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

Gauge = tuple[str, tuple[str, ...], float | None]
Gauges = dict[str, dict[tuple[str, ...], float]]

BREAKER = ("closed", "open", "half-open")
ASIDE = ("cordoned", "draining", "upgrading")


def snapshot_gauges(paths: Paths, fleet: Fleet, now: float) -> Gauges:
    """What `up` made true, what exchanges taught since, and how hosts stand, from a few small files."""
    def found() -> Iterator[Gauge]:
        yield "swarmctl_fleet_written_timestamp_seconds", (), _seconds(fleet.written)
        yield "swarmctl_queue_length", (), queue.length(paths)
        for candidate in make_swarm(paths, fleet).candidates:
            yield from _at_work(paths, candidate, now)
        for entry in fleet.hosts:
            yield from _standing(paths, entry, now)
            for served in entry.served:
                yield from _speeds(paths, entry, served)

    return _gathered(found())


def host_gauges(hosts: Sequence[HostSeen]) -> Gauges:
    """What a poller saw. A host that was not looked at yet has no metrics; one that does not answer keeps
    none but that."""
    def found() -> Iterator[Gauge]:
        for host in hosts:
            if host.at:
                yield from _host(host)

    return _gathered(found())


def _standing(paths: Paths, entry: HostEntry, now: float) -> Iterator[Gauge]:
    host = (entry.name,)
    mark, aside = read_mark(paths, entry.name), read_aside(paths, entry.name)
    yield "swarmctl_host_intermittent", host, float(entry.intermittent)
    yield "swarmctl_host_marked", host, float(mark is not None and mark.until > now)
    yield "swarmctl_host_asleep", host, float(read_asleep(paths, entry.name) is not None)
    for state in ASIDE:
        yield "swarmctl_host_aside", (entry.name, state), float(aside is not None and aside.state == state)


def _at_work(paths: Paths, candidate: Candidate, now: float) -> Iterator[Gauge]:
    server = (candidate.host, candidate.server, candidate.model)
    yield "swarmctl_slots_claimed", server, claimed(paths, candidate, candidate.parallel)
    state = read_breaker(paths, candidate.host, candidate.server).state(now)
    for one in BREAKER:
        yield "swarmctl_breaker_state", (*server, one), float(one == state)


def _speeds(paths: Paths, entry: HostEntry, served: Served) -> Iterator[Gauge]:
    habits = read_habits(paths, entry.name, served)
    server = (entry.name, served.server, served.model)
    yield "swarmctl_prefill_tokens_per_second", server, habits.prefill_speed
    if not served.embedding:
        yield "swarmctl_decode_tokens_per_second", server, habits.decode_speed
    if served.canary:
        yield "swarmctl_canary_share_ratio", (served.model, served.release), served.share


def _host(host: HostSeen) -> Iterator[Gauge]:
    name = (host.entry.name,)
    yield "swarmctl_host_up", name, float(host.up)
    yield "swarmctl_host_answered_timestamp_seconds", name, host.answered or None
    yield "swarmctl_host_look_seconds", name, host.seconds
    for server in host.servers:
        yield from _server(host.entry.name, server)
    pulse = host.pulse
    if not host.up or pulse is None:
        return
    yield "swarmctl_host_load", name, pulse.load
    yield "swarmctl_host_threads", name, pulse.threads
    yield "swarmctl_host_cpu_ratio", name, host.busy
    yield "swarmctl_host_memory_bytes", name, pulse.memory
    yield "swarmctl_host_memory_available_bytes", name, pulse.memory_available
    yield "swarmctl_host_swap_used_bytes", name, pulse.swap_used
    yield "swarmctl_host_disk_bytes", name, pulse.disk
    yield "swarmctl_host_disk_free_bytes", name, pulse.disk_free
    yield "swarmctl_host_gpus", name, len(pulse.gpus)
    for gpu in pulse.gpus:
        yield from _gpu(host.entry.name, gpu)


def _gpu(host: str, gpu: GpuPulse) -> Iterator[Gauge]:
    labels = (host, str(gpu.index), gpu.name)
    yield "swarmctl_gpu_memory_bytes", labels, gpu.memory
    yield "swarmctl_gpu_memory_used_bytes", labels, gpu.memory_used
    yield "swarmctl_gpu_ratio", labels, gpu.busy
    yield "swarmctl_gpu_temperature_celsius", labels, gpu.temperature
    yield "swarmctl_gpu_power_watts", labels, gpu.power
    yield "swarmctl_gpu_power_limit_watts", labels, gpu.power_limit


def _server(host: str, seen: ServerSeen) -> Iterator[Gauge]:
    labels = (host, seen.served.server, seen.served.model)
    yield "swarmctl_server_up", labels, float(seen.up)
    yield "swarmctl_server_loaded", labels, float(seen.loaded)
    yield "swarmctl_server_generates", labels, None if seen.generates is None else float(seen.generates)
    yield "swarmctl_server_token_seconds", labels, seen.token_seconds
    yield "swarmctl_server_slots", labels, seen.slots
    yield "swarmctl_server_slots_busy", labels, seen.busy


def _gathered(found: Iterator[Gauge]) -> Gauges:
    gauges: Gauges = defaultdict(dict)
    for name, labels, value in found:
        if value is not None:
            gauges[name][labels] = float(value)
    return dict(gauges)


def _seconds(written: str) -> float | None:
    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return None
