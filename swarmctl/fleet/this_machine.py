"""The swarm of somebody who has no inventory yet: this machine, with the tiny models that ship with swarmctl.

It is an inventory like any other, kept in state, so that `status`, `logs` and `down` work on it too; it is
used only while there is no inventory of the person's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole
from swarmctl.fleet.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths

MODELS = ("small", "large")


def this_machine(paths: Paths) -> Path:
    """Write the inventory of this machine, once, and say where it is."""
    path = paths.this_machine
    if not path.exists():
        write_whole(path, inventory_text(str(paths.data / "this-machine"), free_ports(1, len(MODELS))[0]))
    return path


def inventory_text(data_dir: str, port: int) -> str:
    """The inventory's YAML. Each model needs a port of its own, from `port` on."""
    models = "\n".join(f'  tiny-{name}: {{source: "shipped:{name}", context: 1024, parallel: 1}}'
                       for name in MODELS)
    placed = "\n".join(f"      - tiny-{name}" for name in MODELS)
    return (
        "# Written by swarmctl because there is no inventory yet; `swarmctl init` makes a real one.\n"
        "version: 1\n"
        f"models:\n{models}\n"
        "hosts:\n"
        "  this-machine:\n"
        "    ssh: local\n"
        f'    data_dir: "{data_dir}"\n'
        f"    llamacpp: {{port: {port}}}\n"
        f"    models:\n{placed}\n"
    )
