"""`swarmctl serve` as a process before a real llama-server: asked as programs ask it, and as strangers do."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from running import slowed
from waiting import until

from swarmctl.dispatch.queue import length
from swarmctl.dispatch.slots import claim, claimed
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import Busy, SwarmError, UsageError
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.gateway.keys import Key, Keyring, add_key, hashed, keys_file, read_keys, revoke_key
from swarmctl.gateway.limits import Limits, spent_today
from swarmctl.gateway.unit import unit_text
from swarmctl.ledger.journal import append, read
from swarmctl.paths import Paths
from swarmctl.shipped import shipped_quality
from swarmctl.verbs.serve import make_key

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
#: keeps the model talking for as long as a test needs
LONG = {"type": "json_schema", "json_schema": {"name": "n", "schema": {
    "type": "array", "items": {"type": "integer"}, "minItems": 150, "maxItems": 160}}}
NOON = 1_795_521_600.0

runtime = pytest.mark.runtime


@pytest.fixture(scope="module")
def gateway(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    with llama_server(folder, llamacpp_bin, "small", "-c", 1024, "-np", 2) as chat, \
            llama_server(folder, llamacpp_bin, "small", "-c", 1024, "--embedding", "--pooling",
                         "mean") as vectors:
        small = replace(served("llamacpp", "tiny-small", chat, quality=shipped_quality("small")), parallel=2)
        hosts = (host("spinoza", small), host("worlock", served("llamacpp", "vectors", vectors,
                                                                embedding=True)))
        (folder / "home").mkdir()
        with swarm_of(folder / "home", *hosts) as cli, \
                serving(cli, "--log", str(folder / "access.log")) as found:
            found.log = folder / "access.log"
            found.server = _pid_of(chat)
            yield found


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def paths(tmp_path):
    return Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})


@runtime
def test_a_chat_is_answered_by_the_swarm_and_recorded(client, gateway):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=FRANCE, temperature=0)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Paris"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.model == "tiny-small"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 4
    assert raw.headers["x-swarmctl-host"] == "spinoza"
    assert raw.headers["x-swarmctl-model"] == "tiny-small"
    assert float(raw.headers["x-swarmctl-cost-seconds"]) > 0
    row = gateway.newest()
    assert row["id"] == raw.headers["x-swarmctl-exchange"]
    assert (row["via"], row["terminal"], row["answer"]) == ("serve", "serve", "Paris")


@runtime
def test_a_stream_comes_piece_by_piece_and_is_recorded_before_its_end(client, gateway):
    stream = client.chat.completions.create(model="auto", messages=FRANCE, temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Paris"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[0].id == f"chatcmpl-{gateway.newest()['id']}"


@runtime
def test_log_probabilities_are_given_to_who_asks_for_them(client):
    answer = client.chat.completions.create(model="auto", messages=FRANCE, temperature=0, logprobs=True,
                                            top_logprobs=2)
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


@runtime
def test_an_answer_keeps_to_a_schema(client):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
              "required": ["city"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="auto", messages=FRANCE, max_tokens=300,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}})
    assert isinstance(json.loads(answer.choices[0].message.content)["city"], str)


@runtime
def test_a_completion_goes_on_from_a_text(client):
    answer = client.completions.create(model="tiny-small", prompt="The capital of", max_tokens=4)
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 4


@runtime
def test_vectors_come_as_numbers_and_as_base64(client, gateway):
    made = client.embeddings.create(model="vectors", input=["hello", "world"])
    assert [one.index for one in made.data] == [0, 1]
    plain = httpx.post(f"{gateway.url}/v1/embeddings", json={"input": "hello"}).json()
    packed = httpx.post(f"{gateway.url}/v1/embeddings",
                        json={"input": "hello", "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(plain["data"][0]["embedding"])
    assert made.data[0].embedding == pytest.approx(plain["data"][0]["embedding"], abs=1e-5)


@runtime
def test_models_are_listed_with_the_names_that_route(client):
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "auto:fast", "auto:best", "tiny-small", "vectors"]
    assert client.models.retrieve("tiny-small").owned_by == "swarmctl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@runtime
@pytest.mark.parametrize("more", [{"n": 2}, {"temperature": 3}, {"logit_bias": {"5": 1}},
                                  {"tools": [{"type": "function"}]}, {"top_logprobs": 2},
                                  {"messages": []}, {"messages": [{"role": "owl", "content": ""}]},
                                  {"stop": ["x"] * 17}, {"max_tokens": 1.5}, {"stream": "yes"}])
def test_what_the_api_does_not_allow_is_named_in_its_own_shape(gateway, more):
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json={"messages": FRANCE, **more})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(next(iter(more)))


@runtime
def test_an_unknown_model_is_404_and_says_what_is_served(client):
    with pytest.raises(openai.NotFoundError, match="tiny-small on spinoza") as caught:
        client.chat.completions.create(model="gpt-4o", messages=FRANCE)
    assert caught.value.code == "model_not_found"


@runtime
@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"messages": FRANCE}), ("/v1/completions", {"prompt": "hello"}),
    ("/v1/responses", {"input": "hello"}), ("/v1/messages", {"messages": FRANCE, "max_tokens": 9}),
    ("/api/chat", {"messages": FRANCE}), ("/api/generate", {"prompt": "hello"})])
def test_a_model_of_vectors_that_is_asked_to_chat_says_who_does(gateway, path, body):
    reply = httpx.post(gateway.url + path, json={"model": "vectors:latest", **body})
    assert reply.status_code == 400
    said = reply.json()["error"]
    message = said if isinstance(said, str) else said["message"]
    assert message == "vectors makes vectors only, it does not chat (models that chat: tiny-small on spinoza)"
    if path.startswith("/v1/") and path != "/v1/messages":
        assert (said["param"], said["code"], said["type"]) == ("model", None, "invalid_request_error")


@runtime
def test_a_model_of_vectors_that_is_asked_in_the_terminal_says_who_chats(gateway):
    for command in (("ask", "-m", "vectors", "hello"), ("ask", "-m", "vectors", "-H", "worlock", "hello")):
        said = gateway.cli.run(*command, status=2).stderr
        assert "vectors makes vectors only, it does not chat" in said
        assert "models that chat: tiny-small on spinoza" in said


@runtime
@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/nope", 404),
                                                        ("POST", "/api/chat/", 404),
                                                        ("GET", "/healthz/", 404),
                                                        ("GET", "/v1/chat/completions", 405)])
def test_what_is_not_there_is_said_in_json(gateway, method, path, status):
    reply = httpx.request(method, gateway.url + path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error["message"] if isinstance(error, dict) else error


@runtime
def test_a_conversation_that_a_client_sends_back_is_one_conversation(client, gateway):
    first = client.chat.completions.create(model="auto", messages=FRANCE, temperature=0)
    one = gateway.newest()
    said = [*FRANCE, {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "And of Spain?"}]
    client.chat.completions.create(model="auto", messages=said)
    two = gateway.newest()
    assert (two["conversation"], two["parent"]) == (one["id"], one["id"])


@runtime
def test_feedback_is_a_rating(client, gateway):
    answer = client.chat.completions.create(model="auto", messages=FRANCE)
    url = f"{gateway.url}/v1/feedback"
    done = httpx.post(url, json={"exchange": answer.id, "stars": 2, "comment": "too long"}).json()
    assert done["rating"]["score"] == -0.5
    done = httpx.post(url, json={"exchange": answer.id, "correction": "Paris, in France"}).json()
    assert done["rating"]["correction"] == "Paris, in France"
    assert done["rating"]["comment"] == "too long"
    assert [row["kind"] for row in gateway.cli.rows()[-2:]] == ["rating", "rating"]
    assert httpx.post(url, json={"exchange": "0" * 16, "rating": "up"}).status_code == 404
    assert httpx.post(url, json={"exchange": answer.id}).status_code == 400
    assert httpx.post(url, json={"exchange": answer.id, "rating": "meh"}).status_code == 400


@runtime
def test_health_says_who_could_answer(gateway):
    seen = httpx.get(f"{gateway.url}/healthz").json()
    assert seen == {"status": "ready", "candidates": [{"host": "spinoza", "model": "tiny-small",
                                                       "usable": True}]}


@runtime
def test_the_log_has_a_line_a_request_and_no_prompt(client, gateway):
    client.chat.completions.create(model="auto", messages=FRANCE, temperature=0)
    line = json.loads(gateway.log.read_text().splitlines()[-1])
    assert line["path"] == "/v1/chat/completions"
    assert (line["status"], line["host"], line["answered"]) == (200, "spinoza", "tiny-small")
    assert line["exchange"] == gateway.newest()["id"]
    assert "capital" not in gateway.log.read_text()


@runtime
@pytest.mark.parametrize("headers", [{"Host": "swarm.evil.example"}, {"Origin": "https://evil.example"},
                                     {"Origin": "null"}, {"Host": "127.0.0.1.evil.example:80"}])
def test_web_pages_of_strangers_are_refused(gateway, headers):
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json={"messages": FRANCE}, headers=headers)
    assert reply.status_code == 403
    assert not any(name.startswith("access-control") for name in reply.headers)


@runtime
def test_a_client_that_leaves_stops_the_server_and_is_recorded_as_cancelled(client, gateway):
    with slowed(gateway.server):
        stream = client.chat.completions.create(model="auto", messages=FRANCE, stream=True,
                                                response_format=LONG)
        next(iter(stream))
        before = len(gateway.cli.rows())
        stream.close()
        row = _row_after(gateway, before)
    assert row["finish"] == "cancelled"
    assert row["answer"]


@runtime
def test_a_client_that_leaves_before_the_first_token_is_recorded_too(gateway):
    before = len(gateway.cli.rows())
    paths = gateway.cli.paths
    candidates = make_swarm(paths, read_fleet(paths.fleet)).candidates
    (asked,) = (one for one in candidates if one.host == "spinoza")
    os.kill(gateway.server, signal.SIGSTOP)
    try:
        with _asking(gateway):
            until(lambda: claimed(paths, asked, 2) == 1)
        until(lambda: claimed(paths, asked, 2) == 0)
        row = _row_after(gateway, before)
    finally:
        os.kill(gateway.server, signal.SIGCONT)
    assert row["finish"] == "cancelled"


@runtime
def test_a_client_that_leaves_while_it_waits_in_line_is_recorded_too(gateway):
    before, paths = len(gateway.cli.rows()), gateway.cli.paths
    (asked,) = (one for one in make_swarm(paths, read_fleet(paths.fleet)).candidates if one.host == "spinoza")
    with claim(paths, asked, 2), claim(paths, asked, 2):
        with _asking(gateway):
            until(lambda: length(paths) == 1)
        row = _row_after(gateway, before)
    assert (row["finish"], row["answer"], row["host"]) == ("cancelled", "", "spinoza")
    assert row["timings"]["queue_seconds"] > 0
    assert (length(paths), claimed(paths, asked, 2)) == (0, 0)


def test_what_a_client_was_told_is_kept_though_it_left_before_another_host_could_go_on(tmp_path):
    from test_gateway_faults import Raw, _preferred, answers, half

    broken, busy = Raw(half), Raw(answers)
    (tmp_path / "home").mkdir()
    with swarm_of(tmp_path / "home", host("breaks", _preferred(broken.port)),
                  host("twin", served("llamacpp", "tiny-small", busy.port))) as cli, serving(cli) as gateway:
        candidates = make_swarm(cli.paths, read_fleet(cli.paths.fleet)).candidates
        (twin,) = (one for one in candidates if one.host == "twin")
        with claim(cli.paths, twin, 1):
            with _asking(gateway, stream=True):
                until(lambda: length(cli.paths) == 1)
            row = _row_after(gateway, 0)
    broken.close()
    busy.close()
    assert (row["finish"], row["answer"]) == ("cancelled", "Pa")
    assert [one["host"] for one in row["attempts"]] == ["breaks"]


@runtime
def test_a_body_that_is_too_large_or_packed_or_no_json_is_refused(gateway):
    url = f"{gateway.url}/v1/chat/completions"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                     b"Content-Length: 1099511627776\r\n\r\n{")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert httpx.post(url, content=b"x", headers={"content-encoding": "gzip"}).status_code == 415
    for junk in (b"", b"[]", b"nope", b"\xff\xfe", b"[" * 100_000, b'{"messages": NaN}'):
        assert httpx.post(url, content=junk).status_code == 400


@runtime
@pytest.mark.parametrize("cut", [1, 60, 150, 400])
def test_who_would_rather_speak_http_2_is_answered_as_well(gateway, cut):
    """As Java's own client and `curl --http2` ask; cut in two, somewhere."""
    body = json.dumps({"messages": FRANCE, "temperature": 0}).encode()
    asked = (b"POST /v1/chat/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
             b"Content-Length: %d\r\nHost: localhost\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQ\r\n"
             b"Upgrade: h2c\r\nContent-Type: application/json\r\n\r\n%b" % (len(body), body))
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=60) as sock:
        for _ in range(2):
            sock.sendall(asked[:cut])
            time.sleep(0.05)
            sock.sendall(asked[cut:])
            said = b""
            while b'"choices"' not in said:
                piece = sock.recv(4096)
                assert piece, said
                said += piece
            assert said.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b'"content":"Paris"' in said
        sock.sendall(b"CONNECT swarm:443 HTTP/1.1\r\nHost: swarm:443\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


@runtime
def test_keys_are_asked_for_as_soon_as_there_is_one(llamacpp_bin, tmp_path):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 512) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli, \
            serving(cli) as gateway:
        url = f"{gateway.url}/v1/models"
        assert httpx.get(url).status_code == 200
        secret = cli.run("serve", "key", "add", "ann", "--rpm", "3").stdout.strip()
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers=_bearer("sk-swarm-nope")).status_code == 401
        assert httpx.get(url, headers={**_bearer(secret), "Host": "public.example"}).status_code == 200
        assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ready"}
        assert httpx.get(f"{gateway.url}/metrics", headers=_bearer(secret)).status_code == 403
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=secret, max_retries=0) as client:
            for _ in range(3):
                answer = client.chat.completions.create(model="auto", messages=FRANCE, max_tokens=3)
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="auto", messages=FRANCE)
        assert int(caught.value.response.headers["retry-after"]) in range(1, 21)
        assert gateway.newest()["terminal"] == "key:ann"
        other = cli.run("serve", "key", "add", "bob", "--scope", "feedback").stdout.strip()
        word = {"exchange": answer.id, "rating": "up"}
        assert httpx.post(f"{gateway.url}/v1/feedback", json=word, headers=_bearer(other)).status_code == 404
        assert httpx.post(f"{gateway.url}/v1/feedback", json=word, headers=_bearer(secret)).status_code == 200
        assert httpx.get(url, headers=_bearer(other)).status_code == 403
        cli.run("serve", "key", "revoke", "ann")
        assert httpx.get(url, headers=_bearer(secret)).status_code == 401
        assert secret not in keys_file(cli.paths).read_text()
        assert "ann" not in cli.run("serve", "key", "list", "--json").stdout


@runtime
def test_the_key_of_higher_priority_is_answered_first_though_it_came_later(llamacpp_bin, tmp_path):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 512, "-np", 1) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli:
        secrets = [cli.run("serve", "key", "add", name, "--priority", priority).stdout.strip()
                   for name, priority in (("nightly", "-9"), ("ann", "0"), ("urgent", "9"))]
        listed = json.loads(cli.run("serve", "key", "list", "--json").stdout)
        assert [(key["name"], key["priority"]) for key in listed] == [("nightly", -9), ("ann", 0),
                                                                      ("urgent", 9)]
        (only,) = make_swarm(cli.paths, read_fleet(cli.paths.fleet)).candidates
        # slowed: an answer takes far longer than to write down the one before
        with serving(cli) as gateway, slowed(_pid_of(port)), ThreadPoolExecutor(3) as pool:
            slot = claim(cli.paths, only, 1)
            asking = []
            for secret in secrets:
                asking.append(pool.submit(httpx.post, f"{gateway.url}/v1/chat/completions", timeout=120,
                                          headers=_bearer(secret),
                                          json={"messages": FRANCE, "max_tokens": 9}))
                until(lambda: length(cli.paths) == len(asking))
            slot.close()
            assert [one.result(120).status_code for one in asking] == [200, 200, 200]
        answered = [row["terminal"] for row in cli.rows() if row["kind"] == "exchange"]
        assert answered == ["key:urgent", "key:ann", "key:nightly"]


def test_it_refuses_to_let_others_in_without_a_key(tmp_path):
    (tmp_path / "home").mkdir()
    with swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", 9))) as cli:
        for address in ("0.0.0.0", "::", "192.0.2.7"):
            said = cli.run("serve", "--host", address, "--port", "0", status=2).stderr
            assert "swarmctl serve key add NAME" in said


def test_a_port_that_is_taken_is_named(tmp_path):
    (tmp_path / "home").mkdir()
    with socket.socket() as sock, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", 9))) as cli:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        said = cli.run("serve", "--port", str(sock.getsockname()[1]), status=1).stderr
        assert "already in use" in said


@runtime
def test_it_ends_once_what_is_under_way_is_answered(llamacpp_bin, tmp_path):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli, \
            serving(cli) as gateway, slowed(_pid_of(port), 0.2), \
            httpx.stream("POST", f"{gateway.url}/v1/chat/completions", timeout=60, json={
                "messages": FRANCE, "response_format": LONG, "max_tokens": 60, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        gateway.process.send_signal(signal.SIGTERM)
        assert list(lines)[-2] == "data: [DONE]"
        assert gateway.process.wait(60) == 0
        assert gateway.newest()["finish"] == "length"


@runtime
def test_it_ends_in_time_and_records_what_it_cut_short(llamacpp_bin, tmp_path):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli, \
            serving(cli, "--drain", "0.5") as gateway, slowed(_pid_of(port), 0.01), \
            httpx.stream("POST", f"{gateway.url}/v1/chat/completions", timeout=60, json={
                "messages": FRANCE, "response_format": LONG, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert any("error" in line for line in lines)
        assert gateway.process.wait(60) == 0
        assert time.monotonic() - began < 30, "longer, had it let the answer come to its end"
        assert gateway.newest()["finish"] == "cancelled"
        assert "cut short and recorded" in "".join(gateway.said)


def test_keys_made_at_once_are_all_kept(paths):
    names = [f"key{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: make_key(paths, name, 0.0), names))
    assert sorted(key.name for key in read_keys(keys_file(paths))) == names


def test_keys_are_kept_as_hashes_for_their_owner_alone(paths):
    made, secret = add_key(paths, Key("ann", "", "2026-11-23T00:00:00Z"))
    assert made.sha256 == hashed(secret)
    assert len(secret) > 40
    assert secret not in keys_file(paths).read_text()
    assert stat.S_IMODE(keys_file(paths).stat().st_mode) == 0o600
    ring = Keyring(keys_file(paths))
    assert ring.find(secret) == made
    assert ring.find(secret + "x") is None
    with pytest.raises(UsageError, match="there is a key named ann"):
        add_key(paths, made)
    with pytest.raises(UsageError, match="no name"):
        add_key(paths, Key("a b", "", ""))
    revoke_key(paths, "ann")
    assert ring.find(secret) is None
    with pytest.raises(UsageError, match="no key is named ann"):
        revoke_key(paths, "ann")


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", '{"version": 2, "keys": []}',
                                  '{"version": 1, "keys": [{"nick": "ann"}]}',
                                  '{"version": 1, "keys": [{"name": "ann", "sha256": "", "made": "", '
                                  '"priority": 10}]}'])
def test_a_broken_file_of_keys_lets_nobody_in(paths, text):
    keys_file(paths).parent.mkdir(parents=True)
    keys_file(paths).write_text(text)
    with pytest.raises(SwarmError, match="cannot be read as API keys"):
        read_keys(keys_file(paths))


def test_keys_that_cannot_be_seen_are_not_no_keys(paths):
    """A folder that is out of reach for a moment opens no door."""
    file = keys_file(paths)
    file.parent.mkdir(parents=True)
    file.symlink_to(file)  # as good as a folder without leave, also for root
    with pytest.raises(SwarmError, match="cannot be read as API keys"):
        Keyring(file).keys()


def test_requests_a_minute_fill_up_again():
    limits, key = Limits(), Key("ann", "", "", requests_per_minute=2)
    for _ in range(2):
        with limits.turn(key, NOON):
            pass
    with pytest.raises(Busy) as caught, limits.turn(key, NOON):
        pass
    assert caught.value.retry_after == pytest.approx(30)
    with limits.turn(key, NOON + 30):
        pass


def test_tokens_of_the_day_on_which_it_began_are_not_those_of_the_next():
    limits, key = Limits({"key:ann": 100}, NOON), Key("ann", "", "", tokens_per_day=100)
    with limits.turn(key, NOON + 86_400):
        limits.spend(key, 1, NOON + 86_400)


def test_requests_at_once_are_given_back():
    limits, key = Limits(), Key("ann", "", "", at_once=1)
    with limits.turn(key, NOON), pytest.raises(Busy), limits.turn(key, NOON):
        pass
    with limits.turn(key, NOON):
        pass


def test_tokens_a_day_begin_anew_at_midnight_in_utc():
    limits, key = Limits({"key:ann": 90}, NOON), Key("ann", "", "", tokens_per_day=100)
    with limits.turn(key, NOON):
        limits.spend(key, 10, NOON)
    with pytest.raises(Busy) as caught, limits.turn(key, NOON):
        pass
    assert caught.value.retry_after == pytest.approx(43_200)
    with limits.turn(key, NOON + 43_200):
        pass


def test_tokens_of_today_are_counted_from_the_journal(paths):
    paths.journal.mkdir(parents=True)
    rows = [_exchange("2026-11-23T22:00:00.000Z", "key:ann", 3), _exchange("2026-11-24T00:00:01.000Z",
            "key:ann", 7), _exchange("2026-11-23T23:59:59.000Z", "key:ann", 5), _exchange(
            "2026-11-24T09:00:00.000Z", "key:bob", 11)]
    lines = [json.dumps(row) for row in rows]
    (paths.journal / "2026-11.jsonl").write_text("\n".join([*lines, '{"torn', ""]))
    assert spent_today(paths.journal, NOON) == {"key:ann": 7, "key:bob": 11}


@pytest.mark.parametrize("damage", [
    {"messages": 5}, {"messages": ["x", {"content": 3}, {"content": "twelve chars"}]}, {"answer": None},
    {"timings": {"prompt_tokens": "many", "first_token_seconds": 0.1}}], ids=str)
def test_garbled_rows_of_the_journal_do_not_stop_the_count_of_tokens(paths, damage):
    paths.journal.mkdir(parents=True)
    cut = {"timings": {"first_token_seconds": 0.1}, "messages": [], "answer": "twelve chars"}
    rows = [_exchange("2026-11-24T09:00:00.000Z", "key:bob", 11),
            _exchange("2026-11-24T10:00:00.000Z", "key:ann", 7) | cut | damage]
    (paths.journal / "2026-11.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert spent_today(paths.journal, NOON)["key:bob"] == 11


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    text = unit_text(("/opt/a b/python", "-m", "swarmctl", "serve", "--host", "100%"),
                     {"SWARMCTL_HOME": "/home/x y", "SWARMCTL_MARK": "a$b"}, 30.0)
    assert 'ExecStart="/opt/a b/python" "-m" "swarmctl" "serve" "--host" "100%%"' in text
    assert 'Environment="SWARMCTL_HOME=/home/x y"' in text
    assert 'Environment="SWARMCTL_MARK=a$b"' in text, "see systemd.exec(5): a dollar means nothing there"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here to judge it")
    file = tmp_path / "swarmctl-serve.service"
    file.write_text(text.replace("/opt/a b/python", "/bin/true"))
    done = subprocess.run(("systemd-analyze", "--user", "verify", str(file)), capture_output=True, text=True,
                          timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert "swarmctl-serve" not in done.stderr, done.stderr


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def _exchange(at: str, terminal: str, tokens: int) -> dict:
    return {"kind": "exchange", "id": at, "at": at, "terminal": terminal,
            "timings": {"prompt_tokens": tokens, "completion_tokens": None}}


@contextlib.contextmanager
def _asking(gateway, **more):
    """A client that has asked, and leaves at the end."""
    body = json.dumps({"messages": FRANCE, **more}).encode()
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                       b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        yield


def _row_after(gateway, before: int) -> dict:
    until(lambda: len(gateway.cli.rows()) > before)
    return gateway.cli.rows()[-1]


def _pid_of(port: int) -> int:
    """The process that listens on a port of loopback."""
    from pathlib import Path

    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next(row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == f"socket:[{inode}]":
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody listens on {port}")


def test_threads_that_record_at_the_same_time_share_an_fsync(paths, monkeypatch):
    synced, real = [], os.fsync

    def slow(descriptor: int) -> None:
        synced.append(descriptor)
        time.sleep(0.05)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    append(paths.journal, _exchange("2026-11-24T00:00:00Z", "first", 1))
    synced.clear()
    rows = [_exchange("2026-11-24T00:00:00Z", f"t{number}", number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda row: append(paths.journal, row), rows))
    assert len(synced) < 10
    assert len(list(read(paths.journal))) == 21
