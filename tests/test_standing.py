"""Hosts set aside by a person, and hosts that are only there at times: real llama-servers on this machine."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import pytest
from recorded import paths_under
from running import Cli, ask_json
from test_ask import Server

from swarmctl.dispatch.marks import INTERMITTENT_PAUSE, mark_down, read_mark
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.dispatch.verify import Verification, gpus_lost
from swarmctl.errors import SwarmError
from swarmctl.facts import Gpu, parse_facts
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.fleet.standing import read_aside, set_aside, take_back
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.http import request

pytestmark = pytest.mark.timeout(200)

INVENTORY = """
version: 1
models: {tiny-small: {source: "shipped:small"}, tiny-large: {source: "shipped:large"}}
hosts:
  spinoza: {ssh: local, models: [tiny-small]}
  calisota: {ssh: nobody@127.0.0.1:1, connect_timeout: 1, models: [tiny-large], intermittent: true}
"""


@pytest.fixture(scope="module")
def servers(llamacpp_bin):
    made = {"spinoza": Server(llamacpp_bin, "small", 1024), "calisota": Server(llamacpp_bin, "large", 1024)}
    yield made
    for server in made.values():
        server.kill()


@pytest.fixture
def swarm(servers, tmp_path):
    cli = Cli(paths_under(tmp_path), tmp_path)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text(INVENTORY)
    for server in servers.values():
        if server.process.poll() is not None:
            server.start()
    digest = sha256(cli.paths.inventory.read_bytes()).hexdigest()
    write_fleet(cli.paths.fleet, Fleet(
        str(cli.paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0, 60.0,
        (servers["spinoza"].entry("spinoza", 45.0),
         replace(servers["calisota"].entry("calisota", 380.0), intermittent=True))))
    return cli


def test_a_word_is_kept_until_it_is_taken_back(tmp_path):
    paths = paths_under(tmp_path)
    assert read_aside(paths, "worlock") is None
    assert set_aside(paths, "worlock", "cordoned", 1000.0).since == 1000.0
    assert set_aside(paths, "worlock", "draining", 2000.0).since == 1000.0, "it has been out since then"
    assert read_aside(paths, "worlock").state == "draining"
    assert take_back(paths, "worlock")
    assert not take_back(paths, "worlock")


def test_a_torn_word_still_means_out(tmp_path):
    paths = paths_under(tmp_path)
    file = paths.state / "standing" / "worlock.json"
    file.parent.mkdir(parents=True)
    for garbage in ("", "{", "[]", '{"state": "cordoned"}'):
        file.write_text(garbage)
        assert read_aside(paths, "worlock").state == "cordoned"


@pytest.mark.runtime
def test_a_word_that_cannot_be_written_names_the_file(tmp_path):
    paths = paths_under(tmp_path)
    paths.state.mkdir(parents=True, exist_ok=True)
    (paths.state / "standing").write_text("no folder")
    for write in (lambda: set_aside(paths, "spinoza", "cordoned", 0.0), lambda: take_back(paths, "spinoza")):
        with pytest.raises(SwarmError) as caught:
            write()
        assert "standing/spinoza.json" in caught.value.message
        assert caught.value.hint


def test_a_cordoned_host_gets_no_question_and_asking_it_by_name_is_refused(swarm):
    assert ask_json(swarm, "What is 23 + 45?")["host"] == "calisota"
    said = swarm.run("cordon", "calisota").stderr
    assert "calisota: cordoned since" in said
    row = ask_json(swarm, "What is 23 + 45?")
    assert row["host"] == "spinoza"
    (out,) = row["route"]["excluded"]
    assert out["host"] == "calisota"
    assert out["reason"].startswith("cordoned since")
    refused = swarm.run("ask", "-H", "calisota", "What is 23 + 45?", status=2)
    assert "swarmctl uncordon calisota" in refused.stderr
    swarm.run("uncordon", "calisota")
    assert ask_json(swarm, "What is 23 + 45?")["host"] == "calisota"


@pytest.mark.runtime
def test_a_swarm_that_is_all_cordoned_says_so_for_each_host(swarm):
    swarm.run("cordon", "spinoza", "calisota")
    said = swarm.run("ask", "What is 23 + 45?", status=1).stderr
    assert said.count("cordoned since") == 2


@pytest.mark.runtime
def test_status_shows_a_cordoned_host_and_is_content(swarm):
    swarm.run("cordon", "spinoza")
    rows = {row["host"]: row for row in json.loads(swarm.run("status", "--json").stdout)}
    assert (rows["spinoza"]["state"], rows["spinoza"]["hint"]) == ("cordoned", "swarmctl uncordon spinoza")


def test_a_host_that_the_inventory_lacks_is_a_mistake(swarm):
    assert "it has spinoza, calisota" in swarm.run("cordon", "nobody", status=2).stderr


@contextmanager
def answering(server: Server):
    """Keep the server's one slot at work, by three who ask without end; yields the event that ends it."""
    endpoint = Endpoint(port=server.port)
    body = {"prompt": "a", "n_predict": 900, "ignore_eos": True}
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with request(endpoint, "POST", "/completion", body, connect_timeout=5, timeout=60) as reply:
                reply.json()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield over
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.runtime
def test_drain_waits_for_the_answer_under_way(swarm, servers):
    with answering(servers["spinoza"]) as over:
        threading.Timer(2.0, over.set).start()
        done = swarm.run("drain", "spinoza", "--json")
        assert over.is_set()
    assert "1 answer under way" in done.stderr
    assert json.loads(done.stdout)["busy"] == 0
    assert read_aside(swarm.paths, "spinoza").state == "cordoned", "drained is cordoned"


@pytest.mark.runtime
def test_drain_gives_up_and_says_what_still_goes_on(swarm, servers):
    with answering(servers["spinoza"]):
        done = swarm.run("drain", "spinoza", "--timeout", "0", "--json", status=1)
    assert "1 answer still under way after 0 s" in done.stderr
    assert read_aside(swarm.paths, "spinoza").state == "draining"


def test_an_intermittent_host_that_is_off_is_no_failure(swarm):
    done = swarm.run("status", "--json")
    row = json.loads(done.stdout)[1]
    assert (row["host"], row["state"]) == ("calisota", "off")
    mark = read_mark(swarm.paths, "calisota")
    assert mark.verify
    assert mark.until - time.time() <= INTERMITTENT_PAUSE


@pytest.mark.runtime
def test_a_host_that_was_away_is_left_out_until_it_generated_a_token(swarm):
    mark_down(swarm.paths, "calisota", "off", time.time() - INTERMITTENT_PAUSE - 1, verify=True)
    first = swarm.run("ask", "--json", "What is 23 + 45?")
    assert json.loads(first.stdout)["host"] == "spinoza", "while its token is awaited, another one answers"
    assert first.stderr == ""
    assert read_mark(swarm.paths, "calisota") is None, "it was verified while the other one answered"
    assert ask_json(swarm, "What is 23 + 45?")["host"] == "calisota"


@pytest.mark.runtime
def test_a_host_that_came_back_without_its_server_stays_out(swarm, servers):
    servers["calisota"].kill()
    mark_down(swarm.paths, "calisota", "off", time.time() - INTERMITTENT_PAUSE - 1, verify=True)
    done = swarm.run("ask", "--json", "What is 23 + 45?")
    assert json.loads(done.stdout)["host"] == "spinoza"
    assert done.stderr == ""
    mark = read_mark(swarm.paths, "calisota")
    assert mark.verify
    assert "tiny-large" in mark.why


@pytest.mark.runtime
def test_with_nobody_else_the_question_waits_for_the_verification(swarm):
    swarm.run("cordon", "spinoza")
    mark_down(swarm.paths, "calisota", "off", time.time(), verify=True)
    assert ask_json(swarm, "What is 23 + 45?")["host"] == "calisota"


def test_fewer_gpus_than_recorded_keep_a_host_out(swarm):
    facts = parse_facts(FACTS)
    entry = replace(read_fleet(swarm.paths.fleet).hosts[1], gpus=2)
    good, lost = Gpu("nvidia", "RTX 3080", 10), Gpu("nvidia", "RTX 3060", None, problem="Unknown Error")
    assert gpus_lost(entry, replace(facts, gpus=(good, good))) == ""
    assert gpus_lost(entry, replace(facts, gpus=(good, lost))) == "1 of 2 GPUs work (Unknown Error)"
    assert gpus_lost(replace(entry, gpus=None), facts) == ""


@pytest.mark.runtime
def test_a_host_whose_gpu_did_not_come_back_is_not_used(swarm):
    fleet = read_fleet(swarm.paths.fleet)
    changed = make_swarm(swarm.paths, replace(fleet, hosts=(fleet.hosts[0], replace(fleet.hosts[1], gpus=1))))
    candidates = tuple(c for c in changed.candidates if c.host == "calisota")
    before = set(threading.enumerate())
    one = Verification(changed, candidates, time.time())
    assert not one.wait()
    assert one.why.startswith("0 of 1 GPUs work")
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert "swarmctl-verify" not in left, "a verification that has ended leaves nothing behind"


FACTS = """swarmctl-probe 1 5
@@5 host
system Linux
machine x86_64
user u
uid 1
home /h
data_dir /d
@@5 end
"""
