"""The llm program, unchanged, with the gateway as an OpenAI-compatible model, in a home of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest
from conformance import conforms

pytest.importorskip("llm")
pytestmark = pytest.mark.runtime

CLIENT = "llm"
QUESTION = "What is the capital of France?"
MODELS = """\
- model_id: swarm
  model_name: auto
  api_base: {url}/v1
  api_key_name: swarm
  supports_schema: true
  vision: true
- model_id: nowhere
  model_name: nothing
  api_base: {url}/v1
  api_key_name: swarm
- model_id: goes-on
  model_name: tooly
  api_base: {url}/v1
  api_key_name: swarm
  completion: true
"""


@pytest.fixture(scope="module")
def llm(gateway, tmp_path_factory):
    """Run llm with arguments."""
    home = tmp_path_factory.mktemp("llm")
    (home / "extra-openai-models.yaml").write_text(MODELS.format(url=gateway.url))
    (home / "keys.json").write_text(json.dumps({"swarm": gateway.key}))
    environ = {**os.environ, "LLM_USER_PATH": str(home), "PYTHONWARNINGS": "ignore"}

    def run(*args: str, status: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, "-m", "llm", *args], env=environ, capture_output=True,
                              text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@conforms(CLIENT, "chat")
@conforms(CLIENT, "chat, streamed")
def test_a_prompt_streamed_and_whole(llm, gateway):
    assert llm("-m", "swarm", QUESTION, "-o", "temperature", "0").stdout.strip() == "Paris"
    assert llm("-m", "swarm", "--no-stream", QUESTION, "-o", "temperature", "0").stdout.strip() == "Paris"
    assert gateway.newest()["terminal"] == "key:tester"


@conforms(CLIENT, "models are listed")
def test_its_list_of_models_has_ours(llm):
    assert "swarm" in llm("models").stdout


def test_a_conversation_goes_on_and_is_one_in_the_journal(llm, gateway):
    llm("-m", "swarm", QUESTION, "-o", "temperature", "0")
    first = gateway.newest()
    llm("-c", "Spell cat.", "-o", "temperature", "0")
    second = gateway.newest()
    assert [turn["content"] for turn in second["messages"]] == [QUESTION, "Paris", "Spell cat."]
    assert (second["parent"], second["conversation"]) == (first["id"], first["conversation"])


@conforms(CLIENT, "structured output")
def test_a_schema_binds_the_answer(llm):
    schema = {"type": "object", "required": ["city"], "additionalProperties": False,
              "properties": {"city": {"enum": ["Paris", "Rome"]}}}
    said = llm("-m", "swarm", "--schema", json.dumps(schema), QUESTION, "-o", "temperature", "0")
    assert json.loads(said.stdout)["city"] in ("Paris", "Rome")


@conforms(CLIENT, "completions")
def test_a_completion(llm):
    prompt = "<|user|>What is the capital of France?\n<|assistant|>"
    said = llm("-m", "goes-on", prompt, "-o", "temperature", "0")
    assert said.stdout.strip() == "Paris"


@conforms(CLIENT, "an image, where no model can see")
def test_a_model_that_cannot_see_says_so(llm, tmp_path):
    (tmp_path / "dot.png").write_bytes(base64.b64decode("iVBORw0KGgo="))
    done = llm("-m", "swarm", "-a", str(tmp_path / "dot.png"), "What is this?", status=1)
    assert "cannot see images" in done.stderr


@conforms(CLIENT, "unknown model")
def test_an_unknown_model(llm):
    assert "nobody serves nothing" in llm("-m", "nowhere", "hi", status=1).stderr


@conforms(CLIENT, "wrong key")
def test_a_wrong_key(llm):
    assert "API key is not known" in llm("-m", "swarm", "hi", "--key", "sk-wrong", status=1).stderr


@conforms(CLIENT, "wrong body")
def test_a_wrong_option(llm):
    done = llm("-m", "swarm", "hi", "-o", "max_tokens", "99999999", status=1)
    assert "max_tokens must be between" in done.stderr


@conforms(CLIENT, "prompt too long")
def test_a_prompt_too_long(llm):
    assert "too long for every context" in llm("-m", "swarm", "word " * 4000, status=1).stderr
