"""`upgrade` and `rollback` with real llama-servers: as good, slow, crashing and babbling new versions, moves
cut anywhere.

The next version is the real llama-server under another version's key, in an air-gapped folder; a worse one is
the same behind a script.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import tarfile
import time
from importlib import resources
from pathlib import Path

import pytest
from running import Cli
from stocked import free_ports, stock

from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.paths import Paths
from swarmctl.runtimes.llamacpp_build import LLAMACPP, choose_build

pytestmark = pytest.mark.runtime

GOOD, SLOW, CRASHING, BABBLING = "0.3.90", "0.3.91", "0.3.92", "0.3.93"
#: reads a prompt token by token
SLOW_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
exec "$0.real" "$@" --ubatch-size 1
"""
CRASHING_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
echo "CUDA error: no kernel image is available" >&2
exit 139
"""
#: serves weights that were shuffled, whichever it is given
BABBLING_SERVER = """\
#!/bin/sh
[ "$1" = --version ] && exec "$0.real" "$@"
for word in "$@"; do
    shift
    case $last in --model) word=$0.gguf ;; esac
    last=$word
    set -- "$@" "$word"
done
exec "$0.real" "$@"
"""
SCRIPTS = {GOOD: None, SLOW: SLOW_SERVER, CRASHING: CRASHING_SERVER, BABBLING: BABBLING_SERVER}


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
    for version, script in SCRIPTS.items():
        bin_ = folder / version / "bin"
        shutil.copytree(llamacpp_bin, bin_, symlinks=True)
        if script:
            (bin_ / "llama-server").rename(bin_ / "llama-server.real")
            (bin_ / "llama-server").write_text(script)
            (bin_ / "llama-server").chmod(0o755)
            (bin_ / "llama-server.gguf").write_bytes(shuffled(shipped_model("small").read_bytes()))
        with tarfile.open(folder / f"{choose_build('auto', seen, version).key}.tar.gz", "w:gz",
                          compresslevel=1) as tar:
            tar.add(bin_, "bin")
        shutil.rmtree(folder / version)
    return folder


def shipped_model(name) -> Path:
    return Path(str(resources.files("swarmctl.shipped"))) / name / "model.gguf"


def shuffled(model: bytes) -> bytes:
    """The same header and the weights of a model in another order."""
    data = len(model) // 3 // 1024 * 1024
    rows = [model[at:at + 1024] for at in range(data, len(model), 1024)]
    last = rows.pop()
    random.Random(1).shuffle(rows)
    return b"".join((model[:data], *rows, last))


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
        """A crowded machine is not what is tested: only what is much slower counts."""
        done = self.run("upgrade", "--json", "--tolerance", "0.3", *args, status=status)
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
    assert planned["a"]["notes"] == [
        f"llama.cpp {LLAMACPP} runs, {GOOD} is wanted: `swarmctl upgrade` moves it"]
    found = swarm.upgrade()
    assert {name: one["state"] for name, one in found.items()} == {"a": "kept", "b": "kept"}
    assert found["a"]["canary"] != found["b"]["canary"]
    assert swarm.runs("a") == swarm.runs("b") == GOOD
    assert any("6 of 6 greedy answers are the same" in line for line in found["a"]["compared"])
    assert swarm.up()["a"]["state"] == "unchanged"
    done = json.loads(swarm.run("rollback", "b", "--json", limit=60).stdout)
    assert (done["version"], done["left"]) == (LLAMACPP, GOOD)
    assert (swarm.runs("a"), swarm.runs("b")) == (GOOD, LLAMACPP)
    after = swarm.up()
    assert {host["state"] for host in after.values()} == {"unchanged"}, "a rollback stays"
    assert swarm.upgrade()["b"]["state"] == "held"
    assert swarm.upgrade("b", "--to", GOOD)["b"]["state"] == "kept"
    assert [event for event, *_ in swarm.history("b")] == ["begun", "kept", "rolled-back", "begun", "kept"]


@pytest.mark.parametrize(("version", "said"), [
    (SLOW, r"tokens/s \(0\.[012]\d of before, 0\.30 is asked\)"),
    (CRASHING, r"does not serve: .*it ends as soon as it starts.*no kernel image is available"),
    (BABBLING, r"\d of 6 (answers are none any more|greedy answers begin with another word)"),
])
def test_a_worse_version_goes_back_by_itself_and_nobody_else_gets_it(make, version, said):
    swarm = make("a", "b")
    swarm.want(version)
    done = swarm.run("upgrade", "--tolerance", "0.3", status=1)
    first = next(host for host in "ab" if f"{host}: goes first" in done.stdout)
    assert re.search(said, done.stderr, re.DOTALL), done.stderr
    assert f"{first}: llama.cpp {version} is worse, and {LLAMACPP} serves again" in done.stderr
    assert f"not tried: {({'a', 'b'} - {first}).pop()}" in done.stderr
    assert swarm.runs("a") == swarm.runs("b") == LLAMACPP
    assert swarm.history(first) == [("begun", LLAMACPP, version), ("returned", LLAMACPP, version)]
    assert {host["state"] for host in swarm.up().values()} == {"unchanged"}, "up does not walk into it"
    again = swarm.upgrade()
    assert {host["state"] for host in again.values()} == {"held"}, "nor does upgrade, on any host"
    status = json.loads(swarm.run("status", "--json").stdout)
    assert {row["state"] for row in (status["hosts"] if isinstance(status, dict) else status)} == {"ready"}


def test_an_upgrade_that_is_killed_at_any_moment_leaves_a_host_that_up_or_upgrade_puts_right(make):
    swarm = make("a")
    swarm.want(GOOD)
    rng = random.Random(3)
    for turn in range(6):
        process = swarm.start("upgrade")
        time.sleep(rng.uniform(0.5, 5.0))
        process.kill()
        process.communicate(timeout=20)
        if turn == 2:
            swarm.up()
            kept = ("kept", GOOD, LLAMACPP) in swarm.history("a")
            assert swarm.runs("a") == (GOOD if kept else LLAMACPP), "what was not verified does not stay"
    found = swarm.upgrade()["a"]
    assert found["state"] in ("kept", "unchanged")
    assert swarm.runs("a") == GOOD
    assert swarm.up()["a"]["state"] == "unchanged"
    assert ask(swarm) == "a"


def test_an_interrupted_upgrade_goes_back_before_it_ends(make):
    swarm = make("a")
    swarm.want(GOOD)
    process = swarm.start("upgrade")
    wait_for(lambda: swarm.runs("a") == GOOD)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert swarm.runs("a") == LLAMACPP
    assert swarm.history("a")[-1] == ("undecided", LLAMACPP, GOOD)
    assert ask(swarm) == "a"
    assert swarm.upgrade()["a"]["state"] == "kept"


@pytest.mark.parametrize(("version", "state"), [(GOOD, "kept"), (BABBLING, "returned")])
def test_an_embedding_model_is_judged_by_its_vectors(make, version, state):
    swarm = make("a")
    text = swarm.paths.inventory.read_text()
    swarm.paths.inventory.write_text(text.replace("'shipped:small', ", "'shipped:small', embedding: true, "))
    swarm.run("up")
    found = swarm.upgrade("--to", version, status=None)["a"]
    assert found["state"] == state
    said = " ".join((*found["why"], *found["compared"]))
    assert "its vectors are alike" in said if state == "kept" else "its vectors changed" in said
    assert swarm.runs("a") == (version if state == "kept" else LLAMACPP)


def wait_for(what, limit=60.0):
    deadline = time.monotonic() + limit
    while True:
        try:
            if what():
                return
        except (OSError, IndexError):  # between two servers
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(swarm) -> str:
    return json.loads(swarm.run("ask", "--json", "hello").stdout)["host"]
