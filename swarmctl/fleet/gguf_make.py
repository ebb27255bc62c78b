"""A Hugging Face folder becomes a GGUF on this machine: converted, quantised, kept in the store by content.

The work is jobs.gguf and jobs.quantise, as training runs them on hosts; here are what they need (llama.cpp's
converter out of the pinned source, a Python that has torch, the built llama-quantize), the room, and words
for what fails.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import DiskFull, SwarmError, UsageError
from swarmctl.fleet.converter import converter
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.store import hash_file, writing
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.jobs.gguf import convert as run_converter
from swarmctl.jobs.quantise import quantised as run_quantise
from swarmctl.jobs.spec import JobError
from swarmctl.runtimes.hf_folder import TEMPLATE, same_model
from swarmctl.runtimes.llamacpp_build import choose_build

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.fleet.store import Store
    from swarmctl.runtimes.hf_folder import HfFolder

OUTTYPES = ("f16", "bf16", "f32", "q8_0")
NEEDED = ("torch", "transformers", "sentencepiece", "safetensors", "numpy")
PACKAGES = ("torch", "transformers", "sentencepiece", "safetensors", "protobuf")
#: bytes a weight takes, against two in the folder
WIDTH = {"f16": 1.0, "bf16": 1.0, "f32": 2.0, "q8_0": 0.6}
SPARE = 64 << 20



def make_gguf(folder: HfFolder, name: str, store: Store, *, outtype: str = "f16", quantise: str | None = None,
              tell: Callable[[str, float | None], None] = lambda _text, _done: None) -> Path:
    """The GGUF of a folder, made once: the same folder and type give the file that is kept. Raises SwarmError
    where it cannot be converted, DiskFull with the numbers before anything is written."""
    if outtype not in OUTTYPES:
        raise UsageError(f"the converter writes no {outtype}", hint=f"it writes {', '.join(OUTTYPES)}; "
                         "--quantize makes the rest of them")
    kind = f"{outtype}-{quantise}" if quantise else outtype
    kept = store.root / "converted" / f"{folder_hash(folder, store.root)}-{kind.lower()}.gguf"
    if kept.exists():
        return kept
    require_python()
    tools = _tools(store) if quantise else None
    _require_room(kept.parent, round(folder.size * WIDTH[outtype]) * (2 if quantise else 1), name)
    source = converter(store, lambda text: tell(text, None))
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".part-") as scratch:
        made = convert(folder, Path(scratch) / "model.gguf", source, name=name, outtype=outtype, tell=tell)
        if quantise and tools:
            tell(f"quantising to {quantise}", None)
            made = quantised(made, Path(scratch) / "small.gguf", quantise, tools)
        made.replace(kept)
    return kept


def convert(folder: HfFolder, out: Path, source: Path, *, name: str, outtype: str,
            tell: Callable[[str, float | None], None], python: str = sys.executable) -> Path:
    """Write the GGUF of a folder with llama.cpp's converter. Raises SwarmError in the converter's words."""
    tell(f"converting to {outtype}", 0.0)
    try:
        return run_converter(folder.path, out, source, name=name, kind=outtype, python=python,
                             tell=lambda done: tell(f"converting to {outtype}", done))
    except JobError as exc:
        raise SwarmError(f"{folder.path}: {exc}", hint="another release of llama.cpp may know this model: "
                         "push a GGUF that was made with it") from exc


def quantised(gguf: Path, out: Path, kind: str, tools: Path) -> Path:
    """Write a GGUF in fewer bits. Raises SwarmError in llama-quantize's words."""
    try:
        run_quantise(gguf, out, kind, tools)
    except JobError as exc:
        raise SwarmError(str(exc), hint="`llama-quantize --help` lists the types there are, such as Q4_K_M, "
                         "Q6_K and Q8_0") from exc
    return out


def require_python() -> None:
    """Raise SwarmError, with the command that helps, where this interpreter cannot convert."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SwarmError(f"converting a safetensors folder needs {', '.join(missing)} beside swarmctl",
                         hint=f"{sys.executable} -m pip install {' '.join(PACKAGES)}   (or "
                              f"`uv pip install --python {sys.executable} {' '.join(PACKAGES)}`)")


def folder_hash(folder: HfFolder, memory: Path) -> str:
    """One sha256 for a folder's model: over the names and hashes of its files as they are."""
    beside = [file for name in (TEMPLATE,) if (file := folder.path / name).is_file()]
    return same_model({file.name: file_hash(file, memory)
                       for file in (*folder.weights, *folder.small, *beside)})


def file_hash(file: Path, memory: Path) -> str:
    """The sha256 of a file, remembered under `memory` while its size and time stay the same."""
    seen = file.stat()
    mark = [str(file.resolve()), seen.st_size, seen.st_mtime_ns]
    named = sha256(str(file.resolve()).encode()).hexdigest()[:24]
    note = memory / "described" / f"{named}-hash.json"
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["mark"] == mark:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = hash_file(file)
    with writing(note) as part:
        part.write_text(json.dumps({"mark": mark, "sha256": found}), encoding="utf-8")
    return found


def _tools(store: Store) -> Path:
    """The folder of a llama-quantize that runs here."""
    work = str(store.root / "build")
    key = choose_build("auto", survey(LocalRemote("this machine"), Host("this machine", "local",
                                                                         data_dir=work))).key
    for one in (key, *store.runtimes()):
        found = store.runtime(one)
        if found and (found / "bin" / "llama-quantize").exists():
            return found / "bin"
    raise SwarmError("there is no llama-quantize here", hint="`swarmctl runtime build` makes it")


def _require_room(folder: Path, size: int, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise DiskFull(f"converting {name} needs {(size + SPARE) / 1e6:,.0f} MB at {folder}, where "
                       f"{free / 1e6:,.0f} MB are free; nothing was written",
                       hint="free some space there (what lies in it may be deleted), or set XDG_CACHE_HOME")
