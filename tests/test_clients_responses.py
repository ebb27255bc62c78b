"""The openai package's Responses API, unchanged, against `swarmctl serve` in front of real servers."""

from __future__ import annotations

import json

import pytest
from conformance import conforms
from test_clients_openai import CAPITAL, PIXEL, Place, connect
from test_tools import WEATHER

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.runtime

CLIENT = "openai: responses"
QUESTION = "What is the capital of France?"
TOOL = {"type": "function", **WEATHER["function"]}


@conforms(CLIENT, "chat")
def test_a_response(client, gateway, model):
    said = client.responses.create(model=model, input=QUESTION, temperature=0)
    assert (said.output_text, said.status, said.model) == ("Paris", "completed", model)
    assert (said.usage.input_tokens, said.usage.output_tokens) == (15, 4)
    assert said.id == f"resp_{gateway.newest()['id']}"
    items = client.responses.create(model=model, input=CAPITAL, instructions="Answer briefly.", temperature=0)
    assert items.output_text == "Paris"
    assert items.instructions == "Answer briefly."


@conforms(CLIENT, "chat, streamed")
def test_a_response_streamed(client):
    with client.responses.stream(model="auto", input=QUESTION, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(pieces) == "Paris"
    assert len(pieces) == 3


def test_a_response_that_was_cut_is_incomplete(client):
    said = client.responses.create(model="tooly", input=QUESTION, max_output_tokens=2, temperature=0)
    assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@conforms(CLIENT, "the conversation goes on by its id")
def test_a_conversation_goes_on_by_the_id_of_its_last_response(client, gateway):
    first = client.responses.create(model="tooly", input=QUESTION, instructions="Answer briefly.",
                                    temperature=0)
    second = client.responses.create(model="tooly", input="Spell cat.", previous_response_id=first.id,
                                     temperature=0)
    newest = gateway.newest()
    assert [turn["content"] for turn in newest["messages"]] == [QUESTION, "Paris", "Spell cat."]
    assert newest["parent"] == first.id.removeprefix("resp_")
    assert newest["conversation"] == newest["parent"]
    assert second.previous_response_id == first.id
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model="tooly", input="And?", previous_response_id="resp_0000000000000000")


@conforms(CLIENT, "tools, a round trip")
def test_a_call_and_its_result(client):
    first = client.responses.create(model="tooly", input="weather in Paris?", temperature=0, tools=[TOOL],
                                    tool_choice="required")
    call = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)["city"]) == ("function_call", "weather", "Paris")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    by_id = client.responses.create(model="tooly", input=[result], previous_response_id=first.id,
                                    tools=[TOOL], temperature=0, max_output_tokens=8)
    assert by_id.output_text == "sun"
    whole = client.responses.create(model="tooly", tools=[TOOL], temperature=0, max_output_tokens=8, input=[
        {"role": "user", "content": "weather in Paris?"}, call.to_dict(), result])
    assert whole.output_text == "sun"


@conforms(CLIENT, "structured output")
def test_an_answer_keeps_to_a_schema(client):
    said = client.responses.parse(model="tooly", input=QUESTION, text_format=Place, temperature=0)
    assert isinstance(said.output_parsed, Place)


@conforms(CLIENT, "log-probabilities")
def test_log_probabilities(client):
    said = client.responses.create(model="tooly", input=QUESTION, temperature=0, top_logprobs=2,
                                   include=["message.output_text.logprobs"])
    tokens = said.output[0].content[0].logprobs
    assert "".join(one.token for one in tokens) == "Paris"
    assert len(tokens[0].top_logprobs) == 2


@conforms(CLIENT, "an image, where no model can see")
def test_a_model_that_cannot_see_says_so(client):
    with pytest.raises(openai.BadRequestError, match="cannot see images"):
        client.responses.create(model="tooly", input=[{"role": "user", "content": [
            {"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PIXEL}]}])


@conforms(CLIENT, "unknown model")
def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError, match="nobody serves nothing"):
        client.responses.create(model="nothing", input="hi")


@conforms(CLIENT, "wrong key")
def test_a_wrong_key(gateway):
    with connect(gateway, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.create(model="auto", input="hi")


@conforms(CLIENT, "wrong body")
def test_a_wrong_body_names_its_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="auto", input="hi", temperature=9)
    assert caught.value.param == "temperature"


@conforms(CLIENT, "prompt too long")
def test_a_prompt_too_long(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="auto", input="word " * 4000)
    assert caught.value.code == "context_length_exceeded"


@conforms(CLIENT, "what is not offered says so")
def test_tools_that_run_at_openai_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="'web_search' is not run here"):
        client.responses.create(model="auto", input="hi", tools=[{"type": "web_search"}])
    with pytest.raises(openai.BadRequestError, match="background is not supported"):
        client.responses.create(model="auto", input="hi", background=True)
