"""The swarm of somebody who has no inventory yet: this machine, with the tiny models that ship with swarmctl.

It is an inventory like any other, kept in state, so that `status`, `logs` and `down` work on it too; it is
used only while there is no inventory of the person's own.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths

MODELS = ("small", "large")


def this_machine(paths: Paths) -> Path:
    """Write the inventory of this machine, once, and say where it is."""
    path = paths.this_machine
    if not path.exists():
        write_whole(path, inventory_text(str(paths.data / "this-machine"), _free_port()))
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


def _free_port() -> int:
    """A port such that it and its successors for the other models are free now."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        if port + len(MODELS) < 65536 and all(_is_free(port + more) for more in range(len(MODELS))):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
