"""The Grafana dashboard: every query of it runs in a real Prometheus, over a real swarm and its gateway."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_server import prometheus, scraping
from running import Cli, ask_json

from swarmctl.fleet.ports import free_ports
from swarmctl.monitor.catalogue import BY_NAME
from swarmctl.monitor.dashboard import dashboard
from swarmctl.monitor.panels import panels
from swarmctl.paths import Paths

WRITTEN = Path(__file__).parent.parent / "docs" / "monitoring" / "dashboard.json"
RULES = WRITTEN.with_name("alerts.yml")
QUESTIONS = ("What is 23 + 45?", "hello", "Write a Python function that adds two numbers.")


def test_the_file_is_what_the_command_writes():
    again = "swarmctl metrics dashboard -o docs/monitoring/dashboard.json"
    assert WRITTEN.read_text(encoding="utf-8") == dashboard(), again


def test_panels_stand_apart_and_within_the_grid():
    made = json.loads(dashboard())
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_every_query_asks_for_metrics_that_there_are():
    for panel in panels():
        for query in panel.queries:
            names = re.findall(r"swarmctl_[a-z_]+", query)
            known = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
            assert known <= BY_NAME.keys(), panel.title


def test_every_metric_that_is_of_use_in_a_graph_has_one():
    shown = " ".join(query for panel in panels() for query in panel.queries)
    for section in ("exchanges", "first_token", "energy_joules", "energy_cost", "queue_length",
                    "approval_ratio", "topic_approval", "gpu_memory_used", "gpu_ratio", "gpu_temperature",
                    "gpu_power", "host_up", "completion_tokens", "cascades", "breaker_state", "rejections",
                    "http_requests"):
        assert f"swarmctl_{section}" in shown


@pytest.fixture(scope="module")
def swarm(make_lab, llamacpp_bin):
    lab = make_lab("loopback", cache=Paths.from_environ(os.environ).cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    cli.run("up", limit=200)
    yield cli
    cli.run("down")
    lab.stop()


@contextlib.contextmanager
def serving(cli):
    """`swarmctl serve` on a free port."""
    (port,) = free_ports(1)
    process = cli.start("serve", "--port", str(port))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        limit = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < limit, "the gateway did not begin to listen"
            with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10):
                break
            time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def chat(port, question):
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": question}]}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body,
                                     {"content-type": "application/json"})
    with opener.open(request, timeout=60) as reply:
        return json.loads(reply.read())


def filled(query):
    return query.replace("$host", ".*").replace("$model", ".*").replace("$__rate_interval", "15s")


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_every_query_runs_and_a_swarm_in_use_has_data_in_every_core_panel(swarm, tmp_path):
    ask_json(swarm, QUESTIONS[0])
    swarm.run("rate", "up")
    ask_json(swarm, QUESTIONS[2])
    swarm.run("rate", "down")
    with serving(swarm) as port, prometheus(tmp_path, scraping(port), (RULES,)) as server:
        chat(port, QUESTIONS[1])
        server.until('swarmctl_http_requests_total{status="200",surface="openai"} > 0')
        server.until("swarmctl_server_generates == 1", 60)
        server.until("swarmctl_host_cpu_ratio", 90)
        for question in QUESTIONS:
            chat(port, question)
            ask_json(swarm, question)
        before = server.value("sum(swarmctl_exchanges_total)")
        assert before >= 3
        server.until("sum(swarmctl_exchanges_total) == 9")
        time.sleep(2.5)  # two more scrapes, for rates
        empty = []
        for panel in panels():
            found = [server.query(filled(query)) for query in panel.queries]
            values = [float(one["value"][1]) for result in found for one in result]
            if panel.core and not any(map(math.isfinite, values)):
                empty.append(panel.title)
        assert empty == []
        assert server.value("sum(swarmctl_host_up)") == 3
        assert server.value('sum(swarmctl_exchanges_total{via="serve"})') == 4
        assert server.get("/api/v1/rules")["data"]["groups"][0]["rules"]
