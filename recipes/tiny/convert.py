"""To GGUF, by llama.cpp's own converter, from a source tree of llama.cpp."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

METADATA = {
    "general.description": "A tiny chat model, trained by swarmctl's recipes/tiny from generated text alone",
    "general.license": "apache-2.0", "general.author": "swarmctl", "general.basename": "swarmctl-tiny",
}


def convert(folder: Path, name: str, source: Path, outfile: Path | None = None) -> Path:
    """Write `folder`/model.gguf (or `outfile`) in F16. `name` becomes the GGUF's general.name.

    Raises CalledProcessError with the converter's last words where it refuses.
    """
    outfile = outfile or folder / "model.gguf"
    with tempfile.TemporaryDirectory() as scratch:
        metadata = Path(scratch) / "metadata.json"
        metadata.write_text(json.dumps(METADATA), encoding="utf-8")
        argv = (sys.executable, str(source / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(outfile),
                "--outtype", "f16", "--model-name", name, "--metadata", str(metadata))
        environ = {**os.environ, "PYTHONPATH": str(source / "gguf-py"), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        done.check_returncode()
    return outfile


def find_source(given: Path | None) -> Path:
    """The source tree that is given, else $LLAMA_CPP_SOURCE. SystemExit where it holds no converter."""
    source = given or Path(os.environ.get("LLAMA_CPP_SOURCE", "llama.cpp"))
    if not (source / "convert_hf_to_gguf.py").is_file():
        raise SystemExit(f"{source} holds no convert_hf_to_gguf.py: name llama.cpp's source with --llama-cpp "
                         "(the llama-cpp-python sdist has it at vendor/llama.cpp)")
    return source


def main() -> None:
    """Convert a trained folder again."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.convert", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--llama-cpp", type=Path)
    args = parser.parse_args()
    print(convert(args.folder, args.name, find_source(args.llama_cpp)))


if __name__ == "__main__":
    main()
