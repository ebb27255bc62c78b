"""A model server is killed in the middle of an answer: every client hears of it as its own API says it."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest
from gateways import CONTEXT, host, llama_server, served, serving, swarm_of
from running import slowed
from test_serve import _pid_of
from waiting import until

pytestmark = pytest.mark.runtime

#: an answer that takes long
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 100, "maxItems": 110}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def doomed(llamacpp_bin, tmp_path):
    """A gateway and the only llama-server behind it, slowed so that it can be caught at work."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(llama_server(tmp_path, llamacpp_bin, "large", "-c", CONTEXT, "-np", 1))
        (tmp_path / "home").mkdir()
        entry = host("spinoza", served("llamacpp", "tooly", port))
        cli = stack.enter_context(swarm_of(tmp_path / "home", entry))
        found = stack.enter_context(serving(cli))
        found.pid = _pid_of(port)
        stack.enter_context(slowed(found.pid, 0.05))
        yield found


def killed(doomed, pieces):
    """Kill the server once a few pieces of a stream have come, and read on; what came."""
    seen = []
    for piece in pieces:
        seen.append(piece)
        if len(seen) == 3:
            os.kill(doomed.pid, signal.SIGKILL)
    return seen


def recorded(doomed) -> dict:
    """The exchange, which may come to the journal a little after the client heard."""
    (row,) = until(lambda: [row for row in doomed.cli.rows() if row["kind"] == "exchange"])
    return row


def test_openai_raises_its_error(doomed):
    openai = pytest.importorskip("openai")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG}}
    with openai.OpenAI(base_url=f"{doomed.url}/v1", api_key="any", max_retries=0) as client:
        stream = client.chat.completions.create(model="auto", messages=CAPITAL, stream=True,
                                                response_format=form)
        with pytest.raises(openai.APIError, match="spinoza"):
            killed(doomed, stream)
    assert recorded(doomed)["finish"] == "error"


def test_openai_is_told_of_a_response_that_failed(doomed):
    openai = pytest.importorskip("openai")
    form = {"format": {"type": "json_schema", "name": "x", "schema": LONG}}
    with openai.OpenAI(base_url=f"{doomed.url}/v1", api_key="any", max_retries=0) as client:
        events = killed(doomed, client.responses.create(model="auto", input="hi", stream=True, text=form))
    assert events[-1].type == "response.failed"
    assert "spinoza" in events[-1].response.error.message


def test_anthropic_raises_its_error(doomed):
    anthropic = pytest.importorskip("anthropic")
    form = {"format": {"type": "json_schema", "schema": LONG}}
    with anthropic.Anthropic(base_url=doomed.url, api_key="any", max_retries=0) as client:
        stream = client.messages.create(model="auto", max_tokens=900, messages=CAPITAL, stream=True,
                                        output_config=form)
        with pytest.raises(anthropic.APIError, match="spinoza"):
            killed(doomed, stream)


def test_ollama_raises_its_error(doomed):
    ollama = pytest.importorskip("ollama")
    with ollama.Client(host=doomed.url) as client, pytest.raises(ollama.ResponseError, match="spinoza"):
        killed(doomed, client.chat("auto", CAPITAL, format=LONG, stream=True))


def test_a_client_that_asks_whole_gets_an_error_and_no_half_answer(doomed):
    httpx = pytest.importorskip("httpx")
    os.kill(doomed.pid, signal.SIGKILL)
    said = httpx.post(f"{doomed.url}/v1/messages", timeout=60, content=json.dumps(
        {"model": "auto", "max_tokens": 9, "messages": CAPITAL}))
    assert said.status_code in (502, 503)
    assert said.json()["error"]["type"] in ("api_error", "overloaded_error")
