"""Whatever JSON a client sends, a surface answers with a turn or with BadRequest, and its error is JSON."""

from __future__ import annotations

import json

import pytest
from answers import BROKEN, CALL, meta, told, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmctl.dispatch.question import as_request
from swarmctl.errors import Busy, ContextExceeded, NoCandidate, UsageError, VectorsOnly
from swarmctl.gateway import anthropic, ollama, openai, responses
from swarmctl.gateway.turn import BadRequest, Finished, Turn

SURFACES = (openai.SURFACE, ollama.SURFACE, anthropic.SURFACE, responses.SURFACE)
TALKS = [talk for surface in SURFACES for talk in surface.talks]

#: names that mean something to one API or another, so that junk gets past the first check
KEYS = st.sampled_from((
    "role", "content", "type", "text", "image_url", "url", "source", "data", "media_type", "function",
    "name", "arguments", "parameters", "input_schema", "input", "id", "call_id", "tool_use_id",
    "tool_call_id", "tool_name", "tool_calls", "images", "output", "effort", "format", "schema",
    "json_schema", "is_error", "num_predict", "stop", "temperature", "top_k", "include_usage"))
WORDS = st.sampled_from((
    "user", "assistant", "system", "tool", "developer", "text", "image", "image_url", "base64",
    "input_text", "input_image", "output_text", "tool_use", "tool_result", "function", "function_call",
    "function_call_output", "message", "reasoning", "json_schema", "json_object", "auto", "required",
    "none", "any", "custom", "enabled", "iVBORw0KGgo=", "data:image/png;base64,iVBORw0KGgo=",
    "http://x/y", "{}", "low", "json", "\ud800", ""))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12)
FIELDS = st.sampled_from((
    "model", "messages", "prompt", "input", "instructions", "system", "tools", "tool_choice",
    "max_tokens", "max_output_tokens", "max_completion_tokens", "stream", "stream_options", "options",
    "format", "response_format", "output_config", "text", "thinking", "think", "reasoning",
    "reasoning_effort", "stop", "stop_sequences", "top_p", "top_k", "logprobs", "top_logprobs",
    "images", "raw", "suffix", "template", "context", "keep_alive", "include", "previous_response_id",
    "n", "seed", "temperature", "background", "truncation", "dimensions"))
BODIES = st.dictionaries(FIELDS, VALUES, max_size=8)
LIKELY = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "prompt": "hi",
          "input": "hi"}


@pytest.mark.parametrize("talk", TALKS, ids=[talk.path for talk in TALKS])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES, whole_body=st.booleans())
def test_any_body_is_a_turn_or_a_bad_request(talk, body, whole_body):
    try:
        turn = talk.parse({**LIKELY, **body} if whole_body else body)
    except BadRequest as exc:
        assert [json.dumps(surface.error(exc)[1]) for surface in SURFACES]  # noqa: PT017
        return
    if not isinstance(turn, Turn):
        json.dumps(turn)
        return
    request = as_request(turn.asked)
    assert request.messages
    json.dumps([request.params(), [one.to_record() for one in request.messages]])
    events = told(thought="hm", calls=(CALL,), likely=True)
    assert b"".join(map(talk.stream(meta(turn)).feed, events))
    assert talk.stream(meta(turn)).failed(BROKEN)
    assert isinstance(events[-1], Finished)
    json.dumps(talk.whole(meta(turn), events[-1].answered, whole(events)))


@pytest.mark.parametrize("surface", SURFACES, ids=[surface.name for surface in SURFACES])
@pytest.mark.parametrize("exc", [
    UsageError("a", hint="b\nc"), VectorsOnly("a", hint="b"), NoCandidate("a"), Busy("a", retry_after=1),
    ContextExceeded("a"), BROKEN, BadRequest("a", status=413)])
def test_any_failure_has_a_status_and_one_line_in_every_api(surface, exc):
    status, body = surface.error(exc)
    assert 400 <= status < 600
    assert "\n" not in json.dumps(body)
    assert "\\n" not in json.dumps(body)


@pytest.mark.parametrize("embed", [embed for surface in SURFACES for embed in surface.embeds],
                         ids=lambda embed: embed.path)
@settings(max_examples=100, deadline=None)
@given(body=BODIES)
def test_any_body_is_texts_or_a_bad_request(embed, body):
    try:
        found = embed.parse(body)
    except BadRequest:
        return
    assert all(isinstance(text, str) for text in found.texts)
