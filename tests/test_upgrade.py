"""`upgrade` and `rollback` with real llama-servers: as good, slow, crashing and babbling new versions, moves
cut anywhere.

The next version is the real llama-server under another version's key, in an air-gapped folder; a worse one is
the same behind a script.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from running import Cli, ask_json
from stocked import free_ports, stock

from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.paths import Paths
from swarmctl.runtimes.llamacpp_build import LLAMACPP, choose_build

pytestmark = pytest.mark.runtime

GOOD, SLOW, CRASHING, BABBLING, MUTE = "0.3.90", "0.3.91", "0.3.92", "0.3.93", "0.3.94"
#: as `exec` would be, with a share of the time only
SLOW_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
"$0.real" "$@" &
child=$!
trap 'kill -CONT $child; kill -TERM $child; wait $child; exit 0' TERM INT
while kill -0 $child 2>/dev/null; do
    kill -STOP $child
    sleep 0.03
    kill -CONT $child
    sleep 0.01
done
"""
CRASHING_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
echo "CUDA error: no kernel image is available" >&2
exit 139
"""
#: answers every chat with the same words, and all else as the real one
BABBLING_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
exec %(python)s "$0.py" "$0.real" "$@"
"""


@pytest.fixture(scope="module")
def cache(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    stock(folder, llamacpp_bin)
    return folder


@pytest.fixture(scope="module")
def airgap(llamacpp_bin, tmp_path_factory) -> Path:
    """A folder with builds of versions to come."""
    folder = tmp_path_factory.mktemp("airgap")
    seen = survey(LocalRemote("here"), Host("here", "local", data_dir=str(folder / "none")))
    for version, script in ((GOOD, None), (SLOW, SLOW_SERVER), (CRASHING, CRASHING_SERVER)):
        bin_ = folder / version / "bin"
        shutil.copytree(llamacpp_bin, bin_, symlinks=True)
        if script:
            (bin_ / "llama-server").rename(bin_ / "llama-server.real")
            (bin_ / "llama-server").write_text(script)
            (bin_ / "llama-server").chmod(0o755)
        with tarfile.open(folder / f"{choose_build('auto', seen, version).key}.tar.gz", "w:gz",
                          compresslevel=1) as tar:
            tar.add(bin_, "bin")
        shutil.rmtree(folder / version)
    return folder


class Swarm(Cli):
    """Local hosts with llama.cpp, and the command with a home of its own."""

    def __init__(self, folder, cache, airgap, hosts) -> None:
        super().__init__(Paths.from_environ({"SWARMCTL_HOME": str(folder / "home"), "HOME": str(folder)}),
                         folder / "home")
        self.folder, self.airgap, self.hosts = folder, airgap, hosts
        self.paths.cache.mkdir(parents=True)
        shutil.copytree(cache / "store", self.paths.store, symlinks=True)
        self.ports = dict(zip(hosts, free_ports(len(hosts)), strict=True))
        self.want(None)

    def want(self, version, models="small") -> None:
        """Write the inventory, with that version of llama.cpp."""
        named = f", version: {version}" if version else ""
        lines = ["version: 1", f"airgap: {self.airgap}", "models:",
                 "  small: {source: 'shipped:small', context: 512}",
                 "  large: {source: 'shipped:large', context: 512}", "hosts:"]
        for host in self.hosts:
            lines += [f"  {host}:", "    ssh: local", f"    data_dir: {self.folder / host}",
                      f"    llamacpp: {{port: {self.ports[host]}{named}}}", f"    models: [{models}]"]
        self.paths.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.paths.inventory.write_text("\n".join((*lines, "")))

    def runs(self, host) -> str:
        """The version that a host's server runs in truth."""
        pid = (self.folder / host / "servers" / "small" / "server.pid").read_text().strip()
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        return line.split("/runtimes/llamacpp/")[1].partition("-")[0]

    def history(self, host) -> list[tuple[str, str, str]]:
        lines = (self.folder / host / "runtimes" / "versions.jsonl").read_text().splitlines()
        return [(row["event"], row["version"], row["other"]) for row in map(json.loads, lines)]

    def upgrade(self, *args, status=0) -> dict[str, dict]:
        done = self.run("upgrade", "--json", *args, status=status)
        return {host["host"]: host for host in json.loads(done.stdout)["hosts"]}

    def up(self, *args) -> dict[str, dict]:
        return {host["host"]: host for host in json.loads(self.run("up", "--json", *args).stdout)["hosts"]}


@pytest.fixture
def make(tmp_path, cache, airgap):
    made = []

    def one(*hosts) -> Swarm:
        made.append(Swarm(tmp_path, cache, airgap, hosts))
        made[-1].run("up")
        return made[-1]

    yield one
    for swarm in made:
        swarm.run("down")


def test_a_version_as_good_is_kept_on_the_canary_and_then_on_the_rest_and_rolled_back_in_seconds(make):
    swarm = make("a", "b")
    swarm.want(GOOD)
    planned = swarm.up()
    assert {host["state"] for host in planned.values()} == {"unchanged"}, "up moves no host"
    assert planned["a"]["notes"] == [f"llama.cpp {LLAMACPP} runs, {GOOD} is wanted: `swarmctl upgrade a`"]
    found = swarm.upgrade()
    assert {name: one["state"] for name, one in found.items()} == {"a": "kept", "b": "kept"}
    assert found["a"]["canary"] != found["b"]["canary"]
    assert swarm.runs("a") == swarm.runs("b") == GOOD
    assert any("6 of 6 greedy answers are the same" in line for line in found["a"]["compared"])
    assert swarm.up()["a"]["state"] == "unchanged"
    began = time.monotonic()
    done = json.loads(swarm.run("rollback", "b", "--json").stdout)
    assert time.monotonic() - began < 30
    assert (done["version"], done["left"]) == (LLAMACPP, GOOD)
    assert (swarm.runs("a"), swarm.runs("b")) == (GOOD, LLAMACPP)
    after = swarm.up()
    assert {host["state"] for host in after.values()} == {"unchanged"}, "a rollback stays"
    assert swarm.upgrade()["b"]["state"] == "held"
    assert swarm.upgrade("b", "--to", GOOD)["b"]["state"] == "kept"
    assert [event for event, *_ in swarm.history("b")] == ["begun", "kept", "rolled-back", "begun", "kept"]
