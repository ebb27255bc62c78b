"""Which client was tried with what. Every test of a real client says it with `conforms`; docs/apis.md shows
the table that comes of it, and a test compares the two. Run this file to write the table anew.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "apis.md"
BEGIN, END = "<!-- from the tests: begin -->", "<!-- from the tests: end -->"
MODULES = ("test_clients_openai", "test_clients_responses", "test_clients_anthropic", "test_clients_ollama",
           "test_clients_llm", "test_clients_open_webui", "test_open_webui")
CLIENTS = ("openai: chat", "openai: responses", "anthropic", "ollama", "ollama (CLI)", "llm",
           "Open WebUI: Ollama", "Open WebUI: OpenAI")
#: the package of requirements/dev.txt that a client is, by how its column begins
PACKAGES = ("openai", "anthropic", "ollama", "llm")
#: what is no package of ours, and the release of it that its tests were last run with
RUN = {"Open WebUI": "0.12.4"}
ROWS = ("models are listed", "chat", "chat, streamed", "a begun answer is gone on from",
        "tools, a round trip", "structured output", "log-probabilities", "completions", "vectors",
        "the conversation goes on by its id", "tokens are counted",
        "an image, where no model can see", "unknown model", "wrong key", "wrong body",
        "prompt too long", "what is not offered says so")

Test = TypeVar("Test", bound=Callable[..., None])
TRIED: dict[tuple[str, str], str] = {}


def conforms(client: str, row: str) -> Callable[[Test], Test]:
    """Mark a test as the proof of a cell."""
    assert client in CLIENTS, client
    assert row in ROWS, row

    def keep(test: Test) -> Test:
        TRIED[client, row] = test.__name__
        return test

    return keep


def table() -> str:
    """The table, from the tests themselves. Versions are those that the lock or RUN names."""
    for module in MODULES:
        importlib.import_module(module)
    lines = [f"| | {' | '.join(map(_headed, CLIENTS))} |", f"|---|{':-:|' * len(CLIENTS)}"]
    for row in ROWS:
        cells = ["✓" if (client, row) in TRIED else "" for client in CLIENTS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _headed(client: str) -> str:
    for name, version in RUN.items():
        if client.startswith(name):
            return client.replace(name, f"{name} {version}", 1)
    name = re.split("[: ]", client)[0]
    if name not in PACKAGES or "CLI" in client:
        return client
    locked = (ROOT / "requirements" / "dev.txt").read_text()
    version = re.search(rf"^{name}==(\S+)", locked, re.MULTILINE)
    assert version, name
    return client.replace(name, f"{name} {version[1]}", 1)


def written(docs: str) -> str:
    """The page with the table put in its place."""
    before, _, rest = docs.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from conformance import written as fresh  # the one that the tests fill

    DOCS.write_text(fresh(DOCS.read_text()))
