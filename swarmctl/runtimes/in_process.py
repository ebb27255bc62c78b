"""sentence-transformers in this very process, where no server makes vectors.

The one module that knows the package; it and torch are imported when a model is loaded. A text that is too
long is refused as a server would: the package itself would cut it and say nothing.
"""

from __future__ import annotations

import shlex
import sys
from array import array
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import ContextExceeded, RequestRejected, SwarmError
from swarmctl.runtimes.embedding import Embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: Into the very environment that runs this: another `pip` of PATH would install where nothing looks.
INSTALL = f"{shlex.quote(sys.executable)} -m pip install 'swarmctl[embed]'"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def installed() -> bool:
    """Whether sentence-transformers is there. Imports nothing."""
    return find_spec("sentence_transformers") is not None


class InProcess:
    """A sentence-transformers model: a folder, or a name of the Hugging Face hub (from its cache, where
    HF_HUB_OFFLINE is set). Vectors have length one."""

    where = "this process"
    at_once = 1

    def __init__(self, name: str = DEFAULT_MODEL) -> None:
        """Load it. Raises SwarmError where the package or the model is not to be had."""
        if not installed():
            raise SwarmError("sentence-transformers is not installed, so nothing can be embedded in-process",
                             hint=f"{INSTALL}, or place a model with `embedding: true` in the inventory")
        self.name = name
        self.digest = _weights_digest(name)
        self._model = _loaded(name)

    @property
    def context(self) -> int:
        """The tokens that one text may have."""
        return int(self._model.max_seq_length or 1 << 30)

    def check(self) -> None:
        """It was loaded, so it embeds."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts. Raises RequestRejected where one is empty or too long."""
        counts = [len(ids) for ids in self._model.tokenizer(list(texts), verbose=False)["input_ids"]]
        if (longest := max(counts, default=0)) > self.context:
            raise ContextExceeded(f"input ({longest} tokens) is larger than the max context size "
                                  f"({self.context} tokens)")
        try:
            found = self._model.encode(list(texts), batch_size=len(texts), show_progress_bar=False,
                                       normalize_embeddings=True, convert_to_numpy=True)
        except (RuntimeError, ValueError) as exc:
            raise RequestRejected(f"sentence-transformers: {exc}") from exc
        return Embedded(tuple(array("f", row.astype("float32").tobytes()) for row in found), sum(counts))


def _loaded(name: str) -> Any:  # noqa: ANN401  a SentenceTransformer
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    quiet: Any = logging
    quiet.disable_progress_bar()
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError, RuntimeError) as exc:
        why = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise SwarmError(f"sentence-transformers cannot load {name}: {why}",
                         hint="name a model's folder with --model, or one that the hub has") from exc


def _weights_digest(name: str) -> str:
    """The sha256 of the weights' file, in hex; empty where they are not one file that is here already."""
    found = next((path for file in WEIGHTS if (path := _weights(name, file))), None)
    if found is None:
        return ""
    with found.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _weights(name: str, file: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
