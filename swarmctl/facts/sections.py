"""The frame of the probe's answer: sections between lines that nothing else on the host can print."""

from __future__ import annotations

import re

Sections = dict[str, list[str]]


def split_sections(text: str) -> Sections | None:
    """Lines by section name; None where the probe never began. Lines after the end, and before the start, are
    noise."""
    start = re.search(r"^swarmctl-probe 1 ([0-9-]{1,64})\r?$", text, re.MULTILINE)
    if start is None:
        return None
    mark = f"@@{start[1]} "
    sections: Sections = {}
    lines: list[str] = []
    for line in text[start.end():].split("\n"):
        line = line.rstrip("\r")
        if line.startswith(mark):
            lines = sections.setdefault(line[len(mark):].strip(), [])
            if "end" in sections:
                break
        elif line:
            lines.append(line)
    return sections


def pairs(sections: Sections, name: str) -> dict[str, str]:
    """A section of `key value` lines; the first of each key counts."""
    found: dict[str, str] = {}
    for line in sections.get(name, ()):
        key, _, value = line.partition(" ")
        found.setdefault(key.rstrip(":"), value.strip())
    return found


def number(text: str) -> int | None:
    """A whole number of up to 20 digits, else None."""
    text = text.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) else None
