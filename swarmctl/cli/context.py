"""What every command is handed: the folders, the environment, the clock. Read once at the edge, passed
down."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Context:
    """The edge of the process. `inventory` is where the inventory is, or would be; it need not exist."""

    paths: Paths
    environ: Mapping[str, str]
    inventory: Path
    clock: Callable[[], float] = time.time

    @classmethod
    def make(cls, inventory: str | None = None) -> Context:
        """Read the process's environment."""
        paths = Paths.from_environ(os.environ)
        return cls(paths, os.environ, _inventory(paths, inventory))

    @property
    def own_inventory(self) -> Path:
        """The inventory that a person writes, never the stand-in of this machine."""
        return self.paths.inventory if self.inventory == self.paths.this_machine else self.inventory


def _inventory(paths: Paths, given: str | None) -> Path:
    """The inventory that was named, else the person's own, else the stand-in of this machine where there is
    one."""
    if given:
        return Path(given).expanduser().absolute()
    if not paths.inventory.exists() and paths.this_machine.exists():
        return paths.this_machine
    return paths.inventory
