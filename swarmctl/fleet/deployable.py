"""What a person may name to `deploy`: a run of `train`, a Hugging Face folder, or a GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.fleet.runs import find_run
from swarmctl.fleet.workshop import HERE

if TYPE_CHECKING:
    from swarmctl.fleet.runs import Run
    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights are: a run on its host, or a folder or a GGUF here."""

    run: Run | None = None
    weights: Path | None = None
    gguf: Path | None = None

    @property
    def dataset(self) -> str:
        """What it was trained on, where that is known."""
        return self.run.dataset if self.run else ""

    @property
    def where(self) -> str:
        """The machine that finishes it."""
        return self.run.host if self.run else HERE


def model_of(paths: Paths, source: str) -> str:
    """The model that a run trained. Raises UsageError for what is no run."""
    found = source_of(paths, source)
    if found.run is None:
        raise UsageError(f"whose release {source} is to be is not said", hint="name the model with --model")
    return found.run.model


def source_of(paths: Paths, name: str) -> Source:
    """What a name means: a folder, a GGUF, or a run of this machine's. Raises UsageError."""
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(weights=path.absolute())
    if path.is_file():
        return Source(gguf=path.absolute())
    if "/" in name or path.suffix == ".gguf":
        raise UsageError(f"there is no {name}", hint="name a run, a Hugging Face folder, or a GGUF file")
    return Source(run=find_run(paths, name))
