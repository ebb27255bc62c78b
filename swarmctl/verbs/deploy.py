"""`swarmctl deploy`: trained weights become a release that serves beside the champion, once it is proven fit.

Converted, quantised, compared and verified before any host gets a byte; inspected again on every server while
nobody is sent there; only then given its share. Whatever cut it anywhere, the same command goes on from
there, and what was refused is recorded with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.inspection import inspect, problem_of
from swarmctl.dispatch.settle import let_go
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import InventoryError, SwarmError, UsageError
from swarmctl.evaluation.questions import held_out
from swarmctl.fleet.adapters import base_of, unservable
from swarmctl.fleet.deployable import source_of
from swarmctl.fleet.finishing import KINDS, Order, finish, linked
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.releases import WEIGHTS, append, next_name, read, standing
from swarmctl.fleet.roles import alone, deciding, turn
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.inventory import runtime_of
from swarmctl.jobs.verify import CONVERSATIONS
from swarmctl.learning.fitness import unfit
from swarmctl.learning.plain_text import TEXT
from swarmctl.runtimes.gguf_header import check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.fleet.deployable import Source
    from swarmctl.fleet.finishing import Base, Finished
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.releases import Release, Standing
    from swarmctl.fleet.roles import BringUp, Reported
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

OWN = "the inventory's own weights"
TAKES_TURNS = ("Ollama holds weights with an adapter or without it, never both: while the canary and the "
               "champion are the same weights there, each change between them loads anew")
INSPECT_LIMIT = 1800.0
PROMPTS = 8
#: characters of a person's own questions and answers that a divergence is measured on, at most
ENOUGH_TEXT = 60_000


class Refused(SwarmError):
    """A release that must not be served; recorded, with the reasons."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be deployed: a run's id, a Hugging Face folder or a GGUF. `share` is the canary's part of
    the conversations, `hosts` where it is to be (all that serve the model where empty). `as_adapter` leaves
    the weights that the run trained over as they are served, and puts its adapter over them."""

    source: str
    model: str
    by: str
    kind: str = "Q4_K_M"
    share: float = 0.1
    hosts: tuple[str, ...] = ()
    max_kl: float | None = None
    bound: int = 256
    imatrix: Path | None = None
    make_imatrix: bool = False
    as_adapter: bool = False


@dataclass(frozen=True, slots=True)
class Deployed:
    """A release that is served: `share` is what it has now, `failed` the hosts where it is not yet, and
    `already` whether nothing had to be done."""

    model: str
    release: str
    sha256: str
    size: int
    share: float
    hosts: tuple[str, ...]
    failed: Mapping[str, SwarmError]
    stages: Mapping[str, Any]
    already: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """What a deploy would do."""

    source: str
    where: str
    kind: str
    hosts: tuple[str, ...]
    release: str
    beside: str


def plan(paths: Paths, inventory_path: Path, wish: Wish) -> Planned:
    """What `deploy` would do; nothing is changed. Raises UsageError."""
    inventory = read_inventory(inventory_path)
    hosts, source, records = _hosts(inventory, wish), source_of(paths, wish.source), read(paths)
    how = standing(records, wish.model)
    name = next_name(records, wish.model, "????????")
    champion = how.champion.release if how.champion else OWN
    kind = wish.kind
    if wish.as_adapter:
        base = base_of(paths, inventory, inventory_path, source.run, wish.source)
        kind = f"an adapter over {base.over or OWN} ({base.quantisation})"
    return Planned(str(source.run.id if source.run else source.weights or source.gguf), source.where,
                   kind, hosts, name, champion)


def deploy(paths: Paths, inventory_path: Path, wish: Wish, bring_up: BringUp, clock: Callable[[], float],
           note: Callable[[str], None], event: Callable[[Event], None]) -> Deployed:
    """Finish, verify and serve a release as its model's canary.

    Raises Refused (nothing serves it, and why is recorded), UsageError, and SwarmError where something failed
    that another run may do. Hosts that fail are in the answer, and `up` completes them.
    """
    inventory = read_inventory(inventory_path)
    hosts = _hosts(inventory, wish)
    source = source_of(paths, wish.source)
    with alone(paths, wish.model, note):
        base = base_of(paths, inventory, inventory_path, source.run, wish.source) if wish.as_adapter else None
        work = _Work(paths, inventory, wish, source, clock, note, base)
        if base and wish.share and _on_ollama(inventory, wish.model, hosts):
            note(TAKES_TURNS)
        finished = work.finish(event)
        with deciding(paths):
            release = work.keep(finished)
            before = standing(read(paths), wish.model)
            if _stands(before, release, wish):
                return work.served(release, finished, hosts, {}, already=True)
            if not (before.canary and before.canary.release == release):
                work.record("deploy", release, finished, share=0.0, hosts=wish.hosts,
                            evidence=_evidence(finished))
        failed = _failures(bring_up(only=hosts))
        failed |= work.inspect(release, finished, hosts, bring_up)
        _nobody(failed, hosts)
        with deciding(paths):
            work.still(release)
            if wish.share:
                work.record("share", release, finished, share=wish.share)
        turn(paths)
        return work.served(release, finished, hosts, failed)


@dataclass(frozen=True, slots=True)
class _Work:
    """One deploy under way."""

    paths: Paths
    inventory: Inventory
    wish: Wish
    source: Source
    clock: Callable[[], float]
    note: Callable[[str], None]
    base: Base | None = None

    @property
    def run(self) -> str:
        """The run's id; empty where the weights came otherwise."""
        return self.source.run.id if self.source.run else ""

    @property
    def kind(self) -> str:
        """The quantisation of what is served; of an adapter that of its base."""
        return self.base.quantisation if self.base else self.wish.kind

    def finish(self, event: Callable[[Event], None]) -> Finished:
        """The GGUF, proven fit to serve. Raises Refused."""
        wish, source = self.wish, self.source
        if source.gguf:
            self._check(source.gguf)
        if self.base and source.run and (reasons := unservable(self.paths, self.inventory, source.run)):
            raise self.refuse(reasons, None)
        kind = self.kind
        text, prompts = _texts(self.paths, source)
        order = Order(wish.model, source.run, source.weights, source.gguf, kind, text, prompts,
                      wish.bound, wish.imatrix, wish.make_imatrix, self.base)
        how = f"an adapter over {kind}" if self.base else kind
        tell = Teller(source.where, 1, 1, f"finish {wish.model} as {how}", event)
        tell("", state="begun")
        finished = finish(self.paths, self.inventory, order, tell)
        tell("", 1.0, state="done")
        self._check(finished.gguf)
        if reasons := unfit(finished.stages, kind, wish.max_kl):
            raise self.refuse(reasons, finished)
        return finished

    def _check(self, gguf: Path) -> None:
        try:
            check_whole(self.wish.model, gguf)
        except SwarmError as exc:
            raise self.refuse((exc.message,), None) from exc

    def refuse(self, reasons: Sequence[str], finished: Finished | None, release: str = "") -> Refused:
        """Record that it is not served, and why."""
        self.record("refuse", release, finished, reason="; ".join(reasons),
                    evidence=_evidence(finished) if finished else {"source": self.wish.source})
        return Refused(f"{self.wish.source} is not served as {self.wish.model}: {'; '.join(reasons)}",
                       hint=f"`swarmctl models history {self.wish.model}` keeps the reason")

    def record(self, action: str, release: str, finished: Finished | None,
               **more: Any) -> Release:  # noqa: ANN401
        """One line of the history."""
        weights: dict[str, Any] = {"sha256": finished.sha256, "size": finished.size} if finished else {}
        if finished and finished.base:
            weights |= {"adapter": finished.adapter_sha256, "base": finished.base.sha256,
                        "over": finished.base.over}
        return append(self.paths, self.clock(), action=action, model=self.wish.model, release=release,
                      run=self.run, dataset=self.source.dataset, by=self.wish.by, **weights, **more)

    def keep(self, finished: Finished) -> str:
        """Put it into data/releases under its name, whole or not at all; the name."""
        name = next_name(read(self.paths), self.wish.model, finished.sha256)
        folder = self.paths.releases / self.wish.model / name
        if (folder / WEIGHTS).is_file() and (folder / "run.json").is_file():
            return name
        part = folder.with_name(f".{name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            for one in (finished.gguf, finished.rendered, *([finished.adapter] if finished.base else [])):
                linked(one, part / one.name)
            if finished.merged.is_dir():
                shutil.copytree(finished.merged, part / "merged", copy_function=linked)
            (part / "run.json").write_text(json.dumps({
                "run": self.run, "dataset": self.source.dataset, "source": self.wish.source,
                "kind": self.kind, "sha256": finished.sha256, "stages": finished.stages}, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as exc:
            raise SwarmError(f"{folder} cannot be written: {exc.strerror}",
                             hint="is that disk full? `swarmctl deploy` again goes on from here") from exc
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return name

    def inspect(self, release: str, finished: Finished, hosts: Sequence[str],
                bring_up: BringUp) -> dict[str, SwarmError]:
        """Look at the release on every server of it; hosts that could not be looked at. Raises Refused, with
        the release taken back, where one serves it wrongly."""
        fleet = read_fleet(self.paths.fleet)
        if fleet is None:
            return {}
        swarm = make_swarm(self.paths, fleet)
        servers = [one for one in swarm.candidates if one.digest == finished.sha256 and one.host in hosts
                   and one.model == self.wish.model]
        wrong, failed = _inspected(swarm, servers, finished)
        if wrong:
            self.record("rollback", release, finished, reason="; ".join(wrong))
            turn(self.paths)
            let_go(swarm, self.wish.model, release)
            bring_up(only=hosts)
            raise self.refuse(wrong, finished, release)
        return failed

    def still(self, release: str) -> None:
        """Raise where it is a canary no more."""
        canary = standing(read(self.paths), self.wish.model).canary
        if canary is None or canary.release != release:
            raise SwarmError(f"{release} was taken back meanwhile, by another command",
                             hint=f"`swarmctl models history {self.wish.model}` says by whom")

    def served(self, release: str, finished: Finished, hosts: Sequence[str], failed: Mapping[str, SwarmError],
               *, already: bool = False) -> Deployed:
        """The outcome."""
        return Deployed(self.wish.model, release, finished.sha256, finished.size, self.wish.share,
                        tuple(hosts), failed, finished.stages, already)


def _inspected(swarm: Swarm, servers: Sequence[Candidate],
               finished: Finished) -> tuple[list[str], dict[str, SwarmError]]:
    """What is wrong with a release on its servers, and the hosts where that could not be found out."""
    verify = finished.stages.get("verify", {})
    prompts = [one["messages"] for one in verify.get("smoke", [])] or list(CONVERSATIONS[:3])
    rendered: list[dict[str, Any]] = []
    if finished.rendered.is_file():
        rendered = json.loads(finished.rendered.read_text(encoding="utf-8"))["conversations"]
    bos = verify.get("ending", {}).get("bos", "")
    bound = max([64, *(4 * one["tokens"] for one in verify.get("smoke", []))])
    wrong: list[str] = []
    failed: dict[str, SwarmError] = {}
    for one, found in over_hosts(servers, lambda one: inspect(swarm, one, rendered, bos, prompts, bound),
                                 timeout=INSPECT_LIMIT):
        if isinstance(found, SwarmError):
            failed[one.host] = SwarmError(problem_of(found), host=one.host, hint=found.hint)
        else:
            wrong += [f"{one.host} ({one.runtime}): {told}" for told in found]
    return wrong, failed


def _hosts(inventory: Inventory, wish: Wish) -> tuple[str, ...]:
    """The hosts that are to serve it. Raises UsageError."""
    if wish.model not in inventory.models:
        raise UsageError(f"the inventory has no model {wish.model}",
                         hint=f"it has {', '.join(inventory.models)}")
    if wish.kind not in KINDS:
        raise UsageError(f"there is no quantisation {wish.kind}", hint=f"there are {', '.join(KINDS)}")
    if not 0.0 <= wish.share <= 1.0:
        raise UsageError(f"a share is between 0 and 1, not {wish.share:g}")
    placed = [host.name for host in inventory.hosts
              if any(placement.model == wish.model for placement in host.models)]
    unknown = [name for name in wish.hosts if name not in placed]
    if unknown:
        raise UsageError(f"the inventory does not place {wish.model} on {', '.join(unknown)}",
                         hint=f"{', '.join(placed) or 'no host'} does, by the inventory")
    if not placed:
        raise InventoryError(f"no host of {inventory.source} serves {wish.model}",
                             hint="name it among a host's models first")
    return tuple(name for name in placed if not wish.hosts or name in wish.hosts)


def _on_ollama(inventory: Inventory, model: str, hosts: Sequence[str]) -> bool:
    return any(one.model == model and runtime_of(host, one) == "ollama"
               for host in inventory.hosts if host.name in hosts for one in host.models)


def _texts(paths: Paths, source: Source) -> tuple[str, tuple[Any, ...]]:
    """What to measure divergence on, and the prompts to answer: held-out ones where the data set is here,
    what people asked otherwise, and plain English where that is too little."""
    pieces: list[str] = []
    prompts: list[Any] = []
    folder = paths.data / "datasets" / source.dataset
    if source.dataset and (folder / "heldout.parquet").is_file():
        for question in held_out(folder):
            turns = [{"role": turn.role, "content": turn.content} for turn in question.messages]
            prompts.append(turns)
            pieces += [*(turn["content"] for turn in turns), question.reference or ""]
    text = "\n".join(pieces)[:ENOUGH_TEXT]
    return (text if len(text) > 4 * len(TEXT) else f"{text}\n{TEXT}"), tuple(prompts[:PROMPTS])


def _stands(how: Standing, release: str, wish: Wish) -> bool:
    """Whether it serves already as it is wished."""
    if how.champion and how.champion.release == release:
        return True
    return bool(how.canary and how.canary.release == release and how.share == wish.share and wish.share)


def _failures(reports: Sequence[Reported]) -> dict[str, SwarmError]:
    failed = {one.host: one.error for one in reports if one.error}
    later = "`swarmctl up` completes it once it is on"
    off = {one.host: SwarmError("it is off", host=one.host, hint=later)
           for one in reports if one.state == "off"}
    return {**failed, **off}


def _nobody(failed: Mapping[str, SwarmError], hosts: Sequence[str]) -> None:
    """Raise where no host at all serves it."""
    if set(hosts) <= set(failed):
        first = failed[hosts[0]]
        raise SwarmError(f"no host serves it: {first.message}", host=hosts[0] if len(hosts) == 1 else None,
                         hint=f"{first.hint or ''}\n`swarmctl deploy` again goes on from here".strip())


def _evidence(finished: Finished) -> dict[str, Any]:
    """What is recorded of the verification."""
    verify = dict(finished.stages.get("verify", {}))
    smoke = verify.pop("smoke", [])
    return {"quantise": dict(finished.stages.get("quantise", {})),
            "perplexity": dict(finished.stages.get("perplexity", {})),
            "likeness": dict(finished.stages.get("likeness", {})),
            "verify": {**verify, "smoke": len(smoke), "ended": sum(one["finish"] == "stop" for one in smoke)}}
