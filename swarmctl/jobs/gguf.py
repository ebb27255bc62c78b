"""A Hugging Face folder becomes a GGUF, by llama.cpp's own converter, from its pinned source.

The core is `convert`, which needs nothing but this file and an interpreter that has torch and transformers:
a host's training environment, or this machine's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

CONVERTER = "convert_hf_to_gguf.py"
ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
#: what of llama.cpp's source the converters are
PARTS = (CONVERTER, ADAPTER_CONVERTER, "conversion", "gguf-py/gguf")
LIMIT = 4 * 3600.0
PERCENT = re.compile(r"Writing:\s+(\d+)%")
#: how the converter names what it lacks, and what a person can do about it
HINTS = {
    "BPE pre-tokenizer was not recognized": "llama.cpp does not know this tokenizer: train from a base that "
                                            "it can convert",
    "is not supported": "llama.cpp has no such architecture",
    "No space left on device": "free some space there",
}


class NotConvertible(JobError):
    """The converter refuses, or has not what it needs; the message is its last word and what to do."""


def convert(folder: Path, outfile: Path, source: Path, *, name: str, kind: str = "f16",
            python: str = sys.executable, tell: Callable[[float], None] = lambda _: None) -> Path:
    """Write `outfile`, a GGUF of the model in `folder`, with `kind` weights (f32, f16, bf16, q8_0).

    `source` is llama.cpp's tree or the parts of it in PARTS; `name` becomes general.name; `tell` hears how
    far it is, from 0 to 1. Raises NotConvertible.
    """
    if not (folder / "config.json").is_file():
        raise NotConvertible(f"{folder} is no Hugging Face model: it has no config.json")
    options = (str(folder), "--outtype", kind, "--model-name", name)
    return _run(source / CONVERTER, options, outfile, python, tell)


def convert_adapter(folder: Path, base: Path, outfile: Path, source: Path, *,
                    python: str = sys.executable) -> Path:
    """Write `outfile`, a GGUF of the LoRA adapter in `folder` on the model in `base`. Raises
    NotConvertible."""
    options = (str(folder), "--base", str(base), "--outtype", "f16")
    return _run(source / ADAPTER_CONVERTER, options, outfile, python)


def gguf(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/f16.gguf of the weights in `spec.model`. `more["gguf"]` has the converter's `source` and
    the model's `name`."""
    more, outfile = spec.more["gguf"], folder.path / "out" / "f16.gguf"
    convert(folder.path / spec.model, outfile, Path(more["source"]), name=more["name"],
            tell=lambda done: folder.say("gguf", step=round(100 * done), steps=100))
    return {"size": outfile.stat().st_size}


def _run(script: Path, options: tuple[str, ...], outfile: Path, python: str,
         tell: Callable[[float], None] = lambda _: None) -> Path:
    if not script.is_file():
        raise NotConvertible(f"{script.parent} holds no {script.name}: it is not llama.cpp's source")
    part = outfile.with_name(f"{outfile.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "PYTHONPATH": str(script.parent / "gguf-py"), "CUDA_VISIBLE_DEVICES": "",
               "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    argv = (python, str(script), *options, "--outfile", str(part))
    try:
        with subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, errors="replace") as process:
            said, status = _followed(process, tell)
        if status:
            raise NotConvertible(_why(said, status))
        part.replace(outfile)
    except OSError as exc:
        raise NotConvertible(f"{outfile} cannot be written: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)
    return outfile


def _followed(process: subprocess.Popen[str], tell: Callable[[float], None]) -> tuple[str, int]:
    """What it said last, and its exit status; ended past LIMIT, and when we are."""
    timer = threading.Timer(LIMIT, process.kill)
    timer.daemon = True
    timer.start()
    try:
        said = _heard(process.stderr, tell) if process.stderr else ""
        return said, process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def _heard(stream: IO[str], tell: Callable[[float], None]) -> str:
    said = ""
    while piece := stream.read(512):
        said = (said + piece)[-8000:]
        if found := PERCENT.findall(piece):
            tell(int(found[-1]) / 100)
    return said


def _why(said: str, status: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("INFO")]
    last = lines[-1] if lines else f"status {status}"
    hint = next((hint for mark, hint in HINTS.items() if mark in said), "")
    return f"the converter refuses: {last[-400:]}" + (f" ({hint})" if hint else "")
