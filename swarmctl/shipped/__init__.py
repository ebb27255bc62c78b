"""The two tiny models that come with swarmctl, made by recipes/tiny and described in docs/tiny-models.md.

Each is a folder: model.gguf for servers; config.json, model.safetensors and the tokenizer for training;
card.json with its measured quality. The inventory calls them `shipped:small` and `shipped:large`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "shipped:"


def shipped_models() -> Mapping[str, Path]:
    """Every shipped model's folder, by name."""
    return {card.parent.name: card.parent for card in sorted(Path(__file__).parent.glob("*/card.json"))}


def shipped_model(name: str) -> Path:
    """The folder of one shipped model, named `small` or `shipped:small`. KeyError where there is none."""
    return shipped_models()[name.removeprefix(PREFIX)]


def shipped_quality(name: str) -> dict[str, float]:
    """One shipped model's measured share of right answers by category: greedy, on held-out questions."""
    card = json.loads((shipped_model(name) / "card.json").read_text(encoding="utf-8"))
    return {category: float(shares["greedy_right"]) for category, shares in card["categories"].items()}
