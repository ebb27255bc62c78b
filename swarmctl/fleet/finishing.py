"""Trained weights become a GGUF that may be served: converted, quantised, compared and verified by a job.

The job is the same here and on a host. Its name follows from what is finished and how, so a deploy that was
cut finds it going on, or done; and what it gave is kept here until the release is.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import DiskFull, SwarmError, TransferFailed, UsageError
from swarmctl.fleet import jobs
from swarmctl.fleet.blobs import blob_path
from swarmctl.fleet.releases import ADAPTER, WEIGHTS
from swarmctl.fleet.remote import connect
from swarmctl.fleet.store import hash_file
from swarmctl.fleet.workshop import here, on_host
from swarmctl.jobs.spec import Spec
from swarmctl.runtimes.base import adapted_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.runs import Run
    from swarmctl.fleet.workshop import Workshop
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

KINDS = ("Q4_K_M", "Q8_0", "F16", "Q4_0", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K")
WHOLE = ("gguf", "quantise", "perplexity", "verify")
WEIGHED = ("gguf", "imatrix", *WHOLE[1:])
ALONE = ("verify",)
OVER = ("adapter", "likeness", "verify")
FETCH_LIMIT = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Base:
    """The GGUF here that an adapter goes over, its hash, and the release whose weights it is: empty for the
    inventory's own."""

    gguf: Path
    sha256: str
    quantisation: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be finished: a run's merged weights, or its adapter over a `base`; a folder of safetensors
    weights here; or a GGUF as it is.

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
    make_imatrix: bool = False
    base: Base | None = None

    @property
    def name(self) -> str:
        """The job's name: the same weights, finished the same way, have the same."""
        files = sorted(self.weights.iterdir()) if self.weights else [self.gguf] if self.gguf else []
        seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
        how = [self.model, self.kind, list(self.prompts), self.bound, str(self.imatrix), self.make_imatrix,
               self.text, self.base.sha256 if self.base else ""]
        digest = sha256(json.dumps([self.run.id if self.run else "", seen, how]).encode()).hexdigest()
        return f"{self.run.id if self.run else 'finish'}.{digest[:8]}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A GGUF on this machine, what each stage of its job gave, and what the tokenizer makes of conversations.
    `folder` holds them and is removed once they are a release. Of an adapter over a `base`, `sha256` tells
    both from all others, and `size` is the adapter's."""

    folder: Path
    sha256: str
    size: int
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter_sha256: str = ""
    base: Base | None = None

    @property
    def gguf(self) -> Path:
        """The file."""
        return self.folder / WEIGHTS

    @property
    def adapter(self) -> Path:
        """The adapter's GGUF, where it is one."""
        return self.folder / ADAPTER

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
    found = _kept(kept, order)
    if found is not None:
        return found
    shop = _workshop(paths, inventory, order, tell)
    try:
        _require_weights(shop, order)
        stages = _job(shop, order, kept, tell)
        _bring(shop, order, kept, tell)
    finally:
        shop.remote.close()
    made = kept / (ADAPTER if order.base else WEIGHTS)
    size, digest = made.stat().st_size, hash_file(made)
    said = stages.get("adapter" if order.base else "quantise", {}).get("sha256", digest)
    if digest != said:
        made.unlink()
        raise TransferFailed(f"the GGUF that arrived has the sha256 {digest[:12]}, not {said[:12]}",
                             host=shop.remote.host, hint="run it again")
    write_whole(kept / "finished.json", json.dumps({"sha256": digest, "size": size, "stages": stages}))
    jobs.remove_folder(shop.remote, shop.data_dir, order.name)
    return _finished(kept, order, digest, size, stages)


def fetch_adapter(paths: Paths, inventory: Inventory, run: Run) -> Path:
    """A run's adapter in PEFT's format, copied here from its host. Raises UsageError where it has none,
    RemoteErrors."""
    to = paths.cache / "finished" / f"{run.id}.adapter"
    if to.is_dir():
        return to
    with closing(connect(_host(inventory, run), paths, inventory.ssh_config)) as remote:
        there = f"{jobs.run_folder(run.data_dir, run.id)}/out/adapter"
        if remote.run(("test", "-d", there), timeout=jobs.ASK_LIMIT, check=False).exit_status != 0:
            raise UsageError(f"run {run.id} left no adapter on {run.host}",
                             hint="a recipe with use_peft: true makes one; deploy it without --as-adapter")
        jobs.fetch(remote, run.data_dir, run.id, "out/adapter", to)
    return to


def spec_of(order: Order, shop: Workshop) -> Spec:
    """The job, with paths of where it runs."""
    run, weights = order.run, str(order.weights or "")
    if run:
        weights = f"{jobs.run_folder(run.data_dir, run.id)}/out/merged"
    made = "out/imatrix.gguf" if order.make_imatrix else "imatrix"
    matrix = {"imatrix": made} if order.imatrix or order.make_imatrix else {}
    more: dict[str, Any] = {
        "gguf": {"source": shop.source, "name": order.model},
        "imatrix": {"source": shop.source, "text": "text.txt", "rows": _rows(order)},
        "quantise": {"kind": order.kind, "tools": shop.tools, **matrix},
        "perplexity": {"text": "text.txt", "tools": shop.tools},
        "verify": {"tools": shop.tools, "bound": order.bound, "trained": f"{weights}/rendered.json",
                   **({"prompts": list(order.prompts)} if order.prompts else {})}}
    if order.base and run:
        there = order.base.sha256 in shop.blobs
        served = blob_path(shop.data_dir, order.base.sha256) if there else f"out/{WEIGHTS}"
        part = {"run": jobs.run_folder(run.data_dir, run.id), "source": shop.source, "tools": shop.tools,
                "served": served, "prompts": list(order.prompts)}
        more |= {"adapter": part, "likeness": part, "verify": {**more["verify"], "served": served}}
    stages = OVER if order.base else ALONE if not weights else WEIGHED if order.make_imatrix else WHOLE
    return Spec(order.name, stages, weights, "", {}, more={name: more[name] for name in stages})


def _rows(order: Order) -> str:
    """The training set beside a run; empty where there is none."""
    run = order.run
    return f"{jobs.run_folder(run.data_dir, run.id)}/data/train.parquet" if run else ""


def _finished(folder: Path, order: Order, digest: str, size: int,
              stages: Mapping[str, Mapping[str, Any]]) -> Finished:
    if order.base is None:
        return Finished(folder, digest, size, stages)
    return Finished(folder, adapted_digest(order.base.sha256, digest), size, stages, digest, order.base)


def _kept(folder: Path, order: Order) -> Finished | None:
    """What an earlier run finished and left here, whole."""
    try:
        raw = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        found = _finished(folder, order, raw["sha256"], raw["size"], raw["stages"])
        whole = (found.adapter if order.base else found.gguf).stat().st_size == found.size
        return found if whole and found.gguf.is_file() else None
    except (OSError, ValueError, KeyError):
        return None


def _workshop(paths: Paths, inventory: Inventory, order: Order, tell: Teller) -> Workshop:
    if order.run is None:
        return here(paths, tell, converts=order.weights is not None)
    return on_host(paths, inventory, _host(inventory, order.run), tell)


def _host(inventory: Inventory, run: Run) -> Host:
    try:
        return inventory.host(run.host)
    except KeyError as exc:
        raise UsageError(f"run {run.id} lies on {run.host}, which has left the inventory",
                         hint="put it back, or deploy a copy of the run's out/merged") from exc


def _require_weights(shop: Workshop, order: Order) -> None:
    """A run must have left what is to be finished. Raises SwarmError."""
    if order.run is None:
        return
    run = order.run
    there = f"{jobs.run_folder(run.data_dir, run.id)}/out/merged/config.json"
    if shop.remote.run(("test", "-e", there), timeout=jobs.ASK_LIMIT, check=False).exit_status:
        raise SwarmError(f"run {run.id} has left no merged weights there", host=run.host,
                         hint=f"`swarmctl jobs show {run.id}` says how it is; once it is done, deploy it")


def _job(shop: Workshop, order: Order, kept: Path, tell: Callable[..., None]) -> Mapping[str, Any]:
    """Run the job to its end, or find it ended. An interrupt ends it, a kill does not."""
    kept.mkdir(parents=True, exist_ok=True)
    files = {"text.txt": kept / "text.txt"}
    files["text.txt"].write_text(order.text, encoding="utf-8")
    if order.imatrix:
        files["imatrix"] = order.imatrix
    if order.gguf:
        files[f"out/{WEIGHTS}"] = order.gguf
    if order.base and order.base.sha256 not in shop.blobs:
        files[f"out/{WEIGHTS}"] = order.base.gguf

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
    for name in ("rendered.json", ADAPTER if order.base else WEIGHTS):
        shop.remote.get(f"{there}/{name}", kept / name, timeout=FETCH_LIMIT)
    if order.base:
        linked(order.base.gguf, kept / WEIGHTS)
    if order.run and not (kept / "merged").is_dir():
        tell("fetching what the next round trains from")
        jobs.fetch(shop.remote, order.run.data_dir, order.run.id, "out/merged", kept / "merged")
    elif order.weights and not (kept / "merged").is_dir():
        part = kept / ".merged.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(order.weights, part, ignore=shutil.ignore_patterns("*.gguf", ".*"))
        part.rename(kept / "merged")


def linked(source: str | Path, to: str | Path) -> None:
    """The same bytes under another name: linked, and copied where that cannot be."""
    Path(to).unlink(missing_ok=True)
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
