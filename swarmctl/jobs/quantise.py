"""A GGUF in 16 bits becomes a smaller one, by the host's own llama-quantize."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

LIMIT = 4 * 3600.0
#: names that need no llama-quantize: the converter's own
PLAIN = ("F16",)
FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")
BITS = re.compile(r"quant size\s*=\s*[\d.]+ \w+ \(([\d.]+) BPW\)")


def quantised(source: Path, outfile: Path, kind: str, tools: Path, *, imatrix: str | None = None,
              threads: int | None = None) -> dict[str, Any]:
    """Write `outfile` with `kind` weights (Q4_K_M, Q8_0 …); what it says of it: bits a weight, and how many
    tensors fell back to a larger kind because their rows do not divide into its blocks.

    `tools` is the folder of llama-quantize. Raises JobError with its last word.
    """
    part = outfile.with_name(f"{outfile.name}.part")
    argv = (str(tools / "llama-quantize"), *(("--imatrix", imatrix) if imatrix else ()), str(source),
            str(part), kind, *((str(threads),) if threads else ()))
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=LIMIT,
                              check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise JobError(f"llama-quantize {kind}: {_last(done.stderr or done.stdout)}")
        part.replace(outfile)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise JobError(f"llama-quantize {kind}: {exc}") from exc
    finally:
        part.unlink(missing_ok=True)
    said = done.stdout + done.stderr
    fell, bits = FALLBACK.search(said), BITS.search(said)
    return {"bits": float(bits[1]) if bits else None, "fell_back": int(fell[1]) if fell else 0,
            "tensors": int(fell[2]) if fell else None}


def quantise(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/f16.gguf becomes out/model.gguf. `more["quantise"]` has the `kind`, the folder of
    llama-quantize as `tools`, and `imatrix` where there is one."""
    more, out = spec.more["quantise"], folder.path / "out"
    source, outfile = out / "f16.gguf", out / "model.gguf"
    found: dict[str, Any] = {}
    if more["kind"] in PLAIN:
        outfile.unlink(missing_ok=True)
        outfile.hardlink_to(source)
    else:
        found = quantised(source, outfile, more["kind"], Path(more["tools"]), imatrix=more.get("imatrix"),
                          threads=spec.threads)
    return {**found, "kind": more["kind"], "size": outfile.stat().st_size, "sha256": digest_of(outfile)}


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-400:] if lines else "it said nothing"
