"""The fast box when it is on: a real host whose cable is pulled and plugged in again, while people ask."""

from __future__ import annotations

import json
import os
import time

import pytest
from running import Cli, ask_json

from swarmctl.dispatch.marks import read_mark
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.paths import Paths

pytestmark = [pytest.mark.runtime, pytest.mark.netns, pytest.mark.timeout(280)]

SUM = "What is 23 + 45?"


@pytest.fixture(scope="module")
def swarm(make_lab, llamacpp_bin):
    lab = make_lab("netns", cache=Paths.from_environ(os.environ).cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    cli.lab = lab
    text = lab.paths.inventory.read_text().replace("  calisota:\n", "  calisota:\n    intermittent: true\n")
    assert "intermittent" in text
    lab.paths.inventory.write_text(text)
    cli.run("up", limit=200)
    yield cli
    lab.host("calisota").mend()
    cli.run("down")
    lab.stop()


def test_the_fast_box_goes_and_comes_back_and_nobody_waits_or_is_told_off(swarm):
    box = swarm.lab.host("calisota")
    assert ask_json(swarm, SUM, "-H", "calisota")["host"] == "calisota"
    swarm.run("cordon", "worlock")
    assert ask_json(swarm, SUM)["host"] == "calisota"

    box.cut()
    first = swarm.run("ask", "--json", SUM)
    assert json.loads(first.stdout)["host"] == "spinoza"
    assert first.stderr == "", "off is no failure"
    mark = read_mark(swarm.paths, "calisota")
    assert mark.verify
    began = time.monotonic()
    swarm.run("ask", SUM)
    assert time.monotonic() - began < 3, "while the mark holds, nobody waits"

    states = {row["host"]: row["state"] for row in json.loads(swarm.run("status", "--json").stdout)}
    assert states == {"worlock": "cordoned", "spinoza": "ready", "calisota": "off"}
    done = json.loads(swarm.run("up", "--json").stdout)
    assert {host["host"]: host["state"] for host in done["hosts"]}["calisota"] == "off"
    doctor = swarm.run("doctor", "calisota", "--json").stdout
    assert [one["rule"] for one in json.loads(doctor)["findings"]] == ["off"]

    box.mend()
    file = swarm.paths.state / "down" / "calisota.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "until": time.time() - 1}))
    hosts = [ask_json(swarm, SUM)["host"] for _ in range(6)]
    assert hosts[0] == "spinoza", "not before it generated a token"
    assert hosts[-1] == "calisota"
    assert read_mark(swarm.paths, "calisota") is None
    swarm.run("uncordon", "worlock")


def test_up_records_how_many_gpus_work_and_which_host_may_be_off(swarm):
    fleet = read_fleet(swarm.paths.fleet)
    assert {entry.name: entry.intermittent for entry in fleet.hosts}["calisota"]
    assert {entry.gpus for entry in fleet.hosts} == {0}
