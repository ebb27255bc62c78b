"""What deserves a person's attention: the alert rules for Prometheus, and the same conditions for a terminal.

Each says what is wrong, and the command that tells more or mends it. docs/monitoring/alerts.yml is written
from here, and promtool runs a unit test of every rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts.pulse import Pulse
    from swarmctl.monitor.hosts import HostSeen

FAILING = 0.10
SLOW_SECONDS = 10.0
FULL_DISK, NEARLY_FULL_DISK = 0.03, 0.10
JOURNAL_BYTES = 1_000_000_000
LITTLE_MEMORY = 0.05
HOT = 87.0
BUSY = 0.95
DISLIKED, FEWEST_VOTES = 0.5, 10


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `held` is how long the condition lasts before anybody is told; `mend` what to do."""

    name: str
    expr: str
    held: str
    severity: Literal["info", "warning", "critical"]
    summary: str
    mend: str


HOST, SERVER = "{{ $labels.host }}", "{{ $labels.model }} on {{ $labels.host }}"
EXCUSED = "(swarmctl_host_intermittent == 1 or swarmctl_host_asleep == 1)"

ALERTS: tuple[Alert, ...] = (
    Alert("SwarmctlNotScraped", 'up{job="swarmctl"} == 0', "2m", "critical",
          "swarmctl's metrics at {{ $labels.instance }} do not answer",
          "is `swarmctl serve` running? its log says why not"),
    Alert("SwarmctlHostDown", f"swarmctl_host_up == 0 unless on (host) {EXCUSED}", "5m", "critical",
          f"{HOST} does not answer", f"swarmctl doctor {HOST}"),
    Alert("SwarmctlServerDown", "swarmctl_server_up == 0 and on (host) swarmctl_host_up == 1", "5m",
          "critical", f"{SERVER} does not answer, and its host does",
          f"swarmctl logs {HOST}, then swarmctl up"),
    Alert("SwarmctlServerSilent", "swarmctl_server_generates == 0 and swarmctl_server_up == 1", "5m",
          "critical", f"{SERVER} answers and makes no token", f"swarmctl doctor {HOST}"),
    Alert("SwarmctlQuestionsFail",
          'sum(rate(swarmctl_exchanges_total{finish="error"}[10m])) / '
          f"sum(rate(swarmctl_exchanges_total[10m])) > {FAILING:g}", "5m", "critical",
          "{{ $value | humanizePercentage }} of the questions fail",
          "swarmctl doctor; swarmctl log list --since 1h"),
    Alert("SwarmctlFailovers",
          "sum by (host, model) (increase(swarmctl_failed_attempts_total[15m])) > 10", "0m", "warning",
          f"{SERVER} failed {{{{ $value | humanize }}}} questions in 15 minutes; others answered them",
          f"swarmctl doctor {HOST}"),
    Alert("SwarmctlBreakerOpen", 'max_over_time(swarmctl_breaker_state{state="open"}[5m]) == 1', "10m",
          "warning", f"{SERVER} keeps failing, and is left alone",
          f"swarmctl doctor {HOST}; swarmctl logs {HOST}"),
    Alert("SwarmctlSlowFirstToken",
          "histogram_quantile(0.95, sum by (le) (rate(swarmctl_first_token_seconds_bucket[15m])))"
          f" > {SLOW_SECONDS:g}", "10m", "warning",
          "one answer in twenty begins after more than {{ $value | humanizeDuration }}",
          "swarmctl status --watch; more slots, hosts or a smaller model help"),
    Alert("SwarmctlQueueLong", "min_over_time(swarmctl_queue_length[5m]) > 0", "5m", "warning",
          "questions have been waiting for free slots for 10 minutes",
          "swarmctl status --watch; more slots (`parallel`) or hosts help"),
    Alert("SwarmctlTurningAway", 'sum(rate(swarmctl_rejections_total{reason="busy"}[5m])) > 0', "5m",
          "critical", "the queue is full, and the gateway turns questions away",
          "raise `queue` under `routing` in the inventory, or add slots or hosts"),
    Alert("SwarmctlSlotsFull", "sum(avg_over_time(swarmctl_server_slots_busy[15m])) / sum(avg_over_time("
          f"swarmctl_server_slots[15m])) > {BUSY:g}", "15m", "warning",
          "{{ $value | humanizePercentage }} of all slots are busy", "the swarm is at its limit: add a host"),
    Alert("SwarmctlDiskNearlyFull",
          f"swarmctl_host_disk_free_bytes / swarmctl_host_disk_bytes < {NEARLY_FULL_DISK:g}", "10m",
          "warning",
          f"{HOST} has {{{{ $value | humanizePercentage }}}} of its data disk left",
          f"swarmctl models list; swarmctl doctor {HOST}"),
    Alert("SwarmctlDiskFull",
          f"swarmctl_host_disk_free_bytes / swarmctl_host_disk_bytes < {FULL_DISK:g}", "5m", "critical",
          f"{HOST} has {{{{ $value | humanizePercentage }}}} of its data disk left",
          f"swarmctl models list; swarmctl doctor {HOST}"),
    Alert("SwarmctlJournalDiskFull", f"swarmctl_data_disk_free_bytes < {JOURNAL_BYTES:g}", "5m", "critical",
          "the journal's disk has {{ $value | humanize1024 }}B left; answers that cannot be recorded fail",
          "free some space on this machine, or move swarmctl's data (XDG_DATA_HOME)"),
    Alert("SwarmctlMemoryLow",
          "swarmctl_host_memory_available_bytes / swarmctl_host_memory_bytes < "
          f"{LITTLE_MEMORY:g}", "10m", "warning",
          f"{HOST} has {{{{ $value | humanizePercentage }}}} of its memory left", f"swarmctl doctor {HOST}"),
    Alert("SwarmctlGpuLost", "swarmctl_host_gpus < max_over_time(swarmctl_host_gpus[1d])", "5m", "critical",
          f"GPUs of {HOST} that answer: {{{{ $value | humanize }}}}, and there were more within a day",
          f"swarmctl doctor {HOST}"),
    Alert("SwarmctlGpuHot", f"swarmctl_gpu_temperature_celsius > {HOT:g}", "10m", "warning",
          f"GPU {{{{ $labels.gpu }}}} of {HOST} is at {{{{ $value | humanize }}}} °C",
          f"swarmctl doctor {HOST}"),
    Alert("SwarmctlDisliked",
          f"swarmctl_approval_high_ratio < {DISLIKED:g} and swarmctl_approval_votes >= {FEWEST_VOTES}", "1h",
          "warning", "{{ $labels.model }} is surely disliked in {{ $labels.category }}: at most "
          "{{ $value | humanizePercentage }} of its answers are good", "swarmctl review; swarmctl rollback"),
    Alert("SwarmctlWaitsForSignature", "swarmctl_rounds_waiting > 0", "1d", "info",
          "rounds of improvement that wait for a signature: {{ $value | humanize }}", "swarmctl review"),
    Alert("SwarmctlHostForgotten", 'swarmctl_host_aside{state=~"cordoned|draining"} == 1', "1d", "info",
          f"{HOST} has been {{{{ $labels.state }}}} for a day", f"swarmctl uncordon {HOST}"),
)


def rules() -> str:
    """All of it as a rule file."""
    import yaml

    listed = [{"alert": one.name, "expr": one.expr, "for": one.held, "labels": {"severity": one.severity},
               "annotations": {"summary": one.summary, "description": one.mend}} for one in ALERTS]
    body = yaml.safe_dump({"groups": [{"name": "swarmctl", "rules": listed}]}, sort_keys=False, width=110,
                          allow_unicode=True)
    return f"# Written by `swarmctl metrics alerts`. See docs/monitoring.md.\n{body}"


def reference() -> str:
    """The table of docs/monitoring.md."""
    rows = (f"| {one.name} | {one.severity} | `{one.expr.replace('|', chr(92) + '|')}` | {one.held} |"
            for one in ALERTS)
    return "\n".join(("| alert | severity | when | for |", "|---|---|---|---|", *rows, ""))


def seen_now(hosts: Sequence[HostSeen]) -> Iterator[tuple[str, str]]:
    """(host, what is wrong) of the hosts that answer, by the same limits as the rules."""
    for host in hosts:
        if host.up and host.pulse:
            wrong = (*_of_servers(host), *_of_host(host.pulse), *_of_gpus(host.pulse))
            yield from ((host.entry.name, text) for text in wrong)


def _of_servers(host: HostSeen) -> Iterator[str]:
    for server in host.servers:
        if not server.up:
            yield f"{server.served.model} does not answer: {server.detail}"
        elif server.generates is False:
            yield f"{server.served.model} makes no token: {server.detail}"


def _of_host(pulse: Pulse) -> Iterator[str]:
    if pulse.disk and pulse.disk_free < NEARLY_FULL_DISK * pulse.disk:
        yield f"{pulse.disk_free / pulse.disk:.0%} of its data disk is left"
    if pulse.memory and pulse.memory_available < LITTLE_MEMORY * pulse.memory:
        yield f"{pulse.memory_available / pulse.memory:.0%} of its memory is left"


def _of_gpus(pulse: Pulse) -> Iterator[str]:
    if pulse.problem:
        yield f"nvidia-smi: {pulse.problem}"
    for gpu in pulse.gpus:
        if gpu.temperature is not None and gpu.temperature > HOT:
            yield f"GPU {gpu.index} is at {gpu.temperature:.0f} °C"
