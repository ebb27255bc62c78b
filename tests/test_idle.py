"""Machines that sleep when nobody uses them: what speaks against it, as data; and the whole circle on a host
in a network namespace, put to sleep, left alone, woken by a magic packet, verified, and used again.

No machine here can suspend. The lab host's `sleep_command` freezes its model server and takes its network
card down, so that it is as silent as one asleep. A listener on its network has the part of the card that
wakes it: it hears the packet and undoes both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from recorded import paths_under
from running import Cli, ask_json
from waiting import until

from swarmctl.dispatch.marks import ASLEEP_PAUSE, clear_mark, mark_down, read_mark
from swarmctl.dispatch.on_demand import wake_for
from swarmctl.dispatch.swarm import Swarm, make_swarm
from swarmctl.errors import SwarmError
from swarmctl.fleet.asleep import awake_since, fell_asleep, read_asleep, seen_awake
from swarmctl.fleet.rest import Person, Use, against, parse_use
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, read_fleet, write_fleet
from swarmctl.fleet.standing import set_aside
from swarmctl.fleet.wake import magic_packet
from swarmctl.lab import processes
from swarmctl.paths import Paths
from swarmctl.routing.cost import Question, Route, Standing, choose

pytestmark = pytest.mark.timeout(280)

SUM = "What is 23 + 45?"
SAID = """Welcome to worlock
rest 1
data /mnt/nvme/swarmctl
uptime 86400
load 0.42 8
user ann pts/3 20
user bob tty2 7200
user ann desktop 4000
peer 192.168.1.9
gpu 3
gpu 97
lock ann's swarmctl on laptop
inhibit apt 0 root 4711 packagekitd shutdown:sleep update block
way sudo -n systemctl suspend
end
"""


def test_what_a_host_says_of_its_use_is_read():
    use = parse_use(SAID)
    assert (use.uptime, use.load, use.gpu, use.data_dir) == (86400.0, 0.0525, 97.0, "/mnt/nvme/swarmctl")
    assert use.people == (Person("ann", "pts/3", 20.0), Person("bob", "tty2", 7200.0),
                          Person("ann", "desktop", 4000.0))
    assert (use.peers, use.way) == (("192.168.1.9",), ("sudo", "-n", "systemctl", "suspend"))


@pytest.mark.parametrize("text", ["", "hello", "rest 1\nload 0.1 2\n", "rest 2\nend"])
def test_half_an_answer_is_an_error_and_not_an_idle_host(text):
    with pytest.raises(SwarmError, match="cannot be seen"):
        parse_use(text)


def test_everything_that_speaks_against_sleep_is_named():
    assert list(against(parse_use(SAID), quiet=1800, most_load=0.05)) == [
        "ann is typing at pts/3", "somebody is connected from 192.168.1.9",
        "ann's swarmctl on laptop is changing it",
        "sleep is forbidden by apt 0 root 4711 packagekitd shutdown:sleep update block",
        "a GPU is at work (97 %)", "it computes (load 0.05 a processor)"]
    assert list(against(Use(86400.0, 0.4), quiet=1800, most_load=0.5)) == []


def test_a_host_sleeps_until_it_is_seen_awake(tmp_path):
    paths = paths_under(tmp_path)
    assert not seen_awake(paths, "box", 900.0)
    fell_asleep(paths, "box", "systemctl suspend", 1000.0)
    asleep = read_asleep(paths, "box")
    assert "`swarmctl wake box` wakes it" in asleep.why
    mark = mark_down(paths, "box", "no route to host", 1000.0)
    assert (mark.why, mark.verify, mark.until) == (asleep.why, True, 1000.0 + ASLEEP_PAUSE)
    assert seen_awake(paths, "box", 2000.0)
    assert (read_asleep(paths, "box"), awake_since(paths, "box")) == (None, 2000.0)


def test_a_torn_note_of_sleep_is_none(tmp_path):
    paths = paths_under(tmp_path)
    fell_asleep(paths, "box", "", 1.0)
    for garbage in ("", "{", "[]", '{"host": "box"}'):
        (paths.state / "asleep" / "box.json").write_text(garbage)
        assert read_asleep(paths, "box") is None


def test_an_inventory_in_which_nobody_may_sleep_says_what_to_write(tmp_path):
    cli = Cli(paths_under(tmp_path), tmp_path)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text("version: 1\nhosts: {a: {ssh: local}}\n")
    assert "when_idle: suspend" in cli.run("idle", status=2).stderr
    assert "this very machine" in cli.run("sleep", "a", status=2).stderr
    assert "the inventory has no host b" in cli.run("sleep", "b", status=2).stderr


# --- for real: a host in a network namespace

SLEEP = """#!/bin/sh
kill -STOP $(cat "$1"/servers/*/server.pid)
echo sleeping
ip link set eth0 down
"""
CARD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 9))
print("ready", flush=True)
while sock.recvfrom(2048)[0].hex() != sys.argv[1]:
    pass
print("packet", flush=True)
"""


class Bedroom(Cli):
    """The lab of namespaces, in which calisota sleeps after five minutes and is woken by spinoza."""

    def __init__(self, lab) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.lab = lab
        self.box = lab.host("calisota")
        self.script = lab.folder / "sleep.sh"
        self.script.write_text(SLEEP)
        self.text = lab.paths.inventory.read_text()
        card = self.inside("calisota", "cat", "/sys/class/net/eth0/address")
        self.mac = card.communicate(timeout=20)[0].strip()
        self.policy()

    def policy(self, when_idle: str = "suspend", command: str | None = None, demand: str = "false") -> None:
        command = command or json.dumps(["sh", str(self.script), str(self.box.data_dir)])
        self.lab.paths.inventory.write_text(self.text.replace("  calisota:\n", (
            f"  calisota:\n    intermittent: true\n    mac: '{self.mac}'\n    idle_minutes: 5\n"
            f"    when_idle: {when_idle}\n    sleep_command: {command}\n    wake_via: spinoza\n"
            f"    wake_on_demand: {demand}\n    connect_timeout: 2\n")))

    def inside(self, host: str, *argv: str) -> subprocess.Popen:
        space = self.lab.host(host).space.name
        return subprocess.Popen(("ip", "netns", "exec", space, *argv), stdout=subprocess.PIPE, text=True)

    def idle(self, *args: str, status: int = 0) -> dict:
        return json.loads(self.run("idle", "--json", "--load", "1000", *args, status=status).stdout)[0]

    def awaken(self) -> None:
        """What the packet does to a machine."""
        subprocess.run(("ip", "-n", self.box.space.name, "link", "set", "eth0", "up"), check=True, timeout=20)
        processes.send((int(file.read_text()) for file in self.box.data_dir.glob("servers/*/server.pid")),
                       signal.SIGCONT)

    def card(self) -> subprocess.Popen:
        """The network card of the sleeping host: it wakes it at the packet, and at nothing else."""
        listener = self.inside("worlock", sys.executable, "-c", CARD, magic_packet(self.mac).hex())
        assert listener.stdout.readline() == "ready\n"

        def wait() -> None:
            with listener:
                if listener.stdout.readline() == "packet\n":
                    self.awaken()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return listener


@pytest.fixture(scope="module")
def bedroom(make_lab, llamacpp_bin):
    made = Bedroom(make_lab("netns", cache=Paths.from_environ(os.environ).cache))
    made.run("up", limit=200)
    yield made
    made.awaken()
    made.run("down", status=None)
    made.lab.stop()


@pytest.fixture
def box(bedroom):
    """calisota awake, known to be, and idle for long enough; worlock, which is as able, is set aside."""
    bedroom.policy()
    bedroom.awaken()
    bedroom.run("cordon", "worlock")
    clear_mark(bedroom.paths, "calisota")
    asleep = bedroom.paths.state / "asleep"
    for file in asleep.glob("*"):
        file.unlink()
    for file in (bedroom.paths.state / "wake").glob("*"):
        file.unlink()
    return bedroom


def quiet(bedroom: Bedroom) -> None:
    """An hour passes: all that says when the host was last of use is an hour older."""
    state = bedroom.paths.state
    then = time.time() - 3600
    for file in (state / "habits").glob("calisota@*"):
        os.utime(file, (then, then))
    for file in (state / "asleep").glob("*.awake"):
        file.write_text(json.dumps({"since": then}))
    fleet = read_fleet(bedroom.paths.fleet)
    made = datetime.fromtimestamp(then, UTC).isoformat(timespec="seconds")
    write_fleet(bedroom.paths.fleet, replace(fleet, written=made))


def timed(bedroom: Bedroom) -> tuple[dict, float]:
    began = time.monotonic()
    row = ask_json(bedroom, SUM)
    return row, time.monotonic() - began


@pytest.mark.netns
@pytest.mark.runtime
def test_the_whole_circle_idle_sleep_ask_wake_verified_traffic(box):
    assert timed(box)[0]["host"] == "calisota"
    assert box.idle()["state"] == "waiting", "it has just answered"
    quiet(box)
    assert box.idle("--dry-run")["state"] == "idle"
    row = box.idle()
    assert row["state"] == "slept", row
    assert "sleep.sh" in row["detail"]

    states = {each["host"]: each for each in json.loads(box.run("status", "--json").stdout)}
    assert states["calisota"]["state"] == "off"
    assert box.idle()["state"] in ("asleep", "waiting")
    for _ in range(3):
        row, seconds = timed(box)
        assert row["host"] == "spinoza"
        assert seconds < 3, "nobody waits for a host that sleeps"
    (out,) = [one for one in row["route"]["excluded"] if one["host"] == "calisota"]
    assert out["reason"].startswith("asleep since")

    card = box.card()
    found = json.loads(box.run("wake", "calisota", "--wait", "--timeout", "60", "--json").stdout)
    assert card.wait(20) == 0
    assert found["sent_from"].startswith("spinoza, with ")
    assert (found["why"], read_mark(box.paths, "calisota")) == ("", None)
    assert read_asleep(box.paths, "calisota") is None
    assert timed(box)[0]["host"] == "calisota"


@pytest.mark.netns
@pytest.mark.runtime
def test_a_host_that_is_woken_without_a_word_is_found_and_stays_awake(box):
    quiet(box)
    assert box.idle()["state"] == "slept"
    box.awaken()
    quiet(box)
    assert box.idle()["detail"] == "it is back from sleep"
    assert box.idle()["state"] == "waiting", "its minutes begin anew"


@pytest.mark.netns
@pytest.mark.runtime
def test_who_is_connected_keeps_it_awake(box):
    quiet(box)
    known = f"UserKnownHostsFile={box.paths.known_hosts}"
    ssh = ("ssh", "-F", str(box.lab.ssh_config), "-o", known, "calisota", "sleep", "60")
    with box.inside("worlock", *ssh) as guest:
        row = until(lambda: (seen := box.idle("--dry-run"))["state"] == "in use" and seen)
        assert row["detail"] == f"somebody is connected from {box.lab.host('worlock').address}"
        assert "somebody uses it" in box.run("sleep", "calisota", "--load", "1000", status=1).stderr
        guest.kill()


@pytest.mark.netns
@pytest.mark.runtime
def test_a_host_that_computes_stays_awake(box):
    quiet(box)
    row = json.loads(box.run("idle", "--json", "--load", "0").stdout)[0]
    assert row["state"] == "in use"
    assert row["detail"].startswith("it computes (load ")


@pytest.mark.netns
@pytest.mark.runtime
def test_a_command_that_does_not_put_it_to_sleep_leaves_it_in_service(box):
    box.policy(command='[sh, -c, "echo not permitted; exit 1"]')
    quiet(box)
    began = time.monotonic()
    row = box.idle(status=3)
    assert time.monotonic() - began < 60
    assert row["state"] == "failed"
    assert "not permitted" in row["detail"]
    assert read_asleep(box.paths, "calisota") is None
    assert timed(box)[0]["host"] == "calisota"


@pytest.mark.netns
@pytest.mark.runtime
def test_without_a_command_it_says_what_would_allow_it(box):
    text = box.lab.paths.inventory.read_text()
    lines = [line for line in text.splitlines() if "sleep_command" not in line]
    box.lab.paths.inventory.write_text("\n".join(lines) + "\n")
    quiet(box)
    row = box.idle(status=3)
    assert "polkit" in row["detail"]


NOW = 1_795_428_235.0


def two_hosts(folder) -> Swarm:
    """One that is awake, and a faster one that may be woken; both serve the same model."""
    served = Served("llamacpp", "s", "tiny", "d", "t", 1, 1024, 1, 700_000, 1, "F16", 3000.0, 300.0)
    near = HostEntry("near", "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), (served,))
    box = replace(near, name="box", ssh="box", served=(replace(served, decode_speed=3000.0),),
                  intermittent=True, wake_on_demand=True)
    return make_swarm(paths_under(folder), Fleet("i", "s", "2026-01-01T00:00:00+00:00", None, 30.0, 60.0,
                                                 (near, box)))


def test_speed_alone_wakes_nobody_and_a_bad_prospect_does(tmp_path):
    swarm = two_hosts(tmp_path)
    fell_asleep(swarm.paths, "box", "", NOW)
    question = Question("routine", 40)
    near = swarm.candidates[0]
    way = choose(question, [(near, Standing())], swarm.tariff)
    started: list[str] = []

    def woken(way: Route | None) -> str | None:
        return wake_for(swarm, question, swarm.candidates, way, NOW,
                        start=lambda _, host: started.append(host))

    assert woken(way) is None
    assert woken(replace(way, prices=(replace(way.chosen, risk=way.chosen.risk + 6),))) == "box"
    assert woken(None) == "box", "nobody else is there"
    assert started == ["box", "box"]
    set_aside(swarm.paths, "box", "cordoned", NOW)
    assert woken(None) is None, "an admin's word holds"


@pytest.mark.netns
@pytest.mark.runtime
def test_a_question_that_only_a_sleeping_host_answers_wakes_it_and_does_not_wait(box):
    box.policy(demand="true")
    box.run("up", limit=200)
    quiet(box)
    assert box.idle()["state"] == "slept"
    card = box.card()
    row, seconds = timed(box)
    assert row["host"] == "spinoza"
    assert seconds < 3, "the question does not wait for it"
    deadline = time.monotonic() + 90
    while read_mark(box.paths, "calisota") is not None:
        assert time.monotonic() < deadline, (box.paths.state / "wake" / "calisota.log").read_text()
        time.sleep(0.5)
    assert card.wait(20) == 0
    assert ask_json(box, SUM)["host"] == "calisota", "verified by whoever woke it"
