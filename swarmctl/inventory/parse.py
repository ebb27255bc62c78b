"""YAML text → Inventory, or every problem at once.

`reading` walks the nodes against the table in `shape` and leaves out what is wrong; `sense` looks at what
remains for contradictions between entries. Only a text without problems becomes dataclasses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.errors import InventoryError
from swarmctl.inventory.nodes import Unreadable, compose
from swarmctl.inventory.reading import Reader
from swarmctl.inventory.sense import contradictions, placed_runtime
from swarmctl.inventory.shape import INVENTORY
from swarmctl.inventory.wishes import (
    Energy,
    Host,
    ImproveWish,
    Inventory,
    Limits,
    LlamaCppWish,
    ModelWish,
    OllamaWish,
    Placement,
    RoutingWish,
    TrainWish,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.inventory.reading import Problem

MOST_SHOWN = 50
PLAIN = ("ssh_config", "airgap", "between_hosts", "value_of_time", "cost_of_bad_answer")
HOST_PLAIN = ("data_dir", "connect_timeout", "intermittent", "mac", "idle_minutes", "when_idle",
              "wake_via", "wake_on_demand")
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
    models = {name: _model(name, entry) for name, entry in raw.get("models", {}).items()}
    return Inventory(
        hosts=tuple(_host(name, entry, energy, models) for name, entry in raw["hosts"].items()),
        models=models,
        source=source,
        routing=RoutingWish(**raw.get("routing", {})),
        **{key: raw[key] for key in PLAIN if key in raw},
    )


def _model(name: str, raw: Mapping[str, Any]) -> ModelWish:
    plain = _lowered(raw, "sha256")
    if "improve" in raw:
        plain["improve"] = ImproveWish(**raw["improve"])
    return ModelWish(name=name, **plain)


def _host(name: str, raw: Mapping[str, Any], energy: Mapping[str, Any],
          models: Mapping[str, ModelWish]) -> Host:
    placements = tuple(
        Placement(**{**entry, "runtime": placed_runtime(raw, entry, models[entry["model"]].source)})
        for entry in raw.get("models", ()))
    used = {placement.runtime for placement in placements}
    llamacpp = ollama = None
    if "llamacpp" in raw or "llamacpp" in used:
        llamacpp = LlamaCppWish(**_lowered(raw.get("llamacpp", {}), "sha256"))
    if "ollama" in raw or "ollama" in used:
        ollama = OllamaWish(**_lowered(raw.get("ollama", {}), "sha256"))
    plain = _lowered({key: raw[key] for key in HOST_PLAIN if key in raw}, "mac")
    plain.update({key: tuple(raw[key]) for key in ("roles", "sleep_command") if key in raw})
    return Host(name=name, ssh=raw.get("ssh", name), llamacpp=llamacpp, ollama=ollama, models=placements,
                limits=Limits(**raw.get("limits", {})),
                train=TrainWish(**raw["train"]) if "train" in raw else None,
                energy=Energy(**energy | raw.get("energy", {})), **plain)


def _lowered(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {**raw, key: raw[key].lower()} if key in raw else dict(raw)
