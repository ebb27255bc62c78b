"""`swarmctl up`, `down` and `logs` as processes: cut anywhere, two at once, failing hosts, three over SSH."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from running import Cli
from stocked import free_ports, stock

from swarmctl.cli.groups import alike
from swarmctl.cli.up import plan_text, raise_failures, report_text
from swarmctl.errors import CommandTimeout, HostUnreachable, SomeHostsFailed, SwarmError
from swarmctl.paths import Paths
from swarmctl.steps import InstallRuntime, StopServer
from swarmctl.verbs.up import HostReport

runtime = pytest.mark.runtime


@pytest.fixture(scope="module")
def cache(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    stock(folder, llamacpp_bin)
    return folder


class Here(Cli):
    """The command with a home of its own, and an inventory of local hosts."""

    def __init__(self, folder, cache, hosts=("here",), models=("small",)):
        super().__init__(Paths.from_environ({"SWARMCTL_HOME": str(folder / "home"), "HOME": str(folder)}),
                         folder / "home")
        self.folder = folder
        self.hosts = hosts
        self.paths.cache.parent.mkdir(parents=True)
        self.paths.cache.symlink_to(cache)
        self.ports = dict(zip(hosts, free_ports(len(hosts)), strict=True))
        self.write(models)

    def write(self, models):
        lines = ["version: 1", "models:"]
        lines += [f"  {model}: {{source: 'shipped:{model}', context: 512}}" for model in ("small", "large")]
        lines += ["hosts:"]
        for host in self.hosts:
            lines += [f"  {host}:", "    ssh: local", f"    data_dir: {self.folder / host}",
                      f"    llamacpp: {{port: {self.ports[host]}}}", f"    models: [{', '.join(models)}]"]
        self.paths.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.paths.inventory.write_text("\n".join((*lines, "")))

    def up_report(self, **more):
        return {host["host"]: host for host in json.loads(self.run("up", "--json", **more).stdout)["hosts"]}

    def fleet(self):
        return json.loads(self.paths.fleet.read_text())


@pytest.fixture
def here(tmp_path, cache):
    made = Here(tmp_path, cache)
    yield made
    made.run("down")


def lives(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@runtime
def test_up_then_nothing_to_do_then_down_and_up_again(here):
    assert here.up_report()["here"]["state"] == "changed"
    again = here.run("up")
    assert again.stdout == "here: nothing to do\n"
    (host,) = here.fleet()["hosts"]
    (served,) = host["served"]
    assert served["model"] == "small"
    assert served["decode_speed"] > 0
    assert here.run("down").stdout == "here  stopped small\n"
    assert not here.paths.fleet.exists()
    assert here.run("down").stdout == "here  nothing was running\n"
    kinds = [step["kind"] for step in here.up_report()["here"]["steps"]]
    assert kinds == ["StartServer", "MeasureSpeed"], "weights and runtime had stayed"


@runtime
def test_a_dry_run_shows_reasons_and_changes_nothing(here):
    done = here.run("up", "--dry-run")
    assert "1. install llama.cpp" in done.stdout
    assert done.stdout.count("because") == 4
    assert not (here.folder / "here").exists()
    assert not here.paths.fleet.exists()
    report = json.loads(here.run("up", "--dry-run", "--json").stdout)
    assert report["dry_run"] is True
    assert [step["kind"] for step in report["hosts"][0]["steps"]][-1] == "MeasureSpeed"


@runtime
def test_up_killed_at_random_moments_and_run_again_converges(here):
    rng = random.Random(7)
    for _ in range(8):
        process = here.start("up")
        time.sleep(rng.uniform(0.25, 1.8))
        process.kill()
        process.communicate(timeout=20)
    report = here.up_report()["here"]
    assert report["state"] in {"changed", "unchanged"}
    assert here.up_report()["here"]["state"] == "unchanged"
    folder = here.folder / "here"
    assert [path.name for path in (folder / "servers").glob("*")] == ["small"]
    found = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    assert sum(str(folder) in line and "llama-server --model" in line for line in found.splitlines()) == 1


@runtime
def test_two_ups_at_once_both_end_well_and_one_waited(here):
    first = here.start("up")
    second = here.start("up")
    ends = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    said = [stderr.decode() for _, stderr in ends]
    assert sum("waiting for" in text and "swarmctl (pid" in text for text in said) == 1
    assert here.up_report()["here"]["state"] == "unchanged"


@runtime
def test_a_host_that_another_machine_changes_is_refused_by_name(here):
    lock = here.folder / "here" / "lock"
    lock.mkdir(parents=True)
    (lock / "owner").write_text("ada@laptop:/home/ada pid 7\n")
    (lock / "until").write_text(str(int(time.time()) + 600))
    done = here.run("up", status=1)
    assert "here: ada@laptop:/home/ada pid 7 is changing this host" in done.stderr
    (lock / "until").write_text("1")
    here.up_report()


@runtime
def test_a_port_that_is_taken_fails_that_host_and_no_other(tmp_path, cache):
    swarm = Here(tmp_path, cache, hosts=("one", "two"))
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", swarm.ports["two"]))
        squatter.listen()
        done = swarm.run("up", status=3)
    assert f"port {swarm.ports['two']}, wanted for small, is taken by" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "one  done: 4 steps" in done.stdout
    assert "cannot be planned: two" in done.stdout
    assert [host["name"] for host in swarm.fleet()["hosts"]] == ["one"]
    assert swarm.up_report()["two"]["state"] == "changed"
    swarm.run("down", "--host", "two")
    assert [host["name"] for host in swarm.fleet()["hosts"]] == ["one"]
    swarm.run("down")


@runtime
def test_a_host_that_is_off_keeps_its_last_known_entry(tmp_path, cache):
    swarm = Here(tmp_path, cache, hosts=("one", "two"))
    swarm.run("up")
    text = swarm.paths.inventory.read_text()
    (dead,) = free_ports(1)
    off = text.replace("  two:\n    ssh: local", f"  two:\n    ssh: 127.0.0.1:{dead}")
    swarm.paths.inventory.write_text(off)
    done = swarm.run("up", status=3)
    assert "two" in done.stderr
    assert "cannot be planned: two\none: nothing to do" in done.stdout
    assert [host["name"] for host in swarm.fleet()["hosts"]] == ["one", "two"]
    swarm.paths.inventory.write_text(text)
    swarm.run("down")


@runtime
def test_models_come_and_go_with_the_inventory(here):
    here.run("up")
    here.write(["small", "large"])
    assert [step["kind"] for step in here.up_report()["here"]["steps"]] == [
        "PutBlob", "StartServer", "MeasureSpeed"]
    here.write(["large", "small"])
    report = here.up_report()["here"]
    assert report["state"] == "changed", "the ports were swapped"
    here.write(["large"])
    assert here.up_report()["here"]["steps"][0]["kind"] == "StopServer"
    assert [one["model"] for one in here.fleet()["hosts"][0]["served"]] == ["large"]


@runtime
def test_logs_show_and_follow_and_end_on_interrupt(here):
    here.run("up")
    assert len(here.run("logs", "here", "-n", "3").stdout.splitlines()) == 3
    assert "there is no server nope" in here.run("logs", "here", "nope", status=2).stderr
    assert "has no host elsewhere" in here.run("logs", "elsewhere", status=2).stderr
    process = here.start("logs", "here", "small", "-f", "-n", "0")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, b"")), daemon=True)
    reader.start()
    log = here.folder / "here" / "servers" / "small" / "log"
    deadline = time.monotonic() + 30
    while not any(b"hello" in line for line in lines):
        assert time.monotonic() < deadline
        with log.open("a") as file:
            file.write("hello\n")
        time.sleep(0.3)
    (log.parent / "log.1").write_bytes(log.read_bytes())
    os.truncate(log, 0)
    while not any(b"after the rotation" in line for line in lines):
        assert time.monotonic() < deadline
        with log.open("a") as file:
            file.write("after the rotation\n")
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    reader.join(60)
    assert b"Traceback" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_usage_errors_say_what_there_is(tmp_path):
    swarm = Here(tmp_path, tmp_path / "cache")
    assert "the inventory has no host nowhere" in swarm.run("up", "--host", "nowhere", status=2).stderr
    assert "it has here" in swarm.run("down", "--host", "nowhere", status=2).stderr


@runtime
def test_runtime_build_finds_what_is_there_and_list_marks_it(here):
    built = here.run("runtime", "build")
    assert (Path(built.stdout.strip()) / "llama-server").exists()
    assert "already there" in built.stderr
    (one,) = json.loads(here.run("runtime", "list", "--json").stdout)
    assert one["native"] is True
    assert here.run("runtime", "list").stdout.startswith(f"* {one['key']}")


@runtime
def test_three_ssh_hosts_come_up_stay_up_after_the_connection_and_go_down(make_lab, cache):
    lab = make_lab("loopback", cache=cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    try:
        report = json.loads(cli.run("up", "--json").stdout)["hosts"]
        assert {host["host"]: host["state"] for host in report} == dict.fromkeys(
            ("worlock", "spinoza", "calisota"), "changed")
        again = json.loads(cli.run("up", "--json").stdout)["hosts"]
        assert [host["state"] for host in again] == ["unchanged"] * 3
        for host in lab.hosts:
            (pid_file,) = (host.data_dir / "servers").glob("*/server.pid")
            assert lives(int(pid_file.read_text()))
    finally:
        cli.run("down")
    for host in lab.hosts:
        assert list((host.data_dir / "servers").iterdir()) == []
        assert list((host.data_dir / "blobs").iterdir())


STEPS = (
    InstallRuntime("k", "0.3.36", "cpu", (), "cpu: no GPU was found"),
    StopServer("old", "own", "the inventory no longer wants it here"),
)


def test_the_plan_and_the_report_read_well():
    error = SwarmError("no answer", host="calisota", hint="is it on?")
    planned = (HostReport("spinoza", "planned", STEPS), HostReport("worlock", "unchanged"),
               HostReport("calisota", "failed", error=error))
    assert plan_text(planned) == """\
spinoza: 2 steps
  1. install llama.cpp 0.3.36 (cpu)
     because cpu: no GPU was found
  2. stop server old
     because the inventory no longer wants it here
cannot be planned: calisota
worlock: nothing to do"""
    done = (HostReport("spinoza", "changed", STEPS[:1], seconds=61.25), *planned[1:])
    assert report_text(done) == "spinoza  done: 1 step in 61.2 s"
    assert report_text((HostReport("spinoza", "failed", STEPS, error), *planned[1:])) == "spinoza  FAILED"


def test_two_hundred_hosts_read_well_too():
    names = [f"h{number:03d}" for number in range(1, 201)]
    note = "Ollama on port 11434 is adopted as it is"
    refused = [HostUnreachable("no SSH connection (Connection refused)", host=name,
                               hint=f"is it on? `ssh -v {name}` shows more") for name in names[:3]]
    silent = CommandTimeout("not done within 60 s", host="h004")
    reports = (*(HostReport(error.host, "failed", error=error) for error in (*refused, silent)),
               *(HostReport(name, "unchanged", notes=(note,)) for name in names[4:6]),
               *(HostReport(name, "unchanged") for name in names[6:]))
    assert plan_text(reports) == """\
  note: h005, h006: Ollama on port 11434 is adopted as it is
cannot be planned: h001, h002, h003, h004
196 hosts unchanged"""
    assert report_text(reports) == ""
    with pytest.raises(SomeHostsFailed, match="4 of 200 hosts failed") as failed:
        raise_failures(reports)
    assert failed.value.hint == """\
3 hosts: no SSH connection (Connection refused)
  h001, h002, h003
  for h001: is it on? `ssh -v h001` shows more
h004: not done within 60 s"""


def test_what_differs_from_host_to_host_does_not_part_one_reason():
    told = [(f"h{number}", f"h{number} shows the key SHA256:ab/c") for number in range(1, 4)]
    assert alike([*told, ("h9", "off")]) == ((("h1", "h2", "h3"), told[0][1]), (("h9",), "off"))


def test_a_fingerprint_is_not_shown_as_that_of_other_hosts():
    told = [(f"h{number}", f"its key (ssh-ed25519 SHA256:{number}ab/c) is in no file")
            for number in range(1, 4)]
    assert alike(told) == ((("h1", "h2", "h3"), "its key (ssh-ed25519 SHA256:…) is in no file"),)
    assert alike(told[:1]) == ((("h1",), told[0][1]),)


def test_numbers_part_few_reasons_and_not_many():
    told = [(f"h{number}", f"{number} GB free of 8 GB") for number in range(1, 21)]
    assert alike(told[:2]) == ((("h1",), told[0][1]), (("h2",), told[1][1]))
    assert alike(told) == ((tuple(host for host, _ in told), told[0][1]),)


@runtime
def test_a_host_that_left_the_inventory_is_pointed_out(tmp_path, cache):
    swarm = Here(tmp_path, cache, hosts=("one", "two"))
    swarm.run("up")
    swarm.hosts = ("one",)
    swarm.write(["small"])
    assert "two has left the inventory and goes on serving" in swarm.run("up").stderr
    swarm.hosts = ("one", "two")
    swarm.write(["small"])
    swarm.run("down")
