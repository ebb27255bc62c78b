"""YAML text → Inventory, or every problem at once.

`reading` walks the nodes against the table in `shape` and leaves out what is wrong; `sense` looks at what
remains for contradictions between entries. Only a text without problems becomes dataclasses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.errors import InventoryError
from swarmctl.inventory.nodes import Unreadable, compose
from swarmctl.inventory.reading import Reader
from swarmctl.inventory.sense import contradictions
from swarmctl.inventory.shape import INVENTORY
from swarmctl.inventory.wishes import Energy, Host, Inventory, Limits, LlamaCppWish, ModelWish, Placement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.inventory.reading import Problem

MOST_SHOWN = 50
PLAIN = ("ssh_config", "airgap", "value_of_time", "cost_of_bad_answer")
HINT = "docs/inventory.md explains every key; `swarmctl inventory schema` prints a schema for your editor"


def parse_inventory(text: str, source: str) -> Inventory:
    """Read an inventory. `source` is the file's name as errors show it.

    Raises InventoryError with one line a problem: file:line: field: what is wrong; what would be right.
    """
    try:
        root = compose(text)
    except Unreadable as exc:
        where = f"{source}:{exc.line}" if exc.line else source
        raise InventoryError(f"{where}: {exc.problem}", hint=HINT) from exc
    if root is None:
        raise InventoryError(f"{source}: empty", hint="`swarmctl init` writes an inventory to start from")
    reader = Reader()
    raw = reader.read(root, INVENTORY)
    if isinstance(raw, dict):
        reader.problems += contradictions(raw, reader.lines)
    if reader.problems:
        raise InventoryError(_listing(reader.problems, source), hint=HINT)
    return _inventory(raw, source)


def _listing(problems: Iterable[Problem], source: str) -> str:
    lines = [f"{source}:{problem.line}: {problem.field}{': ' if problem.field else ''}{problem.text}"
             for problem in sorted(set(problems))]
    more = len(lines) - MOST_SHOWN
    return "\n".join(lines[:MOST_SHOWN] + ([f"… and {more} more problems"] if more > 0 else []))


def _inventory(raw: dict[str, Any], source: str) -> Inventory:
    energy = raw.get("energy", {})
    return Inventory(
        hosts=tuple(_host(name, entry, energy) for name, entry in raw["hosts"].items()),
        models={name: _model(name, entry) for name, entry in raw.get("models", {}).items()},
        source=source,
        **{key: raw[key] for key in PLAIN if key in raw},
    )


def _model(name: str, raw: Mapping[str, Any]) -> ModelWish:
    hashed = {"sha256": raw["sha256"].lower()} if "sha256" in raw else {}
    return ModelWish(name=name, **{**raw, **hashed})


def _host(name: str, raw: Mapping[str, Any], energy: Mapping[str, Any]) -> Host:
    placements = tuple(Placement(**entry) for entry in raw.get("models", ()))
    llamacpp = LlamaCppWish(**raw.get("llamacpp", {})) if "llamacpp" in raw or placements else None
    plain = {key: raw[key] for key in ("data_dir", "connect_timeout") if key in raw}
    if "roles" in raw:
        plain["roles"] = tuple(raw["roles"])
    return Host(name=name, ssh=raw.get("ssh", name), llamacpp=llamacpp, models=placements,
                limits=Limits(**raw.get("limits", {})),
                energy=Energy(**energy | raw.get("energy", {})), **plain)
