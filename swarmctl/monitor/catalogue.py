"""Every metric that swarmctl exposes: its name, kind, labels and meaning. docs/monitoring.md lists this
table, and a test compares them.

Names follow the Prometheus conventions (prometheus.io/docs/practices/naming): base units, `_total` for what
only grows. Labels hold hosts, models, topics' names and words of a fixed list, never an id, a prompt or what
a client sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Seconds. From a warm tiny model's first token to a long answer of a large one on a CPU.
QUICK = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `source` says where its numbers come from: the journal (each exchange and rating once,
    whoever made it), the ledger, the snapshot, the hosts (looked at in the background) or the gateway."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    source: Literal["journal", "ledger", "snapshot", "hosts", "gateway"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SERVED = ("host", "model")
SERVER = ("host", "server", "model")
GPU = ("host", "gpu", "name")

CATALOGUE: tuple[Metric, ...] = (
    Metric("swarmctl_build_info", "gauge", "snapshot", "Always 1; the version is a label.", ("version",)),
    # what was asked
    Metric("swarmctl_exchanges_total", "counter", "journal",
           "Questions that were answered or failed, by how they ended.",
           ("host", "model", "category", "via", "finish")),
    Metric("swarmctl_failed_attempts_total", "counter", "journal",
           "Servers that were tried for a question and failed; another one was asked then.", SERVED),
    Metric("swarmctl_prompt_tokens_total", "counter", "journal", "Tokens of prompts, cached ones included.",
           SERVED),
    Metric("swarmctl_cached_prompt_tokens_total", "counter", "journal",
           "Tokens of prompts that a server still had in its cache.", SERVED),
    Metric("swarmctl_completion_tokens_total", "counter", "journal", "Tokens of answers.", SERVED),
    Metric("swarmctl_prefill_seconds_total", "counter", "journal", "Time spent reading prompts.", SERVED),
    Metric("swarmctl_decode_seconds_total", "counter", "journal", "Time spent writing answers.", SERVED),
    Metric("swarmctl_model_load_seconds_total", "counter", "journal",
           "Time that questions waited for a model to be loaded.", SERVED),
    Metric("swarmctl_first_token_seconds", "histogram", "journal",
           "From sending a question to a server until its first token.", SERVED, QUICK),
    Metric("swarmctl_answer_seconds", "histogram", "journal",
           "From sending a question to a server until its last token.", SERVED, SLOW),
    Metric("swarmctl_queue_seconds", "histogram", "journal",
           "How long answered questions waited for a free slot; most not at all.", SERVED, SLOW),
    Metric("swarmctl_cascades_total", "counter", "journal",
           "Questions that a small model was asked first, by model and what came of it: commit (its answer "
           "was shown), escalate (a larger one was asked), busy, failed, cancelled.", ("model", "decision")),
    Metric("swarmctl_hedges_total", "counter", "journal",
           "First tokens that were late, where a second request to another server was quicker; by the late "
           "server.", SERVED),
    Metric("swarmctl_explorations_total", "counter", "journal",
           "Questions that were spent on learning about a model; those asked beside another answer have via "
           "shadow.", SERVED),
    # what it cost
    Metric("swarmctl_energy_joules_total", "counter", "journal",
           "Energy of answering: the host's watts at work, times the seconds of load, prefill and decode.",
           SERVED),
    Metric("swarmctl_energy_cost_total", "counter", "journal",
           "The price of that energy, in the currency of the inventory.", (*SERVED, "currency")),
    Metric("swarmctl_expected_cost_seconds_total", "counter", "journal",
           "What the router expected answers to cost, in seconds of a person's time.", SERVED),
    Metric("swarmctl_expected_wait_seconds_total", "counter", "journal",
           "How long the router expected people to wait; compare with swarmctl_answer_seconds_sum.", SERVED),
    # how it was liked
    Metric("swarmctl_ratings_total", "counter", "journal", "Ratings that were given, taken-back ones too.",
           ("model", "category", "verdict")),
    Metric("swarmctl_comparisons_total", "counter", "journal", "Blind comparisons, by how a model fared.",
           ("model", "result")),
    Metric("swarmctl_approval_ratio", "gauge", "ledger",
           "Share of good answers by all standing ratings, 0 to 1; a comparison counts half.",
           ("model", "category")),
    Metric("swarmctl_approval_low_ratio", "gauge", "ledger",
           "Lower end of that share's 95 % interval (Wilson).", ("model", "category")),
    Metric("swarmctl_approval_high_ratio", "gauge", "ledger",
           "Upper end of that share's 95 % interval (Wilson).", ("model", "category")),
    Metric("swarmctl_approval_votes", "gauge", "ledger", "Ratings behind that share.", ("model", "category")),
    Metric("swarmctl_topic_approval_ratio", "gauge", "ledger",
           "Share of good answers on a topic of `swarmctl topics`, 0 to 1.", ("model", "topic")),
    Metric("swarmctl_topic_approval_votes", "gauge", "ledger", "Ratings behind that share.",
           ("model", "topic")),
    Metric("swarmctl_rounds_waiting", "gauge", "ledger", "Rounds of improvement that wait for a signature."),
    Metric("swarmctl_journal_bytes", "gauge", "ledger", "Size of the journal on this machine."),
    Metric("swarmctl_data_disk_free_bytes", "gauge", "ledger",
           "Free space where the journal lies, on this machine."),
    # what up made, and exchanges taught since
    Metric("swarmctl_fleet_written_timestamp_seconds", "gauge", "snapshot", "When `swarmctl up` last ran."),
    Metric("swarmctl_prefill_tokens_per_second", "gauge", "snapshot",
           "How fast a server reads prompts, as the router believes.", SERVER),
    Metric("swarmctl_decode_tokens_per_second", "gauge", "snapshot",
           "How fast a server writes an answer, as the router believes.", SERVER),
    Metric("swarmctl_canary_share_ratio", "gauge", "snapshot",
           "Share of a model's conversations that its canary gets.", ("model", "release")),
    Metric("swarmctl_slots_claimed", "gauge", "snapshot",
           "Slots of a server that questions of this machine hold now.", SERVER),
    Metric("swarmctl_breaker_state", "gauge", "snapshot",
           "1 for the state of a server's breaker: closed, open (it fails, and is left alone), half-open "
           "(one question tries it).", (*SERVER, "state")),
    Metric("swarmctl_queue_length", "gauge", "snapshot", "Questions of this machine that wait for a slot."),
    # hosts
    Metric("swarmctl_host_up", "gauge", "hosts", "1 where the host answered the last look.", ("host",)),
    Metric("swarmctl_host_intermittent", "gauge", "snapshot", "1 where the inventory lets the host be off.",
           ("host",)),
    Metric("swarmctl_host_marked", "gauge", "snapshot",
           "1 while questions leave the host alone because it did not answer.", ("host",)),
    Metric("swarmctl_host_aside", "gauge", "snapshot",
           "1 while the host is set aside, by state: cordoned, draining, upgrading.", ("host", "state")),
    Metric("swarmctl_host_asleep", "gauge", "snapshot", "1 while the host sleeps because swarmctl sent it.",
           ("host",)),
    Metric("swarmctl_host_answered_timestamp_seconds", "gauge", "hosts", "When the host last answered.",
           ("host",)),
    Metric("swarmctl_host_look_seconds", "gauge", "hosts", "How long the last look took.", ("host",)),
    Metric("swarmctl_host_load", "gauge", "hosts", "Load average of a minute.", ("host",)),
    Metric("swarmctl_host_threads", "gauge", "hosts", "Processors that swarmctl's user may use.", ("host",)),
    Metric("swarmctl_host_cpu_ratio", "gauge", "hosts",
           "Share of its processors' time at work since the look before, 0 to 1.", ("host",)),
    Metric("swarmctl_host_memory_bytes", "gauge", "hosts", "Memory.", ("host",)),
    Metric("swarmctl_host_memory_available_bytes", "gauge", "hosts", "Memory that is free to take.",
           ("host",)),
    Metric("swarmctl_host_swap_used_bytes", "gauge", "hosts", "Memory that is swapped out.", ("host",)),
    Metric("swarmctl_host_disk_bytes", "gauge", "hosts", "Size of the data folder's disk.", ("host",)),
    Metric("swarmctl_host_disk_free_bytes", "gauge", "hosts", "Free space on the data folder's disk.",
           ("host",)),
    Metric("swarmctl_host_gpus", "gauge", "hosts", "GPUs whose driver answers.", ("host",)),
    Metric("swarmctl_gpu_memory_bytes", "gauge", "hosts", "GPU memory.", GPU),
    Metric("swarmctl_gpu_memory_used_bytes", "gauge", "hosts", "GPU memory that is taken.", GPU),
    Metric("swarmctl_gpu_ratio", "gauge", "hosts", "Share of time that the GPU worked, 0 to 1.", GPU),
    Metric("swarmctl_gpu_temperature_celsius", "gauge", "hosts", "The hottest sensor of the GPU.", GPU),
    Metric("swarmctl_gpu_power_watts", "gauge", "hosts", "What the GPU draws.", GPU),
    Metric("swarmctl_gpu_power_limit_watts", "gauge", "hosts", "What the GPU may draw.", GPU),
    # servers
    Metric("swarmctl_server_up", "gauge", "hosts", "1 where the server answers.", SERVER),
    Metric("swarmctl_server_loaded", "gauge", "hosts", "1 where the model is in memory.", SERVER),
    Metric("swarmctl_server_generates", "gauge", "hosts",
           "1 where the server made a token when it was last asked for one.", SERVER),
    Metric("swarmctl_server_token_seconds", "gauge", "hosts", "How long that token took.", SERVER),
    Metric("swarmctl_server_slots", "gauge", "hosts", "Answers that the server can give at once.", SERVER),
    Metric("swarmctl_server_slots_busy", "gauge", "hosts", "Answers that it gives now.", SERVER),
    # the gateway
    Metric("swarmctl_http_requests_total", "counter", "gateway", "Requests to the gateway.",
           ("surface", "status")),
    Metric("swarmctl_http_request_seconds", "histogram", "gateway", "From a request to the end of its reply.",
           ("surface",), SLOW),
    Metric("swarmctl_http_requests_in_flight", "gauge", "gateway", "Requests that are being served.",
           ("surface",)),
    Metric("swarmctl_rejections_total", "counter", "gateway",
           "Requests that the gateway refused before they were routed.", ("surface", "reason")),
)
BY_NAME = {metric.name: metric for metric in CATALOGUE}


def reference() -> str:
    """The table of docs/monitoring.md."""
    rows = (f"| `{one.name}` | {one.kind} | {', '.join(one.labels) or '-'} | {one.source} | {one.help} |"
            for one in CATALOGUE)
    return "\n".join(("| metric | kind | labels | from | what it says |", "|---|---|---|---|---|", *rows, ""))
