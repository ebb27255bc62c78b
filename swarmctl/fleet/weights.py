"""The Hugging Face folder that a model is trained from: which it is, and putting it on a host, once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.fleet.install import transfer_time
from swarmctl.fleet.releases import standing
from swarmctl.fleet.transfer import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.releases import Release
    from swarmctl.fleet.shell import Remote
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths

#: what of such a folder is needed: safetensors weights, configuration, tokenizer. Never pickles, never a GGUF
NEEDED = re.compile(r".*\.(safetensors|json|jinja)|(tokenizer|spiece)\.model|(merges|vocab)\.txt")
NOT_NEEDED = ("card.json",)


@dataclass(frozen=True, slots=True)
class Weights:
    """A folder of weights on this machine. `files` are its needed ones by name; `digest` is of names and
    bytes."""

    path: Path
    files: tuple[tuple[str, str, int], ...]
    digest: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self.files)


def base_weights(inventory: Inventory, model: str, records: Sequence[Release], paths: Paths) -> Path:
    """The folder that a model's next round trains from: its champion's, else `weights`, else the shipped one.

    Raises SwarmError where there is none.
    """
    champion = standing(records, model).champion
    if champion is not None:
        merged = paths.releases / model / champion.release / "merged"
        if merged.is_dir():
            return merged
        raise SwarmError(f"{merged} is gone, from which {model} would be trained on",
                         hint="`swarmctl rollback` makes an earlier release the champion")
    wish = inventory.models[model]
    if wish.weights:
        return Path(wish.weights)
    if wish.source.startswith("shipped:"):
        return shipped_folder(wish.source)
    raise SwarmError(f"nothing says what {model} is trained from",
                     hint="name the Hugging Face folder of its weights in the inventory: "
                          f"models.{model}.weights")


def shipped_folder(source: str) -> Path:
    """The folder of a `shipped:NAME` source."""
    return Path(str(resources.files("swarmctl.shipped"))) / source.removeprefix("shipped:")


def describe(path: Path) -> Weights:
    """Read a folder of weights. Raises SwarmError where it cannot be trained from."""
    try:
        names = sorted(one.name for one in path.iterdir() if one.is_file() and NEEDED.fullmatch(one.name)
                       and one.name not in NOT_NEEDED)
        files = tuple((name, sha256_of(path / name), (path / name).stat().st_size) for name in names)
    except OSError as exc:
        raise SwarmError(f"{path} cannot be read: {exc.strerror}") from exc
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise SwarmError(f"{path} is no folder to train from: it needs config.json and safetensors weights",
                         hint="a GGUF cannot be trained; fetch the model's original weights")
    digest = sha256("".join(f"{name} {digest}\n" for name, digest, _ in files).encode()).hexdigest()
    return Weights(path, files, digest)


def put_weights(remote: Remote, weights: Weights, data_dir: str, tell: Teller) -> str:
    """Put the folder on a host, where it is not there yet; its path there. Resumes what was cut."""
    there = f"{data_dir}/weights/{weights.digest[:12]}"
    done = 0
    for name, digest, size in weights.files:
        def progress(count: int, before: int = done) -> None:
            tell(f"{(before + count) / 1e6:,.1f} of {weights.size / 1e6:,.1f} MB",
                 (before + count) / max(weights.size, 1))

        remote.put(weights.path / name, f"{there}/{name}", sha256=digest, timeout=transfer_time(size),
                   progress=progress)
        done += size
    return there
