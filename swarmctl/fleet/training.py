"""What a training takes from this machine: the recipe, the model's weights, the dataset."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.recipes import read_recipe
from swarmctl.fleet.releases import WEIGHTS as GGUF
from swarmctl.fleet.releases import read as read_releases
from swarmctl.fleet.releases import standing
from swarmctl.fleet.ssh_config import resolve
from swarmctl.fleet.weights import base_weights, describe, shipped_folder
from swarmctl.ledger.snapshots import find as find_dataset
from swarmctl.runtimes.gguf_header import read_header
from swarmctl.training.shape import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.fleet.weights import Weights
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths
    from swarmctl.recipe import Recipe
    from swarmctl.training.shape import ModelShape


MEETING = 29_000  # below what Linux gives outgoing connections, near torch's own 29500


@dataclass(frozen=True, slots=True)
class Ordered:
    """What is asked for, with nothing of a host in it yet."""

    paths: Paths
    inventory: Inventory
    recipe: Recipe
    model: str
    weights: Weights
    shape: ModelShape
    dataset: Path


def order(paths: Paths, inventory_path: Path, recipe: str, *, dataset: str, model: str | None,
          given: Sequence[str]) -> Ordered:
    """Read recipe, model and dataset. Raises RecipeError, UsageError, SwarmError."""
    read = read_recipe(recipe, given)
    inventory = read_inventory(inventory_path)
    name = _model(read, inventory, model)
    folder = _own_folder(read) or base_weights(inventory, name, read_releases(paths), paths)
    weights = describe(folder)
    size = sum(size for file, _, size in weights.files if file.endswith(".safetensors"))
    try:
        shape = shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")), size)
    except (ValueError, KeyError, TypeError) as exc:
        raise SwarmError(f"{folder}/config.json describes no decoder: {exc}") from exc
    return Ordered(paths, inventory, read, name, weights, shape, _dataset(paths, read, dataset))


def _model(recipe: Recipe, inventory: Inventory, named: str | None) -> str:
    """The model's name in the inventory. Raises UsageError where none, or several, could be meant."""
    name = named or recipe.own.model
    if name is not None:
        if name not in inventory.models:
            raise UsageError(f"the inventory has no model {name}",
                             hint=f"it has {', '.join(inventory.models)}")
        return name
    able = [wish.name for wish in inventory.models.values()
            if wish.weights or wish.source.startswith("shipped:")]
    if not able:
        raise UsageError("no model of the inventory can be trained",
                         hint="give one its `weights`: the folder of safetensors that training starts from")
    if len(able) > 1:
        raise UsageError("which model is to be trained?", hint=f"--model NAME, of {', '.join(able)}")
    return able[0]


def _own_folder(recipe: Recipe) -> Path | None:
    """The folder that a recipe itself names as the base."""
    named = recipe.keys.get("model_name_or_path")
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise UsageError(f"model_name_or_path: there is no folder {named} here",
                         hint="swarmctl trains from a folder of safetensors here; download it first")
    return path


def _dataset(paths: Paths, recipe: Recipe, named: str) -> Path:
    """The dataset's folder: one of `swarmctl dataset`, or any folder with a train.parquet."""
    own = recipe.keys.get("dataset_name")
    if named == "latest" and own:
        named = str(own)
    folder = Path(named).expanduser()
    if (folder / "train.parquet").is_file():
        return folder.absolute()
    found = find_dataset(paths, f"latest:{recipe.trainer}" if named == "latest" else named)
    if found.card["kind"] != recipe.trainer:
        raise UsageError(f"{found.name} is a {found.card['kind']} dataset, and the recipe trains by "
                         f"{recipe.trainer}",
                         hint=f"`swarmctl dataset build --kind {recipe.trainer}` makes one for it")
    return found.folder


def served_gguf(wanted: Ordered) -> Path | None:
    """The GGUF that serves the model now, where this machine has it."""
    wish, paths = wanted.inventory.models[wanted.model], wanted.paths
    champion = standing(read_releases(paths), wanted.model).champion
    if champion is not None:
        path = paths.releases / wanted.model / champion.release / GGUF
    elif wish.source.startswith("shipped:"):
        path = shipped_folder(wish.source) / "model.gguf"
    elif wish.source.startswith("https://"):
        path = paths.store / "models" / f"{(wish.sha256 or '').lower()}.gguf"
    else:
        path = Path(wish.source)
    return path if path.is_file() else None


def served_template(wanted: Ordered) -> str | None:
    """The chat template inside the GGUF that serves the model now; None where it cannot be read here."""
    path = served_gguf(wanted)
    try:
        if path is not None:
            with path.open("rb") as stream:
                found = read_header(stream).fields.get("tokenizer.chat_template")
            return found if isinstance(found, str) else None
    except (OSError, ValueError, struct.error):
        return None
    return None


def meeting_address(host: Host, ssh_config: str | None) -> str:
    """Where the hosts of a team reach its first: the address by which this machine reaches it."""
    return "127.0.0.1" if host.local else resolve(host.ssh, ssh_config).hostname


def meeting_port(run: str) -> int:
    """The port on which a team meets, the same for everybody who knows the run's name."""
    return MEETING + int(sha256(run.encode()).hexdigest()[:8], 16) % 1000


def parquet(folder: Path) -> list[Path]:
    """The files of a dataset that a job reads."""
    return [path for name in ("train.parquet", "heldout.parquet") if (path := folder / name).exists()]
