"""With no inventory at all, this machine answers `ask` and `serve`; other commands work on it as on any."""

from __future__ import annotations

import json
import os

import httpx
import pytest
from gateways import serving
from running import Cli, ask_json

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
