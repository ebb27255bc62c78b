"""The inventory: what a person wishes of their machines. Hardware is discovered, never typed in.

`parse_inventory` turns YAML text into frozen dataclasses or raises `InventoryError`, which lists every
problem with file, line, field and what would be right. `shape` is the one table of keys that the parser, the
JSON Schema and the reference page are made from. Pure: `fleet.inventory_file` reads the file.
"""

from swarmctl.inventory.parse import parse_inventory
from swarmctl.inventory.wishes import (
    BACKENDS,
    DEFAULT_DATA_DIR,
    DEFAULT_PORT,
    OLLAMA_PORT,
    ROLES,
    RUNTIMES,
    AdapterWish,
    Energy,
    Host,
    ImproveWish,
    Inventory,
    Limits,
    LlamaCppWish,
    ModelWish,
    OllamaWish,
    Placement,
    TrainWish,
    placed_on,
    placement_ports,
    runtime_of,
)

__all__ = [
    "BACKENDS",
    "DEFAULT_DATA_DIR",
    "DEFAULT_PORT",
    "OLLAMA_PORT",
    "ROLES",
    "RUNTIMES",
    "AdapterWish",
    "Energy",
    "Host",
    "ImproveWish",
    "Inventory",
    "Limits",
    "LlamaCppWish",
    "ModelWish",
    "OllamaWish",
    "Placement",
    "TrainWish",
    "parse_inventory",
    "placed_on",
    "placement_ports",
    "runtime_of",
]
