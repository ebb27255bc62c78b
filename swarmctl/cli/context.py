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
        chosen = Path(inventory).expanduser().absolute() if inventory else paths.inventory
        return cls(paths, os.environ, chosen)
