"""`doctor`: what is wrong with the swarm, why it matters, and the command that mends it.

Every host is surveyed and examined, every server asked for a token and for its template; nothing is loaded,
started or restarted. A small file is written to each of our own folders, and removed. The judging is pure
(swarmctl.diagnosis). A port that stands open is only tried with `prove`, because a request to a
stranger's address is a person's decision.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from swarmctl.diagnosis import Claim, Finding, Patient, host_findings, swarm_findings
from swarmctl.diagnosis.exposure import bracketed, exposed_servers, proof_targets
from swarmctl.diagnosis.finding import through
from swarmctl.diagnosis.home import HERE, home_findings
from swarmctl.errors import (
    CommandTimeout,
    ConnectionLost,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    RemoteError,
    SwarmError,
    UsageError,
)
from swarmctl.fleet.asleep import read_asleep
from swarmctl.fleet.examine import examine
from swarmctl.fleet.home import look_at_home
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.survey import survey
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.runtimes.template import served_template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

HEALTH_TIMEOUT = 20.0
TEMPLATE_TIMEOUT = 5.0
PROOF_TIMEOUT = 3.0
HOST_TIMEOUT = 120.0
GONE = (HostUnreachable, ConnectionLost, CommandTimeout)


@dataclass(frozen=True, slots=True)
class Report:
    """Findings, errors first and then in the inventory's order; the hosts that were looked at, and those that
    could not be."""

    findings: tuple[Finding, ...]
    examined: tuple[str, ...]
    unreachable: tuple[str, ...]

    @property
    def errors(self) -> int:
        """How many findings cost answers or let strangers in; hosts that are away are counted elsewhere."""
        return sum(one.severity == "error" and one.rule != "unreachable" for one in self.findings)

    def to_record(self) -> dict[str, Any]:
        """The document for --json."""
        return asdict(self)


def doctor(paths: Paths, inventory: Inventory, fleet: Fleet | None, connect: Callable[[Host], Remote], *,
           only: Sequence[str] = (), prove: bool = False) -> Report:
    """Examine the hosts (all, or those named in `only`) and our own folders, and say what is wrong. Raises
    UsageError for an unknown host."""
    hosts = _chosen(inventory, only)
    known = {entry.name: entry for entry in fleet.hosts} if fleet else {}
    ssh_config = fleet.ssh_config if fleet else None

    def look(host: Host) -> Patient:
        with contextlib.closing(connect(host)) as remote:
            patient = _examine(paths, host, known.get(host.name), remote, ssh_config)
        return replace(patient, proofs=_prove(patient)) if prove else patient

    found = {host.name: result for host, result in over_hosts(hosts, look, timeout=HOST_TIMEOUT)}
    patients = [one for host in hosts if isinstance(one := found[host.name], Patient)]
    findings = [finding for patient in patients for finding in host_findings(patient)]
    findings += swarm_findings(patients)
    away = {host.name: one for host in hosts if isinstance(one := found[host.name], SwarmError)}
    findings += [_absent(paths, host, away[host.name]) for host in hosts if host.name in away]
    findings = [through(one, inventory.host(one.host), inventory.ssh_config) for one in findings]
    findings += home_findings(look_at_home(paths))
    order = [HERE, *(host.name for host in hosts)]
    rank = ("error", "warning", "info")
    findings.sort(key=lambda one: (rank.index(one.severity), order.index(one.host)))
    off = {one.host for one in findings if one.rule == "unreachable"}
    return Report(tuple(findings), tuple(patient.host.name for patient in patients),
                  tuple(name for name in order if name in off))


def _chosen(inventory: Inventory, only: Sequence[str]) -> tuple[Host, ...]:
    names = [host.name for host in inventory.hosts]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(f"the inventory has no host {', '.join(unknown)}", hint=f"it has {', '.join(names)}")
    return tuple(host for host in inventory.hosts if not only or host.name in only)


def _examine(paths: Paths, host: Host, entry: HostEntry | None, remote: Remote,
             ssh_config: str | None) -> Patient:
    facts = survey(remote, host)
    examined, skew, error = examine(remote, facts.data_dir)
    return Patient(host, facts, examined, _claims(paths, host, entry, ssh_config), skew, error,
                   entry.gpus if entry else None, idle_minutes=_idle_minutes(paths, host.name))


def _claims(paths: Paths, host: Host, entry: HostEntry | None, ssh_config: str | None) -> tuple[Claim, ...]:
    served = entry.served if entry else ()
    try:
        endpoints = _endpoints(paths, host, served, ssh_config)
    except RemoteError as exc:
        return tuple(_claim(one, None, state="unreachable", detail=exc.message) for one in served)
    return tuple(_asked(one, endpoint) for one, endpoint in zip(served, endpoints, strict=True))


def _endpoints(paths: Paths, host: Host, served: Sequence[Served], ssh_config: str | None) -> list[Endpoint]:
    if host.local or not served:
        return [Endpoint(port=one.port, model=one.called) for one in served]
    from swarmctl.fleet.tunnels import open_tunnel

    sockets = open_tunnel(paths, host_name=host.name, ssh=host.ssh, ports=[one.port for one in served],
                          ssh_config=ssh_config, connect_timeout=host.connect_timeout)
    return [Endpoint(socket=str(sockets[one.port]), model=one.called) for one in served]


def _asked(served: Served, endpoint: Endpoint) -> Claim:
    health = runtime(served.runtime, embedding=served.embedding).health(endpoint, timeout=HEALTH_TIMEOUT)
    template = None
    if health.state in ("ready", "idle"):
        template = served_template(served.runtime, endpoint, timeout=TEMPLATE_TIMEOUT)
    return _claim(served, template, state=health.state, detail=health.detail)


def _claim(served: Served, template: str | None, *, state: str, detail: str) -> Claim:
    return Claim(model=served.model, runtime=served.runtime, server=served.server, port=served.port,
                 digest=served.digest, size=served.size, template=served.template, called=served.called,
                 template_said=template, state=state, detail=detail, files=served.files)


def _idle_minutes(paths: Paths, host: str) -> float | None:
    """Minutes since this machine's last question to the host; None where there was none."""
    files = list((paths.state / "habits").glob(f"{host}@*.json"))
    if not files:
        return None
    return (time.time() - max(file.stat().st_mtime for file in files)) / 60


def _prove(patient: Patient) -> Mapping[tuple[str, int], str]:
    """Ask each exposed port as a stranger would, from this machine, until one address answers."""
    found = {}
    for listener, path in exposed_servers(patient):
        for address in proof_targets(patient, listener)[:4]:
            said = _stranger(address, listener.port, path)
            if said:
                found[address, listener.port] = said
                break
    return found


def _stranger(address: str, port: int, path: str) -> str:
    import http.client

    connection = http.client.HTTPConnection(bracketed(address), port, timeout=PROOF_TIMEOUT)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return f"HTTP {reply.status} {reply.read(200).decode(errors='replace')!s}".strip()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _absent(paths: Paths, host: Host, why: SwarmError) -> Finding:
    if isinstance(why, HostKeyUnknown | HostKeyChanged):
        unknown = isinstance(why, HostKeyUnknown)
        return Finding(
            host.name, "host_key", "error",
            "its host key is not recorded" if unknown else "its host key is another one than recorded",
            why.message, "without the key nobody can tell this host from one in between; it is not used",
            why.hint or f"swarmctl trust {host.name}")
    if host.intermittent and isinstance(why, GONE):
        asleep = read_asleep(paths, host.name)
        return Finding(host.name, "off", "info", "it is asleep" if asleep else "it is off",
                       asleep.why if asleep else why.message,
                       "it is intermittent, so questions go elsewhere without waiting",
                       f"swarmctl wake {host.name}" if host.mac else "switch it on")
    return Finding(host.name, "unreachable", "error", "it cannot be reached", why.message,
                   "nothing can be said of it, and questions go elsewhere", why.hint or f"ssh {host.ssh}")
