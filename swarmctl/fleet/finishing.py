"""Trained weights become a GGUF that may be served: converted, quantised, compared and verified by a job.

The job is the same here and on a host. Its name follows from what is finished and how, so a deploy that was
cut finds it going on, or done; and what it gave is kept here until the release is.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import DiskFull, SwarmError, TransferFailed, UsageError
from swarmctl.fleet import jobs
from swarmctl.fleet.store import hash_file
from swarmctl.fleet.workshop import here, on_host
from swarmctl.jobs.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.runs import Run
    from swarmctl.fleet.workshop import Workshop
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths

KINDS = ("Q4_K_M", "Q8_0", "F16", "Q4_0", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K")
WHOLE = ("gguf", "quantise", "perplexity", "verify")
ALONE = ("verify",)
FETCH_LIMIT = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be finished: a run's merged weights, a folder of safetensors weights here, or a GGUF as it
    is.

    `text` is what divergence is measured on, `prompts` conversations whose answers must end within `bound`
    tokens.
    """

    model: str
    run: Run | None
    weights: Path | None
    gguf: Path | None
    kind: str
    text: str
    prompts: Sequence[Any] = ()
    bound: int = 256
    imatrix: Path | None = None

    @property
    def name(self) -> str:
        """The job's name: the same weights, finished the same way, have the same."""
        files = sorted(self.weights.iterdir()) if self.weights else [self.gguf] if self.gguf else []
        seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
        how = [self.model, self.kind, list(self.prompts), self.bound, str(self.imatrix), self.text]
        digest = sha256(json.dumps([self.run.id if self.run else "", seen, how]).encode()).hexdigest()
        return f"{self.run.id if self.run else 'finish'}.{digest[:8]}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A GGUF on this machine, what each stage of its job gave, and what the tokenizer makes of conversations.
    `folder` holds them and is removed once they are a release."""

    folder: Path
    sha256: str
    size: int
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def gguf(self) -> Path:
        """The file."""
        return self.folder / "model.gguf"

    @property
    def merged(self) -> Path:
        """The weights that the next round trains from; not there where a GGUF came alone."""
        return self.folder / "merged"

    @property
    def rendered(self) -> Path:
        """Conversations as training sees them."""
        return self.folder / "rendered.json"


def finish(paths: Paths, inventory: Inventory, order: Order, tell: Teller) -> Finished:
    """Have it done, where the weights are, and bring here what is served. Raises SwarmError, RemoteErrors and
    JobFailed."""
    kept = paths.cache / "finished" / order.name
    found = _kept(kept)
    if found is not None:
        return found
    shop = _workshop(paths, inventory, order, tell)
    try:
        stages = _job(shop, order, kept, tell)
        _bring(shop, order, kept, tell)
    finally:
        shop.remote.close()
    size, digest = (kept / "model.gguf").stat().st_size, hash_file(kept / "model.gguf")
    said = stages.get("quantise", {}).get("sha256", digest)
    if digest != said:
        (kept / "model.gguf").unlink()
        raise TransferFailed(f"the GGUF that arrived has the sha256 {digest[:12]}, not {said[:12]}",
                             host=shop.remote.host, hint="run it again")
    write_whole(kept / "finished.json", json.dumps({"sha256": digest, "size": size, "stages": stages}))
    jobs.remove_folder(shop.remote, shop.data_dir, order.name)
    return Finished(kept, digest, size, stages)


def spec_of(order: Order, shop: Workshop) -> Spec:
    """The job, with paths of where it runs."""
    run, weights = order.run, str(order.weights or "")
    if run:
        weights = f"{jobs.run_folder(run.data_dir, run.id)}/out/merged"
    matrix = {"imatrix": "imatrix"} if order.imatrix else {}
    more: dict[str, Any] = {
        "gguf": {"source": shop.source, "name": order.model},
        "quantise": {"kind": order.kind, "tools": shop.tools, **matrix},
        "perplexity": {"text": "text.txt", "tools": shop.tools},
        "verify": {"tools": shop.tools, "bound": order.bound, "trained": f"{weights}/rendered.json",
                   **({"prompts": list(order.prompts)} if order.prompts else {})}}
    stages = WHOLE if weights else ALONE
    return Spec(order.name, stages, weights, "", {}, more={name: more[name] for name in stages})


def _kept(folder: Path) -> Finished | None:
    """What an earlier run finished and left here, whole."""
    try:
        raw = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        found = Finished(folder, raw["sha256"], raw["size"], raw["stages"])
        return found if found.gguf.stat().st_size == found.size else None
    except (OSError, ValueError, KeyError):
        return None


def _workshop(paths: Paths, inventory: Inventory, order: Order, tell: Teller) -> Workshop:
    if order.run is None:
        return here(paths, tell, converts=order.weights is not None)
    try:
        host = inventory.host(order.run.host)
    except KeyError as exc:
        raise UsageError(f"run {order.run.id} lies on {order.run.host}, which has left the inventory",
                         hint="put it back, or deploy a copy of the run's out/merged") from exc
    return on_host(paths, inventory, host, tell)


def _job(shop: Workshop, order: Order, kept: Path, tell: Callable[..., None]) -> Mapping[str, Any]:
    """Run the job to its end, or find it ended. An interrupt ends it, a kill does not."""
    kept.mkdir(parents=True, exist_ok=True)
    files = {"text.txt": kept / "text.txt"}
    files["text.txt"].write_text(order.text, encoding="utf-8")
    if order.imatrix:
        files["imatrix"] = order.imatrix
    if order.gguf:
        files["out/model.gguf"] = order.gguf

    def say(record: dict[str, Any]) -> None:
        steps = record.get("steps")
        tell(str(record.get("stage")), record["step"] / steps if steps else None)

    jobs.start(shop.remote, shop.data_dir, spec_of(order, shop), files, python=shop.python, code=shop.code)
    try:
        ended = jobs.watch(shop.remote, shop.data_dir, order.name, say)
    except KeyboardInterrupt:
        jobs.cancel(shop.remote, shop.data_dir, order.name)
        raise
    if ended.state == "done" and ended.result is not None:
        stages: Mapping[str, Any] = ended.result["stages"]
        return stages
    why = (ended.result or {}).get("error") or ended.log.strip()[-400:] or "it was cut off"
    what = order.run.id if order.run else order.weights or order.gguf
    kind = DiskFull if "No space left" in why else SwarmError
    raise kind(f"{what} could not be finished: {why}",
                     host=shop.remote.host, hint="once that is mended, the same command goes on from there")


def _bring(shop: Workshop, order: Order, kept: Path, tell: Teller) -> None:
    """The GGUF, the renderings and the merged weights to here; what came whole before is not fetched
    again."""
    there = f"{jobs.run_folder(shop.data_dir, order.name)}/out"
    tell("fetching what is served")
    for name in ("rendered.json", "model.gguf"):
        shop.remote.get(f"{there}/{name}", kept / name, timeout=FETCH_LIMIT)
    if order.run and not (kept / "merged").is_dir():
        tell("fetching what the next round trains from")
        jobs.fetch(shop.remote, order.run.data_dir, order.run.id, "out/merged", kept / "merged")
    elif order.weights and not (kept / "merged").is_dir():
        part = kept / ".merged.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(order.weights, part, ignore=shutil.ignore_patterns("*.gguf", ".*"))
        part.rename(kept / "merged")
