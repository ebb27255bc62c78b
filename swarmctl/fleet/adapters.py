"""A run's adapter as a release: the GGUF on this machine that it goes over, and whether llama.cpp can serve
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.fleet.finishing import Base, fetch_adapter
from swarmctl.fleet.releases import WEIGHTS, read, standing
from swarmctl.fleet.store import describe_file, resolve_model
from swarmctl.jobs.adapter import problems

if TYPE_CHECKING:
    from swarmctl.fleet.runs import Run
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths


def base_of(paths: Paths, inventory: Inventory, inventory_path: Path, run: Run | None, source: str) -> Base:
    """The weights that a run trained over, as hosts serve them: the release they were, else the inventory's
    own. Raises UsageError where there are none such."""
    if run is None:
        raise UsageError(f"{source} has no adapter: only a run of `train` has one",
                         hint="deploy it without --as-adapter")
    trained = Path(run.base)
    if trained.name == "merged" and trained.parent.parent == paths.releases / run.model:
        return _release(paths, run, trained.parent.name)
    wish = inventory.models[run.model]
    if wish.pulled:
        raise UsageError(f"Ollama pulls {run.model} by itself, so its weights are not here to put an adapter "
                         "over", hint="deploy the run merged, without --as-adapter")
    file = resolve_model(wish, inventory_path.absolute().parent, paths, airgap=inventory.airgap)
    return Base(Path(file.path), file.sha256, file.quantisation)


def unservable(paths: Paths, inventory: Inventory, run: Run) -> tuple[str, ...]:
    """Why llama.cpp cannot serve a run's adapter; empty where it can. Raises UsageError where it has none,
    and RemoteErrors."""
    return problems(fetch_adapter(paths, inventory, run))


def _release(paths: Paths, run: Run, name: str) -> Base:
    found = standing(read(paths), run.model).known(name)
    if found is not None and found.adapter:
        raise UsageError(f"run {run.id} trained over {name}, which is an adapter, and a server takes one",
                         hint="deploy it merged, without --as-adapter")
    path = paths.releases / run.model / name / WEIGHTS
    if found is None or not path.is_file():
        raise UsageError(f"the weights of {name}, which run {run.id} trained over, are no longer here",
                         hint="deploy it merged, without --as-adapter")
    file = describe_file(name, path, paths.store / "described")
    return Base(path, file.sha256, file.quantisation, name)
