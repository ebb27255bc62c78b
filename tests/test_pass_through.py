"""What a client sets reaches the model server, and what the server says beside the answer comes back."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from gateways import host, llama_server, served, serving, swarm_of
from hypothesis import given
from hypothesis import strategies as st
from recorded import exchange, identity, paths_under, rating
from running import Cli
from test_ollama import WAITS, say

from swarmctl.cli.streaming import TerminalSink
from swarmctl.exchange import ChatRequest, Chunk, Message, Sampling, Token, image_record
from swarmctl.learning.pairs import make
from swarmctl.ledger.journal import append
from swarmctl.ledger.labels import read_labels
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.llamacpp import LlamaCpp
from swarmctl.runtimes.logprobs import read_tokens
from swarmctl.runtimes.prefill import begun, only_new
from swarmctl.runtimes.toolcalls import ollama_message, openai_message

PIXEL = "data:image/png;base64,iVBORw0KGgo="
CAPITAL = "What is the capital of France?"
#: a template that opens a thought; the tiny model never closes it
THINKS = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ '<|assistant|>' }}
{%- if message['reasoning_content'] -%}{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
{%- endif -%}{{ message['content'] | trim + '</s>' }}
{%- else -%}{{ '<|user|>' + message['content'] | trim + '\\n' }}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- else -%}{{ '<think>\\n' }}{%- endif -%}{%- endif -%}
"""


def test_images_stand_in_a_message_as_each_server_wants_them():
    turn = Message("user", "What is this?", images=(PIXEL,))
    assert openai_message(turn)["content"] == [{"type": "image_url", "image_url": {"url": PIXEL}},
                                               {"type": "text", "text": "What is this?"}]
    assert ollama_message(turn) == {"role": "user", "content": "What is this?", "images": ["iVBORw0KGgo="]}


def test_the_journal_keeps_what_an_image_was_and_not_the_image():
    row = Message("user", "What is this?", images=(PIXEL,)).to_record()
    assert row == {"role": "user", "content": "What is this?", "images": [image_record(PIXEL)]}
    assert row["images"][0]["bytes"] == 8
    assert "iVBOR" not in json.dumps(row)


def test_a_picture_and_its_reasoning_are_shown_of_an_exchange_and_teach_nothing(tmp_path):
    paths = paths_under(tmp_path)
    said = Message("user", "What is this?", images=(PIXEL,))
    for number, (turn, more) in enumerate(((said, {}), (Message("user", "on and"), {"raw": True}))):
        row = exchange(number, messages=(turn,), params=ChatRequest((turn,), **more).params(), thought="hm")
        append(paths.journal, row.to_record())
        vote = rating(100 + number, row, correction="a cat" if number else None)
        append(paths.journal, vote.to_record())
    made = make(read_labels(paths), "sft", liked=True)
    assert not made.rows
    assert made.dropped == {"asked of a picture or a file": 1, "asked without a conversation": 1}
    cli = Cli(paths, tmp_path)
    shown = cli.run("log", "show", identity(0)).stdout
    assert "image image/png, 8 bytes\nWhat is this?\n[thought]\nhm\n[answer]" in shown


def test_unset_parameters_are_neither_sent_nor_recorded():
    assert Sampling().params() == {}
    assert say("hi").params() == {}
    assert say("hi", sampling=Sampling(top_p=0.5), think=False, logprobs=True).params() == {
        "logprobs": True, "think": False, "top_p": 0.5}


@given(beginning=st.text("ab ", min_size=1, max_size=6), rest=st.text("abc", max_size=6), sizes=st.lists(
    st.integers(1, 4), min_size=12, max_size=12), echoed=st.booleans())
def test_a_begun_answer_is_taken_off_however_it_comes_in_pieces(beginning, rest, sizes, echoed):
    said = beginning + rest if echoed else "c" + rest
    chunks = []
    for size in sizes:
        chunks.append(Chunk(text=said[:size]))
        said = said[size:]
    chunks += [Chunk(text=said), Chunk(finish="stop")]
    found = list(only_new(chunks, beginning))
    assert "".join(one.text for one in found) == (rest if echoed else "c" + rest)
    assert found[-1].finish == "stop"


def test_an_answer_that_ends_within_its_beginning_loses_nothing():
    assert [one.text for one in only_new([Chunk(text="ab"), Chunk(finish="stop")], "abc")] == ["ab"]
    assert begun(say("hi")) == ""


def test_tokens_are_read_with_their_alternatives_and_junk_is_left_out():
    likely = {"token": "P", "logprob": -0.5}
    entries = [{**likely, "top_logprobs": [likely, {"token": "x"}]}, {"token": "x", "logprob": None}, 3]
    assert read_tokens(entries) == (Token("P", -0.5, (("P", -0.5),)),)
    assert read_tokens(None) == ()


@pytest.fixture(scope="module")
def thinker(llamacpp_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker")
    (folder / "think.jinja").write_text(THINKS)
    with llama_server(folder, llamacpp_bin, "large", "-c", 1024, "-np", 1, "--chat-template-file",
                      folder / "think.jinja") as port:
        yield port


def thoughts(port: int, **more) -> tuple[str, str]:
    ask = say(CAPITAL, temperature=0.0, max_tokens=20, **more)
    chunks = list(LlamaCpp().chat(Endpoint(port=port), ask, **WAITS))
    return "".join(one.thought for one in chunks), "".join(one.text for one in chunks)


@pytest.mark.runtime
def test_reasoning_is_told_apart_from_the_answer_and_can_be_switched_off(thinker):
    thought, answer = thoughts(thinker)
    assert thought
    assert not answer
    off, plain = thoughts(thinker, think=False)
    assert not off
    assert plain != thought


@pytest.mark.runtime
def test_ask_prints_the_answer_alone_and_shows_reasoning_to_a_person_only(thinker, tmp_path):
    with swarm_of(tmp_path, host("spinoza", served("llamacpp", "thinker", thinker))) as cli:
        done = cli.run("ask", CAPITAL, "--max-tokens", "20", "--temperature", "0")
        assert done.stdout.strip() == ""
        assert cli.rows()[-1]["thought"]
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: True
    sink = TerminalSink(out, err)
    for chunk in (Chunk(thought="hm\x1b"), Chunk(text="Paris")):
        sink.watch(chunk)
        sink.text(chunk.text) if chunk.text else None
    assert (out.getvalue(), err.getvalue()) == ("Paris", "\033[2mhm\\x1b\033[0m\n\n")


@pytest.mark.runtime
def test_reasoning_reaches_every_api_in_its_own_place_and_the_journal(thinker, tmp_path):
    httpx = pytest.importorskip("httpx")
    with contextlib.ExitStack() as stack:
        cli = stack.enter_context(swarm_of(tmp_path, host("spinoza", served("llamacpp", "thinker", thinker))))
        url = stack.enter_context(serving(cli)).url
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        said = {"model": "thinker", "messages": [{"role": "user", "content": CAPITAL}]}
        cold = {"temperature": 0, "max_tokens": 20}
        openai = client.post("/v1/chat/completions", json={**said, **cold}).json()["choices"][0]["message"]
        thought = openai["reasoning_content"]
        assert thought
        options = {"temperature": 0, "num_predict": 20}
        ollama = client.post("/api/chat", json={**said, "stream": False, "options": options}).json()
        assert ollama["message"] == {"role": "assistant", "content": "", "thinking": thought}
        anthropic = client.post("/v1/messages", json={**said, **cold}).json()
        assert anthropic["content"][0] == {"type": "thinking", "thinking": thought, "signature": ""}
        responses = client.post("/v1/responses", json={"model": "thinker", "input": CAPITAL, "temperature": 0,
                                                       "max_output_tokens": 20}).json()
        assert responses["output"][0]["content"][0]["text"] == thought
    rows = [row for row in cli.rows() if row["kind"] == "exchange"]
    assert [(row["thought"], row["answer"]) for row in rows] == [(thought, "")] * 4
