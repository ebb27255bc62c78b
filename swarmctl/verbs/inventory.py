"""`swarmctl inventory`: read the inventory the way `up` does, and say what it wishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import InventoryError
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.inventory import placement_ports
from swarmctl.inventory.publish import json_schema
from swarmctl.shipped import PREFIX, shipped_models

if TYPE_CHECKING:
    from swarmctl.inventory import Host, Inventory

#: sources that are no file of this machine
ELSEWHERE = (PREFIX, "ollama:", "https://")


def check_inventory(path: Path) -> Inventory:
    """Read and validate an inventory. Raises InventoryError with every problem in it."""
    inventory = read_inventory(path)
    there = shipped_models()
    if unknown := [model for model in inventory.models.values()
                   if model.source.startswith(PREFIX) and model.source.removeprefix(PREFIX) not in there]:
        raise InventoryError("\n".join(
            f"{inventory.source}: models.{model.name}.source: swarmctl ships no "
            f"{model.source.removeprefix(PREFIX)}" for model in unknown),
            hint=f"it ships: {', '.join(there) or 'none'}")
    return inventory


def summary(inventory: Inventory) -> dict[str, Any]:
    """What the inventory wishes, defaults filled in, as JSON."""
    return {
        "source": inventory.source,
        "models": {name: {"source": model.source, "context": model.context, "parallel": model.parallel}
                   for name, model in inventory.models.items()},
        "hosts": [_host(host) for host in inventory.hosts],
        "unused_models": unused_models(inventory),
        "missing_files": missing_files(inventory),
    }


def unused_models(inventory: Inventory) -> list[str]:
    """Models that no host wants: allowed, and worth a word."""
    placed = {placement.model for host in inventory.hosts for placement in host.models}
    return [name for name in inventory.models if name not in placed]


def missing_files(inventory: Inventory) -> dict[str, str]:
    """Models whose GGUF file is not on this machine, and where it was looked for: `up` would refuse them."""
    return {name: model.source for name, model in inventory.models.items()
            if not model.source.startswith(ELSEWHERE) and not Path(model.source).is_file()}


def schema_text() -> str:
    """The JSON Schema, as swarmctl/inventory.schema.json holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _host(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "ssh": host.ssh,
        "roles": list(host.roles),
        "data_dir": host.data_dir,
        "models": [{"model": placement.model, "port": port}
                   for placement, port in zip(host.models, placement_ports(host), strict=True)],
    }
