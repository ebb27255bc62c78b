"""Ollama's API, purely: bodies to turns, events to the bytes that a real Ollama 0.33 was seen to send."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from answers import AT, BROKEN, CALL, answered, lines, meta, shape, told, whole

from swarmctl.dispatch.question import as_request
from swarmctl.errors import Busy, NoCandidate, UsageError
from swarmctl.exchange import Sampling
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
from swarmctl.gateway import ollama, ollama_models
from swarmctl.gateway.surface import ToEmbed, Vectors, Wanted
from swarmctl.gateway.turn import BadRequest, Turn

#: what Ollama 0.33 sent
REAL = json.loads((Path(__file__).parent / "recorded_answers" / "ollama.json").read_text())

HI = {"role": "user", "content": "What is the capital of France?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PIXEL = "iVBORw0KGgo="


def chat(*messages: dict, **more: object) -> Turn:
    return ollama.parse_chat({"model": "auto", "messages": [*messages] or [HI], **more})


def feed(stream: ollama.Lines, events: list) -> bytes:
    return b"".join(map(stream.feed, events))


def test_a_stream_has_the_names_kinds_and_order_of_a_real_one():
    said = feed(ollama.SURFACE.talks[0].stream(meta(chat())), told())
    first, *_, last = said.decode().splitlines()
    assert shape(json.loads(first)) == shape(REAL["line"])
    assert shape(json.loads(last)) == shape(REAL["last"])
    assert [*json.loads(first)] == [*REAL["line"]]
    assert [*json.loads(last)] == [*REAL["last"]]
    assert ": " not in first.replace('": ', ""), "written without spaces, as Go does"
    assert "".join(one["message"]["content"] for one in lines(said)) == "Paris"
    assert json.loads(last)["total_duration"] == REAL["last"]["total_duration"]


def test_generate_streams_its_response_the_same_way():
    turn = ollama.parse_generate({"model": "auto", "prompt": "Hello"})
    first = lines(feed(ollama.SURFACE.talks[1].stream(meta(turn)), told()))[0]
    assert shape(first) == shape(REAL["generated"])


def test_a_whole_answer_has_its_log_probabilities_where_a_real_one_has_them():
    turn = chat(stream=False, logprobs=True, top_logprobs=2)
    assert turn.stream is False
    found = ollama.whole_chat(meta(turn), answered(), whole(told(likely=True)))
    assert shape(found) == shape(REAL["likely"])
    assert [*found] == [*REAL["likely"]]
    unasked = ollama.whole_chat(meta(chat()), answered(), whole(told(likely=True)))
    assert "logprobs" not in unasked, "the cascade read them, the client did not ask"


def test_thoughts_and_calls_stand_beside_the_words():
    said = lines(feed(ollama.SURFACE.talks[0].stream(meta(chat())),
                      told(thought="hm", text=(), calls=(CALL, CALL), finish="tool_calls")))
    assert said[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert said[1]["message"]["tool_calls"] == [
        {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}]
    assert said[2]["message"]["tool_calls"][0]["function"]["index"] == 1
    assert said[-1]["done_reason"] == "stop", "as Ollama ends an answer of calls"
    length = ollama.whole_generate(meta(chat()), answered("length"), whole(told()))
    assert (length["response"], length["done_reason"]) == ("Paris", "length")


def test_a_stream_that_breaks_ends_with_an_error_line():
    stream = ollama.SURFACE.talks[0].stream(meta(chat()))
    assert lines(stream.failed(BROKEN)) == [{"error": "worlock: the server went away"}]


def test_options_format_and_thinking_become_the_question():
    options = {"num_predict": 5, "temperature": 0, "seed": 3, "stop": "x", "top_p": 0.5, "top_k": 7,
               "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 2, "repeat_penalty": 1.5,
               "num_ctx": 4096}
    asked = chat(options=options, format="json", think="low", keep_alive="5m").asked
    request = as_request(asked)
    assert (request.max_tokens, request.temperature, request.seed, request.stop) == (5, 0, 3, ("x",))
    assert request.sampling == Sampling(0.5, 7, 0.1, 1, 2, 1.5)
    assert (request.schema, request.think) == ({"type": "object"}, "low")
    assert chat(options={"num_predict": -1}).asked.max_tokens is None
    assert chat(format={"type": "array"}).asked.schema == {"type": "array"}
    assert chat().stream is True, "Ollama streams unless told otherwise"


def test_a_conversation_of_calls_finds_its_results_by_id_by_name_or_in_order():
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    asked = chat(HI, {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "second"}]},
                 {"role": "tool", "content": "sun", "tool_name": "weather"},
                 {"role": "tool", "content": "rain", "tool_call_id": "second"}, tools=[TOOL]).asked
    assert [(one.tool_call_id, one.name) for one in asked.results] == [("call_1_0", "weather"),
                                                                       ("second", "weather")]
    assert asked.history[-1].tool_calls[0].arguments == '{"city": "Rome"}'
    assert as_request(asked).messages[-1].content == "rain"
    assert asked.tools == (TOOL,)


def test_images_come_as_base64_and_their_kind_is_seen():
    assert chat({**HI, "images": [PIXEL]}).asked.images == (f"data:image/png;base64,{PIXEL}",)
    with pytest.raises(BadRequest, match="not base64"):
        chat({**HI, "images": ["!!!"]})


def test_generate_takes_a_system_message_or_goes_on_raw():
    asked = ollama.parse_generate({"model": "m", "prompt": "a", "system": "Be brief."}).asked
    assert [turn.role for turn in as_request(asked).messages] == ["system", "user"]
    raw = ollama.parse_generate({"model": "m", "prompt": "a", "system": "Be brief.", "raw": True}).asked
    assert (raw.raw, raw.history) == (True, ())


def test_a_begun_answer_is_gone_on_from():
    request = as_request(chat(HI, {"role": "assistant", "content": "The capital"}).asked)
    assert [turn.role for turn in request.messages] == ["user", "assistant"]


def test_loading_is_answered_at_once_because_it_is_up_to_the_swarm():
    found = ollama.parse_chat({"model": "tiny-small", "messages": []})
    assert shape(found) == shape(REAL["loaded"])
    assert ollama.parse_generate({"model": "m", "keep_alive": 0})["done_reason"] == "unload"


@pytest.mark.parametrize(("body", "said"), [
    ({}, "model is required"),
    ({"model": "m", "messages": "x"}, "messages must be an array"),
    ({"model": "m", "messages": [3]}, "messages.0. must be an object"),
    ({"model": "m", "messages": [{"role": "user", "content": []}]}, "content must be a string"),
    ({"model": "m", "messages": [HI], "options": {"temperature": "hot"}}, "temperature must be a number"),
    ({"model": "m", "messages": [HI], "format": "xml"}, 'expected "json" or a valid JSON Schema object'),
    ({"model": "m", "messages": [HI], "top_logprobs": 30}, "top_logprobs must be between 0 and 20"),
    ({"model": "m", "messages": [HI], "think": "a lot"}, "think must be a boolean or string"),
    ({"model": "m", "messages": [HI], "tools": [{"function": {}}]}, "a function with a name"),
    ({"model": "m", "messages": [{"role": "assistant", "tool_calls": [3]}]}, "has no function"),
])
def test_a_body_that_is_wrong_says_what_is(body, said):
    with pytest.raises(BadRequest, match=said) as caught:
        ollama.parse_chat(body)
    status, answer = ollama.error(caught.value)
    assert (status, [*answer]) == (400, ["error"])


def test_what_cannot_be_honoured_is_refused_instead_of_left_out():
    for more in ({"suffix": "b"}, {"template": "b"}, {"context": [1]}):
        with pytest.raises(BadRequest, match="not supported"):
            ollama.parse_generate({"model": "m", "prompt": "a", **more})


def test_errors_have_their_status_and_one_line():
    assert ollama.error(UsageError("nobody serves x", hint="served: y")) == (
        404, {"error": "nobody serves x (served: y)"})
    assert ollama.error(NoCandidate("too long"))[0] == 503
    assert ollama.error(Busy("full", retry_after=2))[0] == 429


def test_a_moment_is_written_as_go_writes_it():
    assert ollama.moment(AT) == "2026-11-23T16:24:58.25Z"
    assert ollama.moment(1795451098.0) == "2026-11-23T16:24:58Z"


def test_vectors_are_cut_and_made_as_long_as_one_where_asked():
    found = Vectors([[3.0, 4.0, 12.0]], "m", "h", 3, 0.5)
    asked = ollama.parse_embed({"model": "m", "input": "a", "dimensions": 2})
    said = ollama.whole_embed(asked, found)
    assert said["embeddings"] == [[0.6, 0.8]]
    assert said | {"embeddings": 0} == {"model": "m", "embeddings": 0, "total_duration": 500_000_000,
                                        "prompt_eval_count": 3}
    assert ollama.whole_embed(ollama.parse_embed({"model": "m", "input": ["a"]}), found)["embeddings"] == [
        [3.0, 4.0, 12.0]]
    old = ollama.parse_embeddings({"model": "m", "prompt": "a"})
    assert isinstance(old, ToEmbed)
    assert ollama.whole_embeddings(old, found) == {"embedding": [3.0, 4.0, 12.0]}
    assert math.isclose(math.hypot(*said["embeddings"][0]), 1.0)


class Swarmed:
    """As much of a swarm as a list of models needs."""

    def __init__(self, *served: Served) -> None:
        host = HostEntry("worlock", "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), served)
        self.fleet = Fleet("i", "d", "2026-01-01T00:00:00Z", None, 30.0, 60.0, (host,))


def small(model: str = "tiny-small", **more: object) -> Served:
    return Served("llamacpp", "s", model, "15" * 32, "t", 1, 1024, 1, 205_200, 427_621, "F16", 1.0, 1.0,
                  **more)


def test_tags_show_and_ps_have_the_shapes_of_a_real_one():
    swarm = Swarmed(small(), small("minilm", embedding=True), small("qwen:4b", canary=True))
    models = ollama_models.tags(swarm, Wanted())["models"]
    assert [one["name"] for one in models] == ["auto:latest", "auto:fast", "auto:best", "tiny-small:latest",
                                               "minilm:latest", "qwen:4b"]
    assert shape(models[3]) == shape(REAL["tag"])
    assert models[3]["details"]["parameter_size"] == REAL["tag"]["details"]["parameter_size"]
    assert models[4]["capabilities"] == ["embedding"]
    running = ollama_models.running(swarm, Wanted())["models"][0]
    assert shape(running) == shape(REAL["running"])
    shown = ollama_models.show(swarm, Wanted(body={"model": "tiny-small:latest"}))
    assert shown["model_info"]["swarm.context_length"] == 1024
    assert "worlock" in shown["modelfile"]
    assert ollama_models.show(swarm, Wanted(body={"name": "auto"}))["capabilities"] == ["completion", "tools"]
    with pytest.raises(BadRequest, match="model 'nope' not found") as caught:
        ollama_models.show(swarm, Wanted(body={"model": "nope"}))
    assert ollama.error(caught.value)[0] == 404


@pytest.mark.parametrize(("parameters", "said"), [
    (205_200, "205K"), (721_792, "722K"), (8_030_261_248, "8.0B"), (4_000_000_000, "4B"), (7, "7"),
    (268_098_176, "268.10M")])
def test_counts_of_weights_are_rounded_as_ollama_rounds_them(parameters, said):
    assert ollama_models._rounded(parameters) == said


def test_what_manages_models_is_refused_with_the_command_that_does_it():
    refused = {look.path: look for look in ollama_models.LOOKS if look.path in (
        "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}")}
    assert len(refused) == 6
    for look in refused.values():
        with pytest.raises(BadRequest, match=r"on the controller, `swarmctl [a-z ]+` does") as caught:
            look.answer(Swarmed(), Wanted())
        assert ollama.error(caught.value)[0] == 501
