"""Reads the inventory from disk: bytes to text, and paths made absolute against the file's own folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import InventoryError
from swarmctl.inventory import parse_inventory
from swarmctl.inventory.nodes import LONGEST_TEXT

if TYPE_CHECKING:
    from swarmctl.inventory import Inventory, ModelWish


def read_inventory(path: Path) -> Inventory:
    """Read and parse an inventory. `ssh_config`, `airgap` and models' file sources come back as absolute
    paths.

    Raises InventoryError where the file is missing, unreadable, not UTF-8, or wrong.

    """
    inventory = parse_inventory(decode(_bytes(path), str(path)), str(path))
    folder = path.absolute().parent
    return replace(
        inventory,
        ssh_config=inventory.ssh_config and _absolute(inventory.ssh_config, folder),
        airgap=inventory.airgap and _absolute(inventory.airgap, folder),
        models={name: _located(model, folder) for name, model in inventory.models.items()},
    )


def decode(raw: bytes, source: str) -> str:
    """UTF-8 bytes as text. Raises InventoryError that names the line of the first bad byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise InventoryError(f"{source}:{line}: not valid UTF-8 (byte 0x{raw[exc.start]:02x})",
                             hint="save the file as UTF-8") from exc


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4 * LONGEST_TEXT + 1)
    except FileNotFoundError as exc:
        raise InventoryError(f"there is no inventory at {path}", hint="`swarmctl init` writes one") from exc
    except OSError as exc:
        raise InventoryError(f"{path} cannot be read: {exc.strerror}") from exc


def _located(model: ModelWish, folder: Path) -> ModelWish:
    if model.weights:
        model = replace(model, weights=_absolute(model.weights, folder))
    if model.source.startswith(("shipped:", "ollama:", "https://")):
        return model
    return replace(model, source=_absolute(model.source, folder))


def _absolute(value: str, folder: Path) -> str:
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError as exc:
        raise InventoryError(f"{value}: no such user's home", hint="write the path in full") from exc
