"""Ollama, for real: a server of our own on loopback with the shipped models, spoken to beside a llama-server.

Needs an Ollama: SWARMCTL_TEST_OLLAMA names the folder that holds its bin/ and lib/. Skipped without.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from running import Cli, ask_json
from waiting import until

from swarmctl.errors import RequestRejected, ServerUnavailable
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.http import Hangup, HungUp, request
from swarmctl.runtimes.http import until as until_hangup
from swarmctl.runtimes.ollama import Ollama
from swarmctl.shipped import shipped_model, shipped_quality

FOLDER = os.environ.get("SWARMCTL_TEST_OLLAMA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama")

LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 200, "maxItems": 220}
SEA = "Write a long text about the sea, please."
WAITS = {"connect_timeout": 5.0, "first_token_timeout": 60.0, "token_timeout": 30.0}


class Server:
    """An `ollama serve` with the two tiny models, which a test may hurt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        environ = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_MODELS": str(folder),
                   "OLLAMA_NO_CLOUD": "1", "HOME": str(folder)}
        self.process = subprocess.Popen([Path(FOLDER, "bin", "ollama"), "serve"], env=environ,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.call("/api/version")
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                break

    def call(self, path: str, body: bytes | dict | None = None) -> bytes:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=120) as reply:
            return reply.read()

    def create(self, name: str) -> str:
        weights = (shipped_model(name) / "model.gguf").read_bytes()
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        self.call(f"/api/blobs/{digest}", weights)
        self.call("/api/create", {"model": f"tiny-{name}", "files": {"model.gguf": digest}, "stream": False,
                                  "parameters": {"num_thread": 1}})
        return digest

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint(port=self.port, model=f"tiny-{name}")

    def unload(self, name: str) -> None:
        self.call("/api/generate", {"model": f"tiny-{name}", "keep_alive": 0})
        until(lambda: not Ollama().ping(self.endpoint(name), timeout=5))

    def runners(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return [int(line) for line in found.split()]

    def entry(self, name: str, model: str) -> HostEntry:
        served = Served("ollama", f"ollama-{model}", f"tiny-{model}", "digest", "template", self.port, 1024,
                        1, 700_000,
                        1_300_000, "F16", 3000.0, 300.0, quality=shipped_quality(model))
        return HostEntry(name, "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), (served,))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("ollama"))
    made.create("small")
    made.create("large")
    yield made
    os.killpg(made.process.pid, signal.SIGTERM)
    made.process.wait(30)


@pytest.fixture
def swarm(server, tmp_path):
    """A SWARMCTL_HOME with two hosts on the same Ollama: one serves the small model, one the large."""
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)}), tmp_path)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text("version: 1\n")
    digest = hashlib.sha256(cli.paths.inventory.read_bytes()).hexdigest()
    hosts = (server.entry("spinoza", "small"), server.entry("worlock", "large"))
    cli.hosts = hosts
    cli.fleet = Fleet(str(cli.paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0, 60.0, hosts)
    write_fleet(cli.paths.fleet, cli.fleet)
    return cli


def say(text: str, **more) -> ChatRequest:
    return ChatRequest((Message("user", text),), **more)


def test_an_answer_streams_and_ends_with_ollamas_own_timings(server):
    chunks = list(Ollama().chat(server.endpoint("small"), say("What is the capital of France?",
                                                              temperature=0.0),
                                **WAITS))
    assert "Paris" in "".join(chunk.text for chunk in chunks)
    last = chunks[-1]
    assert last.finish == "stop"
    assert last.timings.prompt_tokens > 0
    assert last.timings.decode_seconds > 0


def test_looking_at_a_model_that_is_not_loaded_does_not_load_it(server):
    server.unload("small")
    assert Ollama().health(server.endpoint("small"), timeout=20).state == "idle"
    assert not Ollama().ping(server.endpoint("small"), timeout=5)


def test_a_loaded_model_is_ready_because_it_generated_a_token(server):
    list(Ollama().chat(server.endpoint("small"), say("hello"), **WAITS))
    health = Ollama().health(server.endpoint("small"), timeout=20)
    assert health.state == "ready"
    assert health.seconds > 0


def test_a_schema_binds_the_answer_and_max_tokens_cut_it(server):
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    chunks = list(Ollama().chat(server.endpoint("large"), say("2 + 2", schema=schema, max_tokens=60,
                                                              temperature=0.0), **WAITS))
    assert isinstance(json.loads("".join(chunk.text for chunk in chunks))["n"], bool)
    cut = list(Ollama().chat(server.endpoint("large"), say("hello", max_tokens=1), **WAITS))
    assert cut[-1].finish == "length"


def test_a_model_that_is_not_there_is_unavailable_and_a_bad_request_is_rejected(server):
    with pytest.raises(ServerUnavailable, match="not found"):
        list(Ollama().chat(Endpoint(port=server.port, model="nobody"), say("hello"), **WAITS))
    with pytest.raises((RequestRejected, ServerUnavailable)):
        list(Ollama().chat(server.endpoint("large"), say("hello", schema={"type": "nonsense"}), **WAITS))


def test_a_runner_killed_in_mid_stream_is_openly_replaced_and_restarts(swarm, server):
    list(Ollama().chat(server.endpoint("large"), say("hello"), **WAITS))
    runners = server.runners()
    process = swarm.start("ask", "What is 23 + 45?", "--schema", json.dumps(LONG))
    assert process.stdout.read(3)
    for pid in runners:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"failed in the middle of this answer" in out
    assert len(swarm.rows()[-1]["attempts"]) == 1
    assert "answer" in ask_json(swarm, "hello")


def test_control_c_stops_the_work(swarm, server):
    process = swarm.start("ask", "-m", "tiny-large", "What is 23 + 45?", "--schema", json.dumps(LONG))
    assert process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert swarm.rows()[-1]["finish"] == "cancelled"


def test_questions_are_routed_over_ollama_models_and_recorded_as_such(swarm):
    routine = ask_json(swarm, "What is the capital of France?")
    assert (routine["host"], routine["runtime"]) == ("spinoza", "ollama")
    assert routine["timings"]["load_seconds"] >= 0
    assert ask_json(swarm, "How many e are in elephant?")["host"] == "worlock"


def test_a_blob_deleted_behind_its_back_fails_over(swarm, server):
    server.unload("small")
    manifest = next((server.folder / "manifests").rglob("tiny-small/latest"))
    layers = json.loads(manifest.read_text())["layers"]
    (model,) = (layer["digest"] for layer in layers if layer["mediaType"].endswith(".model"))
    blob = server.folder / "blobs" / model.replace(":", "-")
    kept = blob.read_bytes()
    blob.unlink()
    try:
        row = ask_json(swarm, "What is the capital of France?")
    finally:
        blob.write_bytes(kept)
    assert row["host"] == "worlock"
    assert row["attempts"][0]["host"] == "spinoza"


def test_a_server_that_is_gone_is_passed_over(swarm, server):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    gone = replace(swarm.hosts[0], served=(replace(swarm.hosts[0].served[0], port=port),))
    write_fleet(swarm.paths.fleet, replace(swarm.fleet, hosts=(gone, swarm.hosts[1])))
    assert ask_json(swarm, "What is the capital of France?")["host"] == "worlock"


def test_streams_that_are_given_up_do_not_cost_ollama_the_model(server):
    endpoint = server.endpoint("small")
    for cut in range(120):
        stream = Ollama().chat(endpoint, say(SEA, max_tokens=200), **WAITS)
        for _ in range(1 + cut % 9):
            next(stream, None)
        stream.close()
    assert list(Ollama().chat(endpoint, say("hello"), **WAITS))[-1].finish


def test_streams_that_are_hung_up_on_do_not_cost_ollama_the_model_either(server):
    endpoint = server.endpoint("small")
    for cut in range(120):
        hangup, read = Hangup(), 0
        with until_hangup(hangup), suppress(HungUp):
            for _ in Ollama().chat(endpoint, say(SEA, max_tokens=200), **WAITS):
                read += 1
                if read > cut % 9:
                    hangup.now()
    assert list(Ollama().chat(endpoint, say("hello"), **WAITS))[-1].finish


def test_a_model_that_answers_nobody_since_a_stream_was_cut_off_is_loaded_afresh(server):
    endpoint = server.endpoint("small")
    body = {"model": "tiny-small", "options": {"num_predict": 200},
            "messages": [{"role": "user", "content": SEA}]}

    def answers_nobody(pieces: int) -> str:
        """Cut a stream off; what is said of the next question where that did harm."""
        with request(endpoint, "POST", "/api/chat", body, connect_timeout=5, timeout=60) as reply:
            lines = reply.lines()
            for _ in range(pieces):
                next(lines, None)
        try:
            list(Ollama().chat(endpoint, say("hello"), **{**WAITS, "first_token_timeout": 3.0}))
        except ServerUnavailable as exc:
            return str(exc)
        return ""

    said = next(filter(None, (answers_nobody(1 + cut % 9) for cut in range(600))), None)
    if said is None:
        pytest.skip("600 cut streams cost this Ollama nothing")
    assert "loads it afresh" in said
    assert list(Ollama().chat(endpoint, say("hello"), **WAITS))[-1].finish
