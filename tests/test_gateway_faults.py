"""What goes wrong around a gateway: servers that die, refuse, hang or babble; clients that are slow, leave,
or send junk; a disk that takes nothing. It stays up, loses and leaks nothing, and says so in the API's words.

Servers that misbehave are raw sockets that speak just enough HTTP; the others are real llama-servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import slowed
from test_serve import FRANCE, LONG, _pid_of

from swarmctl.gateway.app import App
from swarmctl.gateway.bounds import Bounds
from swarmctl.gateway.keys import Key, add_key
from swarmctl.gateway.openai import SURFACE as openai_surface
from swarmctl.gateway.serve import _server, bind
from swarmctl.gateway.surface import Look
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.http import Dropped, Hangup, HungUp, TunnelDown, keeping, request, until
from swarmctl.shipped import shipped_quality
from swarmctl.verbs.serve import Serving, make_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

runtime = pytest.mark.runtime
#: How many junk requests are sent; 10,000 were, by hand.
JUNK = int(os.environ.get("SWARMCTL_TEST_JUNK", "150"))
CHAT = "/v1/chat/completions"
GOOD = ('data: {"choices":[{"delta":{"content":"Paris"}}]}\n\n'
        'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"timings":{"prompt_n":5,"predicted_n":2,'
        '"prompt_ms":1,"predicted_ms":1}}\n\ndata: [DONE]\n\n')


class Raw:
    """A server of a thread a connection. /health and /slots are answered as llama-server would; a chat is
    `behave`'s, which is handed the socket."""

    def __init__(self, behave: Callable[[socket.socket], None]) -> None:
        self.behave = behave
        self.chats = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while head := _head(connection):
                if b" /health " in head:
                    _reply(connection, '{"status":"ok"}')
                elif b" /slots " in head:
                    _reply(connection, '[{"is_processing":false}]')
                else:
                    self.chats += 1
                    self.behave(connection)
                    return

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)  # a thread in accept() would keep it open
        self.socket.close()


def _head(connection: socket.socket) -> bytes:
    """A request's head; its body is read over."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n")
                   if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head


def _reply(connection: socket.socket, text: str, status: str = "200 OK") -> None:
    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())


def _begin(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")


def busy(connection: socket.socket) -> None:
    _reply(connection, '{"error":{"code":503,"message":"Loading model"}}', "503 Service Unavailable")


def hangs(connection: socket.socket) -> None:
    connection.recv(1)


def babbles(connection: socket.socket) -> None:
    connection.sendall(random.Random(7).randbytes(9000))


def babbles_in_http(connection: socket.socket) -> None:
    _begin(connection)
    connection.sendall(b"data: {nope\n\n" + random.Random(7).randbytes(9000))


def hangs_up(_: socket.socket) -> None:
    return


def half(connection: socket.socket) -> None:
    _begin(connection)
    connection.sendall(b'data: {"choices":[{"delta":{"content":"Pa"}}]}\n\n')


def firehose(connection: socket.socket) -> None:
    _begin(connection)
    while True:
        connection.sendall(b'data: {"choices":[{"delta":{"content":"' + b"x" * 4000 + b'"}}]}\n\n')


def answers(connection: socket.socket) -> None:
    _begin(connection)
    connection.sendall(GOOD.encode())


def says_odd_times(connection: socket.socket) -> None:
    _begin(connection)
    connection.sendall(GOOD.replace('"prompt_ms":1,', '"prompt_ms":-7,"cache_n":[],').replace(
        '"predicted_ms":1', '"predicted_ms":"soon"').encode())


def of_another_shape(connection: socket.socket) -> None:
    _begin(connection)
    connection.sendall(b'data: {"choices": [{"delta": ["Paris"]}]}\n\n')


BAD = {"busy": busy, "hangs": hangs, "babbles": babbles, "babbles_in_http": babbles_in_http,
       "hangs_up": hangs_up, "half": half, "of_another_shape": of_another_shape}
AT_ONCE = ("busy", "babbles", "babbles_in_http", "hangs_up", "of_another_shape")


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    made = []

    def make(behave: Callable[[socket.socket], None]) -> Raw:
        made.append(Raw(behave))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(OSError):
            one.close()


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def _preferred(port: int, model: str = "tiny-small") -> object:
    """A server that promises much: it is asked first."""
    return replace(served("llamacpp", model, port, quality={"routine": 0.99}), prefill_speed=9e5,
                   decode_speed=9e4)


@pytest.mark.parametrize("fault", AT_ONCE)
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_fails_at_once_is_passed_over(raw, home, fault, stream):
    bad, good = raw(BAD[fault]), raw(answers)
    with swarm_of(home, host("bad", _preferred(bad.port)),
                  host("good", served("llamacpp", "tiny-small", good.port))) as cli, serving(cli) as gateway:
        for _ in range(3):
            reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE, "stream": stream}, timeout=60)
            assert reply.status_code == 200
            assert reply.headers["x-swarmctl-host"] == "good"
            assert "Paris" in reply.text
        rows = cli.rows()
    assert [row["host"] for row in rows] == ["good"] * 3
    assert rows[0]["attempts"][0]["host"] == "bad"
    assert bad.chats < 3, "its breaker opened"


@pytest.mark.parametrize("fault", AT_ONCE)
def test_where_every_server_fails_the_client_is_told_and_the_question_kept(raw, home, fault):
    bad = raw(BAD[fault])
    with swarm_of(home, host("bad", served("llamacpp", "tiny-small", bad.port))) as cli, \
            serving(cli) as gateway:
        reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE, "stream": True}, timeout=60)
        assert reply.status_code == 502
        assert reply.json()["error"]["type"] == "server_error"
        assert "bad" in reply.json()["error"]["message"]
        (row,) = cli.rows()
    assert (row["finish"], row["answer"]) == ("error", "")


def test_a_server_that_hangs_is_left_and_loses_nothing_when_its_client_does(raw, home):
    stuck = raw(hangs)
    with swarm_of(home, host("stuck", served("llamacpp", "tiny-small", stuck.port))) as cli, \
            serving(cli) as gateway:
        assert httpx.get(f"{gateway.url}/v1/models", timeout=60).status_code == 200  # it has begun, whole
        before = _open_files(gateway.process.pid)
        for asked, stream in enumerate((True, False), 1):
            port = int(gateway.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(_post({"messages": FRANCE, "stream": stream}))
                _wait(lambda asked=asked: stuck.chats == asked)
        _wait(lambda: len(cli.rows()) == 2)
        assert [row["finish"] for row in cli.rows()] == ["cancelled", "cancelled"]
        _wait(lambda: _open_files(gateway.process.pid) <= before + 4)


def test_an_answer_that_breaks_goes_on_where_the_same_weights_are(raw, home):
    broken, other = raw(half), raw(lambda line: (_begin(line), line.sendall(GOOD.replace(
        "Paris", "ris").encode())))
    with swarm_of(home, host("broken", _preferred(broken.port)),
                  host("other", served("llamacpp", "tiny-small", other.port))) as cli, \
            serving(cli) as gateway:
        reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE, "stream": True}, timeout=60)
        said = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        (row,) = cli.rows()
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in said) == "Paris"
    assert reply.text.endswith("data: [DONE]\n\n")
    assert (row["answer"], row["host"]) == ("Paris", "other")
    assert [(one["host"], one["tokens"]) for one in row["attempts"]] == [("broken", 1)]


def test_an_answer_that_breaks_with_nobody_to_go_on_ends_in_an_error(raw, home):
    broken, other = raw(half), raw(answers)
    with swarm_of(home, host("broken", _preferred(broken.port)),
                  host("other", served("llamacpp", "other-weights", other.port))) as cli, \
            serving(cli) as gateway:
        reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE, "stream": True}, timeout=60)
        *_, last = [line for line in reply.text.splitlines() if line]
        assert "broken failed in the middle" in json.loads(last[6:])["error"]["message"]
        assert "[DONE]" not in reply.text
        _wait(lambda: len(cli.rows()) == 1)
        whole = httpx.post(gateway.url + CHAT, json={"messages": FRANCE}, timeout=60)
        assert whole.json()["choices"][0]["message"]["content"] == "Paris"


@runtime
def test_a_runtime_killed_in_mid_stream_is_gone_on_from_on_its_twin(llamacpp_bin, tmp_path, home):
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as first, \
            llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as second:
        quick = replace(served("llamacpp", "tiny-small", first, quality=shipped_quality("small")),
                        decode_speed=3e4, prefill_speed=3e5)
        with swarm_of(home, host("first", quick), host("second", served("llamacpp", "tiny-small", second))) \
                as cli, serving(cli) as gateway, slowed(_pid_of(first)), \
                openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", timeout=60) as client:
            stream = client.chat.completions.create(
                model="auto", temperature=0, max_tokens=40, stream=True,
                messages=[{"role": "user", "content": "Say something long, please."}])
            pieces = [next(iter(stream)) for _ in range(4)]
            os.kill(_pid_of(first), signal.SIGKILL)
            pieces += list(stream)
            text = "".join(one.choices[0].delta.content or "" for one in pieces)
            row = gateway.newest()
    assert row["host"] == "second"
    assert row["attempts"][0]["tokens"] > 0
    assert row["answer"] == text
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


@runtime
def test_a_runtime_killed_in_mid_stream_with_no_twin_is_an_error_event(llamacpp_bin, tmp_path, home):
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(home, host("only", served("llamacpp", "tiny-small", port))) as cli, \
            serving(cli) as gateway, slowed(_pid_of(port)), \
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", timeout=60) as client:
        stream = client.chat.completions.create(model="auto", messages=FRANCE, stream=True,
                                                response_format=LONG)
        next(iter(stream))
        os.kill(_pid_of(port), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="only failed in the middle"):
            list(stream)
        _wait(lambda: cli.rows())
        assert gateway.newest()["finish"] in ("error", "cancelled")
        assert httpx.get(f"{gateway.url}/v1/models").status_code == 200


def test_a_slow_reader_slows_its_own_server_and_is_dropped(raw, home):
    hose, stalled = raw(firehose), Bounds(stall=1.0)
    with swarm_of(home, host("hose", served("llamacpp", "tiny-small", hose.port))) as cli:
        sent = asyncio.run(_never_read(cli, stalled))
        _wait(lambda: cli.rows())
    assert sent < 32 << 20, "what nobody reads is not piled up"
    assert cli.rows()[-1]["finish"] == "cancelled"


async def _never_read(cli, bounds: Bounds) -> int:
    async with _inside(cli, bounds) as (port, app):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
        writer.write(_post({"messages": FRANCE, "stream": True}))
        await _until(lambda: app.gateway.engine.running == 1)
        await _until(lambda: app.gateway.engine.running == 0)
        size = len(cli.rows()[-1]["answer"])
        writer.close()
        return size


def test_clients_that_send_their_request_byte_by_byte_are_dropped_and_in_nobodys_way(raw, home):
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", raw(answers).port))) as cli:
        asyncio.run(_loris(cli, Bounds(head=0.6, upload=0.6)))


async def _loris(cli, bounds: Bounds) -> None:
    async with _inside(cli, bounds) as (port, _), httpx.AsyncClient(timeout=60) as client:
        heads = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        bodies = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        drips = [asyncio.ensure_future(_drip(writer)) for _, writer in heads]
        try:
            for _, writer in bodies:
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                             b"Content-Length: 500\r\n\r\n{")
            reply = await client.post(f"http://127.0.0.1:{port}{CHAT}", json={"messages": FRANCE})
            assert reply.status_code == 200
            for reader, _ in heads:
                assert await asyncio.wait_for(_ended(reader), 30) == b""
            for reader, _ in bodies:
                assert b" 408 " in await asyncio.wait_for(_ended(reader), 30)
        finally:
            for drip in drips:
                drip.cancel()
            for _, writer in (*heads, *bodies):
                writer.close()


def test_a_head_without_end_is_refused(raw, home):
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", raw(answers).port))) as cli:
        asyncio.run(_endless_head(cli, Bounds(head=20.0, head_bytes=4096)))


async def _endless_head(cli, bounds: Bounds) -> None:
    async with _inside(cli, bounds) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + b"X-More: a\r\n" * 500)
        said = await asyncio.wait_for(_ended(reader), 20)
        assert b" 400 " in said
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        writer.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    for byte in itertools.cycle(b"GET /v1/models HTTP/1.1\r\nX-A: b\r\n"):
        if writer.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def _ended(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await reader.read()
    return b""


def test_more_than_it_takes_at_once_is_told_to_come_again(raw, home):
    with swarm_of(home, host("stuck", served("llamacpp", "tiny-small", raw(hangs).port))) as cli:
        asyncio.run(_too_many(cli))


async def _too_many(cli) -> None:
    async with _inside(cli, Bounds(at_once=2)) as (port, app), httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        asked = [asyncio.ensure_future(client.post(CHAT, json={"messages": FRANCE})) for _ in range(2)]
        await _until(lambda: app.gateway.engine.running == 2)
        reply = await client.post(CHAT, json={"messages": FRANCE})
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["type"] == "rate_limit_error"
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await _until(lambda: app.gateway.engine.running == 0)


def test_an_answer_that_takes_too_long_is_504_and_recorded(raw, home):
    with swarm_of(home, host("stuck", served("llamacpp", "tiny-small", raw(hangs).port))) as cli:
        asyncio.run(_too_long(cli))
        assert cli.rows()[-1]["finish"] == "cancelled"


async def _too_long(cli) -> None:
    async with _inside(cli, Bounds(turn=0.5)) as (port, app), httpx.AsyncClient(timeout=60) as client:
        reply = await client.post(f"http://127.0.0.1:{port}{CHAT}", json={"messages": FRANCE})
        assert reply.status_code == 504
        await _until(lambda: app.gateway.engine.running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_recorded_is_an_error_and_not_a_silence(raw, home, stream):
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", raw(answers).port))) as cli, \
            serving(cli) as gateway:
        month = cli.paths.journal / f"{time.strftime('%Y-%m', time.gmtime())}.jsonl"
        month.mkdir(parents=True)  # as good as a full disk, also for root
        reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE, "stream": stream}, timeout=60)
        assert "cannot record" in reply.text
        assert "[DONE]" not in reply.text
        assert reply.status_code == (200 if stream else 500)
        month.rmdir()
        assert httpx.post(gateway.url + CHAT, json={"messages": FRANCE}, timeout=60).status_code == 200


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                                max_size=4), max_leaves=12)
FIELDS = ("model", "messages", "prompt", "input", "stream", "max_tokens", "temperature", "top_p", "stop",
          "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "stream_options", "n",
          "system", "format", "options", "exchange", "score", "stars", "images", "thinking", "keep_alive",
          "encoding_format", "seed", "tool_calls", "correction", "previous_response_id", "think", "raw")
MESSAGE = st.fixed_dictionaries({}, optional={
    "role": st.sampled_from(["user", "assistant", "system", "tool", "owl"]) | JSON,
    "content": st.text(max_size=30) | JSON, "tool_calls": JSON, "tool_call_id": JSON, "images": JSON})
LIKELY = st.fixed_dictionaries({}, optional={
    "messages": st.just(FRANCE) | st.lists(MESSAGE, max_size=4), "max_tokens": st.integers(1, 4),
    "stream": st.booleans(),
    "model": st.sampled_from(["auto", "auto:best", "tiny-small", "", "nope"]),
    "prompt": st.text(max_size=9), "input": st.text(max_size=9)})
BODY = st.tuples(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), LIKELY).map(
    lambda both: {**both[0], **both[1]})
TALKS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
PATHS = (*TALKS, "/v1/embeddings", "/api/embed", "/v1/feedback", "/api/show", "/v1/models", "/v1/nope")


@runtime
def test_junk_harms_nobody(llamacpp_bin, tmp_path, home):
    """Every reply is JSON in its API's shape or a stream, nothing is a defect, each answer has its row."""
    answered: list[str] = []
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 512, "-np", 2) as port, \
            swarm_of(home, host("spinoza", replace(served("llamacpp", "tiny-small", port), parallel=2))) \
            as cli, serving(cli, "--log", os.devnull) as gateway, \
            httpx.Client(base_url=gateway.url, timeout=60) as client:
        client.post(CHAT, json={"messages": FRANCE, "max_tokens": 2})
        pid, base = gateway.process.pid, len(cli.rows())
        files, threads = _open_files(pid), _threads(pid)

        @settings(max_examples=JUNK, deadline=None, database=None, derandomize=JUNK < 1000,
                  suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(PATHS), BODY | JSON, st.sampled_from(["POST", "POST", "POST", "GET", "PUT"]))
        def send(path: str, body: object, method: str) -> None:
            reply = client.request(method, path, content=json.dumps(body).encode(),
                                   headers={"content-type": "application/json"})
            assert reply.status_code != 500, reply.text
            assert reply.status_code < 500 or reply.status_code in (501, 502, 503), reply.text
            if reply.status_code >= 400:
                assert reply.json()["error"], reply.text
            elif "x-swarmctl-exchange" in reply.headers and path in TALKS:
                answered.append(reply.headers["x-swarmctl-exchange"])

        send()
        _raw_junk(int(gateway.url.rpartition(":")[2]))
        assert client.get("/healthz").json()["status"] == "ready"
        recorded = {row["id"] for row in cli.rows()[base:] if row["kind"] == "exchange"}
        assert answered, "some junk is a question"
        assert set(answered) <= recorded
        _wait(lambda: _open_files(pid) <= files + 20)
        assert _threads(pid) <= threads + 60
        assert not [line for line in gateway.said if "unexpected" in line or "Traceback" in line]


def _raw_junk(port: int) -> None:
    noise = random.Random(3)
    for junk in (b"\0" * 50, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", noise.randbytes(5000),
                 b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 90_000, b"GET /" + b"a" * 200_000,
                 b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz",
                 b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, \
                contextlib.suppress(OSError):
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


def test_a_defect_is_said_in_the_apis_own_shape(home):
    def broken(*_: object) -> dict:
        raise ZeroDivisionError

    said = StringIO()
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", 9))) as cli:
        app = make_app(cli.paths, cli.paths.inventory, Serving(), clock=time.time, log=said,
                       say=lambda _: None)
        surface = replace(openai_surface, looks=(Look("GET", "/broken", broken),))
        reply = asyncio.run(_get(App(app.gateway, (surface,)), "/broken"))
        counted = app.gateway.metrics.exposition().decode()
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert json.loads(said.getvalue())["status"] == 500
    assert 'swarmctl_http_requests_total{status="500",surface="openai"} 1.0' in counted


@pytest.mark.parametrize("levels", [90, 250, 900, 100_000])
def test_no_request_is_nested_so_deeply_that_the_journal_cannot_be_read_any_more(raw, home, levels):
    """One of 900 levels was answered and recorded, and `log` never showed anything again."""
    schema = '{"a":' * levels + "1" + "}" * levels
    body = (f'{{"messages": {json.dumps(FRANCE)}, "response_format": {{"type": "json_schema", '
            f'"json_schema": {{"name": "n", "schema": {schema}}}}}}}')
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", raw(answers).port))) as cli, \
            serving(cli) as gateway:
        reply = httpx.post(gateway.url + CHAT, content=body, timeout=60)
        assert reply.status_code == (200 if levels < 100 else 400), reply.text
        assert cli.run("log", "list").returncode == 0


def test_times_that_are_no_numbers_spoil_no_answer(raw, home):
    with swarm_of(home, host("odd", served("llamacpp", "tiny-small", raw(says_odd_times).port))) as cli, \
            serving(cli) as gateway:
        reply = httpx.post(gateway.url + CHAT, json={"messages": FRANCE}, timeout=60)
        row = gateway.newest()
    assert reply.json()["choices"][0]["message"]["content"] == "Paris"
    assert (row["timings"]["prompt_tokens"], row["timings"]["completion_tokens"]) == (5, 2)
    assert row["timings"]["prompt_seconds"] == row["timings"]["decode_seconds"] == 0


def test_a_key_that_has_asked_enough_is_no_sign_of_a_full_queue(home):
    """SwarmctlTurningAway would wake somebody in the night because of one client's limit."""
    with swarm_of(home, host("good", served("llamacpp", "tiny-small", 9))) as cli:
        _, secret = add_key(cli.paths, Key("ann", "", "", requests_per_minute=1))
        app = make_app(cli.paths, cli.paths.inventory, Serving(), clock=time.time, log=StringIO(),
                       say=lambda _: None)
        seen = [asyncio.run(_asked(app, secret)).status_code for _ in range(2)]
        counted = app.gateway.metrics.exposition().decode()
    assert seen[1] == 429
    assert 'swarmctl_rejections_total{reason="limit",surface="openai"} 1.0' in counted
    assert 'reason="busy"' not in counted


async def _asked(app: App, secret: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.post(CHAT, json={"messages": FRANCE},
                                 headers={"Authorization": f"Bearer {secret}"})


async def _get(app: App, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path)


def test_a_kept_connection_that_died_is_not_fatal(raw):
    def once(connection: socket.socket) -> None:
        _reply(connection, '{"n":1}')  # and hangs up, without a word about it

    server = raw(once)
    with keeping():
        for _ in range(3):
            with request(Endpoint(port=server.port), "POST", "/x", {}, connect_timeout=2, timeout=2) as reply:
                assert reply.json() == {"n": 1}
            time.sleep(0.05)
    server.close()
    with pytest.raises((TunnelDown, Dropped)), request(
            Endpoint(port=server.port), "GET", "/x", connect_timeout=2, timeout=2):
        pass


def test_a_connection_is_used_again_once_its_answer_was_read(raw):
    server = raw(answers)
    with keeping():
        for _ in range(5):
            with request(Endpoint(port=server.port), "GET", "/health", connect_timeout=2, timeout=2) as reply:
                assert reply.json() == {"status": "ok"}
                line = reply.connection.line
        with request(Endpoint(port=server.port), "GET", "/health", connect_timeout=2, timeout=2) as reply:
            assert reply.connection.line is line


def test_hanging_up_releases_a_thread_that_waits_for_a_server(raw):
    hangup, ended = Hangup(), []

    def wait() -> None:
        with until(hangup):
            try:
                with request(Endpoint(port=server.port), "POST", "/x", {}, connect_timeout=2, timeout=60):
                    pass
            except HungUp:
                ended.append(time.monotonic())

    server = raw(hangs)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    _wait(lambda: server.chats == 1)
    began = time.monotonic()
    hangup.now()
    thread.join(5)
    assert ended[0] - began < 1
    with until(hangup), pytest.raises(HungUp), request(
            Endpoint(port=server.port), "GET", "/health", connect_timeout=2, timeout=2):
        pass


@contextlib.asynccontextmanager
async def _inside(cli, bounds: Bounds):
    """A gateway in this process, for bounds that the command line does not offer."""
    app = make_app(cli.paths, cli.paths.inventory, Serving(port=0, bounds=bounds), clock=time.time,
                   log=StringIO(), say=lambda _: None)
    server, sock = _server(app), bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    running = asyncio.ensure_future(server.serve([sock]))
    await _until(lambda: server.started)
    try:
        yield port, app
    finally:
        app.gateway.engine.hang_up()
        await app.gateway.engine.settle(5)
        server.should_exit = server.force_exit = True
        await running
        app.gateway.engine.close()


def _post(body: object) -> bytes:
    raw = json.dumps(body).encode()
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(raw)
            + raw)


async def _until(true: Callable[[], object], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def _wait(true: Callable[[], object], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
