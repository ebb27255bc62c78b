"""What the Grafana dashboard shows: its panels and their queries, as data.

Every query is run against a real Prometheus in a test, with `$host`, `$model` and `$__rate_interval` filled
in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ANY, SERVED = '{host=~"$host"}', '{host=~"$host",model=~"$model"}'
GREEN, YELLOW, RED = "green", "#EAB839", "red"

Kind = Literal["stat", "timeseries", "table", "bargauge", "state-timeline"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` maps PromQL to its legend; `steps` colour values from each bound on; `core` says
    that a swarm in use has data there."""

    title: str
    kind: Kind
    queries: Mapping[str, str]
    unit: str = "short"
    wide: int = 8
    high: int = 8
    says: str = ""
    steps: tuple[tuple[float | None, str], ...] = ()
    most: float | None = None
    stacked: bool = False
    core: bool = True
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A row with a title, and its panels."""

    title: str
    panels: tuple[Panel, ...]


def rate(name: str, by: str, labels: str = SERVED) -> str:
    """Growth a second, summed."""
    return f"sum by ({by}) (rate({name}{labels}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = "", labels: str = SERVED) -> str:
    """Of a histogram."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({name}_bucket{labels}[$__rate_interval])))"


GOOD = ((None, RED), (0.5, YELLOW), (0.75, GREEN))
LOW_IS_GOOD = ((None, GREEN), (0.7, YELLOW), (0.9, RED))

OVERVIEW = Section("At a glance", (
    Panel("Hosts that answer", "stat", {
        f"sum(swarmctl_host_up{ANY})": "of", f"count(swarmctl_host_up{ANY})": "all"}, wide=4, high=4),
    Panel("Servers that answer", "stat", {
        f"sum(swarmctl_server_up{SERVED})": "of", f"count(swarmctl_server_up{SERVED})": "all"},
          wide=4, high=4),
    Panel("Questions a minute", "stat", {
        f"sum(rate(swarmctl_exchanges_total{SERVED}[$__rate_interval])) * 60": ""}, wide=4, high=4),
    Panel("Failing", "stat", {
        'sum(rate(swarmctl_exchanges_total{host=~"$host",model=~"$model",finish="error"}[1h])) / '
        f"sum(rate(swarmctl_exchanges_total{SERVED}[1h])) or vector(0)": ""}, "percentunit", 4, 4,
          "Share of the questions of the last hour that nobody could answer.",
          ((None, GREEN), (0.02, YELLOW), (0.1, RED))),
    Panel("First token, 95 %", "stat", {quantile(0.95, "swarmctl_first_token_seconds"): ""}, "s", 4, 4,
          "Nineteen of twenty answers begin within this time.", ((None, GREEN), (5, YELLOW), (10, RED))),
    Panel("Alerts", "stat", {'count(ALERTS{alertname=~"Swarmctl.*",alertstate="firing"}) or vector(0)': ""},
          wide=4, high=4, steps=((None, GREEN), (1, RED))),
))
QUESTIONS = Section("Questions", (
    Panel("Questions a second, by model", "timeseries", {
        rate("swarmctl_exchanges_total", "model"): "{{model}}"}, "reqps", stacked=True),
    Panel("Questions a second, by host", "timeseries", {
        rate("swarmctl_exchanges_total", "host"): "{{host}}"}, "reqps", stacked=True),
    Panel("How they ended", "timeseries", {
        rate("swarmctl_exchanges_total", "finish"): "{{finish}}",
        rate("swarmctl_failed_attempts_total", "host") + " > 0": "failover from {{host}}"}, "reqps"),
    Panel("First token", "timeseries", {
        quantile(0.5, "swarmctl_first_token_seconds", "model"): "{{model}}, half",
        quantile(0.95, "swarmctl_first_token_seconds", "model"): "{{model}}, 95 %"}, "s",
          says="From sending a question to its server until the first token."),
    Panel("Whole answer", "timeseries", {
        quantile(0.5, "swarmctl_answer_seconds", "model"): "{{model}}, half",
        quantile(0.95, "swarmctl_answer_seconds", "model"): "{{model}}, 95 %"}, "s"),
    Panel("Tokens a second", "timeseries", {
        rate("swarmctl_completion_tokens_total", "model"): "{{model}}, written",
        rate("swarmctl_prompt_tokens_total", "model"): "{{model}}, read"},
          says="Of all answers together: what the swarm does, not how fast one answer comes."),
))
LOAD = Section("Load and routing", (
    Panel("Slots at work", "timeseries", {
        f"sum by (host, model) (swarmctl_server_slots_busy{SERVED})": "{{model}} on {{host}}",
        f"sum(swarmctl_server_slots{SERVED})": "all there are"}),
    Panel("Waiting for a slot", "timeseries", {
        "swarmctl_queue_length": "questions in the queue",
        f"sum(swarmctl_slots_claimed{SERVED})": "slots held from here",
        f"sum(rate(swarmctl_queue_seconds_sum{SERVED}[$__rate_interval])) / "
        f"sum(rate(swarmctl_queue_seconds_count{SERVED}[$__rate_interval]))": "mean seconds waited"}),
    Panel("What was expected, and what came", "timeseries", {
        f"sum(rate(swarmctl_expected_wait_seconds_total{SERVED}[$__rate_interval])) / "
        f"sum(rate(swarmctl_answer_seconds_count{SERVED}[$__rate_interval]))": "expected wait",
        f"sum(rate(swarmctl_answer_seconds_sum{SERVED}[$__rate_interval])) / "
        f"sum(rate(swarmctl_answer_seconds_count{SERVED}[$__rate_interval]))": "wait"}, "s",
          says="The router's own estimate beside the truth. Far apart for long? `swarmctl up` measures."),
    Panel("Writing speed", "timeseries", {
        f"swarmctl_decode_tokens_per_second{SERVED}": "{{model}} on {{host}}"},
          says="Tokens a second of one answer, as the router believes."),
    Panel("Reading speed", "timeseries", {
        f"swarmctl_prefill_tokens_per_second{SERVED}": "{{model}} on {{host}}"},
          says="Tokens of a prompt a second, as the router believes."),
    Panel("Read from the cache", "timeseries", {
        f"sum by (model) (rate(swarmctl_cached_prompt_tokens_total{SERVED}[$__rate_interval])) / "
        f"sum by (model) (rate(swarmctl_prompt_tokens_total{SERVED}[$__rate_interval]))": "{{model}}"},
          "percentunit", most=1, core=False),
    Panel("Small first", "timeseries", {
        'sum by (decision) (rate(swarmctl_cascades_total{model=~"$model"}[$__rate_interval]))':
            "{{decision}}"}, "reqps", core=False,
          says="Questions that a small model was asked first, and what came of it."),
    Panel("Breakers", "state-timeline", {
        'max by (host, model) (swarmctl_breaker_state{host=~"$host",model=~"$model",state!="closed"})':
            "{{model}} on {{host}}"}, steps=((None, GREEN), (1, RED)),
          says="Red: it keeps failing and is left alone, or one question tries it."),
    Panel("Failovers", "timeseries", {
        "sum by (host, model) (increase(swarmctl_failed_attempts_total"
        f"{SERVED}[$__rate_interval]))": "{{model}} on {{host}}"}, core=False,
          says="Tries that failed; another server answered."),
    Panel("Hedged and explored", "timeseries", {
        rate("swarmctl_hedges_total", "host"): "{{host}} was late, another was quicker",
        rate("swarmctl_explorations_total", "model"): "spent on learning about {{model}}"}, "reqps",
          core=False),
    Panel("Loading models", "timeseries", {
        rate("swarmctl_model_load_seconds_total", "host"): "{{host}}"}, "percentunit", core=False,
          says="Share of the time that somebody waited for a model to be loaded."),
))
OPINION = Section("How answers are liked", (
    Panel("Approval by model and category", "bargauge", {
        'swarmctl_approval_ratio{model=~"$model"}': "{{model}}, {{category}}"}, "percentunit", 8, 8,
          "Share of good answers by all standing ratings.", GOOD, 1),
    Panel("Approval and how sure it is", "table", {
        'swarmctl_approval_ratio{model=~"$model"}': "good",
        'swarmctl_approval_low_ratio{model=~"$model"}': "at least",
        'swarmctl_approval_high_ratio{model=~"$model"}': "at most",
        'swarmctl_approval_votes{model=~"$model"}': "votes"}, "percentunit", 8, 8,
          "With its 95 % interval. Few votes, wide interval.", columns=("model", "category")),
    Panel("Approval by topic", "bargauge", {
        'swarmctl_topic_approval_ratio{model=~"$model"}': "{{topic}}: {{model}}"}, "percentunit", 8, 8,
          "Topics are those of `swarmctl topics`.", GOOD, 1, core=False),
    Panel("Ratings an hour", "timeseries", {
        'sum by (verdict) (rate(swarmctl_ratings_total{model=~"$model"}[1h])) * 3600': "{{verdict}}"}),
    Panel("Approval over time", "timeseries", {
        'swarmctl_approval_ratio{model=~"$model"}': "{{model}}, {{category}}"}, "percentunit", most=1),
    Panel("Blind comparisons won", "table", {
        'sum by (model, result) (swarmctl_comparisons_total{model=~"$model"})': "times"},
          columns=("model", "result"), core=False),
))
COST = Section("Cost", (
    Panel("Power of answering", "timeseries", {
        rate("swarmctl_energy_joules_total", "host"): "{{host}}"}, "watt", stacked=True,
          says="What answering draws on average, from each host's watts at work. Idle hosts are not in it."),
    Panel("Energy of an answer", "timeseries", {
        f"sum by (model) (rate(swarmctl_energy_joules_total{SERVED}[$__rate_interval])) / "
        f"sum by (model) (rate(swarmctl_exchanges_total{SERVED}[$__rate_interval]))": "{{model}}"}, "joule"),
    Panel("Money a day", "timeseries", {
        rate("swarmctl_energy_cost_total", "currency") + " * 86400": "{{currency}}"},
          says="The energy's price at the inventory's tariff, at this rate."),
))
HOSTS = Section("Hosts", (
    Panel("Up", "state-timeline", {f"swarmctl_host_up{ANY}": "{{host}}"}, wide=24, high=5,
          steps=((None, RED), (1, GREEN))),
    Panel("Processors", "timeseries", {f"swarmctl_host_cpu_ratio{ANY}": "{{host}}"}, "percentunit", most=1),
    Panel("Memory taken", "timeseries", {
        f"1 - swarmctl_host_memory_available_bytes{ANY} / swarmctl_host_memory_bytes{ANY}": "{{host}}"},
          "percentunit", most=1),
    Panel("Data disk taken", "timeseries", {
        f"1 - swarmctl_host_disk_free_bytes{ANY} / swarmctl_host_disk_bytes{ANY}": "{{host}}"},
          "percentunit", most=1, steps=LOW_IS_GOOD),
    Panel("GPU memory taken", "timeseries", {
        f"swarmctl_gpu_memory_used_bytes{ANY} / swarmctl_gpu_memory_bytes{ANY}": "{{host}} {{gpu}} {{name}}"},
          "percentunit", most=1, core=False),
    Panel("GPU at work", "timeseries", {f"swarmctl_gpu_ratio{ANY}": "{{host}} {{gpu}} {{name}}"},
          "percentunit", most=1, core=False),
    Panel("GPU temperature", "timeseries", {
        f"swarmctl_gpu_temperature_celsius{ANY}": "{{host}} {{gpu}} {{name}}"}, "celsius", core=False),
    Panel("GPU power", "timeseries", {f"swarmctl_gpu_power_watts{ANY}": "{{host}} {{gpu}} {{name}}"}, "watt",
          core=False),
    Panel("Load average a processor", "timeseries", {
        f"swarmctl_host_load{ANY} / swarmctl_host_threads{ANY}": "{{host}}"}),
    Panel("A token when asked for one", "timeseries", {
        f"swarmctl_server_token_seconds{SERVED}": "{{model}} on {{host}}"}, "s",
          says="Asked of a server without a question for two minutes; never of an Ollama."),
))
GATEWAY = Section("Gateway", (
    Panel("Requests a second", "timeseries", {
        "sum by (surface, status) (rate(swarmctl_http_requests_total[$__rate_interval]))":
            "{{surface}} {{status}}"}, "reqps", stacked=True),
    Panel("Whole request", "timeseries", {
        quantile(0.5, "swarmctl_http_request_seconds", "surface", ""): "{{surface}}, half",
        quantile(0.95, "swarmctl_http_request_seconds", "surface", ""): "{{surface}}, 95 %"}, "s"),
    Panel("In flight, and turned away", "timeseries", {
        "sum by (surface) (swarmctl_http_requests_in_flight)": "{{surface}} in flight",
        "sum by (reason) (rate(swarmctl_rejections_total[$__rate_interval]))": "{{reason}} a second"}),
))
SECTIONS = (OVERVIEW, QUESTIONS, LOAD, OPINION, COST, HOSTS, GATEWAY)


def panels() -> Iterator[Panel]:
    """Every panel."""
    for section in SECTIONS:
        yield from section.panels
