"""Images go through every API to models that see, on both runtimes; a model that does not is passed over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal

import pytest
from eyes import TOKENS, make_eye, picture
from gateways import CONTEXT, host, llama_server, served, serving, swarm_of
from test_ollama import FOLDER, Server

from swarmctl.shipped import shipped_model

httpx = pytest.importorskip("httpx")
pytest.importorskip("gguf")
pytest.importorskip("numpy")
pytestmark = pytest.mark.runtime

HIDDEN = 128  # of the large tiny model
RED, BLUE = picture(255, 0, 0), picture(0, 0, 255)
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def seeing(llamacpp_bin, tmp_path_factory):
    """A swarm of a blind host, the cheaper one, and one that sees."""
    folder = tmp_path_factory.mktemp("seeing")
    eye = make_eye(folder / "eye.gguf", HIDDEN)
    (folder / "home").mkdir()
    with contextlib.ExitStack() as stack:
        flags = ("-c", CONTEXT, "-np", 1)
        sees = stack.enter_context(llama_server(folder, llamacpp_bin, "large", *flags, "--mmproj", eye))
        blind = stack.enter_context(llama_server(folder, llamacpp_bin, "large", *flags))
        hosts = [host("ada", served("llamacpp", "seer", sees, load_seconds=5.0)),
                 host("spinoza", served("llamacpp", "blind", blind, quality={"routine": 1.0}))]
        if FOLDER:
            hosts.append(host("worlock", served("ollama", "painter", _painter(stack, folder, eye))))
        cli = stack.enter_context(swarm_of(folder / "home", *hosts))
        found = stack.enter_context(serving(cli))
        found.client = stack.enter_context(httpx.Client(base_url=found.url, timeout=60))
        yield found


def _painter(stack, folder, eye) -> int:
    (folder / "ollama").mkdir()
    server = Server(folder / "ollama")
    stack.callback(server.process.wait, 30)
    stack.callback(os.killpg, server.process.pid, signal.SIGTERM)
    files = {}
    for name, path in (("model.gguf", shipped_model("large") / "model.gguf"), ("mmproj.gguf", eye)):
        files[name] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        server.call(f"/api/blobs/{files[name]}", path.read_bytes())
    server.call("/api/create", {"model": "painter", "files": files, "stream": False,
                                "parameters": {"num_thread": 1}})
    return server.port


@pytest.fixture(params=["seer", "painter"])
def model(request):
    if request.param == "painter" and not FOLDER:
        pytest.skip("SWARMCTL_TEST_OLLAMA names no Ollama")
    return request.param


def openai(model: str, image: str | None) -> tuple[str, dict]:
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}] if image else []
    content = [*parts, {"type": "text", "text": QUESTION}]
    return "/v1/chat/completions", {"model": model, "max_tokens": 20, "temperature": 0,
                                    "messages": [{"role": "user", "content": content}]}


def anthropic(model: str, image: str | None) -> tuple[str, dict]:
    source = {"type": "base64", "media_type": "image/png", "data": image}
    content = [*([{"type": "image", "source": source}] if image else []), {"type": "text", "text": QUESTION}]
    return "/v1/messages", {"model": model, "max_tokens": 20, "temperature": 0,
                            "messages": [{"role": "user", "content": content}]}


def ollama(model: str, image: str | None) -> tuple[str, dict]:
    turn = {"role": "user", "content": QUESTION, **({"images": [image]} if image else {})}
    return "/api/chat", {"model": model, "stream": False, "messages": [turn],
                         "options": {"temperature": 0, "num_predict": 20}}


def responses(model: str, image: str | None) -> tuple[str, dict]:
    parts = [{"type": "input_image", "image_url": f"data:image/png;base64,{image}"}] if image else []
    content = [*parts, {"type": "input_text", "text": QUESTION}]
    return "/v1/responses", {"model": model, "max_output_tokens": 20, "temperature": 0,
                             "input": [{"role": "user", "content": content}]}


def put(seeing, api, model: str, image: str | None) -> dict:
    """The exchange that came of it."""
    path, body = api(model, image)
    reply = seeing.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return seeing.newest()


@pytest.mark.parametrize("api", [openai, anthropic, ollama, responses])
def test_an_image_reaches_a_model_that_sees(seeing, api, model):
    without, red = put(seeing, api, model, None), put(seeing, api, model, RED)
    more = red["timings"]["prompt_tokens"] - without["timings"]["prompt_tokens"]
    assert more >= TOKENS, "the model read what the image became"
    assert red["answer"] != without["answer"]


def test_another_image_is_another_question(seeing):
    assert put(seeing, openai, "seer", RED)["answer"] != put(seeing, openai, "seer", BLUE)["answer"]


def test_a_blind_model_is_passed_over_for_one_that_sees(seeing):
    assert put(seeing, openai, "auto", None)["model"] == "blind", "it is the cheaper one"
    row = put(seeing, openai, "auto", RED)
    assert row["model"] in ("seer", "painter")
    assert ("blind", True) in [(one["model"], "cannot see" in one["error"]) for one in row["attempts"]]


def test_the_journal_holds_no_image(seeing):
    put(seeing, openai, "seer", RED)
    assert RED[:40] not in "".join(path.read_text() for path in seeing.cli.paths.journal.glob("*.jsonl"))
    assert seeing.newest()["messages"][0]["images"][0]["type"] == "image/png"


def test_what_is_no_image_is_refused_by_the_model_server(seeing):
    path, body = openai("seer", "AAAA")
    reply = seeing.client.post(path, json=body)
    assert reply.status_code == 400
    assert "image" in reply.json()["error"]["message"].lower()
