"""What the pinned converter can turn into a GGUF: asked before a model is trained, not after.

It refuses architectures that it has no class for, and BPE tokenizers whose pre-tokenizer it does not
recognise by a hash of how they cut one text (llama.cpp#9927). Sentencepiece tokenizers always convert.

The answers ship with swarmctl, so that nobody waits for 77 MB of source before a training:
`python -m swarmctl.fleet.convertible FOLDER >swarmctl/recipes/convertible.json` reads them out of the
converter's source there; a test compares them with it.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from swarmctl.errors import SwarmError
from swarmctl.runtimes.llamacpp_build import LLAMACPP

REGISTERED = re.compile(r"@ModelBase\.register\(([^)]*)\)")
NAME = re.compile(r"[\"']([^\"']+)[\"']")


@dataclass(frozen=True, slots=True)
class Convertible:
    """Names of architectures, the text that BPE tokenizers are recognised by, and the hashes that are
    known."""

    architectures: frozenset[str]
    probe: str
    hashes: frozenset[str]

    def problem(self, architecture: str, tokenizer_hash: str | None) -> str | None:
        """Why such a model could not be served, or None. The hash is of a BPE tokenizer's cut of `probe`."""
        if architecture not in self.architectures:
            return f"llama.cpp's converter knows no {architecture}"
        if tokenizer_hash is not None and tokenizer_hash not in self.hashes:
            return "llama.cpp's converter does not recognise its BPE tokenizer (llama.cpp#9927)"
        return None


@cache
def convertible() -> Convertible:
    """What the converter of LLAMACPP can take."""
    raw = table()
    return Convertible(frozenset(raw["architectures"]), raw["probe"], frozenset(raw["hashes"]))


def table() -> dict[str, Any]:
    """The file that ships: `llamacpp` is the version that it was read out of."""
    path = Path(str(resources.files("swarmctl"))) / "recipes" / "convertible.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_source(source: Path) -> dict[str, Any]:
    """The table, out of the converter in `source`. Raises SwarmError where it is not in a form we know."""
    folder = source / "conversion"
    try:
        texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]
        base = (folder / "base.py").read_text(encoding="utf-8")
    except OSError as exc:
        raise SwarmError(f"{folder} cannot be read: {exc.strerror}") from exc
    names = {name for text in texts for call in REGISTERED.findall(text) for name in NAME.findall(call)}
    function = next((node for node in ast.walk(ast.parse(base)) if isinstance(node, ast.FunctionDef)
                     and node.name == "get_vocab_base_pre"), None)
    probe = _probe(function) if function else None
    if not names or function is None or probe is None:
        raise SwarmError(f"{folder} is no converter that this swarmctl can read")
    return {"llamacpp": LLAMACPP, "probe": probe, "architectures": sorted(names),
            "hashes": sorted(_hashes(function))}


def _probe(function: ast.FunctionDef) -> str | None:
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "chktxt" and isinstance(node.value.value, str):
            return node.value.value
    return None


def _hashes(function: ast.FunctionDef) -> frozenset[str]:
    found = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)
             and isinstance(node.value, str) and re.fullmatch(r"[0-9a-f]{64}", node.value)}
    return frozenset(found)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(read_source(Path(sys.argv[1])), indent=1) + "\n")
