"""The example swarm of the lab: worlock, spinoza and calisota, as inventory text.

Unequal on purpose, so that routing has something to find: spinoza is cheap and holds only the small model,
calisota holds the large one with a short context, worlock the large one with a long context and the highest
electricity bill.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODELS = {"tiny-small": {"source": "shipped:small"}, "tiny-large": {"source": "shipped:large"}}


@dataclass(frozen=True, slots=True)
class Character:
    """What one host of the example swarm is: its wishes, and its share of a CPU where the lab can bound
    that."""

    roles: tuple[str, ...]
    models: tuple[tuple[str, int], ...]  # (model, context in tokens)
    idle_watts: int
    load_watts: int
    cpu_share: float | None = None


CHARACTERS = {
    "worlock": Character(("orchestrate", "train", "inference"), (("tiny-large", 1024),), 90, 640),
    "spinoza": Character(("preprocess", "inference", "evaluate"), (("tiny-small", 512),), 12, 45, 0.5),
    "calisota": Character(("inference", "embed"), (("tiny-large", 256),), 40, 380),
}


def host_names(count: int) -> tuple[str, ...]:
    """Names for that many hosts: the three of the example, then numbered ones."""
    more = (f"host{number:03d}" for number in range(len(CHARACTERS) + 1, count + 1))
    return (*CHARACTERS, *more)[:count]


def character(name: str) -> Character:
    """A host's character; the numbered ones are like spinoza."""
    return CHARACTERS.get(name, CHARACTERS["spinoza"])


def inventory_text(hosts: Sequence[tuple[str, int, Path]], ssh_config: Path) -> str:
    """inventory.yaml for hosts given as (name, first llama.cpp port, data folder)."""
    lines = [
        "# The lab's swarm: SSH hosts on this machine. Written by `swarmctl lab up`; edit it as you like.",
        "version: 1",
        f"ssh_config: {_quoted(str(ssh_config))}",
        "energy: {price: 0.30, currency: EUR}  # per kWh",
        "models:",
        *(f"  {name}: {_flow(wish)}" for name, wish in MODELS.items()),
        "hosts:",
    ]
    for name, port, data_dir in hosts:
        lines.extend(_host_lines(name, port, data_dir))
    return "\n".join((*lines, ""))


def _host_lines(name: str, port: int, data_dir: Path) -> tuple[str, ...]:
    what = character(name)
    return (
        f"  {name}:",
        f"    ssh: {name}",
        f"    roles: [{', '.join(what.roles)}]",
        f"    llamacpp: {{port: {port}}}",
        "    models:",
        *(f"      - {{model: {model}, context: {context}}}" for model, context in what.models),
        f"    data_dir: {_quoted(str(data_dir))}",
        f"    energy: {{idle_watts: {what.idle_watts}, load_watts: {what.load_watts}}}",
        "    limits: {threads: 1, parallel: 1}",
    )


def _flow(wish: dict[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {_quoted(value)}" for key, value in wish.items()) + "}"


def _quoted(value: str) -> str:
    """A YAML scalar; JSON's strings are YAML's double-quoted ones."""
    return json.dumps(value)
