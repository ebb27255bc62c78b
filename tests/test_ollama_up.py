"""`up` and `down` on a mixed swarm over SSH: an Ollama of our own, an adopted one, a llama.cpp host.

Needs an Ollama: SWARMCTL_TEST_OLLAMA names the folder that holds its bin/ and lib/. Skipped without.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from running import Cli, ask_json
from stocked import free_ports, stock
from test_ollama import FOLDER, LONG, Server
from waiting import until

from swarmctl.errors import DiskFull
from swarmctl.paths import Paths
from swarmctl.verbs.up import up

pytestmark = [pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama"),
              pytest.mark.runtime]


@pytest.fixture(scope="module")
def release() -> str:
    """What the binary says it is."""
    environ = {**os.environ, "HOME": "/nonexistent", "OLLAMA_HOST": "127.0.0.1:1"}
    said = subprocess.run([Path(FOLDER, "bin", "ollama"), "--version"], capture_output=True, text=True,
                          env=environ, check=False)
    return (said.stdout + said.stderr).rpartition("version is ")[2].split()[0]


@pytest.fixture(scope="module")
def airgap(tmp_path_factory) -> Path:
    """A folder with the archive as its makers lay it out."""
    folder = tmp_path_factory.mktemp("airgap")
    with tarfile.open(folder / "ollama-linux-amd64.tgz", "w:gz", compresslevel=1) as tar:
        for name in ("bin/ollama", "lib/ollama"):
            tar.add(Path(FOLDER, name), name)
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Somebody's Ollama, started without swarmctl."""
    made = Server(tmp_path_factory.mktemp("stranger"))
    made.create("small")
    yield made
    os.killpg(made.process.pid, signal.SIGTERM)
    made.process.wait(30)


class Mixed(Cli):
    """A lab whose spinoza runs an Ollama of ours, calisota a stranger's, worlock llama.cpp."""

    def __init__(self, lab, stranger, airgap, release) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.lab = lab
        self.folders = {host.name: host.data_dir for host in lab.hosts}
        (self.port,) = free_ports(1)
        text = self.paths.inventory.read_text()
        own = f"    ollama: {{port: {self.port}, manage: own, version: '{release}'}}"
        text = text.replace("context: 256", "context: 1024")
        text = text.replace("version: 1\n", f"version: 1\nairgap: {json.dumps(str(airgap))}\n")
        for host, line in (("spinoza", own), ("calisota", f"    ollama: {{port: {stranger.port}}}")):
            head, mark, rest = text.partition(f"  {host}:\n")
            lines = rest.splitlines()
            at = next(n for n, one in enumerate(lines) if one.startswith("    llamacpp:"))
            lines[at] = line
            text = "\n".join((head + mark + lines[0], *lines[1:], ""))
        self.paths.inventory.write_text(text)

    def report(self) -> dict[str, dict]:
        return {host["host"]: host for host in json.loads(self.run("up", "--json").stdout)["hosts"]}

    def served(self) -> dict[str, dict]:
        fleet = json.loads(self.paths.fleet.read_text())
        return {host["name"]: host["served"][0] for host in fleet["hosts"]}


@pytest.fixture(scope="module")
def mixed(make_lab, stranger, airgap, release, llamacpp_bin, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    stock(cache, llamacpp_bin)
    swarm = Mixed(make_lab("loopback", cache=cache), stranger, airgap, release)
    swarm.first = swarm.report()
    yield swarm
    swarm.run("down")


def kinds(report: dict) -> list[str]:
    return [step["kind"] for step in report["steps"]]


def test_up_installs_its_own_ollama_adopts_the_other_and_keeps_llama_cpp(mixed, stranger):
    assert {name: host["state"] for name, host in mixed.first.items()} == dict.fromkeys(
        ("worlock", "spinoza", "calisota"), "changed")
    assert kinds(mixed.first["spinoza"]) == ["InstallRuntime", "StartServer", "CreateModel", "MeasureSpeed"]
    assert kinds(mixed.first["calisota"]) == ["CreateModel", "MeasureSpeed"]
    (note,) = mixed.first["calisota"]["notes"]
    assert note.startswith(f"adopts Ollama {mixed.first['spinoza']['steps'][0]['version']} on 127.0.0.1:")
    assert "a process" in note
    assert mixed.served()["worlock"]["runtime"] == "llamacpp"
    for host in ("spinoza", "calisota"):
        served = mixed.served()[host]
        assert (served["runtime"], served["tag"]) == ("ollama", f"{served['model']}:{served['digest'][:12]}")
        assert served["prefill_speed"] > 0
        assert served["decode_speed"] > 0


def test_a_second_up_plans_nothing(mixed):
    assert {host["state"] for host in mixed.report().values()} == {"unchanged"}


def test_every_host_is_ready_because_it_generated_or_would_load(mixed):
    rows = json.loads(mixed.run("status", "--json").stdout)
    rows = rows["hosts"] if isinstance(rows, dict) else rows
    assert {row["host"]: row["state"] for row in rows} == dict.fromkeys(mixed.folders, "ready")


def test_questions_go_over_both_runtimes_and_say_the_inventorys_name(mixed):
    routine = ask_json(mixed, "What is the capital of France?", "-m", "tiny-small")
    assert (routine["host"], routine["runtime"], routine["model"]) == ("spinoza", "ollama", "tiny-small")
    for host, runtime in (("worlock", "llamacpp"), ("calisota", "ollama")):
        row = ask_json(mixed, "hello", "--host", host)
        assert (row["host"], row["runtime"], row["model"]) == (host, runtime, "tiny-large")


def test_the_whole_journey_on_a_mixed_swarm(mixed, tmp_path):
    """Ask, structure, tools, chat, compare, rate, log, doctor, cordon, drain: over both runtimes as one."""
    for host, runtime in (("worlock", "llamacpp"), ("calisota", "ollama")):
        bound = ask_json(mixed, "2 + 2", "--host", host, "--schema", '{"type": "boolean"}')
        assert isinstance(json.loads(bound["answer"]), bool), runtime
        tools = json.dumps([{"name": "clock", "parameters": {"type": "object", "properties": {}}}])
        done = mixed.run("ask", "what time is it?", "--host", host, "--tools", tools, status=1)
        assert f"tiny-large on {host}: tiny-large" in done.stderr, done.stderr
        assert "cannot call tools: its chat template has none" in done.stderr
    lines = "What is the capital of France?\n/rate up good\nhello\n"
    talk = mixed.run("chat", "-m", "tiny-small", stdin=lines)
    assert "Paris" in talk.stdout
    first, second = (row for row in mixed.rows() if row.get("via") == "chat")
    assert second["conversation"] == first["conversation"]
    assert first["runtime"] == "ollama"
    mixed.run("compare", "What is the capital of Italy?", "-m", "tiny-small", "-m", "tiny-large", "--choice",
              "1")
    assert mixed.rows()[-1]["kind"] == "comparison"
    row = ask_json(mixed, "What is the capital of Spain?", "--host", "calisota")
    mixed.run("rate", "2")
    mixed.run("rate", "down", row["id"], "--correction", "Madrid, of course")
    assert mixed.rows()[-1]["correction"] == "Madrid, of course"
    count = mixed.run("log", "sql", "SELECT count(DISTINCT runtime) FROM exchanges", "--json").stdout
    assert "2" in count
    assert "of course" in mixed.run("log", "show", row["id"]).stdout
    report = json.loads(mixed.run("doctor", "--json", status=None).stdout)
    assert not [one for one in report["findings"] if one["rule"] in ("blob", "template", "token")], report
    mixed.run("cordon", "calisota")
    assert ask_json(mixed, "hello", "-m", "tiny-large")["host"] == "worlock"
    assert "cordoned" in mixed.run("ask", "hello", "-H", "calisota", status=2).stderr
    mixed.run("uncordon", "calisota")
    drained = json.loads(mixed.run("drain", "spinoza", "--json").stdout)
    assert drained["busy"] == 0
    mixed.run("uncordon", "spinoza")


def test_init_and_trust_lead_to_the_same_hosts(mixed, tmp_path):
    out = tmp_path / "inventory.yaml"
    mixed.run("init", "--from", "ssh", "-F", str(mixed.lab.ssh_config), "--hosts", "worlock,spinoza,calisota",
              "--no-discover", "--out", str(out))
    text = out.read_text()
    assert all(f"  {host}:" in text for host in mixed.folders)


def test_up_mends_a_model_whose_blob_was_deleted_behind_its_back(mixed):
    models = mixed.folders["spinoza"] / "ollama" / "models"
    tag = mixed.served()["spinoza"]["tag"]
    manifest = next((models / "manifests").rglob(tag.replace(":", "/")))
    layers = json.loads(manifest.read_text())["layers"]
    (digest,) = (layer["digest"] for layer in layers if layer["mediaType"].endswith(".model"))
    (models / "blobs" / digest.replace(":", "-")).unlink()
    mended = mixed.report()["spinoza"]
    assert kinds(mended) == ["CreateModel"]
    assert mended["steps"][0]["reason"] == "it lists that model and lacks its weights"
    assert {host["state"] for host in mixed.report().values()} == {"unchanged"}
    assert (models / "blobs" / digest.replace(":", "-")).exists()
    assert ask_json(mixed, "What is the capital of France?", "--host", "spinoza")["runtime"] == "ollama"


def test_a_runner_killed_in_mid_stream_is_answered_by_the_llama_cpp_host(mixed, stranger):
    ask_json(mixed, "hello", "--host", "calisota")
    runners = stranger.runners()
    process = mixed.start("ask", "-m", "tiny-large", "What is 23 + 45?", "--schema", json.dumps(LONG))
    assert process.stdout.read(3)
    for pid in runners:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"failed in the middle of this answer" in out
    row = mixed.rows()[-1]
    assert (row["attempts"][0]["host"], row["host"], row["runtime"]) == ("calisota", "worlock", "llamacpp")


def test_a_killed_server_comes_back_with_its_models(mixed):
    folder = mixed.folders["spinoza"] / "servers" / "ollama"
    before = (folder / "server.pid").read_text()
    os.kill(int(before), signal.SIGKILL)
    pid = folder / "server.pid"
    until(lambda: pid.exists() and pid.read_text() not in ("", before))
    time.sleep(1)
    assert {host["state"] for host in mixed.report().values()} == {"unchanged"}


def test_a_registry_out_of_reach_is_named_and_nothing_else_suffers(mixed):
    text = mixed.paths.inventory.read_text()
    far = text.replace("models:\n", "models:\n  far: {source: 'ollama:127.0.0.1:9/nobody/none:1'}\n", 1)
    head, mark, rest = far.partition("  spinoza:\n")
    rest = rest.replace("    models:\n", "    models:\n      - {model: far}\n", 1)
    mixed.paths.inventory.write_text(head + mark + rest)
    done = mixed.run("up", status=3)
    mixed.paths.inventory.write_text(text)
    assert "spinoza: it cannot reach the registry for 127.0.0.1:9/nobody/none:1" in done.stderr
    assert "models push" in done.stderr
    assert {host["state"] for host in mixed.report().values()} <= {"unchanged", "changed"}


def test_its_environment_follows_from_the_inventory_and_a_change_restarts_it(mixed):
    text = mixed.paths.inventory.read_text()
    mixed.paths.inventory.write_text(text.replace("manage: own,", "manage: own, env: {OLLAMA_DEBUG: 1},"))
    changed = mixed.report()["spinoza"]
    mixed.paths.inventory.write_text(text)
    assert kinds(changed) == ["StartServer", "MeasureSpeed"]
    assert "OLLAMA_DEBUG=1" in changed["steps"][0]["reason"]
    script = (mixed.folders["spinoza"] / "servers" / "ollama" / "run").read_text()
    assert "export OLLAMA_DEBUG=1" in script
    mixed.report()


def test_down_stops_our_own_and_leaves_the_adopted_one(mixed, stranger):
    said = mixed.run("down").stdout
    assert "spinoza   stopped ollama" in said
    assert f"the Ollama on 127.0.0.1:{stranger.port} is not swarmctl's and goes on" in said
    names = {model["name"] for model in json.loads(stranger.call("/api/tags"))["models"]}
    assert {"tiny-small:latest"} < names
    assert any(name.startswith("tiny-large:") for name in names)
    again = mixed.report()
    assert kinds(again["spinoza"]) == ["StartServer", "MeasureSpeed"], "its models and release stayed"
    assert again["calisota"]["state"] == "unchanged"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of 400 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


class Filling:
    """Watches `up` and fills the disk the moment a model's bytes have been sent."""

    def __init__(self, disk: Path) -> None:
        self.filler = disk / "filler"

    def note(self, text: str) -> None:
        pass

    def plan(self, plans) -> None:
        pass

    def event(self, event) -> None:
        if not event.title.startswith("create") or " of " not in event.detail or self.filler.exists():
            return
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))


def test_a_disk_that_fills_up_while_a_model_is_made_is_named_and_up_goes_on_later(
        small_disk, tmp_path, airgap, release):
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}),
              tmp_path / "home")
    (port,) = free_ports(1)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text(f"""\
version: 1
airgap: {airgap}
models:
  large: {{source: "shipped:large", context: 512}}
hosts:
  here:
    ssh: local
    data_dir: {small_disk / "data"}
    ollama: {{port: {port}, manage: own, version: "{release}"}}
    models: [large]
""")
    watcher = Filling(small_disk)
    try:
        (report,) = up(cli.paths, cli.paths.inventory, watcher)
        assert isinstance(report.error, DiskFull), report.error
        assert report.error.host == "here"
        assert "models prune" in report.error.hint
        watcher.filler.unlink()
        (again,) = json.loads(cli.run("up", "--json").stdout)["hosts"]
        assert kinds(again) == ["CreateModel", "MeasureSpeed"]
        assert ask_json(cli, "What is the capital of France?")["runtime"] == "ollama"
    finally:
        cli.run("down")


def test_a_release_is_taken_from_another_host_that_has_it(mixed):
    """worlock gets an Ollama too: no folder and no store has the archive any more, only spinoza has it. The
    model's bytes are there already, for llama.cpp."""
    text = mixed.paths.inventory.read_text()
    kept = [line for line in text.splitlines() if not line.startswith("airgap:")]
    at = next(n for n, line in enumerate(kept) if line == "  worlock:")
    (port,) = free_ports(1)
    version = mixed.first["spinoza"]["steps"][0]["version"]
    kept.insert(at + 1, f"    ollama: {{port: {port}, manage: own, version: '{version}'}}")
    place = next(n for n in range(at, len(kept)) if kept[n].startswith("      - {model: tiny-large"))
    kept.insert(place + 1, "      - {model: twin, runtime: ollama}")
    kept.insert(kept.index("models:") + 1, "  twin: {source: 'shipped:large', context: 512}")
    mixed.paths.inventory.write_text("\n".join((*kept, "")))
    shutil.rmtree(mixed.paths.store / "ollama", ignore_errors=True)
    try:
        worlock = mixed.report()["worlock"]
        assert kinds(worlock) == ["InstallRuntime", "StartServer", "CreateModel", "MeasureSpeed"]
        assert list((mixed.paths.store / "ollama").glob("*.tar.gz"))
        assert mixed.report()["worlock"]["state"] == "unchanged"
        fleet = json.loads(mixed.paths.fleet.read_text())
        runtimes = next([one["runtime"] for one in host["served"]] for host in fleet["hosts"]
                        if host["name"] == "worlock")
        assert runtimes == ["llamacpp", "ollama"]
        assert ask_json(mixed, "hello", "--host", "worlock", "-m", "twin")["runtime"] == "ollama"
    finally:
        mixed.paths.inventory.write_text(text)
    assert kinds(mixed.report()["worlock"]) == ["StopServer"]


class Pair(Cli):
    """This machine with an Ollama of ours that may hold one model, and two models for it."""

    def __init__(self, home: Path, archives: Path, version: str) -> None:
        super().__init__(Paths.from_environ({"SWARMCTL_HOME": str(home), "HOME": str(home)}), home)
        (self.port,) = free_ports(1)
        self.paths.inventory.parent.mkdir(parents=True)
        self.paths.inventory.write_text(f"""\
version: 1
airgap: {archives}
models:
  one: {{source: "shipped:large", context: 512}}
  two: {{source: "shipped:small", context: 512}}
hosts:
  here:
    ssh: local
    data_dir: {home / "data"}
    ollama: {{port: {self.port}, manage: own, version: "{version}", env: {{OLLAMA_MAX_LOADED_MODELS: 1}}}}
    models: [{{model: one, runtime: ollama}}, {{model: two, runtime: ollama}}]
""")

    def states(self) -> dict[str, str]:
        (host,) = json.loads(self.run("status", "--json").stdout)
        return {server["model"]: server["state"] for server in host["servers"]}

    def loads(self) -> int:
        """How often a model was loaded since the server started, from its own log."""
        logs = (self.paths.inventory.parent.parent / "data" / "servers" / "ollama").glob("*log*")
        return sum(path.read_text(errors="replace").count("starting llama-server") for path in logs)


def test_two_models_that_evict_each_other_are_told_apart_and_the_loaded_one_is_preferred(
        tmp_path, airgap, release):
    pair = Pair(tmp_path / "home", airgap, release)
    try:
        plan = json.loads(pair.run("up", "--dry-run", "--json").stdout)
        (start,) = (step for host in plan["hosts"] for step in host["steps"] if step["kind"] == "StartServer")
        assert "loading two evicts another model, as at most 1 may be loaded" in start["reason"]
        pair.run("up")
        fleet = json.loads(pair.paths.fleet.read_text())
        for served in fleet["hosts"][0]["served"]:
            served["load_seconds"] = 5.0  # as of a model of some gigabytes: a tiny one loads unnoticed
        pair.paths.fleet.write_text(json.dumps(fleet))
        for wanted, other in (("one", "two"), ("two", "one"), ("one", "two")):
            assert ask_json(pair, "hello", "-m", wanted)["model"] == wanted
            before = pair.loads()
            assert pair.states() == {wanted: "ready", other: "idle"}
            assert pair.states() == {wanted: "ready", other: "idle"}, "looking evicts nothing"
            assert ask_json(pair, "What is the capital of France?")["model"] == wanted
            pair.run("doctor", status=None)
            assert pair.states() == {wanted: "ready", other: "idle"}
            assert pair.loads() == before
        assert before >= 3, "every switch was a load"
    finally:
        pair.run("down")
