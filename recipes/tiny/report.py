"""The tables of docs/tiny-models.md, written from the shipped cards: `python -m recipes.tiny.report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parents[2] / "swarmctl" / "shipped"
PAGE = Path(__file__).parents[2] / "docs" / "tiny-models.md"
BEGIN, END = "<!-- from the cards: begin -->\n", "<!-- from the cards: end -->\n"
NAMES = ("small", "large")
COLUMNS = ("greedy_right", "greedy_terse", "sampled_right", "sampled_terse")


def page(old: str) -> str:
    """The page with its tables written anew. ValueError where the markers are missing."""
    before, _, rest = old.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"the page lacks its marker {END.strip()}")
    return before + BEGIN + "\n" + tables() + "\n" + END + after


def tables() -> str:
    """What each model is, then how good it is by kind and by category, in per cent."""
    cards = [json.loads((SHIPPED / name / "card.json").read_text(encoding="utf-8")) for name in NAMES]
    return "\n".join([*_facts(cards), "", *_shares(cards)]) + "\n"


def _facts(cards: list[dict[str, Any]]) -> list[str]:
    rows = ["| | parameters | GGUF (F16) | safetensors (F32) | steps | seed | training on 1 thread |",
            "|---|---|---|---|---|---|---|"]
    for card in cards:
        folder = SHIPPED / card["name"]
        cells = (card["name"], f"{card['parameters']:,}", _megabytes(folder / "model.gguf"),
                 _megabytes(folder / "model.safetensors"), card["steps"], card["seed"],
                 f"{card['training_seconds']} s")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


def _shares(cards: list[dict[str, Any]]) -> list[str]:
    head = " | ".join(f"{name}: greedy right | terse | T=1 right | terse" for name in NAMES)
    rows = [f"| | {head} |", "|---|---|---|---|---|---|---|---|---|"]
    for group in ("kinds", "categories"):
        for name in cards[0][group]:
            shares = [f"{100 * card[group][name][column]:.0f}" for card in cards for column in COLUMNS]
            label = f"**{name}**" if group == "categories" else name
            rows.append(f"| {label} | {' | '.join(shares)} |")
    return rows


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
