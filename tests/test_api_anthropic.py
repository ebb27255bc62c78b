"""Anthropic's API, purely: bodies to turns, events to bytes, read back by the types of its own client."""

from __future__ import annotations

import pytest
from answers import BROKEN, CALL, answered, meta, sse, told, whole

from swarmctl.dispatch.question import as_request
from swarmctl.errors import Busy, NoCandidate, UsageError
from swarmctl.exchange import Sampling, ToolCall
from swarmctl.gateway import anthropic
from swarmctl.gateway import anthropic_shape as shape
from swarmctl.gateway.turn import BadRequest, Turn

HI = {"role": "user", "content": "What is the capital of France?"}
TOOL = {"name": "weather", "description": "The weather", "input_schema": {"type": "object"}}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


def ask(*messages: dict, **more: object) -> Turn:
    return anthropic.parse({"model": "auto", "max_tokens": 20, "messages": [*messages] or [HI], **more})


def feed(events: list) -> list[dict]:
    stream = shape.MessageStream(meta(ask()))
    return sse(b"".join(map(stream.feed, events)))


def test_a_stream_is_the_sequence_that_clients_fold():
    said = feed(told()[:1] + told())
    assert [one["type"] for one in said] == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * 3, "content_block_stop",
        "message_delta", "message_stop"]
    assert said[0]["message"]["content"] == []
    assert said[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert said[-2]["usage"] == {"input_tokens": 1, "cache_creation_input_tokens": 0,
                                 "cache_read_input_tokens": 14, "output_tokens": 4}


def test_thinking_words_and_calls_are_blocks_one_after_the_other():
    said = feed(told(thought="hm", text=("I ", "ask"), calls=(CALL, CALL), finish="tool_calls"))
    starts = [(one["index"], one["content_block"]["type"]) for one in said if "content_block" in one]
    assert starts == [(0, "thinking"), (1, "text"), (2, "tool_use"), (3, "tool_use")]
    stops = [one["index"] for one in said if one["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    calls = [one["delta"]["partial_json"] for one in said if "partial_json" in one.get("delta", {})]
    assert calls == ['{"city": "Paris"}'] * 2
    assert said[-2]["delta"]["stop_reason"] == "tool_use"


def test_an_answer_without_a_word_has_one_empty_block():
    said = feed(told(text=()))
    assert [one["type"] for one in said][2:4] == ["content_block_start", "content_block_stop"]
    assert shape.message(meta(ask()), answered(), whole(told(text=())))["content"][0]["text"] == ""


def test_a_whole_message_is_what_the_client_s_types_take():
    types = pytest.importorskip("anthropic.types")
    made = shape.message(meta(ask()), answered("tool_calls"), whole(told(thought="hm", calls=(CALL,))))
    message = types.Message.model_validate(made, strict=True)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert (message.stop_reason, message.content[2].input) == ("tool_use", {"city": "Paris"})
    assert shape.message(meta(ask()), answered("length"), whole(told()))["stop_reason"] == "max_tokens"


def test_system_blocks_images_results_and_thoughts_become_the_conversation():
    asked = ask(
        HI, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I ask."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}, PIXEL]},
            {"type": "text", "text": "And now?"}]},
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=[TOOL]).asked
    messages = as_request(asked).messages
    assert [turn.role for turn in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[2].content == "I ask."
    assert messages[2].tool_calls == (ToolCall("t1", "weather", '{"city": "Rome"}'),)
    assert (messages[3].content, messages[3].tool_call_id, messages[3].name) == ("sun", "t1", "weather")
    assert messages[4].images == ("data:image/png;base64,iVBORw0KGgo=",)
    assert asked.tools == ({"type": "function", "function": {
        "name": "weather", "description": "The weather", "parameters": {"type": "object"}}},)


def test_results_alone_are_a_question_and_a_failed_one_says_so():
    call = {"type": "tool_use", "id": "t1", "name": "w", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "no city", "is_error": True}
    asked = ask(HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}).asked
    assert (asked.prompt, asked.results[0].content) == ("", "Error: no city")


def test_parameters_become_the_question():
    tools = [{"name": "w", "input_schema": {"type": "object"}}]
    turn = ask(tools=tools, temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["x"], stream=True,
               tool_choice={"type": "any"}, thinking={"type": "disabled"},
               output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    request = as_request(turn.asked)
    assert (turn.stream, request.max_tokens, request.stop) == (True, 20, ("x",))
    assert (request.temperature, request.sampling) == (0.5, Sampling(top_p=0.9, top_k=5))
    assert (request.tool_choice, request.think, request.schema) == ("required", False, {"type": "object"})
    assert ask(tools=tools, tool_choice={"type": "tool", "name": "w"}).asked.tool_choice == "w"
    assert ask(thinking={"type": "enabled", "budget_tokens": 1024}).asked.think is None


def test_a_begun_answer_is_gone_on_from():
    assert ask(HI, {"role": "assistant", "content": "The best is ("}).asked.prefill == "The best is ("


@pytest.mark.parametrize(("body", "said"), [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"max_tokens": 0}, "max_tokens must be between 1"),
    ({"model": ""}, "model: Field required"),
    ({"messages": []}, "at least one message"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: must be user or assistant"),
    ({"messages": [{"role": "user", "content": 3}]}, "must be a string or a list of blocks"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "blocks of type video"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]}]}, "no image by url"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs at Anthropic"),
    ({"tools": [{"name": "x"}]}, "input_schema: Field required"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools"),
    ({"tool_choice": {"type": "tool", "name": "weather"}}, "tool_choice: needs tools"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [{"name": "y", "input_schema": {}}]},
     "tool_choice.name: no tool is called x"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
    ({"output_config": {"format": {"type": "xml"}}}, "must be json_schema"),
])
def test_a_body_that_is_wrong_says_what_is(body, said):
    with pytest.raises(BadRequest, match=said) as caught:
        anthropic.parse({"model": "auto", "max_tokens": 20, "messages": [HI], **body})
    status, answer = shape.error(caught.value)
    assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")


@pytest.mark.parametrize(("exc", "status", "kind"), [
    (UsageError("nobody serves x", hint="served: y"), 404, "not_found_error"),
    (Busy("full", retry_after=1), 429, "rate_limit_error"),
    (NoCandidate("no host"), 503, "overloaded_error"),
    (BadRequest("who are you", status=401), 401, "authentication_error"),
    (BadRequest("large", status=413), 413, "request_too_large"),
    (BROKEN, 502, "api_error"),
])
def test_errors_have_the_status_and_type_that_clients_tell_apart(exc, status, kind):
    code, body = shape.error(exc)
    assert (code, body["error"]["type"]) == (status, kind)


def test_a_stream_that_breaks_ends_with_an_error_event():
    assert sse(shape.MessageStream(meta(ask())).failed(BROKEN))[0]["error"] == {
        "type": "api_error", "message": "worlock: the server went away"}


def test_the_key_is_read_where_this_api_sends_it():
    assert anthropic.SURFACE.key({"x-api-key": "sk"}) == "sk"
    assert anthropic.SURFACE.key({}) is None
