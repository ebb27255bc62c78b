"""The openai package, unchanged, against `swarmctl serve` in front of real servers."""

from __future__ import annotations

import json
import os
from typing import Literal

import pytest
from conformance import conforms
from test_tools import CALL, CLOCK, WEATHER

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.runtime

CLIENT = "openai: chat"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ASK = [{"role": "user", "content": "weather in Paris?"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]
    big: bool


def connect(gateway, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key or gateway.key, max_retries=0, timeout=60)


@conforms(CLIENT, "models are listed")
def test_models_are_listed_and_one_is_looked_at(client):
    names = [one.id for one in client.models.list()]
    assert names[:3] == ["auto", "auto:fast", "auto:best"]
    assert {"tooly", "vectors"} <= {*names}
    assert client.models.retrieve("tooly").owned_by == "swarmctl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@conforms(CLIENT, "chat")
def test_chat(client, gateway, model):
    said = client.chat.completions.with_raw_response.create(model=model, messages=CAPITAL, temperature=0)
    answer = said.parse()
    assert answer.choices[0].message.content == "Paris"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 4)
    newest = gateway.newest()
    assert said.headers["x-swarmctl-exchange"] == newest["id"]
    assert said.headers["x-swarmctl-host"] == newest["host"]
    assert (newest["terminal"], newest["via"], newest["model"]) == ("key:tester", "serve", model)


@conforms(CLIENT, "chat, streamed")
def test_chat_streamed(client, model):
    chunks = [*client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, stream=True,
                                              stream_options={"include_usage": True})]
    pieces = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(pieces) == "Paris"
    assert sum(map(bool, pieces)) == 3, "as the model made it, not in one go"
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 4


def test_the_parameters_reach_the_model_and_the_journal(client, gateway, model):
    client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0.5, top_p=0.9, seed=7, presence_penalty=0.1,
        frequency_penalty=0.2, max_completion_tokens=3, stop=["xyz"], extra_body={"top_k": 5, "min_p": 0.05})
    assert gateway.newest()["params"] == {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "max_tokens": 3, "stop": ["xyz"], "top_k": 5, "min_p": 0.05}
    for _ in range(3):
        warm = client.chat.completions.create(model=model, messages=CAPITAL, temperature=1.5,
                                              extra_body={"top_k": 1})
        assert warm.choices[0].message.content == "Paris", "top_k 1 leaves no choice, however warm"


@conforms(CLIENT, "a begun answer is gone on from")
def test_a_begun_answer_is_gone_on_from_and_not_repeated(client, model):
    messages = [*CAPITAL, {"role": "assistant", "content": "Well, let me think. I believe the answer is"}]
    said = client.chat.completions.create(model=model, messages=messages, temperature=0)
    assert "Paris" in said.choices[0].message.content
    assert "Well" not in said.choices[0].message.content


@conforms(CLIENT, "tools, a round trip")
def test_tools_go_to_the_model_and_its_call_and_their_result_back(client):
    first = client.chat.completions.create(model="tooly", messages=ASK, temperature=0,
                                           tools=[WEATHER, CLOCK],
                                           tool_choice={"type": "function", "function": {"name": "weather"}})
    choice = first.choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] == "Paris"
    second = client.chat.completions.create(
        model="tooly", temperature=0, tools=[WEATHER], max_tokens=8,
        messages=[*ASK, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}])
    assert second.choices[0].message.content == "sun"


def test_a_streamed_call_is_put_together_by_the_client(client):
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    with client.chat.completions.stream(model="tooly", messages=ASK, temperature=0, tools=[strict],
                                        tool_choice="required") as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.parsed_arguments["city"] == "Paris"


def test_tools_of_an_ollama_host(client, gateway):
    """Ollama leaves it to the model whether it calls; a schema drives the tiny one to it."""
    if not os.environ.get("SWARMCTL_TEST_OLLAMA"):
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    said = client.chat.completions.create(
        model="llama", messages=ASK, temperature=0, tools=[WEATHER],
        response_format={"type": "json_schema", "json_schema": {"name": "call", "schema": CALL}})
    assert said.choices[0].message.tool_calls[0].function.name == "weather"
    assert gateway.newest()["runtime"] == "ollama"


@conforms(CLIENT, "structured output")
def test_an_answer_keeps_to_a_schema_and_is_parsed_by_the_client(client, model):
    said = client.chat.completions.parse(model=model, messages=CAPITAL, temperature=0,
                                         response_format=Place)
    assert isinstance(said.choices[0].message.parsed, Place)
    loose = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=20,
                                           response_format={"type": "json_object"})
    said = loose.choices[0].message.content.lstrip()
    assert said[:1] in ("", "{"), "a tiny model may not come further than the blanks before the brace"


@conforms(CLIENT, "log-probabilities")
def test_log_probabilities_come_token_by_token(client, model):
    said = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, logprobs=True,
                                          top_logprobs=3)
    tokens = said.choices[0].logprobs.content
    assert "".join(one.token for one in tokens) == "Paris"
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in tokens)
    assert tokens[0].top_logprobs[0].token == tokens[0].token, "greedily the likeliest is taken"


@conforms(CLIENT, "completions")
def test_a_completion_goes_on_from_a_text_without_a_template(client, model):
    prompt = "<|user|>What is the capital of France?\n<|assistant|>"
    said = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=10)
    assert said.choices[0].text == "Paris", "the template was written by hand"


@conforms(CLIENT, "vectors")
def test_vectors_come_in_order_and_alike_in_both_encodings(client):
    two = client.embeddings.create(model="vectors", input=["a cat", "a dog"])
    assert [one.index for one in two.data] == [0, 1]
    one = client.embeddings.create(model="vectors", input="a cat", encoding_format="float")
    assert one.data[0].embedding == pytest.approx(two.data[0].embedding, abs=1e-3)
    assert two.usage.total_tokens > 0


@conforms(CLIENT, "an image, where no model can see")
def test_a_model_that_cannot_see_says_so_to_who_sends_an_image(client, gateway, model):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    with pytest.raises(openai.BadRequestError, match="cannot see images"):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    kept = gateway.newest()["messages"][0]["images"][0]
    assert (kept["type"], kept["bytes"]) == ("image/png", 8), "the journal holds its hash, not the image"
    with pytest.raises(openai.BadRequestError, match="fetches n"):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}])


@conforms(CLIENT, "unknown model")
def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="nobody serves nothing") as caught:
        client.chat.completions.create(model="nothing", messages=CAPITAL)
    assert caught.value.code == "model_not_found"


@conforms(CLIENT, "wrong key")
def test_a_wrong_key_is_an_authentication_error(gateway):
    with connect(gateway, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


@conforms(CLIENT, "wrong body")
@pytest.mark.parametrize(("more", "param"), [
    ({"temperature": 9}, "temperature"), ({"n": 2}, "n"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"top_logprobs": 2}, "top_logprobs")])
def test_a_wrong_body_names_its_field(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "auto", "messages": CAPITAL, **more})
    assert caught.value.param == param


@conforms(CLIENT, "prompt too long")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_for_every_context_is_the_client_s_to_shorten(client, model, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 4000}],
                                       stream=stream)
    assert caught.value.code == "context_length_exceeded"


@conforms(CLIENT, "what is not offered says so")
def test_what_is_not_offered_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a cat")
