"""Trained weights become a GGUF that may be served: converted, quantised, compared and verified by a job.

The job is the same here and on a host. Its folder follows from what is finished and how, so a run that was
cut goes on where it was, and finishing the same twice does it once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError
from swarmctl.fleet.converter import converter
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.spec import Spec
from swarmctl.runtimes.llamacpp_build import choose_build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swarmctl.fleet.progress import Teller
    from swarmctl.paths import Paths

HERE = "this machine"
NEEDED = ("torch", "transformers", "sentencepiece", "safetensors")
LIMIT = 6 * 3600.0
POLL = 0.2
KINDS = ("Q4_K_M", "Q8_0", "F16", "Q4_0", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K")
WHOLE = ("gguf", "quantise", "perplexity", "verify")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be finished: a folder of safetensors weights, or a GGUF as it is. `text` is what divergence
    is measured on, `prompts` conversations whose answers must end within `bound` tokens."""

    model: str
    weights: Path | None
    gguf: Path | None
    kind: str
    text: str
    prompts: Sequence[Any] = ()
    bound: int = 256
    imatrix: str | None = None

    @property
    def key(self) -> str:
        """Names this order: the same weights, finished the same way, have the same key."""
        files = sorted(self.weights.iterdir()) if self.weights else [self.gguf] if self.gguf else []
        seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
        how = [self.model, self.kind, list(self.prompts), self.bound, self.imatrix, self.text]
        return sha256(json.dumps([seen, how]).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Finished:
    """A GGUF on this machine, and what each stage of its job gave."""

    gguf: Path
    sha256: str
    size: int
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merged: Path | None = None
    rendered: Path | None = None


def finish_here(paths: Paths, order: Order, tell: Teller) -> Finished:
    """Do it on this machine. Raises SwarmError with what failed, and what this machine lacks."""
    if order.weights:
        _check_interpreter()
    store = Store.of(paths)
    tools = _tools(store, paths)
    source = converter(store, tell) if order.weights else Path()
    folder = Folder(paths.cache / "finished" / order.key)
    folder.path.mkdir(parents=True, exist_ok=True)
    spec = spec_of(order, str(source), str(tools), str(order.weights) if order.weights else "")
    if order.gguf:
        _place(order.gguf, folder.path / "out" / "model.gguf")
    (folder.path / "text.txt").write_text(order.text, encoding="utf-8")
    if not _done(folder, spec):
        folder.spec.write_text(spec.to_json(), encoding="utf-8")
        _run(folder, tell)
    return found_in(folder, order)


def spec_of(order: Order, source: str, tools: str, weights: str) -> Spec:
    """The job. `source` holds the converters, `tools` the programs of llama.cpp, there where it runs."""
    more: dict[str, Any] = {
        "gguf": {"source": source, "name": order.model},
        "quantise": {"kind": order.kind, "tools": tools, "imatrix": order.imatrix},
        "perplexity": {"text": "text.txt", "tools": tools},
        "verify": {"tools": tools, "bound": order.bound, "trained": f"{weights}/rendered.json",
                   **({"prompts": list(order.prompts)} if order.prompts else {})}}
    stages = WHOLE if weights else ("verify",)
    return Spec(order.key, stages, weights, "", {}, more={name: more[name] for name in stages})


def found_in(folder: Folder, order: Order) -> Finished:
    """What a job left in its folder here. Raises SwarmError where it failed."""
    result = folder.result() or {}
    if result.get("status") != "done":
        raise SwarmError(f"{order.weights or order.gguf} could not be finished: {result.get('error')}",
                         hint=f"its log is {folder.path / 'log'}")
    gguf = folder.path / "out" / "model.gguf"
    stages = result["stages"]
    digest = stages.get("quantise", {}).get("sha256") or _digest(gguf)
    return Finished(gguf, digest, gguf.stat().st_size, stages, order.weights,
                    folder.path / "out" / "rendered.json")


def _check_interpreter() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SwarmError(f"this machine's swarmctl lacks {', '.join(missing)}, which convert a model",
                         hint="install `swarmctl[train]` here, or name a host that trains with --on")


def _tools(store: Store, paths: Paths) -> Path:
    """The folder of llama-quantize and its companions."""
    seen = survey(LocalRemote(HERE), Host(HERE, "local", data_dir=str(paths.cache / "build")))
    key = choose_build("auto", seen).key
    folder = store.runtime(key)
    if folder is None:
        raise SwarmError(f"there is no build of llama.cpp on this machine ({key})",
                         hint="`swarmctl runtime build` makes one, in minutes, once")
    return folder / "bin"


def _done(folder: Folder, spec: Spec) -> bool:
    result = folder.result()
    return bool(result and result.get("status") == "done" and set(spec.stages) <= set(result["stages"]))


def _run(folder: Folder, tell: Callable[..., None]) -> None:
    """Run the job to its end, as a process of our own; a job that runs there already is waited for."""
    log = folder.path / "log"
    argv = (sys.executable, "-m", "swarmctl.jobs", "spec.json")
    told, until = 0, time.monotonic() + LIMIT
    with log.open("ab") as out, subprocess.Popen(argv, cwd=folder.path, stdin=subprocess.DEVNULL, stdout=out,
                                                 stderr=out, env=_environment()) as process:
        try:
            while process.poll() is None or folder.holder():
                told = _follow(folder, told, tell)
                _in_time(until, log)
                time.sleep(POLL)
        except BaseException:
            process.terminate()
            raise


def _in_time(until: float, log: Path) -> None:
    if time.monotonic() > until:
        raise SwarmError(f"the conversion has not ended within {LIMIT / 3600:.0f} h", hint=f"its log is {log}")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _follow(folder: Folder, told: int, tell: Callable[..., None]) -> int:
    """Tell what progress.jsonl has gained."""
    try:
        lines = folder.progress.read_text(encoding="utf-8").splitlines()
    except OSError:
        return told
    for line in lines[told:]:
        said = json.loads(line)
        steps = said.get("steps")
        tell(str(said.get("stage")), said["step"] / steps if steps else None)
    return len(lines)


def _place(source: Path, to: Path) -> None:
    """The same file under another name, copied where it cannot be linked."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(to)


def _digest(path: Path) -> str:
    from swarmctl.fleet.store import hash_file

    return hash_file(path)
