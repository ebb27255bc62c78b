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
NAME = "this-machine"


def this_machine(paths: Paths) -> Path:
    """Write the inventory of this machine, once, and say where it is."""
    path = paths.this_machine
    if not path.exists():
        write_whole(path, inventory_text(_data_dir(paths), free_ports(1, len(MODELS))[0]))
    return path


def must_build(paths: Paths) -> bool:
    """Whether llama.cpp has to be built before this machine can answer: neither the store nor the machine's
    own data folder has the build for its hardware."""
    from swarmctl.fleet.local import LocalRemote
    from swarmctl.fleet.store import Store
    from swarmctl.fleet.survey import survey
    from swarmctl.inventory import Host
    from swarmctl.runtimes.llamacpp_build import choose_build

    seen = survey(LocalRemote(NAME), Host(NAME, "local", data_dir=_data_dir(paths)))
    key = choose_build("auto", seen).key
    there = any((runtime.name, runtime.key) == ("llamacpp", key) for runtime in seen.runtimes)
    return not there and Store.of(paths).runtime(key) is None


def _data_dir(paths: Paths) -> str:
    return str(paths.data / NAME)


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
        f"  {NAME}:\n"
        "    ssh: local\n"
        f'    data_dir: "{data_dir}"\n'
        f"    llamacpp: {{port: {port}}}\n"
        f"    models:\n{placed}\n"
    )
