"""A deploy onto a real Ollama whose network is cut while it makes the model: before it was asked, and once it
has made it and could not say so. The old model serves on; the same command makes the release once.

Needs root for network namespaces, and an Ollama: SWARMCTL_TEST_OLLAMA names the folder of bin/ and lib/.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import NETNS_REASON, can_make_namespaces
from running import Cli, ask_json
from stocked import stock
from test_ollama import FOLDER
from waiting import until

from swarmctl.lab import network
from swarmctl.shipped import shipped_model

pytestmark = [
    pytest.mark.runtime, pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama"),
    pytest.mark.skipif(not can_make_namespaces(), reason=NETNS_REASON)]
OLLAMA, WIRE = 11500, 11434
#: what lies between the tunnel and Ollama on the host: a wire that stops at `POST /api/create` where the file
#: `hold` says so, before the request goes on ("asked"), or once the answer to it is complete ("made")
RELAY = """
import socket, sys, threading, time
from pathlib import Path
address, port, wire, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
hold, held = folder / "hold", folder / "held"

def stop():
    held.touch()
    while hold.exists():
        time.sleep(0.05)

def back(near, far, create):
    said = b""
    while data := far.recv(65536):
        said += data
        if create and hold.exists():
            if b'"success"' in said:
                stop()
                break
            continue
        near.sendall(data)
    for one in (near, far):
        one.close()

def serve(near):
    data = near.recv(65536)
    create = data.startswith(b"POST /api/create ")
    if create and hold.exists() and hold.read_text() == "asked":
        stop()
        near.close()
        return
    far = socket.create_connection((address, port))
    threading.Thread(target=back, args=(near, far, create), daemon=True).start()
    try:
        while data:
            far.sendall(data)
            data = near.recv(65536)
        far.shutdown(socket.SHUT_WR)
    except OSError:
        pass

with socket.create_server(("127.0.0.1", wire)) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


class Cut(Cli):
    """A lab of one host in a namespace, where an Ollama runs that we adopt."""

    def __init__(self, lab, folder: Path) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.host, self.folder = lab.hosts[0], folder
        self.models = folder / "models"
        environ = {**os.environ, "OLLAMA_HOST": f"{self.host.address}:{OLLAMA}", "OLLAMA_NO_CLOUD": "1",
                   "OLLAMA_MODELS": str(self.models), "HOME": str(folder)}
        (folder / "relay.py").write_text(RELAY)
        self.processes = [self.inside(*argv, env=environ) for argv in (
            (f"{FOLDER}/bin/ollama", "serve"),
            (sys.executable, str(folder / "relay.py"), self.host.address, str(OLLAMA), str(WIRE),
             str(folder)))]
        until(self.answers)
        self.paths.inventory.write_text("\n".join((
            f"version: 1\nssh_config: {json.dumps(str(lab.ssh_config))}",
            "models: {small: {source: 'shipped:small', context: 512, parallel: 1}}\nhosts:",
            f"  {self.host.name}: {{data_dir: {self.host.data_dir}, models: [small],",
            f"    ollama: {{port: {WIRE}, manage: adopt}}, limits: {{threads: 1}}}}", "")))

    def inside(self, *argv: str, **more) -> subprocess.Popen:
        return subprocess.Popen((*network.inside(self.host.space, self.host.name), *argv),
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                **more)

    def call(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://{self.host.address}:{OLLAMA}{path}", timeout=60) as reply:
            return json.load(reply)

    def answers(self) -> bool:
        try:
            return bool(self.call("/api/version"))
        except OSError:
            return False

    def tags(self) -> list[str]:
        return sorted(one["name"] for one in self.call("/api/tags")["models"])

    def over_there(self, tag: str) -> str:
        """What a model answers to somebody on the host itself."""
        body = json.dumps({"model": tag, "prompt": "What is the capital of France?", "stream": False,
                           "options": {"temperature": 0, "num_predict": 20}})
        done = subprocess.run(("ip", "netns", "exec", self.host.space.name, "curl", "-sS", "-d", body,
                               f"http://127.0.0.1:{WIRE}/api/generate"), capture_output=True, text=True,
                              timeout=120, check=True)
        return json.loads(done.stdout)["response"]

    def history(self, release: str) -> list[str]:
        rows = json.loads(self.run("models", "history", "small", "--json").stdout)
        return [one["action"] for one in rows if one["release"] == release]

    def stop(self) -> None:
        for process in self.processes:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def cut(make_lab, llamacpp_bin, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    stock(cache, llamacpp_bin)
    made = Cut(make_lab("netns", hosts=1, cache=cache), tmp_path_factory.mktemp("ollama"))
    try:
        made.run("up")
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("when", ["asked", "made"])
def test_a_network_cut_while_ollama_makes_a_release_costs_a_second_try_and_nothing_else(cut, when, tmp_path):
    old, = [tag for tag in cut.tags() if ":v" not in tag]
    before = cut.tags()
    weights = bytearray((shipped_model("small") / "model.gguf").read_bytes())
    first = sha256(weights).hexdigest()
    weights[-2] ^= 1 + len(before)  # each release is another file
    (tmp_path / "model.gguf").write_bytes(weights)
    argv = ("deploy", str(tmp_path / "model.gguf"), "-m", "small", "-q", "F16", "--share", "0.25", "--json")
    hold, held = cut.folder / "hold", cut.folder / "held"
    held.unlink(missing_ok=True)
    hold.write_text(when)

    with cut.start(*argv, text=True) as process:
        until(held.exists)
        cut.host.cut()
        try:
            assert "Paris" in cut.over_there(old), "the old model serves whom the network reaches"
            _, err = process.communicate(timeout=200)
        finally:
            cut.host.mend()
            hold.unlink()
    assert process.returncode in (1, 3), err
    assert cut.host.name in err
    until(cut.answers)
    assert ask_json(cut, "-m", "small", "What is the capital of France?")["digest"] == first
    assert len(cut.tags()) == len(before) + (when == "made")

    done = json.loads(cut.run(*argv).stdout)
    assert (done["failed"], done["share"]) == ({}, 0.25)
    assert cut.history(done["release"]) == ["deploy", "share"], "recorded once"
    assert cut.tags() == sorted((*before, f"small:{done['release']}"))
    assert not list(cut.models.rglob("*-partial*"))
    assert json.loads(cut.run("up", "--dry-run", "--json").stdout)["hosts"][0]["state"] == "unchanged"
    assert "Paris" in cut.over_there(old)
    cut.run("rollback", "small")
