"""Asking, for real: three llama-servers with the shipped models on this machine, and the command as a
process.

The servers are `local` hosts, so that what is tested is routing, streaming, failover and recording; the same
over SSH stands in test_journey.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from running import Cli, ask_json, slowed
from waiting import until

from swarmctl.dispatch.question import Asked
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.llamacpp import LlamaCpp
from swarmctl.shipped import shipped_model, shipped_quality
from swarmctl.verbs import compare

pytestmark = pytest.mark.runtime

#: A schema that keeps a model talking long enough to be killed in the middle.
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 150, "maxItems": 160}


class Server:
    """One llama-server with a shipped model, which a test may hurt."""

    def __init__(self, binaries: Path, model: str, context: int, slots: int = 1) -> None:
        weights = str(shipped_model(model) / "model.gguf")
        self.argv = [str(binaries / "llama-server"), "--model", weights, "--alias", model,
                     "--host", "127.0.0.1", "--ctx-size", str(context * slots), "--parallel", str(slots),
                     "--threads", "1",
                     "--jinja",
                     "--slots", "--metrics", "--no-ui"]
        self.model = model
        self.context = context
        self.slots = slots
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*self.argv, "--port", str(self.port)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while LlamaCpp().health(Endpoint(port=self.port), timeout=5).state != "ready":
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def entry(self, name: str, watts: float) -> HostEntry:
        served = Served("llamacpp", f"llamacpp-{self.model}", f"tiny-{self.model}", f"digest-{self.model}",
                        "template",
                        self.port, self.context, self.slots, 700_000, 1_300_000, "F16", 3000.0, 300.0,
                        quality=shipped_quality(self.model))
        return HostEntry(name, "local", "/tmp", 2.0, 10.0, watts, 0.3, "EUR", ("inference",), (served,))


@pytest.fixture(scope="module")
def servers(llamacpp_bin):
    made = {"spinoza": Server(llamacpp_bin, "small", 1024), "calisota": Server(llamacpp_bin, "large", 256),
            "worlock": Server(llamacpp_bin, "large", 1024)}
    yield made
    for server in made.values():
        server.kill()


@pytest.fixture
def swarm(servers, tmp_path):
    """A SWARMCTL_HOME whose snapshot holds the three servers, all of them up."""
    for server in servers.values():
        if server.process.poll() is not None:
            server.start()
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})
    watts = {"spinoza": 45.0, "calisota": 380.0, "worlock": 640.0}
    hosts = tuple(server.entry(name, watts[name]) for name, server in servers.items())
    inventory = paths.inventory
    inventory.parent.mkdir(parents=True)
    inventory.write_text("version: 1\n")
    from hashlib import sha256

    digest = sha256(inventory.read_bytes()).hexdigest()
    write_fleet(paths.fleet, Fleet(str(inventory), digest, "2026-01-01T00:00:00Z", None, 30.0, 60.0, hosts,
                                   Policy(hedge=False)))  # a server that is slowed to be hurt is not escaped
    return Cli(paths, tmp_path)


def test_the_answer_goes_to_stdout_and_nothing_else_does(swarm):
    done = swarm.run("ask", "What is the capital of France?", "--temperature", "0")
    assert "Paris" in done.stdout
    assert done.stderr == ""


def test_three_questions_find_three_hosts(swarm, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("The red box holds seven apples.\n" * 40)
    assert ask_json(swarm, "What is the capital of France?")["host"] == "spinoza"
    assert ask_json(swarm, "What is 23 + 45?")["host"] == "calisota"
    assert ask_json(swarm, "What does the red box hold?", "-f", str(notes))["host"] == "worlock"


def test_explain_shows_the_whole_table_on_stderr(swarm):
    done = swarm.run("ask", "--explain", "What is 23 + 45?")
    assert done.stderr.startswith("complex: it holds arithmetic\n")
    for word in ("queue", "prefill", "decode", "energy", "risk", "price", "spinoza", "calisota", "worlock",
                 "→ tiny-large on calisota"):
        assert word in done.stderr
    assert "queue" not in done.stdout


def test_the_question_may_come_from_stdin_or_bring_piped_text_along(swarm):
    assert "Paris" in swarm.run("ask", "--temperature", "0", stdin="What is the capital of France?\n").stdout
    row = ask_json(swarm, "What does it hold?", stdin="The box holds pears.")
    assert row["messages"][-1]["content"] == "stdin:\nThe box holds pears.\n\nWhat does it hold?"


def test_a_schema_binds_the_answer(swarm):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
              "required": ["city"]}
    row = ask_json(swarm, "What is the capital of France?", "--schema", json.dumps(schema), "--max-tokens",
                   "99")
    assert isinstance(json.loads(row["answer"])["city"], str)


def test_a_conversation_continues_in_its_terminal_on_the_host_that_remembers_it(swarm):
    first = ask_json(swarm, "What is the capital of France?")
    second = ask_json(swarm, "-c", "What is the capital of Spain?")
    assert second["conversation"] == first["id"]
    assert second["parent"] == first["id"]
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["host"] == first["host"]


def test_max_tokens_cuts_and_says_length(swarm):
    row = ask_json(swarm, "What is the capital of France?", "--max-tokens", "1")
    assert row["finish"] == "length"
    assert row["timings"]["completion_tokens"] == 1


def test_a_system_prompt_goes_first(swarm):
    row = ask_json(swarm, "-s", "Be terse.", "What is the capital of France?")
    assert row["messages"][0] == {"role": "system", "content": "Be terse."}


def test_every_exchange_is_recorded_with_what_learning_needs(swarm):
    ask_json(swarm, "What is the capital of France?")
    (row,) = swarm.rows()
    assert row["kind"] == "exchange"
    assert row["digest"] == "digest-small"
    assert row["timings"]["prompt_tokens"] > 0
    assert row["timings"]["total_seconds"] > row["timings"]["first_token_seconds"] > 0
    assert {price["host"] for price in row["route"]["prices"]} == {"spinoza", "calisota", "worlock"}


def test_exchanges_refine_the_measured_speeds(swarm):
    ask_json(swarm, "What is the capital of France?")
    habits = json.loads((swarm.paths.state / "habits" / "spinoza@llamacpp-small.json").read_text())
    assert habits["characters_per_token"] != 3.0


def test_a_server_that_is_down_is_passed_over(swarm, servers):
    servers["spinoza"].kill()
    done = swarm.run("ask", "--explain", "What is the capital of France?", "--temperature", "0")
    assert "Paris" in done.stdout
    assert "out: tiny-small on spinoza: no server listens there" in done.stderr


def test_a_server_killed_in_mid_stream_is_openly_replaced(swarm, servers):
    with slowed(servers["calisota"].process.pid):
        process = swarm.start("ask", "What is 23 + 45?", "--schema", json.dumps(LONG), "--max-tokens", "200")
        assert process.stdout.read(3)
        servers["calisota"].kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    answer = out.decode()
    assert "calisota failed in the middle of this answer; the question goes to worlock and starts" in answer
    assert answer.rpartition("---")[2].strip().startswith("[")
    assert "calisota" in err.decode()
    row = swarm.rows()[-1]
    assert row["host"] == "worlock"
    assert row["finish"] in ("stop", "length")
    assert row["attempts"][0]["host"] == "calisota"
    assert row["attempts"][0]["tokens"] > 0


def test_when_every_host_fails_the_question_is_still_recorded(swarm, servers):
    for server in servers.values():
        server.kill()
    done = swarm.run("ask", "What is the capital of France?", status=1)
    assert "no host can take this question" in done.stderr
    assert "tiny-small on spinoza: no server listens there" in done.stderr


def test_control_c_stops_the_servers_work_and_keeps_what_came(swarm, servers):
    with slowed(servers["worlock"].process.pid):
        process = swarm.start("ask", "-H", "worlock", "What is 23 + 45?", "--schema", json.dumps(LONG))
        assert process.stdout.read(3)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    until(lambda: not LlamaCpp().load(Endpoint(port=servers["worlock"].port), timeout=20).busy)
    row = swarm.rows()[-1]
    assert row["finish"] == "cancelled"
    assert row["answer"]


def test_a_prompt_longer_than_every_context_is_refused_with_the_arithmetic(swarm, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("A long story about a red box and what it holds. " * 400)
    done = swarm.run("ask", "What is in it?", "-f", str(book), status=1)
    assert "do not fit its context of 1,024" in done.stderr


def test_a_busy_server_is_not_a_broken_one(swarm, servers):
    with slowed(servers["worlock"].process.pid):
        process = swarm.start("ask", "-H", "worlock", "What is 23 + 45?", "--schema", json.dumps(LONG))
        assert process.stdout.read(3)
        row = ask_json(swarm, "-m", "tiny-large", "What is 11 + 12?")
        assert row["host"] == "calisota"
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("args", "message"), [
    ((), "no question"),
    (("",), "no question"),
    (("-m", "gpt-9", "hello"), "nobody serves gpt-9"),
    (("-H", "nowhere", "hello"), "nobody serves any model on nowhere"),
    (("-f", "/no/such/file", "hello"), "/no/such/file: No such file or directory"),
    (("--schema", "{broken", "hello"), "not JSON"),
    (("--schema", "[1]", "hello"), "cannot be read as a schema"),
    (("-c", "hello"), "no conversation to continue"),
    (("--temperature", "hot", "hello"), "Invalid value"),
])
def test_bad_input_is_refused_with_a_clear_message_and_status_two(swarm, args, message):
    done = swarm.run("ask", *args, status=2, stdin="" if not args else None)
    assert message in done.stderr or (not any(args) and "empty" in done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_binary_file_is_not_asked_about(swarm, tmp_path):
    image = tmp_path / "x.png"
    image.write_bytes(b"\x89PNG\r\n\0\0")
    assert "not UTF-8 text" in swarm.run("ask", "-f", str(image), "what is it?", status=2).stderr


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_an_error_and_not_a_silence(swarm):
    swarm.paths.data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", swarm.paths.data], check=True)
    try:
        swarm.run("ask", "What is the capital of France?")
        fill(swarm.paths.data / "filler")
        for _ in range(3):  # the last page of the journal may still have room for one
            done = subprocess.run([sys.executable, "-m", "swarmctl", "ask", "What is the capital of France?"],
                                  capture_output=True, text=True, env=swarm.environ, stdin=subprocess.DEVNULL)
        assert done.returncode == 1
        assert done.stdout
        assert "No space left" in done.stderr or "full" in done.stderr
    finally:
        subprocess.run(["umount", swarm.paths.data], check=True)


def test_compare_is_blind_until_the_choice_and_records_it(swarm):
    done = swarm.run("compare", "What is the capital of France?", "-m", "tiny-small", "-m", "tiny-large",
                     stdin="x\n1\n")
    assert "tiny" not in done.stdout
    assert "1 was tiny-" in done.stderr
    *exchanges, comparison = swarm.rows()
    assert {row["model"] for row in exchanges} == {"tiny-small", "tiny-large"}
    assert comparison["kind"] == "comparison"
    assert comparison["choice"] == "a"
    assert comparison["a"] == comparison["left"]
    assert {comparison["a"], comparison["b"]} == {row["id"] for row in exchanges}


def test_a_comparison_fails_with_what_failed(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compare, "put", fail)
    with pytest.raises(OSError, match="No space left"):
        compare.answer_both(None, Asked("hello"), ("a", "b"), object, terminal="t", clock=time.time,
                            coin=lambda: True)


def test_a_comparison_without_a_choice_keeps_the_answers_and_says_so(swarm):
    done = swarm.run("compare", "What is the capital of France?", stdin="", status=2)
    assert done.stderr


def test_chat_holds_a_conversation_with_commands(swarm):
    lines = ("What is the capital of France?\n/explain\nWhat is the capital\\\nof Spain?\n/nonsense\n/new\n"
             "hello\n/quit\nno\n")
    done = swarm.run("chat", "--temperature", "0", stdin=lines)
    assert "Paris" in done.stdout
    assert "/nonsense means nothing here" in done.stderr
    rows = swarm.rows()
    assert [len(row["messages"]) for row in rows] == [1, 3, 1]
    assert rows[1]["messages"][-1]["content"] == "What is the capital\nof Spain?"
    assert rows[1]["conversation"] == rows[0]["id"] != rows[2]["conversation"]
    assert "price" in done.stderr


def test_a_changed_inventory_is_mentioned_and_the_swarm_still_answers(swarm):
    swarm.paths.inventory.write_text("version: 1\n# changed\n")
    done = swarm.run("ask", "What is the capital of France?")
    assert "has changed since the last `swarmctl up`" in done.stderr


def test_a_spoilt_snapshot_is_named(swarm):
    swarm.paths.fleet.write_text("{garbage")
    assert "cannot be read as a fleet snapshot" in swarm.run("ask", "hello", status=1).stderr


def test_a_model_that_answers_with_control_characters_cannot_drive_the_terminal():
    from swarmctl.cli.streaming import printable

    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\n"


def test_the_host_that_hangs_is_marked_and_not_waited_for_again(swarm, servers):
    os.kill(servers["spinoza"].process.pid, signal.SIGSTOP)
    try:
        first = time.monotonic()
        row = ask_json(swarm, "What is the capital of France?")
        again = time.monotonic()
        ask_json(swarm, "What is the capital of France?")
        done = time.monotonic()
    finally:
        os.kill(servers["spinoza"].process.pid, signal.SIGCONT)
    assert row["host"] != "spinoza"
    assert done - again < again - first
    assert (swarm.paths.state / "down" / "spinoza.json").exists()


def test_replacing_a_snapshot_keeps_every_field(tmp_path, servers):
    entry = servers["spinoza"].entry("spinoza", 1.0)
    fleet = Fleet("i", "d", "w", None, 1.0, 2.0, (entry, replace(entry, name="b", served=())))
    write_fleet(tmp_path / "f.json", fleet)
    from swarmctl.fleet.snapshot import read_fleet

    assert read_fleet(tmp_path / "f.json") == fleet
