"""The ollama package and the ollama program, unchanged, against `swarmctl serve` in front of real servers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from answers import shape
from conformance import conforms
from test_ollama import FOLDER
from test_tools import CALL, WEATHER

ollama = pytest.importorskip("ollama")
pytestmark = pytest.mark.runtime

CLIENT = "ollama"
PROGRAM = "ollama (CLI)"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ASK = [{"role": "user", "content": "weather in Paris?"}]
COLD = {"temperature": 0}
PLACE = {"type": "object", "required": ["city"], "properties": {"city": {"enum": ["Paris", "Rome"]}}}
needs_ollama = pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama")


def connect(gateway, key: str | None = None) -> ollama.Client:
    headers = {"Authorization": f"Bearer {key or gateway.key}"}
    return ollama.Client(host=gateway.url, headers=headers, timeout=60)


@conforms(CLIENT, "models are listed")
def test_models_are_listed_shown_and_seen_to_run(client):
    names = [one.model for one in client.list().models]
    assert names[:3] == ["auto:latest", "auto:fast", "auto:best"]
    assert {"tooly:latest", "vectors:latest"} <= {*names}
    assert "tooly:latest" in [one.model for one in client.ps().models]
    shown = client.show("tooly")
    assert shown.capabilities == ["completion", "tools"]
    assert client.show("tooly:latest").modelinfo == shown.modelinfo


@conforms(CLIENT, "chat")
def test_chat(client, gateway, model):
    said = client.chat(model, CAPITAL, options=COLD)
    assert (said.message.content, said.done, said.done_reason) == ("Paris", True, "stop")
    assert (said.prompt_eval_count, said.eval_count) == (15, 4)
    assert said.total_duration > said.eval_duration > 0
    assert gateway.newest()["model"] == model
    assert client.chat(f"{model}:latest", CAPITAL, options=COLD).message.content == "Paris"


@conforms(CLIENT, "chat, streamed")
def test_chat_streamed(client, model):
    lines = [*client.chat(model, CAPITAL, stream=True, options=COLD)]
    assert [one.message.content for one in lines] == ["P", "ar", "is", ""]
    assert [one.done for one in lines] == [False, False, False, True]


@conforms(CLIENT, "completions")
def test_generate_with_a_template_and_raw(client, model):
    assert client.generate(model, "What is the capital of France?", options=COLD).response == "Paris"
    raw = "<|user|>What is the capital of France?\n<|assistant|>"
    assert client.generate(model, raw, raw=True, options={**COLD, "num_predict": 10}).response == "Paris"
    lines = client.generate(model, CAPITAL[0]["content"], stream=True, options=COLD)
    assert [one.response for one in lines] == ["P", "ar", "is", ""]


def test_options_reach_the_model_and_the_journal(client, gateway, model):
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["xyz"],
               "repeat_penalty": 1.1}
    client.chat(model, CAPITAL, options={**options, "num_predict": 3})
    assert gateway.newest()["params"] == {**options, "max_tokens": 3}


@conforms(CLIENT, "a begun answer is gone on from")
def test_a_begun_answer_is_gone_on_from(client, model):
    begun = {"role": "assistant", "content": "Well, let me think. I believe the answer is"}
    said = client.chat(model, [*CAPITAL, begun], options=COLD).message.content
    assert "Paris" in said
    assert "Well" not in said


@conforms(CLIENT, "tools, a round trip")
@needs_ollama
def test_a_call_and_its_result(client):
    """Ollama leaves it to the model whether it calls; a schema drives the tiny one to it."""
    first = client.chat("llama", ASK, tools=[WEATHER], format=CALL, options=COLD)
    (call,) = first.message.tool_calls
    assert (call.function.name, call.function.arguments["city"]) == ("weather", "Paris")
    result = {"role": "tool", "tool_name": "weather", "content": "sun"}
    second = client.chat("llama", [*ASK, first.message, result], tools=[WEATHER],
                         options={**COLD, "num_predict": 8})
    assert second.message.content


@conforms(CLIENT, "structured output")
def test_an_answer_keeps_to_a_schema(client, model):
    said = client.chat(model, CAPITAL, format=PLACE, options=COLD)
    assert json.loads(said.message.content)["city"] in ("Paris", "Rome")


@conforms(CLIENT, "log-probabilities")
def test_log_probabilities(client, model):
    said = client.chat(model, CAPITAL, logprobs=True, top_logprobs=2, options=COLD)
    assert "".join(one.token for one in said.logprobs) == "Paris"
    assert [len(one.top_logprobs) for one in said.logprobs] == [2, 2, 2]
    assert client.chat(model, CAPITAL, options=COLD).logprobs is None


@conforms(CLIENT, "vectors")
def test_vectors(client):
    two = client.embed("vectors", ["a cat", "a dog"])
    assert len(two.embeddings) == 2
    assert client.embeddings("vectors", "a cat").embedding == pytest.approx(two.embeddings[0], abs=1e-3)
    assert len(client.embed("vectors", "a cat", dimensions=8).embeddings[0]) == 8


@conforms(CLIENT, "an image, where no model can see")
def test_a_model_that_cannot_see_says_so(client, model):
    with pytest.raises(ollama.ResponseError, match="cannot see images") as caught:
        client.chat(model, [{"role": "user", "content": "What is this?", "images": ["iVBORw0KGgo="]}])
    assert caught.value.status_code == 400


@conforms(CLIENT, "unknown model")
def test_an_unknown_model(client):
    for ask in (lambda: client.chat("nothing", CAPITAL), lambda: client.show("nothing"),
                lambda: client.embed("nothing", "x")):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 404


@conforms(CLIENT, "wrong key")
def test_a_wrong_key(gateway):
    with connect(gateway, "sk-wrong") as stranger, pytest.raises(ollama.ResponseError) as caught:
        stranger.list()
    assert caught.value.status_code == 401


@conforms(CLIENT, "wrong body")
def test_a_wrong_body(client):
    with pytest.raises(ollama.ResponseError, match="temperature must be a number") as caught:
        client.chat("auto", CAPITAL, options={"temperature": "hot"})
    assert caught.value.status_code == 400


@conforms(CLIENT, "prompt too long")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long(client, stream):
    with pytest.raises(ollama.ResponseError, match="too long for every context") as caught:
        for _ in client.chat("auto", [{"role": "user", "content": "word " * 4000}], stream=stream):
            pass
    assert caught.value.status_code == 400


@conforms(CLIENT, "what is not offered says so")
def test_models_are_managed_elsewhere_and_the_refusal_says_where(client):
    for ask, command in ((lambda: client.pull("x"), "models pull"), (lambda: client.push("x"), "models push"),
                         (lambda: client.delete("x"), "models remove"),
                         (lambda: client.copy("x", "y"), "models copy"),
                         (lambda: client.create("x", from_="y"), "deploy")):
        with pytest.raises(ollama.ResponseError, match=f"`swarmctl {command}`") as caught:
            ask()
        assert caught.value.status_code == 501


@needs_ollama
def test_every_answer_has_the_names_and_kinds_of_the_ollama_behind_it(gateway, client):
    """The same requests to the gateway and to the real server: all that differs is what the gateway cannot
    know (a model's family) or does not keep (`context`)."""
    import httpx

    port = next(one.port for one in _served(gateway) if one.model == "tiny-small")
    real = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {gateway.key}"}
    chat = {"model": "tiny-small", "messages": CAPITAL, "options": COLD}
    one = {"model": "tiny-small", "prompt": "hi", "options": COLD}
    for path, body in (("/api/chat", {**chat, "stream": False}), ("/api/chat", chat),
                       ("/api/chat", {**chat, "stream": False, "logprobs": True, "top_logprobs": 1}),
                       ("/api/generate", {**one, "stream": False}), ("/api/generate", one),
                       ("/api/chat", {"model": "tiny-small", "messages": []}),
                       ("/api/chat", {"model": "nothing", "messages": CAPITAL}),
                       ("/api/chat", {"messages": []})):
        ours = httpx.post(gateway.url + path, json=body, headers=headers, timeout=60)
        theirs = httpx.post(real + path, json=body, timeout=60)
        assert ours.status_code == theirs.status_code
        assert ours.headers["content-type"].split(";")[0] == theirs.headers["content-type"].split(";")[0]
        for mine, yours in zip(ours.text.splitlines(), theirs.text.splitlines(), strict=True):
            expected = {key: kind for key, kind in shape(json.loads(yours)).items() if key != "context"}
            assert shape(json.loads(mine)) == expected, (path, body)
    for path in ("/api/version", "/api/ps", "/api/tags", "/"):
        ours, theirs = httpx.get(gateway.url + path, headers=headers), httpx.get(real + path)
        assert ours.headers["content-type"].split(";")[0] == theirs.headers["content-type"].split(";")[0]
        assert httpx.head(gateway.url + path, headers=headers).status_code == 200
        if path == "/":
            assert ours.text == theirs.text
        elif path == "/api/version":
            assert shape(ours.json()) == shape(theirs.json())
        else:
            _alike(ours.json()["models"][-1], theirs.json()["models"][-1])


def _alike(ours: dict, theirs: dict) -> None:
    """Of `details` the gateway has no embedding_length, and no families."""
    assert {*ours} == {*theirs}
    assert {*theirs["details"]} - {*ours["details"]} <= {"embedding_length"}
    for key in ("name", "model", "digest", "size"):
        assert type(ours[key]) is type(theirs[key])


def _served(gateway):
    from swarmctl.fleet.snapshot import read_fleet

    return [one for entry in read_fleet(gateway.cli.paths.fleet).hosts for one in entry.served]


def program(gateway, *args: str, status: int = 0, tmp: Path) -> subprocess.CompletedProcess:
    """The `ollama` program as a person runs it. It knows no keys, so this gateway asks for none."""
    environ = {"OLLAMA_HOST": gateway.url, "HOME": str(tmp), "PATH": os.environ["PATH"],
               "OLLAMA_NO_CLOUD": "1"}
    done = subprocess.run([Path(FOLDER, "bin", "ollama"), *args], env=environ, capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def keyless(gateway, tmp_path_factory):
    """Another gateway over the same servers, without keys."""
    from gateways import serving, swarm_of

    from swarmctl.fleet.snapshot import read_fleet

    hosts = read_fleet(gateway.cli.paths.fleet).hosts
    with swarm_of(tmp_path_factory.mktemp("keyless"), *hosts) as cli, serving(cli) as found:
        yield found


@needs_ollama
@conforms(PROGRAM, "models are listed")
def test_the_program_lists_shows_and_sees_what_runs(keyless, tmp_path):
    assert "tooly:latest" in program(keyless, "list", tmp=tmp_path).stdout
    assert "tooly:latest" in program(keyless, "ps", tmp=tmp_path).stdout
    assert "1024" in program(keyless, "show", "tooly", tmp=tmp_path).stdout


@needs_ollama
@conforms(PROGRAM, "chat, streamed")
def test_the_program_runs_a_prompt(keyless, tmp_path):
    assert program(keyless, "run", "tooly", "Who are you?", tmp=tmp_path).stdout.strip().startswith("I am")
    program(keyless, "stop", "tooly", tmp=tmp_path)


@needs_ollama
@conforms(PROGRAM, "unknown model")
@conforms(PROGRAM, "what is not offered says so")
def test_the_program_says_why_it_cannot_pull(keyless, tmp_path):
    done = program(keyless, "pull", "llama3", status=1, tmp=tmp_path)
    assert "swarmctl models pull" in done.stderr
    assert "swarmctl models pull" in program(keyless, "run", "nothing", "hi", status=1, tmp=tmp_path).stderr


@needs_ollama
@conforms(PROGRAM, "prompt too long")
def test_the_program_says_that_a_prompt_is_too_long(keyless, tmp_path):
    assert "too long" in program(keyless, "run", "tooly", "word " * 4000, status=1, tmp=tmp_path).stderr
