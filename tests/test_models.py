"""`swarmctl models` over real SSH hosts and, where there is one, a real Ollama: every byte once, and nothing
of the owner's touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from running import Cli
from test_ollama import FOLDER, Server

from swarmctl.errors import (
    DiskFull,
    RequestRejected,
    ServerUnavailable,
    SwarmError,
    TransferFailed,
    UsageError,
)
from swarmctl.fleet import blobs, transfer
from swarmctl.fleet.blobs import Blob, Place, from_here, from_host, passing_path, reaches
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.remote import LocalRemote, connect
from swarmctl.fleet.yard import Yard
from swarmctl.inventory import Host
from swarmctl.runtimes import ollama_models, ollama_names
from swarmctl.runtimes.base import Endpoint
from swarmctl.shipped import shipped_model
from swarmctl.verbs.models import fits, listing, waste
from swarmctl.verbs.models_move import copy, push

needs_ollama = pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama")
SMALL = shipped_model("small") / "model.gguf"
LARGE = shipped_model("large") / "model.gguf"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Swarm(Cli):
    """A lab's hosts under an inventory of the test's own."""

    def __init__(self, lab, ollamas=None):
        super().__init__(lab.paths, lab.home)
        self.lab = lab
        for host in lab.hosts:
            shutil.rmtree(host.data_dir, ignore_errors=True)
        lines = ["version: 1", f"ssh_config: {lab.ssh_config}", "models:",
                 "  small: {source: 'shipped:small', context: 512}",
                 "  large: {source: 'shipped:large', context: 512}", "hosts:"]
        for host in lab.hosts:
            lines += [f"  {host.name}:", f"    data_dir: {host.data_dir}", "    limits: {threads: 1}"]
            if host.name in (ollamas or {}):
                lines += [f"    ollama: {{port: {ollamas[host.name].port}, manage: adopt}}"]
            else:
                lines += [f"    llamacpp: {{port: {host.llamacpp_port}}}"]
            if host.name == "worlock":
                lines += ["    models: [small]"]
        lab.paths.inventory.write_text("\n".join((*lines, "")))
        self.yard = Yard(lab.paths, read_inventory(lab.paths.inventory), lab.paths.inventory)
        self.events = []

    def between(self, hosts):
        self.yard = replace(self.yard, inventory=replace(self.yard.inventory, between_hosts=hosts))

    def hosts(self, *names):
        return self.yard.chosen(names)

    def push(self, file, *names, **more):
        return push(self.yard, file, self.hosts(*names), self.events.append, **more)

    def copy(self, name, source, *names, **more):
        (origin,) = self.hosts(source)
        return copy(self.yard, name, origin, self.hosts(*names), self.events.append, **more)

    def rows(self, *only):
        return {host.name: rows for host, rows in listing(self.yard, only)}

    def blob(self, host, path=SMALL):
        return self.lab.host(host).data_dir / "blobs" / f"sha256-{digest(path)}"

    def place(self, host, path):
        (found,) = self.hosts(host)
        return Place(connect(found, self.paths, self.yard.inventory.ssh_config), str(path),
                     str(self.lab.host(host).data_dir), found.ssh, self.yard.inventory.ssh_config)


@pytest.fixture
def swarm(lab_loopback):
    return Swarm(lab_loopback)


@pytest.fixture(scope="module")
def ollamas(tmp_path_factory):
    if not FOLDER:
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    made = {name: Server(tmp_path_factory.mktemp(name)) for name in ("spinoza", "calisota")}
    yield made
    for server in made.values():
        os.killpg(server.process.pid, signal.SIGTERM)
        server.process.wait(30)


@pytest.fixture
def mixed(lab_loopback, ollamas):
    """worlock on llama.cpp, spinoza and calisota each with an Ollama that is theirs."""
    for server in ollamas.values():
        for tag in ollama_models.tags(Endpoint(port=server.port)):
            ollama_models.delete(Endpoint(port=server.port), tag.name)
    return Swarm(lab_loopback, ollamas)


def teller(events):
    return Teller("there", 1, 1, "copy", events.append)


# --- bytes

def test_a_push_puts_a_blob_under_its_hash_and_a_second_one_moves_no_weights(swarm):
    first = swarm.push(SMALL, "worlock", "spinoza", "calisota")
    assert [one.state for one in first] == ["moved"] * 3
    assert sum(one.sent for one in first) == 3 * SMALL.stat().st_size
    assert digest(swarm.blob("calisota")) == digest(SMALL)
    again = swarm.push(SMALL, "worlock", "spinoza", "calisota")
    assert [(one.state, one.sent) for one in again] == [("there", 0)] * 3
    assert not list(swarm.lab.host("worlock").data_dir.rglob("*.part"))
    assert not list(swarm.lab.host("worlock").data_dir.glob("lock"))


def test_a_file_that_was_cut_off_or_is_not_there_is_not_pushed(swarm, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(SMALL.read_bytes()[:-50_000])
    with pytest.raises(SwarmError, match="was cut off: its 20 tensors take"):
        swarm.push(cut, "spinoza")
    with pytest.raises(UsageError, match=r"^there is no .*none\.gguf"):
        swarm.push(tmp_path / "none.gguf", "spinoza")
    assert not (swarm.lab.host("spinoza").data_dir / "blobs" / f"sha256-{digest(cut)}").exists()


def test_a_host_that_is_off_fails_alone(swarm):
    off = replace(swarm.yard.inventory.host("spinoza"), ssh="127.0.0.1:1")
    hosts = tuple(off if host.name == "spinoza" else host for host in swarm.yard.inventory.hosts)
    yard = replace(swarm.yard, inventory=replace(swarm.yard.inventory, hosts=hosts))
    moved = push(yard, SMALL, yard.chosen(()), swarm.events.append)
    assert {one.host: one.state for one in moved} == {"worlock": "moved", "spinoza": "failed",
                                                      "calisota": "moved"}


def test_a_copy_between_hosts_streams_through_here_and_leaves_no_file_here(swarm, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    swarm.between("never")
    swarm.push(SMALL, "worlock")
    (moved,) = swarm.copy("small", "worlock", "calisota")
    assert (moved.state, moved.way) == ("moved", "from worlock through this machine")
    assert digest(swarm.blob("calisota")) == digest(SMALL)
    assert list(tmp_path.iterdir()) == []
    (again,) = swarm.copy(digest(SMALL)[:12], "worlock", "calisota")
    assert (again.state, again.sent) == ("there", 0)


def test_a_copy_that_broke_goes_on_where_it_broke(swarm, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 8)
    blob = Blob("big", digest(big), big.stat().st_size)
    source = swarm.place("worlock", big)
    to = swarm.place("calisota", swarm.lab.host("calisota").data_dir / "x")
    Path(to.path).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{to.path}.part").write_bytes(big.read_bytes()[:5 << 20])
    heard = []
    assert from_host(source, to, blob, teller(heard))
    assert heard[0].detail.startswith("5.2 of 8.4 MB")
    assert digest(Path(to.path)) == blob.sha256


def test_a_source_that_ends_early_is_no_end_and_what_came_is_kept(swarm, tmp_path):
    short = tmp_path / "short"
    short.write_bytes(os.urandom(1 << 20))
    blob = Blob("gone", digest(short), short.stat().st_size)
    to = swarm.place("calisota", swarm.lab.host("calisota").data_dir / "y")
    with pytest.raises(TransferFailed, match="cannot read") as caught:
        from_host(swarm.place("worlock", tmp_path / "nothing"), to, blob, teller([]))
    assert caught.value.host == "worlock"
    assert not Path(to.path).exists()


def test_hosts_that_trust_each_other_get_it_straight(swarm, tmp_path, monkeypatch):
    """The giving host's `ssh` knows the lab's key and the other's host key, as an admin may set it up."""
    wrapper = tmp_path / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {swarm.lab.ssh_config} '
                       f'-o UserKnownHostsFile={swarm.paths.known_hosts} '
                       f'-i {swarm.lab.folder / "client_key"} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 8)
    blob = Blob("big", digest(big), big.stat().st_size)
    source = Place(LocalRemote("giver"), str(big), str(tmp_path), "giver", None)
    to = swarm.place("calisota", swarm.lab.host("calisota").data_dir / "z")
    ssh = reaches(source, to)
    assert ssh[0] == "ssh"
    monkeypatch.setattr(blobs, "_through_here", None)
    assert from_host(source, to, blob, teller([]), ssh)
    assert digest(Path(to.path)) == blob.sha256
    assert not list((swarm.lab.host("calisota").data_dir / "incoming").glob("hello-*"))


def test_an_address_that_means_another_machine_from_over_there_is_not_taken(swarm, tmp_path, monkeypatch):
    wrapper = tmp_path / "ssh"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *BatchMode*) echo somebody else;; '
                       f'*) exec {shutil.which("ssh")} "$@";; esac\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = Place(LocalRemote("giver"), "/x", str(tmp_path), "giver", None)
    assert reaches(source, swarm.place("calisota", "/y")) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_too_small_is_refused_with_numbers_before_a_byte(swarm, tmp_path):
    data = swarm.lab.host("calisota").data_dir
    data.mkdir(parents=True, exist_ok=True)
    big = tmp_path / "big"
    big.write_bytes(b"x" * (40 << 20))
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=80m", "swarmctl-test", str(data)), check=True)
    try:
        to = swarm.place("calisota", data / "blobs" / "b")
        with pytest.raises(DiskFull, match=r"model big needs 109 MB at .*, where \d+ MB are free"):
            from_here(big, to, Blob("big", digest(big), big.stat().st_size), teller([]))
        assert not list(data.rglob("*b*.part"))
        to.remote.close()
    finally:
        subprocess.run(("umount", "-l", str(data)), check=True)


def test_what_is_no_gguf_is_refused_here(swarm, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(SwarmError, match="not a usable GGUF"):
        swarm.push(tmp_path / "x.gguf", "worlock")
    with pytest.raises(UsageError, match="is a folder"):
        swarm.push(tmp_path, "worlock")
    with pytest.raises(UsageError, match="no Ollama answers"):
        raise swarm.push(SMALL, "worlock", runtime="ollama")[0].error


# --- listing, removing, pruning

def test_the_list_says_what_is_where_and_what_nobody_wants(swarm):
    swarm.push(SMALL, "worlock", "spinoza", name="small")
    rows = swarm.rows()
    (wanted,), (idle,) = rows["worlock"], rows["spinoza"]
    assert (wanted.holding.model, wanted.holding.digest) == ("small", digest(SMALL))
    assert wanted.holding.quantisation == "F16"
    assert (wanted.holding.wanted, idle.holding.wanted) == (True, False)
    assert rows["calisota"] == ()
    shown = swarm.run("models", "list").stdout
    assert digest(SMALL)[:12] in shown
    assert {row["host"] for row in json.loads(swarm.run("models", "list", "--json").stdout)} == {"worlock",
                                                                                               "spinoza"}


def test_prune_removes_what_nobody_wants_and_keeps_the_rest(swarm):
    swarm.push(SMALL, "worlock", "spinoza")
    swarm.push(LARGE, "worlock")
    dry = json.loads(swarm.run("models", "prune", "--dry-run", "--json").stdout)
    assert {(one["host"], one["digest"]) for one in dry["removed"]} == {
        ("worlock", digest(LARGE)), ("spinoza", digest(SMALL))}
    assert swarm.blob("spinoza").exists()
    assert "nobody to ask" in swarm.run("models", "prune", status=2).stderr
    assert swarm.blob("spinoza").exists()
    assert "removed" in swarm.run("models", "prune", "--yes").stdout
    assert swarm.blob("worlock").exists()
    assert not swarm.blob("worlock", LARGE).exists()
    assert not swarm.blob("spinoza").exists()
    assert swarm.run("models", "prune").stdout == "nothing to remove\n"


def test_a_blob_that_a_server_names_is_never_pruned(swarm):
    swarm.push(SMALL, "spinoza")
    folder = swarm.lab.host("spinoza").data_dir / "servers" / "old"
    folder.mkdir(parents=True)
    (folder / "run").write_text(f"exec llama-server --model {swarm.blob('spinoza')}\n")
    assert {name: what for name, what in _waste(swarm).items() if what} == {}
    assert "server old uses it" in swarm.run("models", "remove", "small", "--host", "spinoza", "--yes",
                                             status=2).stderr


def test_nothing_is_called_unwanted_while_it_is_uncertain_what_is_wanted(swarm):
    text = swarm.paths.inventory.read_text().replace("shipped:small", "/nowhere/model.gguf")
    swarm.paths.inventory.write_text(text)
    assert "/nowhere/model.gguf" in swarm.run("models", "prune", "--yes", status=1).stderr


def test_what_the_inventory_wants_is_not_removed_by_hand(swarm):
    swarm.push(SMALL, "worlock", "spinoza")
    assert "the inventory wants it" in swarm.run("models", "remove", "small", "--host", "worlock", "--yes",
                                                 status=2).stderr
    swarm.run("models", "remove", "small", "--host", "spinoza", "--yes")
    assert not swarm.blob("spinoza").exists()
    assert "holds no small" in swarm.run("models", "remove", "small", "--host", "spinoza", status=2).stderr


def test_the_fit_of_what_is_wanted_is_shown_with_its_sum(swarm):
    ((_, (share,)),) = [(host, shares) for host, shares in fits(swarm.yard) if shares]
    assert share.fits
    (row,) = json.loads(swarm.run("models", "fit", "--json").stdout)
    assert row["needs"] == share.weights + share.cache + share.headroom
    assert "small" in swarm.run("models", "fit").stdout


def _waste(swarm):
    return {host.name: found[1] for host, found in waste(swarm.yard)}


# --- Ollama

@needs_ollama
def test_a_gguf_becomes_a_model_named_after_its_bytes_and_answers(mixed, ollamas):
    moved = mixed.push(SMALL, "spinoza", "calisota", name="tiny")
    tag = f"tiny:{digest(SMALL)[:12]}"
    assert {(one.host, one.state, one.name) for one in moved} == {("spinoza", "moved", tag),
                                                                  ("calisota", "moved", tag)}
    said = json.loads(ollamas["calisota"].call("/api/generate", {
        "model": tag, "prompt": "a", "stream": False, "options": {"num_predict": 2, "num_thread": 1}}))
    assert said["eval_count"] > 0
    assert not Path(passing_path(str(mixed.lab.host("calisota").data_dir), digest(SMALL))).exists()
    rows = mixed.rows("calisota")["calisota"]
    assert [(row.holding.tag, row.holding.loaded, row.holding.ours) for row in rows] == [(tag, True, True)]
    assert [one.sent for one in mixed.push(SMALL, "spinoza", "calisota", name="tiny")] == [0, 0]


@needs_ollama
def test_an_owners_model_is_copied_whole_and_never_pruned(mixed, ollamas):
    server = ollamas["spinoza"]
    server.call(f"/api/blobs/sha256:{digest(LARGE)}", LARGE.read_bytes())
    server.call("/api/create", {"model": "theirs", "files": {"m.gguf": f"sha256:{digest(LARGE)}"},
                                "stream": False, "system": "be kind",
                                "parameters": {"num_thread": 1, "stop": ["END", "###"]}})
    (moved,) = mixed.copy("theirs", "spinoza", "calisota")
    assert (moved.state, moved.runtime, moved.name) == ("moved", "ollama", "theirs:latest")
    there, here = (ollama_models.card(Endpoint(port=ollamas[name].port), "theirs")
                   for name in ("calisota", "spinoza"))
    assert (there.sha256, there.recipe) == (here.sha256, here.recipe)
    assert there.recipe["system"] == "be kind"
    assert sorted(there.recipe["parameters"]["stop"]) == ["###", "END"]
    mixed.push(SMALL, "calisota", name="left")
    assert [one.tag for one in _waste(mixed)["calisota"]] == [f"left:{digest(SMALL)[:12]}"]
    mixed.run("models", "prune", "--yes")
    left = [tag.name for tag in ollama_models.tags(Endpoint(port=ollamas["calisota"].port))]
    assert left == ["theirs:latest"]
    mixed.run("models", "remove", "theirs", "--host", "calisota", "--yes")
    assert ollama_models.tags(Endpoint(port=ollamas["calisota"].port)) == ()


@needs_ollama
def test_a_blob_of_llamacpp_becomes_a_model_in_another_hosts_ollama(mixed, ollamas):
    mixed.push(SMALL, "worlock", name="small")
    (moved,) = mixed.copy("small", "worlock", "spinoza", runtime="ollama")
    assert moved.name == f"small:{digest(SMALL)[:12]}"
    assert moved.sent == SMALL.stat().st_size
    assert [tag.name for tag in ollama_models.tags(Endpoint(port=ollamas["spinoza"].port))] == [moved.name]


@needs_ollama
def test_a_wanted_model_is_made_as_up_would_make_it(mixed, ollamas):
    text = mixed.paths.inventory.read_text().replace(
        f"{{port: {ollamas['spinoza'].port}, manage: adopt}}\n",
        f"{{port: {ollamas['spinoza'].port}, manage: adopt}}\n    models: [small]\n")
    mixed.paths.inventory.write_text(text)
    mixed.yard = replace(mixed.yard, inventory=read_inventory(mixed.paths.inventory))
    (moved,) = mixed.push(SMALL, "spinoza", name="small")
    made = ollama_models.card(Endpoint(port=ollamas["spinoza"].port), moved.name)
    assert made.recipe["parameters"] == {"num_thread": 1, "num_ctx": 512}
    assert [row.holding.wanted for row in mixed.rows("spinoza")["spinoza"]] == [True]
    assert _waste(mixed)["spinoza"] == ()


@needs_ollama
def test_a_registry_out_of_reach_is_told_with_the_other_roads(mixed):
    done = mixed.run("models", "pull", "qwen3:0.6b", "--host", "spinoza", status=3)
    assert "spinoza: it cannot reach the registry for qwen3:0.6b" in done.stderr
    assert "swarmctl models push" in done.stderr


@needs_ollama
def test_refusals_of_the_server_are_told_as_what_they_are(ollamas):
    near = Endpoint(port=ollamas["spinoza"].port)
    with pytest.raises(RequestRejected, match="digest mismatch"):
        ollama_models.send_blob(near, "0" * 64, 3, iter([b"abc"]), timeout=20)
    with pytest.raises(RequestRejected, match="not found"):
        ollama_models.delete(near, "nobody")
    with pytest.raises(ServerUnavailable, match="no such file"):
        ollama_models.create(near, "bad", {"x.gguf": "1" * 64})
    with pytest.raises(RequestRejected, match="not found"):
        ollama_models.card(near, "nobody")


def test_names_are_the_servers():
    assert ollama_names.full_name("qwen3") == "qwen3:latest"
    assert ollama_names.full_name("hub/x/qwen3:8b") == "hub/x/qwen3:8b"
    assert ollama_names.ours("tiny:0123456789ab") == ("tiny", "0123456789ab")
    assert ollama_names.ours("qwen3:8b") is None
    assert ollama_names.tag_name("a:b", "F" * 64) == "a-b:ffffffffffff"


def test_a_host_here_is_never_reached_by_another(swarm):
    here = Place(LocalRemote("here"), "/x", "/tmp", "local", None)
    assert reaches(here, swarm.place("worlock", "/y")) == ()
    assert Host("here", "local").local


def test_to_hosts_that_trust_each_other_this_machine_sends_once(lab):
    swarm = Swarm(lab)
    lab.befriend()
    where = swarm.place("worlock", "/x").remote.run(("sh", "-c", "command -v ssh"), timeout=10).stdout
    if str(lab.folder) not in where:
        pytest.skip("this user's shell reads no start-up file over SSH")
    swarm.between("trusted")
    moved = {one.host: one for one in swarm.push(SMALL, "worlock", "spinoza", "calisota")}
    (first,) = [one.host for one in moved.values() if one.way == "from this machine"]
    assert {one.way for one in moved.values() if one.host != first} == {f"straight from {first}"}
    for name in moved:
        assert digest(swarm.blob(name)) == digest(SMALL)
    later = swarm.copy("small", "worlock", "spinoza")
    assert later[0].sent == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_relay_ends_at_once_when_the_receiving_disk_is_full(swarm, tmp_path, monkeypatch):
    data = swarm.lab.host("calisota").data_dir
    data.mkdir(parents=True, exist_ok=True)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 40)
    monkeypatch.setattr(blobs, "_need", lambda *_: None)
    monkeypatch.setattr(transfer, "SPARE", -(64 << 20))  # so that it is not refused beforehand
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=30m", "swarmctl-test", str(data)), check=True)
    try:
        to = swarm.place("calisota", data / "b")
        blob = Blob("big", digest(big), big.stat().st_size)
        with pytest.raises(DiskFull, match="no room for"):
            from_host(swarm.place("worlock", big), to, blob, teller([]))
        assert not list(data.glob("b*"))
        to.remote.close()
    finally:
        subprocess.run(("umount", "-l", str(data)), check=True)
