"""What one job is to do: spec.json, frozen and versioned, read the same on the machine that asks and on the
host.

Paths in it are absolute on the host, or relative to the run's folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION = 1
PRECISIONS = ("bf16", "fp16", "fp32")


class JobError(Exception):
    """A job cannot go on, for a reason that a person can act on. Its text becomes result.json's `error`."""


@dataclass(frozen=True, slots=True)
class Node:
    """One host's part in a job over several: its number, and where the first one listens."""

    rank: int
    count: int
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Spec:
    """A job. `stages` are names of jobs.stages in order; `args` TRL's keys as in the recipe.

    `model` is a folder of safetensors weights with its tokenizer (or a name on the Hugging Face hub),
    `dataset` a folder with train.parquet. `precision` is what to compute in, `processes` how many on this
    host, `threads` CPU threads in each. `dropped` is the largest share of rows that may be lost for their
    length. `more` holds what stages outside training need, by stage.
    """

    run: str
    stages: tuple[str, ...]
    model: str
    dataset: str
    args: Mapping[str, Any]
    precision: str = "fp32"
    processes: int = 1
    threads: int | None = None
    checkpoint_minutes: float = 10.0
    dropped: float = 0.02
    deepspeed: Mapping[str, Any] | None = None
    node: Node | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """The text of spec.json."""
        return json.dumps(asdict(self), indent=1) + "\n"


def parse_spec(text: str) -> Spec:
    """Read spec.json. Raises JobError that says what is wrong with it."""
    try:
        raw = json.loads(text)
    except ValueError as exc:
        raise JobError(f"spec.json is no JSON: {exc}") from exc
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        raise JobError(f"spec.json is not of version {VERSION}: swarmctl here and there differ; "
                       "start a new run")
    known = {one.name for one in fields(Spec)}
    strange = sorted(set(raw) - known)
    missing = sorted({"run", "stages", "model", "dataset", "args"} - set(raw))
    if strange or missing:
        raise JobError(f"spec.json has unknown {strange} and lacks {missing}")
    if raw.get("precision", "fp32") not in PRECISIONS:
        raise JobError(f"spec.json: precision is one of {', '.join(PRECISIONS)}")
    node = Node(**raw["node"]) if raw.get("node") else None
    return Spec(**{**raw, "stages": tuple(raw["stages"]), "node": node})


def read_spec(path: Path) -> Spec:
    """Read a spec.json file. Raises JobError."""
    try:
        return parse_spec(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise JobError(f"{path} cannot be read: {exc.strerror}") from exc
