"""Tools pass through to real servers, and real calls come back.

The tiny models know nothing of tools, so they are driven to a call: llama-server by `required` and a template
whose calls begin as their sentences do, Ollama by a schema that describes a call. The Ollama half needs
SWARMCTL_TEST_OLLAMA.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from dataclasses import replace

import pytest
from running import Cli, ask_json
from test_ollama import FOLDER, WAITS, Server, say

from swarmctl.errors import Unsupported
from swarmctl.exchange import Message, ToolCall
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.llamacpp import LlamaCpp
from swarmctl.runtimes.ollama import Ollama
from swarmctl.runtimes.toolcalls import Gathered, ollama_calls, ollama_message, openai_message
from swarmctl.shipped import shipped_model

needs_ollama = pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama")
pytestmark = pytest.mark.runtime

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a city", "parameters": {
        "type": "object", "required": ["city", "days"], "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer"}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {
    "type": "object", "required": ["zone"], "properties": {
        "zone": {"type": "string", "enum": ["UTC", "CET"]}}}}}
#: what Ollama is made to say: its template has calls as bare JSON
CALL = {"type": "object", "required": ["name", "arguments"], "properties": {
    "name": {"const": "weather"}, "arguments": {
        "type": "object", "required": ["city", "days"], "properties": {
            "city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}}}}}
#: The large tiny model begins its sentences with Hmm; as the mark of a call, that makes it call.
JINJA = """\
{%- if tools %}{% for tool in tools %}{{ '<|system|>' + tool | tojson + '\\n' }}{% endfor %}{% endif %}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ '<|assistant|>' }}
{%- if message['content'] %}{{ message['content'] | trim }}{%- endif %}
{%- if message['tool_calls'] %}{{ 'Hmm' + ({'name': message['tool_calls'][0]['function']['name'],
    'arguments': message['tool_calls'][0]['function']['arguments']} | tojson) + '!' }}{%- endif %}{{ '</s>' }}
{%- elif message['role'] == 'tool' -%}{{ '<|user|>result: ' + message['content'] | trim + '\\n' }}
{%- elif message['role'] == 'system' -%}{{ '<|system|>' + message['content'] | trim + '\\n' }}
{%- else -%}{{ '<|user|>' + message['content'] | trim + '\\n' }}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
GO = """\
{{- if .Tools }}<|system|>{{ range .Tools }}{{ . }}
{{ end }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "assistant" }}<|assistant|>{{ .Content }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</s>
{{- else if eq .Role "tool" }}<|user|>{{ .ToolName }} says: {{ .Content }}
{{ else if eq .Role "system" }}<|system|>{{ .Content }}
{{ else }}<|user|>{{ .Content }}
{{ end }}
{{- end }}<|assistant|>"""


def llama_server(folder, binaries, *flags):
    """A llama-server with the large tiny model, and the port where it is ready."""
    (port,) = free_ports(1)
    argv = (binaries / "llama-server", "-m", shipped_model("large") / "model.gguf", "--host", "127.0.0.1",
            "--port", str(port), "-t", "1", "-c", "2048", "-np", "1", "--jinja", "--no-ui", *flags)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    endpoint, deadline = Endpoint(port=port, model="tooly"), time.monotonic() + 60
    while LlamaCpp().health(endpoint, timeout=5).state != "ready":
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    return process, endpoint


def end(process):
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def tooly(llamacpp_bin, tmp_path_factory):
    """A llama-server whose template knows tools."""
    folder = tmp_path_factory.mktemp("tooly")
    (folder / "tools.jinja").write_text(JINJA)
    process, endpoint = llama_server(folder, llamacpp_bin, "--chat-template-file", folder / "tools.jinja")
    yield endpoint
    end(process)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An Ollama with a model that knows tools, and one that does not."""
    if not FOLDER:
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    made = Server(tmp_path_factory.mktemp("ollama"))
    digest = made.create("large")
    made.call("/api/create", {"model": "tooly", "files": {"model.gguf": digest}, "template": GO,
                              "stream": False, "parameters": {"num_thread": 1}})
    yield made
    os.killpg(made.process.pid, signal.SIGTERM)
    made.process.wait(30)


@pytest.fixture
def swarm(tooly, tmp_path):
    """A SWARMCTL_HOME with one host, worlock, whose llama.cpp knows tools."""
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)}), tmp_path)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text("version: 1\n")
    cli.tools = tmp_path / "tools.json"
    cli.tools.write_text(json.dumps([WEATHER, CLOCK]))
    served = Served("llamacpp", "tooly", "tooly", "digest", "template", tooly.port, 2048, 1, 700_000,
                    1_300_000, "F16", 3000.0, 300.0)
    known(cli, host("worlock", served))
    return cli


def host(name: str, served: Served) -> HostEntry:
    return HostEntry(name, "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), (served,))


def known(cli: Cli, *hosts: HostEntry) -> None:
    digest = hashlib.sha256(cli.paths.inventory.read_bytes()).hexdigest()
    cli.hosts = hosts
    write_fleet(cli.paths.fleet, Fleet(str(cli.paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0,
                                       60.0, hosts))


def calls_of(chunks) -> list[ToolCall]:
    return [call for chunk in chunks for call in chunk.tool_calls]


def rendered(server: Server, messages: tuple[Message, ...]) -> str:
    """The very prompt that Ollama makes of a conversation."""
    body = {"model": "tooly", "stream": False, "_debug_render_only": True, "tools": [WEATHER],
            "messages": [ollama_message(turn) for turn in messages]}
    return json.loads(server.call("/api/chat", body))["_debug_info"]["rendered_template"]


def test_llama_cpp_is_driven_to_a_call_that_keeps_to_the_tools_schema(tooly):
    ask = say("weather in Paris?", temperature=0.0, tools=(WEATHER,), tool_choice="required")
    chunks = list(LlamaCpp().chat(tooly, ask, **WAITS))
    (call,) = calls_of(chunks)
    assert call.name == "weather"
    assert call.id
    assert set(json.loads(call.arguments)) == {"city", "days"}
    assert chunks[-1].finish == "tool_calls"
    assert chunks[-1].timings.completion_tokens > 0
    assert "".join(chunk.text for chunk in chunks) == ""


def test_a_required_call_may_come_after_words_but_no_answer_ends_without_it(llamacpp_bin, tmp_path):
    """As the grammars of most templates that llama.cpp ships are; this model never comes to the mark."""
    (tmp_path / "tools.jinja").write_text(JINJA.replace("'Hmm'", "'<tool_call>'"))
    process, endpoint = llama_server(tmp_path, llamacpp_bin, "--chat-template-file", tmp_path / "tools.jinja")
    try:
        for choice, seed, finish in (("auto", 1, "stop"), ("required", 1, "length"),
                                     ("required", 2, "length"), ("weather", 3, "length")):
            ask = say("What is the capital of France?", temperature=0.0 if seed == 1 else 1.0, seed=seed,
                      tools=(WEATHER,), tool_choice=choice, max_tokens=120)
            chunks = list(LlamaCpp().chat(endpoint, ask, **WAITS))
            assert (calls_of(chunks), chunks[-1].finish) == ([], finish)
            assert "".join(chunk.text for chunk in chunks)
    finally:
        end(process)


def test_naming_a_tool_makes_llama_cpp_call_that_one(tooly):
    ask = say("weather in Paris?", temperature=0.0, tools=(WEATHER, CLOCK), tool_choice="clock")
    assert [call.name for call in calls_of(LlamaCpp().chat(tooly, ask, **WAITS))] == ["clock"]


def test_a_call_that_was_cut_at_the_limit_is_not_passed_on(tooly):
    ask = say("weather in Paris?", temperature=0.0, tools=(WEATHER,), tool_choice="required", max_tokens=30)
    chunks = list(LlamaCpp().chat(tooly, ask, **WAITS))
    assert calls_of(chunks) == []
    assert chunks[-1].finish == "length"


def test_a_result_goes_back_to_llama_cpp_in_the_prompt(tooly):
    call = ToolCall("call_1", "weather", '{"city": "Paris", "days": 1}')
    turns = (Message("user", "weather?"), Message("assistant", "", (call,)),
             Message("tool", "nothing but sun", tool_call_id="call_1", name="weather"))
    body = json.dumps({"messages": [openai_message(turn) for turn in turns], "tools": [WEATHER]}).encode()
    url = f"http://127.0.0.1:{tooly.port}/apply-template"
    with urllib.request.urlopen(url, body, timeout=30) as reply:
        prompt = json.loads(reply.read())["prompt"]
    assert '"name": "weather", "description": "The weather of a city"' in prompt
    assert 'Hmm{"name": "weather", "arguments": {"city": "Paris", "days": 1}}!' in prompt
    assert "result: nothing but sun" in prompt
    ask = replace(say("weather?", temperature=0.0, tools=(WEATHER,), max_tokens=8), messages=turns)
    assert list(LlamaCpp().chat(tooly, ask, **WAITS))[-1].finish in ("stop", "length", "tool_calls")


def test_tools_and_a_schema_at_once_are_refused_by_llama_cpp(tooly):
    ask = say("hello", tools=(WEATHER,), schema={"type": "object"})
    with pytest.raises(Unsupported, match="tools or a schema"):
        list(LlamaCpp().chat(tooly, ask, **WAITS))


def test_a_template_without_tools_is_named_instead_of_leaving_them_out_silently(llamacpp_bin, tmp_path):
    process, endpoint = llama_server(tmp_path, llamacpp_bin)
    try:
        with pytest.raises(Unsupported, match="tooly cannot call tools: its chat template has none"):
            list(LlamaCpp().chat(endpoint, say("hello", tools=(WEATHER,)), **WAITS))
        none = say("hello", tools=(WEATHER,), tool_choice="none", max_tokens=4)
        assert list(LlamaCpp().chat(endpoint, none, **WAITS))[-1].finish in ("stop", "length")
    finally:
        end(process)


@needs_ollama
def test_a_call_comes_out_of_ollama_and_its_finish_says_so(server):
    ask = say("weather in Paris?", temperature=0.0, tools=(WEATHER,), schema=CALL)
    chunks = list(Ollama().chat(replace(server.endpoint("large"), model="tooly"), ask, **WAITS))
    (call,) = calls_of(chunks)
    assert (call.name, call.id[:5]) == ("weather", "call_")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    assert chunks[-1].finish == "tool_calls"
    plain = list(Ollama().chat(replace(server.endpoint("large"), model="tooly"), say("hello"), **WAITS))
    assert plain[-1].finish == "stop"


@needs_ollama
def test_ollama_itself_takes_a_required_call_for_nothing(server):
    said = json.loads(server.call("/api/chat", {
        "model": "tooly", "stream": False, "tools": [WEATHER], "tool_choice": "required",
        "options": {"temperature": 0}, "messages": [{"role": "user", "content": "hello"}]}))
    assert (said["done_reason"], "tool_calls" in said["message"]) == ("stop", False)


@needs_ollama
def test_definitions_calls_and_results_stand_in_ollamas_prompt(server):
    call = ToolCall("call_1", "weather", '{"city": "Paris", "days": 1}')
    prompt = rendered(server, (Message("user", "weather?"), Message("assistant", "", (call,)),
                               Message("tool", "nothing but sun", tool_call_id="call_1", name="weather")))
    assert '"name":"weather","description":"The weather of a city"' in prompt
    assert '{"name": "weather", "arguments": {"city":"Paris","days":1}}' in prompt
    assert "weather says: nothing but sun" in prompt


@needs_ollama
def test_an_ollama_model_without_tools_says_so_by_name(server):
    with pytest.raises(Unsupported, match="tiny-large cannot call tools: its chat template has none"):
        list(Ollama().chat(server.endpoint("large"), say("hello", tools=(WEATHER,)), **WAITS))
    with pytest.raises(Unsupported, match="leaves it to the model"):
        list(Ollama().chat(server.endpoint("large"), say("hello", tools=(WEATHER,), tool_choice="required"),
                           **WAITS))


def test_ask_prints_a_call_a_line_and_the_result_goes_back(swarm, tmp_path):
    said = swarm.run("ask", "weather in Paris?", "--tools", str(swarm.tools), "--tool-choice", "weather",
                     "--temperature", "0").stdout
    (line,) = said.splitlines()
    head, _, arguments = line.partition(": weather ")
    assert head.startswith("call ")
    assert set(json.loads(arguments)) == {"city", "days"}
    row = swarm.rows()[-1]
    assert row["finish"] == "tool_calls"
    assert row["tool_calls"][0]["id"] == head.removeprefix("call ")
    assert row["params"]["tools"][0]["function"]["name"] == "weather"
    (tmp_path / "sun.txt").write_text("sunny, 21 degrees\n")
    back = ask_json(swarm, "--tool-result", f"{row['tool_calls'][0]['id']}={tmp_path / 'sun.txt'}",
                    "--tool-choice", "none", "--max-tokens", "8")
    assert [turn["role"] for turn in back["messages"]] == ["user", "assistant", "tool"]
    assert back["messages"][-1] == {"role": "tool", "content": "sunny, 21 degrees",
                                    "tool_call_id": row["tool_calls"][0]["id"], "name": "weather"}
    assert back["parent"] == row["id"]
    assert len(back["params"]["tools"]) == 2, "the conversation keeps its tools"
    assert back["answer"]
    shown = swarm.run("log", "show", row["id"]).stdout
    assert "tools weather clock" in shown
    assert f"call {row['tool_calls'][0]['id']}: weather" in shown


def test_a_result_is_asked_for_before_the_conversation_goes_on(swarm):
    swarm.run("ask", "weather in Paris?", "--tools", str(swarm.tools), "--tool-choice", "weather",
              "--temperature", "0")
    (call,) = swarm.rows()[-1]["tool_calls"]
    done = swarm.run("ask", "-c", "and Rome?", status=2)
    assert "has no result" in done.stderr or "have no result" in done.stderr
    assert call["id"] in done.stderr
    done = swarm.run("ask", "--tool-result", "call_nobody=/dev/null", status=2)
    assert "call_nobody" in done.stderr
    piped = json.loads(swarm.run("ask", "--json", "--tool-result", "weather=-", "--max-tokens", "4",
                                 stdin="rain\n").stdout)
    assert piped["messages"][-1]["content"] == "rain"
    assert len(piped["messages"]) == 3


def test_who_cannot_call_tools_is_passed_over_for_one_who_can(swarm, llamacpp_bin, tmp_path):
    process, plain = llama_server(tmp_path, llamacpp_bin)
    try:
        able = swarm.hosts[0]
        quick = replace(able.served[0], port=plain.port, decode_speed=30_000.0, prefill_speed=300_000.0,
                        quality={"routine": 0.99, "complex": 0.99, "code": 0.99}, server="plain")
        known(swarm, host("spinoza", quick), able)
        row = ask_json(swarm, "weather in Paris?", "--tools", str(swarm.tools), "--tool-choice", "weather",
                       "--temperature", "0")
        assert [attempt["host"] for attempt in row["attempts"]] == ["spinoza"]
        assert "cannot call tools" in row["attempts"][0]["error"]
        assert row["host"] == "worlock"
        alone = swarm.run("ask", "hello", "-H", "spinoza", "--tools", str(swarm.tools), status=1)
        assert "tooly on spinoza: tooly cannot call tools" in alone.stderr
    finally:
        end(process)


@pytest.mark.parametrize(("text", "said"), [
    ("[", "not JSON"), ("[]", "not an empty one"), ("[{}]", "tool 1 has no function with a name"),
    ('[{"name": "a b"}]', "tool 1 is named 'a b'"),
    ('[{"name": "a"}, {"name": "a"}]', "two tools are named a"),
    ('[{"name": "a", "parameters": []}]', "parameters of a"), ("3", "not JSON|cannot be read"),
    ("/nowhere/tools.json", "cannot be read")])
def test_a_file_of_tools_that_is_none_is_named_with_its_place(swarm, text, said):
    import re

    done = swarm.run("ask", "hello", "--tools", text, status=2)
    assert re.search(said, done.stderr), done.stderr


def test_a_choice_of_a_tool_that_is_not_there_is_a_usage_error(swarm):
    assert "--tool-choice needs --tools" in swarm.run("ask", "hi", "--tool-choice", "auto", status=2).stderr
    done = swarm.run("ask", "hi", "--tools", str(swarm.tools), "--tool-choice", "nobody", status=2)
    assert "auto, none, required, weather, clock" in done.stderr


def test_pieces_of_parallel_calls_become_whole_calls_in_their_order():
    gathered = Gathered()
    pieces = [{"index": 0, "id": "a", "function": {"name": "clock", "arguments": "{"}},
              {"index": 0, "function": {"arguments": "}"}},
              {"index": 1, "id": "b", "function": {"name": "weather", "arguments": ""}},
              {"index": 1, "function": {"arguments": '{"city": "Ro'}}]
    assert [list(gathered.add([piece])) for piece in pieces] == [
        [], [], [ToolCall("a", "clock", "{}")], []]
    assert list(gathered.rest(cut=True)) == []
    assert list(gathered.rest()) == [ToolCall("b", "weather", '{"city": "Ro')]
    assert list(gathered.rest()) == []


def test_garbage_among_calls_is_left_out():
    assert ollama_calls({"tool_calls": [{"function": {"name": "", "arguments": {}}}]}) == ()
    assert list(Gathered().add([None, "x"])) == []
