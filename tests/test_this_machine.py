"""With no inventory at all, this machine answers `ask` and `serve`; other commands work on it as on any."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import httpx
import pytest
from gateways import serving
from running import Cli, ask_json
from waiting import until

from swarmctl.paths import Paths

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(900)]


@pytest.fixture
def newcomer(tmp_path, llamacpp_bin):
    """A person with an empty home, whose cache holds llama.cpp already."""
    home = tmp_path / "home"
    cli = Cli(Paths.from_environ({"HOME": str(home)}), home)
    cache = Paths.from_environ(os.environ).cache.parent
    for name in ("SWARMCTL_HOME", "SWARMCTL_INVENTORY", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        cli.environ.pop(name, None)
    cli.environ.update({"HOME": str(home), "XDG_CACHE_HOME": str(cache)})
    yield cli
    cli.run("down", status=0 if cli.paths.this_machine.exists() else 2)


def test_a_first_question_is_answered_and_says_how_to_get_a_real_swarm(newcomer):
    done = newcomer.run("ask", "--temperature", "0", "What is the capital of France?", limit=800)
    assert "Paris" in done.stdout
    assert "swarmctl init" in done.stderr
    again = newcomer.run("ask", "hello")
    assert again.stderr == ""


def test_after_down_the_next_question_starts_it_again(newcomer):
    first = ask_json(newcomer, "What is the capital of France?", limit=800)
    newcomer.run("rate", "up")
    newcomer.run("down")
    second = ask_json(newcomer, "What is the capital of Spain?")
    assert first["host"] == second["host"] == "this-machine"
    (row,) = json.loads(newcomer.run("status", "--json").stdout)
    assert row["state"] == "ready"


def test_serve_starts_this_machine_before_it_listens(newcomer):
    with serving(newcomer, within=800) as gateway:
        reply = httpx.post(f"{gateway.url}/v1/chat/completions", timeout=120, json={
            "model": "auto", "temperature": 0, "messages": [
                {"role": "user", "content": "What is the capital of France?"}]})
        assert reply.json()["choices"][0]["message"]["content"] == "Paris"
        assert "swarmctl init" in "".join(gateway.said)
    newcomer.run("down")
    with serving(newcomer, within=800) as gateway:
        assert httpx.get(f"{gateway.url}/healthz", timeout=60).json()["status"] == "ready"


def test_an_inventory_that_is_named_must_be_there(newcomer):
    for command in (("ask", "hello"), ("serve", "--port", "0")):
        said = newcomer.run("--inventory", "/no/such/inventory.yaml", *command, status=2).stderr
        assert "there is no inventory at /no/such/inventory.yaml" in said


def test_init_writes_an_inventory_beside_this_machine_and_says_what_still_runs(newcomer):
    newcomer.run("ask", "hello", limit=800)
    said = newcomer.run("init", "--no-discover").stderr
    assert f"wrote {newcomer.paths.inventory}" in said
    stop = f"swarmctl -i {newcomer.paths.this_machine} down"
    assert stop in said
    assert "this-machine" in newcomer.run(*stop.split()[1:]).stdout
    newcomer.paths.inventory.unlink()


def test_an_inventory_of_ones_own_takes_over(newcomer):
    ask_json(newcomer, "hello", limit=800)
    newcomer.paths.inventory.parent.mkdir(parents=True)
    newcomer.paths.inventory.write_text("version: 1\nhosts:\n  a: {ssh: local}\n")
    done = newcomer.run("ask", "hello", status=1)
    assert "has not been brought up yet" in done.stderr
    newcomer.paths.inventory.unlink()


def test_without_inventory_and_servers_status_says_what_to_do(newcomer):
    assert "swarmctl init" in newcomer.run("status", status=2).stderr
    newcomer.run("ask", "hello", limit=800)


@pytest.fixture
def bare(newcomer, tmp_path):
    """The same person, and no build of llama.cpp anywhere."""
    newcomer.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    return newcomer


def at_a_terminal(cli, *args, typed):
    """Everything that a command says in a terminal of its own, and its exit status."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as near:
        process = subprocess.Popen([sys.executable, "-m", "swarmctl", *args], stdin=theirs, stdout=theirs,
                                   stderr=theirs, env=cli.environ, start_new_session=True)
        os.close(theirs)
        said = b""
        while b"build it now?" not in said:
            said += near.read(4096)
        near.write(typed)
        try:
            while piece := near.read(4096):
                said += piece
        except OSError:  # Linux's way to say that the other end is closed
            pass
    return process.wait(60), said.decode()


@pytest.mark.parametrize("command", [("ask", "hello"), ("chat",), ("compare", "hello"),
                                     ("serve", "--port", "0")])
def test_in_a_terminal_nothing_is_built_without_a_yes(bare, command):
    status, said = at_a_terminal(bare, *command, typed=b"n\n")
    assert status == 1, said
    for words in ("no inventory yet", "half an hour", "swarmctl init", "swarmctl runtime build",
                  "nothing was built"):
        assert words in said
    assert not bare.paths.this_machine.exists()
    assert not list((bare.paths.data / "this-machine").glob("*"))


@pytest.mark.parametrize("command", [("ask", "hello"), ("serve", "--port", "0")])
def test_where_nobody_can_say_no_it_is_said_before_anything_is_built(bare, tmp_path, command):
    said = tmp_path / "stderr"
    with said.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-m", "swarmctl", *command], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=err, env=bare.environ)
    try:
        until(lambda: "half an hour" in said.read_text() or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    text = said.read_text()
    assert text.index("no inventory yet") < text.index("half an hour") < text.index("swarmctl runtime build")
    assert "Traceback" not in text


def test_a_build_that_is_there_is_not_spoken_of(newcomer):
    assert "has to be built" not in newcomer.run("ask", "hello", limit=800).stderr


def test_a_unit_without_an_inventory_says_what_the_service_will_do(newcomer):
    said = newcomer.run("serve", "unit")
    assert "[Service]" in said.stdout
    assert "builds llama.cpp first" in said.stderr
