"""The calls that Open WebUI's backend makes to an Ollama and to an OpenAI connection (routers/ollama.py,
routers/openai.py), and what it reads of the answers (utils/response.py), replayed against `swarmctl serve`.
"""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from conformance import conforms
from test_tools import CALL, WEATHER

httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.runtime

OLLAMA, OPENAI = "Open WebUI: Ollama", "Open WebUI: OpenAI"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
#: it forwards who asks, where that is enabled
USER = {"X-OpenWebUI-User-Name": "Ada%20L.", "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-User-Role": "admin",
        "X-OpenWebUI-User-Email": "ada@example.org", "X-OpenWebUI-Chat-Id": "2"}


@pytest.fixture(scope="module")
def backend(gateway):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {gateway.key}", **USER}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as made:
        yield made


def post(backend, path: str, payload: dict) -> httpx.Response:
    """It sends bytes that it made itself."""
    return backend.post(path, content=json.dumps(payload))


@conforms(OLLAMA, "models are listed")
def test_a_connection_is_verified_and_its_models_are_listed(backend):
    version = backend.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 10), "it compares versions as numbers"
    models = {one["model"]: one for one in backend.get("/api/tags").json()["models"]}
    assert {"auto:latest", "auto:best", "tooly:latest"} <= {*models}
    assert all(":" in name for name in models), "a name without a tag is looked up with :latest"
    loaded = {one["name"]: one["expires_at"] for one in backend.get("/api/ps").json()["models"]}
    assert int(datetime.fromisoformat(loaded["tooly:latest"]).timestamp()) > 0
    details = models["tooly:latest"]["details"]
    assert (details["parameter_size"], details["quantization_level"]) == ("722K", "F16")
    assert post(backend, "/api/show", {"model": "tooly:latest"}).json()["details"]["format"] == "gguf"


@conforms(OLLAMA, "chat, streamed")
def test_a_chat_of_an_ollama_connection(backend, gateway):
    """Each line is read by itself, and the last one for usage."""
    payload = {"model": "tooly:latest", "messages": CAPITAL, "stream": True, "keep_alive": "5m",
               "options": {"temperature": 0.0, "num_ctx": 2048, "mirostat": 0, "num_thread": 2}}
    with backend.stream("POST", "/api/chat", content=json.dumps(payload)) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert "".join(one["message"]["content"] for one in lines) == "Paris"
    last = lines[-1]
    assert (last["done"], last["eval_count"], last["prompt_eval_count"]) == (True, 4, 15)
    for key in ("total_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(last[key], int), "it divides by it"
        assert last[key] > 0
    assert gateway.newest()["terminal"] == "key:tester"


@conforms(OLLAMA, "chat")
def test_a_title_is_made_without_a_stream(backend):
    said = post(backend, "/api/chat", {"model": "auto:latest", "messages": CAPITAL, "stream": False,
                                       "options": {"num_predict": 50, "temperature": 0}}).json()
    assert said["message"]["content"] == "Paris"


@conforms(OLLAMA, "tools, a round trip")
def test_a_call_and_its_result_of_an_ollama_connection(backend, gateway):
    """It reads id, index, name and arguments of a call, and sends arguments back as an object."""
    from swarmctl.fleet.snapshot import read_fleet

    names = [one.model for entry in read_fleet(gateway.cli.paths.fleet).hosts for one in entry.served]
    if "llama" not in names:
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    asked = {"role": "user", "content": "weather in Paris?"}
    payload = {"model": "llama:latest", "messages": [asked], "tools": [WEATHER], "stream": True,
               "format": CALL, "options": {"temperature": 0}}
    lines = [json.loads(line) for line in post(backend, "/api/chat", payload).text.splitlines()]
    (call,) = [call for one in lines for call in one["message"].get("tool_calls", ())]
    assert isinstance(call["function"]["arguments"], dict)
    assert (call["function"]["index"], bool(call["id"])) == (0, True)
    back = [asked, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sun", "tool_call_id": call["id"]}]
    said = post(backend, "/api/chat", {"model": "llama:latest", "messages": back, "tools": [WEATHER],
                                       "stream": False, "options": {"num_predict": 8}}).json()
    assert said["message"]["content"]


@conforms(OLLAMA, "vectors")
def test_documents_are_embedded_through_either_endpoint(backend):
    texts = {"model": "vectors", "input": ["a cat", "a dog"], "truncate": True}
    assert [len(one) for one in post(backend, "/api/embed", texts).json()["embeddings"]] == [80, 80]
    one = post(backend, "/api/embeddings", {"model": "vectors", "prompt": "a cat"}).json()
    assert len(one["embedding"]) == 80


@conforms(OLLAMA, "an image, where no model can see")
@conforms(OLLAMA, "wrong key")
@conforms(OLLAMA, "unknown model")
@conforms(OLLAMA, "what is not offered says so")
def test_an_error_is_shown_by_its_error_field(backend):
    image = [{"role": "user", "content": "hi", "images": ["iVBORw0KGgo="]}]
    for path, payload, status, said in (
            ("/api/chat", {"model": "tooly:latest", "messages": image}, 400, "cannot see images"),
            ("/api/chat", {"model": "nothing:latest", "messages": CAPITAL}, 404, "nobody serves nothing"),
            ("/api/pull", {"model": "x", "insecure": True}, 501, "swarmctl models pull")):
        reply = post(backend, path, payload)
        assert (reply.status_code, said in reply.json()["error"]) == (status, True)
    wrong = backend.get("/api/tags", headers={"Authorization": "Bearer sk-wrong"})
    assert (wrong.status_code, wrong.json()["error"]) == (401, "this API key is not known")


def test_a_model_is_unloaded_as_far_as_the_interface_is_told(backend):
    said = post(backend, "/api/generate", {"model": "tooly:latest", "keep_alive": 0, "prompt": ""})
    assert (said.status_code, said.json()["done_reason"]) == (200, "unload")


@conforms(OPENAI, "models are listed")
def test_models_of_an_openai_connection_have_an_id(backend):
    found = backend.get("/v1/models").json()
    assert "error" not in found
    assert {"auto", "tooly"} <= {one["id"] for one in found["data"]}


@conforms(OPENAI, "chat, streamed")
def test_a_chat_of_an_openai_connection(backend):
    payload = {"stream": True, "model": "auto", "messages": CAPITAL, "temperature": 0, "max_tokens": 50,
               "stream_options": {"include_usage": True}}
    with backend.stream("POST", "/v1/chat/completions", content=json.dumps(payload)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    pieces = [one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]]
    assert "".join(pieces) == "Paris"
    assert events[-1]["usage"]["total_tokens"] == 19


@conforms(OPENAI, "chat")
def test_a_title_of_an_openai_connection(backend):
    said = post(backend, "/v1/chat/completions", {
        "model": "auto", "messages": CAPITAL, "stream": False, "max_completion_tokens": 1000,
        "reasoning": {"effort": "medium"}, "temperature": 0}).json()
    assert said["choices"][0]["message"]["content"] == "Paris"


@conforms(OPENAI, "tools, a round trip")
def test_a_call_of_an_openai_connection(backend):
    asked = {"role": "user", "content": "weather in Paris?"}
    payload = {"model": "tooly", "messages": [asked], "stream": True, "temperature": 0, "tools": [WEATHER],
               "tool_choice": "required"}
    lines = post(backend, "/v1/chat/completions", payload).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    choices = [one["choices"][0] for one in events if one["choices"]]
    calls = [call for one in choices for call in one["delta"].get("tool_calls") or ()]
    assert calls[0]["index"] == 0
    assert json.loads("".join(call["function"].get("arguments", "") for call in calls))["city"] == "Paris"
    assert choices[-1]["finish_reason"] == "tool_calls"


@conforms(OPENAI, "vectors")
def test_documents_are_embedded_by_an_openai_connection(backend):
    found = post(backend, "/v1/embeddings", {"input": ["a cat", "a dog"], "model": "vectors"}).json()
    assert [len(one["embedding"]) for one in found["data"]] == [80, 80]


@conforms(OPENAI, "an image, where no model can see")
@conforms(OPENAI, "unknown model")
@conforms(OPENAI, "wrong key")
def test_an_error_of_an_openai_connection_is_an_object_with_a_message(backend):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    for payload, said in (({"model": "nothing", "messages": CAPITAL}, "nobody serves nothing"),
                          ({"model": "tooly", "messages": [{"role": "user", "content": [image]}]},
                           "cannot see images")):
        assert said in post(backend, "/v1/chat/completions", payload).json()["error"]["message"]
    wrong = backend.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (401, "this API key is not known")


@pytest.mark.parametrize(("path", "body"), [
    ("chat/completions", {"messages": CAPITAL}), ("completions", {"prompt": "hello"}),
    ("messages", {"messages": CAPITAL, "max_tokens": 50}), ("responses", {"input": "hello"})])
@pytest.mark.parametrize("model", ["auto:latest", "tooly:latest"])
def test_an_ollama_connection_says_names_with_their_tag_to_every_path(backend, path, body, model):
    """Its proxies of /ollama/v1 send the names that it learnt from /api/tags, and an Ollama takes them."""
    said = post(backend, f"/v1/{path}", {"model": model, **body})
    assert (said.status_code, said.json()["model"]) == (200, "tooly"), said.text


def test_vectors_and_models_are_found_by_their_names_with_a_tag(backend):
    made = post(backend, "/v1/embeddings", {"model": "vectors:latest", "input": "a cat"}).json()
    assert len(made["data"][0]["embedding"]) == 80
    assert backend.get("/v1/models/tooly:latest").json()["id"] == "tooly"
    assert backend.get("/v1/models/nothing:latest").status_code == 404
