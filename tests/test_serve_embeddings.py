"""Texts that clients send to be embedded claim slots and wait in line, as their questions do."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

import httpx
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from test_gateway_faults import Raw, _reply
from waiting import until

from swarmctl.dispatch.queue import length
from swarmctl.dispatch.slots import claim, claimed
from swarmctl.dispatch.swarm import make_candidate
from swarmctl.fleet.snapshot import read_fleet, write_fleet

pytestmark = pytest.mark.runtime
OPENAI, OLLAMA = "/v1/embeddings", "/api/embed"


@pytest.fixture(scope="module")
def gateway(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    with llama_server(folder, llamacpp_bin, "small", "-c", 1024, "-np", 1, "--embedding", "--pooling",
                      "mean") as port:
        (folder / "home").mkdir()
        with swarm_of(folder / "home", host("worlock", served("llamacpp", "vectors", port,
                                                              embedding=True))) as cli:
            quick, slow = (cli.run("serve", "key", "add", name, "--priority", level).stdout.strip()
                           for name, level in (("quick", "9"), ("slow", "0")))
            with serving(cli) as found:
                found.keys = {"quick": quick, "slow": slow}
                yield found


@pytest.fixture
def vectors(gateway):
    """The server as the slots know it."""
    (entry,) = read_fleet(gateway.cli.paths.fleet).hosts
    return make_candidate(gateway.cli.paths, entry, entry.served[0])


class Post(threading.Thread):
    """A request that is on its way."""

    def __init__(self, gateway, path=OPENAI, key="slow", texts=("hello",)) -> None:
        super().__init__(daemon=True)
        self.client = httpx.Client(base_url=gateway.url, timeout=120,
                                   headers={"authorization": f"Bearer {gateway.keys[key]}"})
        self.path, self.texts, self.reply = path, texts, None
        self.start()

    def run(self) -> None:
        self.reply = self.client.post(self.path, json={"model": "vectors", "input": list(self.texts)})

    def ended(self) -> httpx.Response:
        self.join(120)
        self.client.close()
        return self.reply


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
def test_texts_wait_in_line_for_a_slot_that_a_question_holds(gateway, vectors, path):
    paths = gateway.cli.paths
    with claim(paths, vectors, 1):
        post = Post(gateway, path)
        until(lambda: length(paths) == 1)
        assert post.reply is None
        assert httpx.get(f"{gateway.url}/healthz", timeout=30).status_code in (200, 503), "nobody else waits"
    assert post.ended().status_code == 200, post.reply.text
    assert (length(paths), claimed(paths, vectors, 1)) == (0, 0)


def test_texts_that_are_embedded_hold_a_slot_until_their_vectors_are_there(tmp_path):
    go = threading.Event()

    def held(connection) -> None:
        assert go.wait(120)
        _reply(connection, '{"data":[{"index":0,"embedding":[0.6,0.8]}],"usage":{"prompt_tokens":1}}')

    server = Raw(held)
    (tmp_path / "home").mkdir()
    entry = host("worlock", served("llamacpp", "vectors", server.port, embedding=True))
    with contextlib.closing(server), swarm_of(tmp_path / "home", entry) as cli, serving(cli) as found:
        found.keys = {"slow": "none"}
        vectors = make_candidate(cli.paths, entry, entry.served[0])
        post = Post(found)
        until(lambda: claimed(cli.paths, vectors, 1) == 1)
        assert claim(cli.paths, vectors, 1) is None
        go.set()
        assert post.ended().json()["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
        assert post.reply.headers["x-swarmctl-host"] == "worlock"
        assert claimed(cli.paths, vectors, 1) == 0


def test_a_key_of_higher_priority_comes_before_one_that_waits_already(gateway, vectors):
    paths = gateway.cli.paths
    with claim(paths, vectors, 1):
        slow = Post(gateway)
        until(lambda: length(paths) == 1)
        (first,) = (file.name for file in (paths.state / "queue").glob("[0-9]*"))
        quick = Post(gateway, key="quick")
        until(lambda: length(paths) == 2)
        assert [file.name for file in sorted((paths.state / "queue").glob("[0-9]*"))][1] == first
    assert {slow.ended().status_code, quick.ended().status_code} == {200}


def test_a_client_who_leaves_gives_up_its_place_at_once(gateway, vectors):
    paths = gateway.cli.paths
    with claim(paths, vectors, 1):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}{OPENAI}", json={"input": ["hello"] * 300}, timeout=2,
                       headers={"authorization": f"Bearer {gateway.keys['slow']}"})
        until(lambda: length(paths) == 0)
    assert claimed(paths, vectors, 1) == 0


def test_a_full_line_says_when_to_come_again(gateway, vectors):
    paths = gateway.cli.paths
    fleet = read_fleet(paths.fleet)
    write_fleet(paths.fleet, replace(fleet, routing=replace(fleet.routing, queue=1)))
    try:
        with claim(paths, vectors, 1):
            first = Post(gateway)
            until(lambda: length(paths) == 1)
            for path in (OPENAI, OLLAMA):
                reply = Post(gateway, path).ended()
                assert (reply.status_code, int(reply.headers["retry-after"]) >= 1) == (429, True), reply.text
        assert first.ended().status_code == 200
    finally:
        write_fleet(paths.fleet, fleet)


@pytest.mark.parametrize(("path", "body", "said"), [
    ("/api/embed", {"input": ""}, {"embeddings": []}), ("/api/embed", {}, {"embeddings": []}),
    ("/api/embed", {"input": []}, {"embeddings": []}), ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ("/api/embeddings", {}, {"embedding": []})])
def test_an_ollama_client_that_loads_a_model_is_told_that_it_is_done(gateway, path, body, said):
    reply = httpx.post(gateway.url + path, json={"model": "vectors", **body}, timeout=60,
                       headers={"authorization": f"Bearer {gateway.keys['slow']}"})
    assert (reply.status_code, said.items() <= reply.json().items()) == (200, True), reply.text


def test_many_texts_come_back_in_their_order(gateway):
    texts = [f"word {number}" for number in range(200)]
    many = Post(gateway, texts=texts).ended().json()["data"]
    few = Post(gateway, texts=texts[150:152]).ended().json()["data"]
    assert len(many) == 200
    assert many[150]["embedding"] == pytest.approx(few[0]["embedding"], abs=1e-5)
