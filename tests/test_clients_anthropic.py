"""The anthropic package, unchanged, against `swarmctl serve` in front of real servers."""

from __future__ import annotations

import json

import pytest
from conformance import conforms
from test_tools import WEATHER

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.runtime

CLIENT = "anthropic"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ASK = [{"role": "user", "content": "weather in Paris?"}]
TOOL = {"name": "weather", "description": "The weather of a city",
        "input_schema": WEATHER["function"]["parameters"]}
#: the package has no parameter for it any more; the API has
COLD = {"temperature": 0}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PLACE = {"type": "object", "required": ["city"], "properties": {"city": {"enum": ["Paris", "Rome"]}},
         "additionalProperties": False}


def connect(gateway, key: str | None = None) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key=key or gateway.key, max_retries=0, timeout=60)


@conforms(CLIENT, "chat")
def test_a_message(client, gateway, model):
    said = client.messages.create(model=model, max_tokens=40, messages=CAPITAL, system="Answer briefly.",
                                  extra_body=COLD)
    assert [block.text for block in said.content] == ["Paris"]
    assert (said.model, said.stop_reason, said.role) == (model, "end_turn", "assistant")
    assert said.usage.input_tokens + said.usage.cache_read_input_tokens > 15
    newest = gateway.newest()
    assert (said.id, newest["terminal"]) == (f"msg_{newest['id']}", "key:tester")
    assert newest["messages"][0] == {"role": "system", "content": "Answer briefly."}


@conforms(CLIENT, "models are listed")
def test_models_are_listed_to_a_key_as_this_client_sends_it(client):
    assert "tooly" in [one.id for one in client.models.list()]


@conforms(CLIENT, "chat, streamed")
def test_a_message_streamed(client, model):
    with client.messages.stream(model=model, max_tokens=40, messages=CAPITAL, extra_body=COLD) as stream:
        pieces = [*stream.text_stream]
        message = stream.get_final_message()
    assert "".join(pieces) == message.content[0].text == "Paris"
    assert len(pieces) == 3
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 4)


def test_a_coding_agent_s_request_is_taken_as_it_comes(client):
    """The beta path, with what agents send beside the messages."""
    said = client.beta.messages.create(
        model="tooly", max_tokens=40, messages=CAPITAL, thinking={"type": "adaptive"},
        system=[{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}],
        tools=[{**TOOL, "cache_control": {"type": "ephemeral"}, "strict": True}],
        output_config={"effort": "low"}, metadata={"user_id": "u"},
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        betas=["context-management-2025-06-27"], extra_body=COLD)
    assert said.content[0].type in ("text", "tool_use")


def test_a_message_that_was_cut_says_so(client):
    said = client.messages.create(model="tooly", max_tokens=1, messages=CAPITAL, extra_body=COLD)
    assert said.stop_reason == "max_tokens"


def test_stop_sequences_and_sampling_reach_the_model(client, gateway):
    said = client.messages.create(model="tooly", max_tokens=40, messages=CAPITAL, stop_sequences=["is"],
                                  extra_body={**COLD, "top_p": 0.9, "top_k": 3})
    assert said.content[0].text == "Par"
    assert gateway.newest()["params"] == {"max_tokens": 40, "temperature": 0, "stop": ["is"], "top_p": 0.9,
                                          "top_k": 3}


@conforms(CLIENT, "a begun answer is gone on from")
def test_a_begun_answer_is_gone_on_from_and_not_repeated(client, model):
    begun = {"role": "assistant", "content": "Well, let me think. I believe the answer is"}
    said = client.messages.create(model=model, max_tokens=40, messages=[*CAPITAL, begun], extra_body=COLD)
    assert "Paris" in said.content[0].text
    assert "Well" not in said.content[0].text


@conforms(CLIENT, "tools, a round trip")
def test_a_tool_is_used_and_its_result_goes_back(client):
    first = client.messages.create(model="tooly", max_tokens=200, messages=ASK, tools=[TOOL], extra_body=COLD,
                                   tool_choice={"type": "any"})
    use = first.content[-1]
    assert (first.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "weather")
    assert use.input["city"] == "Paris"
    second = client.messages.create(model="tooly", max_tokens=8, tools=[TOOL], extra_body=COLD, messages=[
        *ASK, {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sun"}]}])
    assert second.content[0].text == "sun"


def test_a_streamed_tool_use_is_put_together_by_the_client(client):
    with client.messages.stream(model="tooly", max_tokens=200, messages=ASK, tools=[TOOL], extra_body=COLD,
                                tool_choice={"type": "tool", "name": "weather"}) as stream:
        message = stream.get_final_message()
    assert message.content[-1].input["city"] == "Paris"


@conforms(CLIENT, "structured output")
def test_an_answer_keeps_to_a_schema(client, model):
    said = client.messages.create(model=model, max_tokens=60, messages=CAPITAL, extra_body=COLD,
                                  output_config={"format": {"type": "json_schema", "schema": PLACE}})
    assert json.loads(said.content[0].text)["city"] in ("Paris", "Rome")


@conforms(CLIENT, "tokens are counted")
def test_tokens_are_estimated_without_asking_a_model(client, gateway):
    before = len(gateway.cli.rows())
    few = client.messages.count_tokens(model="tooly", messages=CAPITAL).input_tokens
    many = client.messages.count_tokens(model="tooly", messages=CAPITAL, tools=[TOOL]).input_tokens
    assert 5 <= few <= 30
    assert many > few
    assert len(gateway.cli.rows()) == before


@conforms(CLIENT, "an image, where no model can see")
def test_a_model_that_cannot_see_says_so(client, model):
    with pytest.raises(anthropic.BadRequestError, match="cannot see images"):
        client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": [
            PIXEL, {"type": "text", "text": "What is this?"}]}])


@conforms(CLIENT, "unknown model")
def test_an_unknown_model(client):
    with pytest.raises(anthropic.NotFoundError, match="nobody serves nothing") as caught:
        client.messages.create(model="nothing", max_tokens=9, messages=CAPITAL)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nothing", messages=CAPITAL)


@conforms(CLIENT, "wrong key")
def test_a_wrong_key(gateway):
    with connect(gateway, "sk-wrong") as stranger, pytest.raises(anthropic.AuthenticationError) as caught:
        stranger.messages.create(model="auto", max_tokens=9, messages=CAPITAL)
    assert caught.value.body["error"]["type"] == "authentication_error"


@conforms(CLIENT, "wrong body")
@pytest.mark.parametrize("more", [{"max_tokens": 0}, {"messages": []}, {"tools": [{"name": "x"}]}])
def test_a_wrong_body(client, more):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**{"model": "auto", "max_tokens": 9, "messages": CAPITAL, **more})


@conforms(CLIENT, "prompt too long")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long(client, stream):
    with pytest.raises(anthropic.BadRequestError, match="too long for every context"):
        client.messages.create(model="auto", max_tokens=9, stream=stream,
                               messages=[{"role": "user", "content": "word " * 4000}])


@conforms(CLIENT, "what is not offered says so")
def test_tools_that_run_at_anthropic_are_refused_by_name(client):
    with pytest.raises(anthropic.BadRequestError, match="runs at Anthropic"):
        client.messages.create(model="auto", max_tokens=9, messages=CAPITAL,
                               tools=[{"type": "web_search_20250305", "name": "web_search"}])
