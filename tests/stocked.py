"""A cache folder that holds this machine's build of llama.cpp, wherever it came from, and free ports."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from swarmctl.fleet import ports
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.runtimes.llamacpp_build import choose_build

if TYPE_CHECKING:
    from pathlib import Path


def stock(cache: Path, binaries: Path) -> Store:
    """Put the build into `cache`/store."""
    store = Store(cache / "store")
    seen = survey(LocalRemote("here"), Host("here", "local", data_dir=str(cache / "none")))
    folder = store.root / "runtimes" / choose_build("auto", seen).key
    shutil.copytree(binaries, folder / "bin", symlinks=True)
    (folder / ".complete").touch()
    store.runtime_tar(folder.name)
    return store


def free_ports(count: int) -> list[int]:
    """Each with room for the ports of seven more models after it."""
    return list(ports.free_ports(count, 8))
