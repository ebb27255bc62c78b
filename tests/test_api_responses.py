"""OpenAI's Responses API, purely: bodies to turns, events to bytes, read back by its own client's types."""

from __future__ import annotations

import json

import pytest
from answers import AT, BROKEN, CALL, answered, meta, sse, told, whole

from swarmctl.dispatch.question import as_request
from swarmctl.exchange import Sampling, ToolCall
from swarmctl.gateway import responses
from swarmctl.gateway import responses_shape as shape
from swarmctl.gateway.previous import gone_on
from swarmctl.gateway.turn import BadRequest, Turn

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def ask(given: object = "What is the capital of France?", **more: object) -> Turn:
    return responses.parse({"model": "auto", "input": given, **more})


def feed(events: list, turn: Turn | None = None) -> list[dict]:
    stream = shape.ResponseStream(meta(turn or ask()))
    return sse(b"".join(map(stream.feed, events)))


def test_a_stream_is_the_sequence_that_clients_fold():
    said = feed(told())
    assert [one["type"].removeprefix("response.") for one in said] == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 3,
        "output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [one["sequence_number"] for one in said] == list(range(11))
    last = said[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "Paris"
    assert last["usage"]["total_tokens"] == 19
    assert last["completed_at"] == pytest.approx(AT + 0.26975)


def test_every_event_and_response_is_what_the_client_s_types_take():
    types = pytest.importorskip("openai.types.responses")
    from pydantic import TypeAdapter

    event = TypeAdapter(types.ResponseStreamEvent)
    turn = ask(tools=[TOOL], tool_choice="required", instructions="Be brief.", top_logprobs=1,
               text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}})
    for one in feed(told(thought="hm", calls=(CALL, CALL), likely=True, finish="tool_calls"), turn):
        event.validate_python(one, strict=True)
    made = shape.response(meta(turn), answered(), whole(told(thought="hm", calls=(CALL,), likely=True)))
    read = types.Response.model_validate(made, strict=True)
    assert [item.type for item in read.output] == ["reasoning", "message", "function_call"]
    assert read.output_text == "Paris"
    assert read.output[1].content[0].logprobs[0].top_logprobs[0].token == "P"


def test_items_are_numbered_in_their_order_and_the_whole_answer_repeats_them():
    said = feed(told(thought="hm", calls=(CALL, CALL), finish="tool_calls"))
    done = [one for one in said if one["type"] == "response.output_item.done"]
    assert [one["output_index"] for one in done] == [0, 1, 2, 3]
    assert said[-1]["response"]["output"] == [one["item"] for one in done]
    assert len({one["item"]["id"] for one in done}) == 4


def test_an_answer_that_was_cut_is_incomplete():
    said = feed(told(finish="length"))
    assert said[-1]["type"] == "response.incomplete"
    assert said[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert said[-1]["response"]["output"][0]["status"] == "incomplete"


def test_a_stream_that_breaks_ends_as_failed():
    stream = shape.ResponseStream(meta(ask()))
    begun = b"".join(map(stream.feed, told()[:2]))
    failed = sse(stream.failed(BROKEN))[0]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "worlock: the server went away"}
    assert failed["sequence_number"] == len(sse(begun))


def test_items_become_the_conversation():
    asked = ask([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "input_text", "text": "Look"},
            {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
    ], tools=[TOOL]).asked
    messages = as_request(asked).messages
    assert [turn.role for turn in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert messages[1].images
    assert messages[2].tool_calls == (ToolCall("c1", "weather", '{"city":"Rome"}'),
                                      ToolCall("c2", "weather", "{}"))
    assert [(turn.content, turn.name) for turn in messages[3:]] == [("sun", "weather"), ("rain", "weather")]


def test_parameters_become_the_question():
    turn = ask(max_output_tokens=5, temperature=0, top_p=0.5, reasoning={"effort": "low"}, stream=True,
               include=["message.output_text.logprobs"], tools=[TOOL],
               tool_choice={"type": "function", "name": "weather"}, instructions="Be brief.",
               previous_response_id="resp_01m84m910d34fczy", text={"format": {"type": "json_object"}})
    request = as_request(turn.asked)
    assert (request.max_tokens, request.temperature, request.sampling) == (5, 0, Sampling(top_p=0.5))
    assert (request.think, request.logprobs, request.tool_choice) == ("low", True, "weather")
    assert (request.schema, turn.continues) == ({"type": "object"}, "01m84m910d34fczy")
    assert request.messages[0].content == "Be brief."


@pytest.mark.parametrize(("body", "said"), [
    ({"input": None}, "must end with a message of the user"),
    ({"input": [3]}, "must be an object"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "items of type 'item_reference'"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "parts of type 'input_file'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
     "fetches no images"),
    ({"background": True}, "background is not supported"),
    ({"truncation": "auto"}, "truncation is not supported"),
    ({"tools": [{"type": "web_search"}]}, "'web_search' is not run here"),
    ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice must be"),
    ({"text": {"format": {"type": "json_schema"}}}, "with its schema"),
    ({"reasoning": {"effort": "extreme"}}, "reasoning.effort must be"),
    ({"previous_response_id": "abc"}, "is not the id of a response"),
    ({"previous_response_id": ""}, "is not the id of a response"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id is missing"),
])
def test_a_body_that_is_wrong_says_what_is(body, said):
    with pytest.raises(BadRequest, match=said):
        ask(**({"given": body.pop("input")} if "input" in body else {}), **body)


def test_a_conversation_goes_on_from_an_exchange_of_the_same_key_only(tmp_path):
    row = {"v": 1, "kind": "exchange", "id": "01m84m910d34fczy", "at": "2026-11-23T16:24:58Z",
           "terminal": "key:me", "conversation": "01m84m910d34aaaa", "host": "spinoza", "model": "tooly",
           "answer": "Paris",
           "messages": [{"role": "system", "content": "Old."}, {"role": "user", "content": "Capital?"}]}
    (tmp_path / "2026-11.jsonl").write_text(json.dumps(row) + "\n")
    asked = ask("And of Spain?", instructions="New.").asked
    found = gone_on(tmp_path, asked, row["id"], "key:me")
    said = [turn.content for turn in as_request(found).messages]
    assert said == ["New.", "Capital?", "Paris", "And of Spain?"]
    assert (found.previous, found.conversation, found.holder) == (
        row["id"], row["conversation"], ("spinoza", "tooly"))
    for exchange, terminal in ((row["id"], "key:you"), ("fczy", "key:me"), ("01m84m910d34fczz", "key:me")):
        with pytest.raises(BadRequest, match="not found"):
            gone_on(tmp_path, asked, exchange, terminal)
