"""Words of people and models inside a Markdown table."""

from __future__ import annotations


def cell(text: str, longest: int = 160) -> str:
    """A text on one line that ends no cell, shortened to `longest` characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("|", "\\|")
    return plain if len(plain) <= longest else f"{plain[:longest - 3]}…"
