"""What a key pays for: every token that was read and made for it, also where nobody had the whole answer."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import httpx
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from running import slowed
from test_gateway_faults import CHAT, Raw, _begin, _inside, _reply, _until, half
from test_serve import FRANCE, LONG, _bearer, _pid_of
from waiting import until

from swarmctl.gateway.bounds import Bounds
from swarmctl.gateway.keys import Key, add_key

#: of the question, by its characters, and of three pieces
ASKED, SAID = 10, 3


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def stuck():
    """A server that says three pieces and no more."""
    over = threading.Event()

    def says_three(connection) -> None:
        _begin(connection)
        for field in ("reasoning_content", "content", "content"):
            piece = {"choices": [{"delta": {field: "one"}}]}
            connection.sendall(f"data: {json.dumps(piece)}\n\n".encode())
        over.wait(120)

    made = Raw(says_three)
    yield made
    over.set()
    made.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_took_too_long_is_paid_as_far_as_it_came(stuck, home, stream):
    with swarm_of(home, host("stuck", served("llamacpp", "tiny-small", stuck.port))) as cli:
        _, secret = add_key(cli.paths, Key("ann", "", "", tokens_per_day=ASKED + SAID))
        first, second = asyncio.run(_asked_twice(cli, secret, stream))
        assert first == (200 if stream else 504)
        assert second == 429
        assert stuck.chats == 1
        _, third = asyncio.run(_asked_twice(cli, secret, stream))
        assert third == 429, "and so the next gateway counts it from the journal"
        assert stuck.chats == 1


async def _asked_twice(cli, secret: str, stream: bool) -> list[int]:
    async with _inside(cli, Bounds(turn=2.0)) as (port, app), httpx.AsyncClient(
            timeout=60, headers=_bearer(secret)) as client:
        seen = []
        for _ in range(2):
            reply = await client.post(f"http://127.0.0.1:{port}{CHAT}",
                                      json={"messages": FRANCE, "stream": stream})
            seen.append(reply.status_code)
            await _until(lambda: app.gateway.engine.running == 0)
        return seen


def test_half_an_answer_is_paid_where_nobody_could_go_on(home):
    server = Raw(half)
    with swarm_of(home, host("breaks", served("llamacpp", "tiny-small", server.port))) as cli:
        secret = cli.run("serve", "key", "add", "ann", "--tokens-per-day", str(ASKED + 1)).stdout.strip()
        with serving(cli) as gateway:
            seen = [httpx.post(gateway.url + CHAT, json={"messages": FRANCE}, timeout=60,
                               headers=_bearer(secret)).status_code for _ in range(2)]
    server.close()
    assert seen == [502, 429]


@pytest.mark.runtime
def test_who_leaves_after_the_first_word_has_asked_all_the_same(llamacpp_bin, tmp_path, home):
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(home, host("spinoza", served("llamacpp", "tiny-small", port))) as cli:
        secret = cli.run("serve", "key", "add", "ann", "--tokens-per-day", str(ASKED)).stdout.strip()
        with serving(cli) as gateway, slowed(_pid_of(port)), httpx.Client(
                base_url=gateway.url, headers=_bearer(secret), timeout=120) as client:
            with client.stream("POST", CHAT, json={"messages": FRANCE, "response_format": LONG,
                                                   "stream": True}) as reply:
                next(reply.iter_lines())
            until(lambda: '"finish": "cancelled"' in "".join(gateway.said))
            again = client.post(CHAT, json={"messages": FRANCE})
    assert (again.status_code, "tokens of today" in again.json()["error"]["message"]) == (429, True)


def test_texts_that_were_embedded_are_paid_though_their_client_left(home):
    over, seen = threading.Event(), []

    def one_batch(connection) -> None:
        seen.append(connection)
        if len(seen) > 1:
            over.wait(120)
        rows = [{"index": place, "embedding": [0.6, 0.8]} for place in range(64)]
        _reply(connection, json.dumps({"data": rows, "usage": {"prompt_tokens": 64}}))

    server = Raw(one_batch)
    with swarm_of(home, host("worlock", served("llamacpp", "vectors", server.port, embedding=True))) as cli:
        secret = cli.run("serve", "key", "add", "ann", "--tokens-per-day", "64").stdout.strip()
        with serving(cli) as gateway:
            body = json.dumps({"input": ["word"] * 65}).encode()
            with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as client:
                client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
                               b"Authorization: Bearer %s\r\n\r\n%s" % (len(body), secret.encode(), body))
                until(lambda: len(seen) == 2)
            until(lambda: "the client left" in "".join(gateway.said))
            again = httpx.post(f"{gateway.url}/v1/embeddings", json={"input": "word"}, timeout=60,
                               headers=_bearer(secret))
            over.set()
    server.close()
    assert (len(seen), again.status_code) == (2, 429)
