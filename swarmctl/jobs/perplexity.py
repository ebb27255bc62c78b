"""How far a quantised model has moved from its 16-bit self: Kullback-Leibler divergence and perplexity over
a text.

Measured by the host's own llama-perplexity: the 16-bit model's logits are kept once, the quantised one is
compared with them token by token. Special tokens in the text are read as plain text by it, so the text
should hold none.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Collection

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

LIMIT = 3600.0
CONTEXT = 128
RETRIES = 5
#: chunks of CONTEXT tokens that are read at most; the logits of each take vocabulary x context x 2 bytes of
#: disk
CHUNKS = 32
NUMBERS = {
    "kl_mean": re.compile(r"^Mean\s+KLD:\s*(-?[\d.eE+-]+|-?nan|-?inf)", re.MULTILINE),
    "kl_max": re.compile(r"^Maximum KLD:\s*(-?[\d.eE+-]+|-?nan|-?inf)", re.MULTILINE),
    "kl_99": re.compile(r"^99\.0%\s+KLD:\s*(-?[\d.eE+-]+|-?nan|-?inf)", re.MULTILINE),
    "perplexity": re.compile(r"^Mean PPL\(Q\)\s*:\s*([\d.eE+-]+|-?nan|-?inf)", re.MULTILINE),
    "same_top": re.compile(r"^Same top p:\s*([\d.]+)", re.MULTILINE),
}
ALONE = re.compile(r"Final estimate: PPL = ([\d.eE+-]+|-?nan|-?inf)")
TOO_SHORT = re.compile(r"you need at least (\d+) tokens.*?tokenizes to only (\d+) tokens", re.DOTALL)


def divergence(before: Path, after: Path, text: Path, scratch: Path, tools: Path, *,
               threads: int = 1) -> dict[str, Any]:
    """The divergence of `after` from `before` over a text: mean and largest in nats, the share of tokens (in
    percent) whose likeliest continuation is the same, both perplexities and their ratio.

    Raises JobError, also for a text of fewer than 2 x CONTEXT tokens.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    logits = scratch / "logits.kld"
    shared = ("-c", str(CONTEXT), "-b", str(CONTEXT), "-t", str(threads), "--kl-divergence-base", str(logits))
    try:
        first = _whole(tools, ("-m", str(before), "-f", str(text), "--chunks", str(CHUNKS), *shared),
                       (ALONE,))
        said = _whole(tools, ("-m", str(after), "--kl-divergence", *shared), NUMBERS.values())
    finally:
        logits.unlink(missing_ok=True)
    found = {name: _number(pattern, name, said) for name, pattern in NUMBERS.items()}
    # not "Mean PPL(base)" of the second run: that comes from logits kept in 16 bits, and is far off
    old = _number(ALONE, "perplexity", first)
    return {**found, "perplexity_before": old, "perplexity_ratio": round(found["perplexity"] / old, 6)}


def perplexity(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/model.gguf against out/f16.gguf. `more["perplexity"]` has the `text`, a file in the
    run's folder, and the folder of llama-perplexity as `tools`."""
    more, out = spec.more["perplexity"], folder.path / "out"
    if (out / "model.gguf").samefile(out / "f16.gguf"):
        return {"skipped": "nothing was quantised"}
    return divergence(out / "f16.gguf", out / "model.gguf", folder.path / more["text"],
                      folder.path / "scratch", Path(more["tools"]), threads=spec.threads or 1)


def _whole(tools: Path, options: tuple[str, ...], wanted: Collection[re.Pattern[str]]) -> str:
    """All that it says, with what is wanted in it. Its logger loses the last lines now and then where the
    machine is crowded: then again."""
    said = _said(tools, options)
    for _ in range(RETRIES):
        if all(pattern.search(said) for pattern in wanted):
            break
        said = _said(tools, options)
    return said


def _number(pattern: re.Pattern[str], name: str, said: str) -> float:
    match = pattern.search(said)
    if match is None:
        raise JobError(f"llama-perplexity told no {name}: {_last(said)}")
    return float(match[1])


def _said(tools: Path, options: tuple[str, ...]) -> str:
    try:
        done = subprocess.run((str(tools / "llama-perplexity"), *options), capture_output=True, text=True,
                              errors="replace", timeout=LIMIT, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise JobError(f"llama-perplexity: {exc}") from exc
    said = done.stdout + done.stderr
    short = TOO_SHORT.search(said)
    if short:
        raise JobError(f"the text is too short to measure on: {short[2]} tokens of {short[1]}")
    if done.returncode:
        raise JobError(f"llama-perplexity: {_last(said)}")
    return said


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-400:] if lines else "it said nothing"
