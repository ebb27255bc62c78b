"""A real Ollama server upgraded over SSH while people ask, and rolled back; a stranger's is left alone.

Needs two Ollamas of different versions: SWARMCTL_TEST_OLLAMA and SWARMCTL_TEST_OLLAMA_NEXT each name the
folder of one's bin/ and lib/. Skipped without.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from running import Cli
from stocked import free_ports
from test_ollama import FOLDER, Server

NEXT = os.environ.get("SWARMCTL_TEST_OLLAMA_NEXT", "")
pytestmark = [pytest.mark.skipif(not FOLDER or not NEXT, reason="SWARMCTL_TEST_OLLAMA and "
                                 "SWARMCTL_TEST_OLLAMA_NEXT name no two Ollamas"), pytest.mark.runtime]


def release(folder: str) -> str:
    """What the binary says it is."""
    environ = {**os.environ, "HOME": "/nonexistent", "OLLAMA_HOST": "127.0.0.1:1"}
    said = subprocess.run([Path(folder, "bin", "ollama"), "--version"], capture_output=True, text=True,
                          env=environ, check=False)
    return (said.stdout + said.stderr).rpartition("version is ")[2].split()[0]


@pytest.fixture(scope="module")
def airgap(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("airgap")
    for source in (FOLDER, NEXT):
        with tarfile.open(folder / f"ollama-{release(source)}-linux-amd64.tgz", "w:gz",
                          compresslevel=1) as tar:
            for name in ("bin/ollama", "lib/ollama"):
                tar.add(Path(source, name), name)
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("stranger"))
    yield made
    os.killpg(made.process.pid, signal.SIGTERM)
    made.process.wait(30)


class Three(Cli):
    """A lab: Ollamas of ours on spinoza and calisota, a stranger's on worlock."""

    def __init__(self, lab, airgap, stranger) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.folders = {host.name: host.data_dir for host in lab.hosts}
        self.airgap, self.theirs = airgap, stranger.port
        self.ports = dict(zip(("spinoza", "calisota"), free_ports(2), strict=True))
        self.ssh = re.search(r"^ssh_config: .*$", self.paths.inventory.read_text(), re.MULTILINE)[0]
        self.want(release(FOLDER))

    def want(self, version) -> None:
        own = "ollama: {{port: {}, manage: own, version: '{}'}}"
        ollamas = {"worlock": f"ollama: {{port: {self.theirs}}}",
                   **{host: own.format(port, version) for host, port in self.ports.items()}}
        lines = ["version: 1", self.ssh, f"airgap: {json.dumps(str(self.airgap))}", "models:",
                 "  tiny: {source: 'shipped:small', context: 512}", "hosts:"]
        for host, folder in self.folders.items():
            lines += [f"  {host}:", f"    data_dir: {json.dumps(str(folder))}", f"    {ollamas[host]}",
                      "    models: [tiny]"]
        self.paths.inventory.write_text("\n".join((*lines, "")))

    def upgrade(self, *args, status=0) -> dict[str, dict]:
        done = self.run("upgrade", "--json", *args, status=status)
        return {host["host"]: host for host in json.loads(done.stdout)["hosts"]}

    def serves(self, host) -> str:
        """The version that answers on a host's port."""
        return json.loads(subprocess.run(("curl", "-s", f"http://127.0.0.1:{self.ports[host]}/api/version"),
                                         capture_output=True, text=True, check=True).stdout)["version"]


@pytest.fixture(scope="module")
def swarm(make_lab, airgap, stranger, tmp_path_factory):
    made = Three(make_lab("loopback", cache=tmp_path_factory.mktemp("cache")), airgap, stranger)
    made.run("up")
    yield made
    made.run("down")


class Askers:
    """People who ask without a break, from terminals of their own."""

    def __init__(self, swarm, count=2) -> None:
        self.swarm, self.hosts, self.failures = swarm, [], []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def _ask(self) -> None:
        while not self.over.is_set():
            done = self.swarm.run("ask", "--json", "What is the capital of France?", status=None)
            if done.returncode != 0:
                self.failures.append(done.stderr)
            else:
                row = json.loads(done.stdout)
                self.hosts.append((row["host"], row["answer"]))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)


def test_servers_are_upgraded_one_after_the_other_while_people_ask(swarm):
    new = release(NEXT)
    swarm.want(new)
    report = json.loads(swarm.run("up", "--json").stdout)["hosts"]
    assert {host["state"] for host in report} == {"unchanged"}
    with Askers(swarm) as people:
        time.sleep(2)
        found = swarm.upgrade("--tolerance", "0.2")  # people keep the machine busy
        time.sleep(1)
    assert people.failures == []
    assert len(people.hosts) > 10
    assert all("Paris" in answer for _, answer in people.hosts)
    assert not any(attempt["tokens"] for row in swarm.rows() for attempt in row["attempts"]), "none was cut"
    assert {name: one["state"] for name, one in found.items()} == {
        "spinoza": "kept", "calisota": "kept", "worlock": "adopted"}
    assert "whoever installed it upgrades it" in found["worlock"]["note"]
    assert [swarm.serves(host) for host in swarm.ports] == [new, new]
    assert {host["state"] for host in json.loads(swarm.run("up", "--json").stdout)["hosts"]} == {"unchanged"}


def test_a_rollback_takes_seconds_and_installs_nothing(swarm):
    old, new = release(FOLDER), release(NEXT)
    shutil.rmtree(swarm.paths.store, ignore_errors=True)
    done = json.loads(swarm.run("rollback", "spinoza", "--json", limit=60).stdout)
    assert (done["runtime"], done["version"], done["left"]) == ("ollama", old, new)
    assert swarm.serves("spinoza") == old
    report = json.loads(swarm.run("up", "--json").stdout)["hosts"]
    assert {host["state"] for host in report} == {"unchanged"}
    assert any(f"{new} was left on" in note for host in report for note in host["notes"])
    found = swarm.run("rollback", "worlock", status=1)
    assert "adopted" in found.stderr
