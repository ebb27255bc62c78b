"""A real Open WebUI with the gateway as its OpenAI and its Ollama connection, asked as its own page asks it.

SWARMCTL_TEST_OPEN_WEBUI names the virtual environment that it is installed in. Skipped without. It starts
offline, with an empty data folder.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conformance import conforms
from waiting import until

from swarmctl.fleet.ports import free_ports

httpx = pytest.importorskip("httpx")
FOLDER = os.environ.get("SWARMCTL_TEST_OPEN_WEBUI", "")
pytestmark = [pytest.mark.runtime, pytest.mark.skipif(
    not FOLDER, reason="SWARMCTL_TEST_OPEN_WEBUI names no virtual environment with an Open WebUI")]

OLLAMA, OPENAI = "Open WebUI: Ollama", "Open WebUI: OpenAI"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
#: a model of each connection: Ollama's names have a tag
EITHER = pytest.mark.parametrize("model", ["tooly", "tooly:latest"])


def environ(gateway, folder: Path) -> dict[str, str]:
    """Both connections, vectors by the gateway too; nothing is fetched from anywhere."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder / "data"),
            "OFFLINE_MODE": "true", "ANONYMIZED_TELEMETRY": "false", "WEBUI_SECRET_KEY": "for this test",
            "OPENAI_API_BASE_URLS": f"{gateway.url}/v1", "OPENAI_API_KEYS": gateway.key,
            "OLLAMA_BASE_URLS": gateway.url, "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_EMBEDDING_MODEL": "vectors", "RAG_OPENAI_API_BASE_URL": f"{gateway.url}/v1",
            "RAG_OPENAI_API_KEY": gateway.key}


@pytest.fixture(scope="module")
def page(gateway, tmp_path_factory):
    """Its first user, signed up: the administrator, who enters the key of the Ollama connection."""
    folder = tmp_path_factory.mktemp("open-webui")
    (port,) = free_ports(1)
    argv = (Path(FOLDER, "bin", "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, env=environ(gateway, folder))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as made:
            until(lambda: healthy(made, process, folder / "log"), 300)
            user = made.post("/api/v1/auths/signup", json={
                "name": "Ada", "email": "ada@example.org", "password": "Countess-of-1815"}).json()
            assert user["role"] == "admin"
            made.headers["authorization"] = f"Bearer {user['token']}"
            made.post("/ollama/config/update", json={
                "ENABLE_OLLAMA_API": True, "OLLAMA_BASE_URLS": [gateway.url],
                "OLLAMA_API_CONFIGS": {"0": {"enable": True, "key": gateway.key}}}).raise_for_status()
            made.get("/api/models").raise_for_status()
            yield made
    finally:
        process.terminate()
        process.wait(60)


def healthy(client, process: subprocess.Popen, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def ask(page, model: str, *, stream: bool = False, messages=CAPITAL, **more):
    return page.post("/api/chat/completions", json={"model": model, "messages": messages, "stream": stream,
                                                    **more})


@conforms(OLLAMA, "models are listed")
@conforms(OPENAI, "models are listed")
def test_a_connection_is_verified_and_the_models_of_both_are_listed(page, gateway):
    for path, url in (("/openai/verify", f"{gateway.url}/v1"), ("/ollama/verify", gateway.url)):
        assert page.post(path, json={"url": url, "key": gateway.key}).status_code == 200
    models = {one["id"]: one["owned_by"] for one in page.get("/api/models").json()["data"]}
    assert (models["auto"], models["tooly"]) == ("openai", "openai")
    assert (models["auto:latest"], models["tooly:latest"]) == ("ollama", "ollama")


@EITHER
@conforms(OLLAMA, "chat, streamed")
@conforms(OPENAI, "chat, streamed")
def test_a_chat_streams_and_is_recorded(page, gateway, model):
    text = ask(page, model, stream=True, params={"temperature": 0},
               stream_options={"include_usage": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    pieces = [one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]]
    assert "".join(pieces) == "Paris"
    assert events[-1]["usage"]["total_tokens"] == 19
    assert (gateway.newest()["answer"], gateway.newest()["terminal"]) == ("Paris", "key:tester")


@EITHER
@conforms(OLLAMA, "chat")
@conforms(OPENAI, "chat")
def test_a_title_is_asked_of_the_model_of_the_chat(page, gateway, model):
    body = {"model": model, "messages": [*CAPITAL, {"role": "assistant", "content": "Paris"}], "chat_id": "1"}
    said = page.post("/api/v1/tasks/title/completions", json=body).json()
    assert said["choices"][0]["message"]["content"]
    assert "Generate a concise" in gateway.newest()["messages"][-1]["content"]


@EITHER
@conforms(OLLAMA, "a begun answer is gone on from")
@conforms(OPENAI, "a begun answer is gone on from")
@conforms(OLLAMA, "structured output")
@conforms(OPENAI, "structured output")
def test_a_begun_answer_is_gone_on_from_and_a_schema_is_kept_to(page, model):
    begun = ask(page, model, messages=[*CAPITAL, {"role": "assistant", "content": "Par"}],
                params={"temperature": 0}).json()
    assert begun["choices"][0]["message"]["content"] == "is"
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"enum": ["Rome"]}}}
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    said = ask(page, model, response_format=form).json()
    assert json.loads(said["choices"][0]["message"]["content"]) == {"city": "Rome"}


@conforms(OLLAMA, "vectors")
@conforms(OPENAI, "vectors")
def test_documents_are_embedded_and_found(page):
    text = {"name": "harbour", "content": "The harbour opens at nine.", "collection_name": "harbour"}
    assert page.post("/api/v1/retrieval/process/text", json=text).json()["status"] is True
    found = page.post("/api/v1/retrieval/query/doc", json={"collection_name": "harbour", "query": "When?",
                                                           "k": 1}).json()
    assert found["documents"] == [["The harbour opens at nine."]]
    for model in ("vectors", "vectors:latest"):
        made = page.post("/api/embeddings", json={"model": model, "input": ["a cat", "a dog"]}).json()
        assert [len(one["embedding"]) for one in made["data"]] == [80, 80]


@EITHER
@conforms(OLLAMA, "an image, where no model can see")
@conforms(OPENAI, "an image, where no model can see")
@conforms(OLLAMA, "prompt too long")
@conforms(OPENAI, "prompt too long")
def test_what_cannot_be_done_is_said_to_the_user(page, model):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    for content, said in (([image], "cannot see images"), ("word " * 9000, "too long")):
        reply = ask(page, model, messages=[{"role": "user", "content": content}])
        assert (reply.status_code, said in reply.text) == (400, True), reply.text


@conforms(OLLAMA, "wrong key")
@conforms(OPENAI, "wrong key")
@conforms(OLLAMA, "what is not offered says so")
def test_the_administrator_sees_why_a_connection_or_a_deletion_is_refused(page, gateway):
    for path, url in (("/openai/verify", f"{gateway.url}/v1"), ("/ollama/verify", gateway.url)):
        assert "this API key is not known" in page.post(path, json={"url": url, "key": "sk-wrong"}).text
    gone = page.request("DELETE", "/ollama/api/delete/0", json={"model": "tooly:latest"})
    assert (gone.status_code, "swarmctl models remove" in gone.json()["detail"]) == (501, True)


@pytest.mark.parametrize(("path", "body"), [
    ("chat/completions", {"messages": CAPITAL}), ("completions", {"prompt": "hello"}),
    ("messages", {"messages": CAPITAL, "max_tokens": 50}), ("responses", {"input": "hello"})])
def test_every_path_of_an_ollama_connection_takes_a_name_with_a_tag(page, path, body):
    reply = page.post(f"/ollama/v1/{path}", json={"model": "tooly:latest", **body})
    assert (reply.status_code, reply.json()["model"]) == (200, "tooly")
