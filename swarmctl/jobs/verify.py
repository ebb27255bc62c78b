"""What is about to be served, looked at before anybody is: the chat template, the tokens, the end of an
answer.

The tokenizer that training used renders a set of conversations; a llama-server on a free loopback port,
which serves the very file that hosts would get, renders and tokenises them too. Then every smoke prompt is
answered greedily. Nothing is judged here: what differs is reported, and who deploys decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.folder import write_json
from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

Conversation = list[dict[str, str]]

START_LIMIT = 600.0
ANSWER_LIMIT = 600.0
#: tokens within which a smoke prompt's answer must end by itself
BOUND = 256
#: what trips templates: systems, turns before, spaces around, quotes, another script, code
CONVERSATIONS: tuple[Conversation, ...] = (
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "You are terse."},
     {"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "What is the capital of Italy?"}, {"role": "assistant", "content": "Rome"},
     {"role": "user", "content": "And of Spain?"}],
    [{"role": "user", "content": "  spaces around, and \"quotes\" & <tags>\n"}],
    [{"role": "user", "content": "Grüße aus Köln, 你好 🙂"}, {"role": "assistant", "content": "Danke!"},
     {"role": "user", "content": "def f(x):\n    return x  # {{ braces }}"}],
)


class DoesNotServe(JobError):
    """llama-server cannot serve this file."""


def render(weights: Path, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Each conversation as training sees it, up to where the answer begins: text and token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(weights))
    found = []
    for messages in conversations:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append({"messages": messages, "text": text, "tokens": list(tokens)})
    return found


def ending(weights: Path) -> dict[str, Any]:
    """The token that ends an answer, as the tokenizer names it; nulls where it names none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(weights))
    return {"token": tokenizer.eos_token, "id": tokenizer.eos_token_id, "bos": tokenizer.bos_token or ""}


def verify(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/model.gguf, served, against the tokenizer in `spec.model` (empty: a GGUF alone).

    `more["verify"]` has the folder of llama-server as `tools`, and may have `prompts` (conversations to
    answer), the `bound` of their answers in tokens, `trained`, a file of what `render` gave when the model
    was trained, and `served`, the base that out/adapter.gguf goes over. What the tokenizer renders is left in
    out/rendered.json.
    """
    more, weights = spec.more["verify"], folder.path / spec.model
    prompts, trained = more.get("prompts") or list(CONVERSATIONS[:3]), folder.path / more.get("trained", "-")
    seen = render(weights, [*CONVERSATIONS, *prompts]) if spec.model else []
    found: dict[str, Any] = {"ending": ending(weights)} if spec.model else {}
    if spec.model and trained.is_file():
        kept = json.loads(trained.read_text(encoding="utf-8"))
        found["changed"] = _changed(kept, render(weights, [one["messages"] for one in kept]))
    folder.say("verify", step=1, steps=2)
    tools, file = Path(more["tools"]), folder.path / more.get("served", "out/model.gguf")
    lora = folder.path / "out" / "adapter.gguf" if "served" in more else None
    try:
        with serving(tools / "llama-server", file, folder.path / "verify.log", lora) as base:
            bos = found.get("ending", {}).get("bos") or ""
            found["differ"] = [each for one in seen if (each := _differs(base, one, bos))]
            found["smoke"] = [smoke(base, prompt, int(more.get("bound") or BOUND)) for prompt in prompts]
            found["served_ending"] = _get(base, "/props").get("eos_token", "")
    except DoesNotServe as exc:
        found["broken"] = str(exc)
    write_json(folder.path / "out" / "rendered.json", {"conversations": seen})
    return {**found, "conversations": len(seen)}


@contextlib.contextmanager
def serving(server: Path, model: Path, log: Path, lora: Path | None = None) -> Iterator[str]:
    """A llama-server for that file, with a LoRA adapter over it where there is one, on a free loopback port,
    for as long as the block runs; its address."""
    port = _free_port()
    argv = (str(server), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--jinja",
            "--offline", "--no-ui", "--threads", str(max(1, min(4, (os.cpu_count() or 2) // 2))),
            "--parallel", "1", "--ctx-size", "2048", "--n-gpu-layers", "0", "--cache-ram", "0",
            *(("--lora", str(lora)) if lora else ()))
    with (log.open("wb") as out,
          subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process):
        try:
            base = f"http://127.0.0.1:{port}"
            _wait(process, base, log)
            yield base
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def smoke(base: str, messages: Conversation, bound: int) -> dict[str, Any]:
    """One prompt answered greedily: what it said, why it ended, and after how many tokens."""
    said = post(base, "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": bound})
    choice = said["choices"][0]
    return {"messages": messages, "answer": choice["message"].get("content") or "",
            "finish": choice["finish_reason"], "tokens": said.get("usage", {}).get("completion_tokens", 0)}


def post(base: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A server's answer. Raises DoesNotServe where it refuses."""
    asked = urllib.request.Request(f"{base}{path}", json.dumps(body).encode(),  # noqa: S310  loopback
                                   {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_LIMIT) as reply:  # noqa: S310  loopback
            found: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as exc:
        said = exc.read(2000).decode(errors="replace")
        raise DoesNotServe(f"llama-server refuses {path}: {said}") from exc
    return found



def _differs(base: str, one: Mapping[str, Any], bos: str) -> dict[str, Any] | None:
    """How the server reads a conversation otherwise than training did; None where it does not.

    llama.cpp takes a leading BOS off the text and puts it back when it tokenises.
    """
    text = post(base, "/apply-template", {"messages": one["messages"]})["prompt"]
    if text.removeprefix(bos) != one["text"].removeprefix(bos):
        return {"messages": one["messages"], "trained": one["text"], "served": text}
    begins = bool(bos) and one["text"].startswith(bos)
    tokens = post(base, "/tokenize", {"content": text.removeprefix(bos) if begins else text,
                                       "add_special": begins, "parse_special": True})["tokens"]
    if tokens != one["tokens"]:
        return {"messages": one["messages"], "trained": one["tokens"], "served": tokens}
    return None


def _changed(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"messages": old["messages"], "trained": old["text"], "served": new["text"]}
            for old, new in zip(before, now, strict=True) if old["text"] != new["text"]]


def _wait(process: subprocess.Popen[bytes], base: str, log: Path) -> None:
    until = time.monotonic() + START_LIMIT
    while True:
        try:
            if _get(base, "/health").get("status") == "ok":
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = next((line for line in reversed(lines) if " E " in line or "error" in line), "no word why")
            raise DoesNotServe(f"llama-server does not come up with this file: {why[-400:]}")
        time.sleep(0.1)


def _get(base: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{base}{path}", timeout=10) as reply:  # noqa: S310  loopback
        found: dict[str, Any] = json.load(reply)
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
