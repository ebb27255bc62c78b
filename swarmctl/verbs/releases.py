"""`promote`, `rollback` of a model, `canary` and `models history`: which release serves a model, and why.

Each is one record and a turn of roles in the snapshot, so a person's word holds within moments; the `up` that
follows stops what is no longer asked. No weights move: hosts keep the champion, the one before it and the
canary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.settle import let_go, settle
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import LockBusy, UsageError
from swarmctl.evaluation.ballots import blind_votes, thumbs
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.releases import append, read, standing
from swarmctl.fleet.roles import deciding, turn
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.store import resolve_model
from swarmctl.learning.gates import Judgement, Votes, votes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.errors import SwarmError
    from swarmctl.fleet.releases import Release, Standing
    from swarmctl.fleet.roles import BringUp
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths

OWN = "the inventory's own weights"


@dataclass(frozen=True, slots=True)
class Desk:
    """What changing a model's standing needs: this machine's folders, the inventory, `up`, a clock, who does
    it, and who is told."""

    paths: Paths
    inventory: Path
    bring_up: BringUp
    clock: Callable[[], float]
    by: str
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Changed:
    """What serves a model now and what did before, each a release or OWN; `failed` are hosts where it is not
    so yet."""

    model: str
    serves: str
    before: str
    failed: Mapping[str, SwarmError]


def promote(desk: Desk, model: str, release: str | None = None, *, reason: str = "",
            evidence: Mapping[str, Any] | None = None) -> Changed:
    """Let the canary, or a release from the history, serve the model. Raises UsageError where there is
    none."""
    hosts = _hosts(desk, model)
    with deciding(desk.paths):
        how = standing(read(desk.paths), model)
        one = _risen(how, model, release)
        _record(desk, "promote", one, reason, evidence)
    _leave(desk, model, how.champion.release if how.champion else "")
    return Changed(model, one.release, _name(how.champion), _bring_up(desk, hosts))


def rollback(desk: Desk, model: str, *, reason: str = "",
             evidence: Mapping[str, Any] | None = None) -> Changed:
    """Take the canary away; where there is none, let the release before the champion serve again.

    What serves again is started first, then asked, and only then is the other stopped: no question is lost.
    Raises UsageError where there is nothing to go back to.
    """
    hosts = _hosts(desk, model)
    how = standing(read(desk.paths), model)
    gone = _taken_back(how)
    if gone == how.champion:
        _bring_up(desk, hosts, previous=True)
    with deciding(desk.paths):
        now = standing(read(desk.paths), model)
        if (now.champion, now.canary) != (how.champion, how.canary):
            raise UsageError(f"{model} was changed meanwhile, by another command",
                             hint=f"`swarmctl models history {model}` says by whom")
        _record(desk, "rollback", gone, reason, evidence)
    _leave(desk, model, gone.release)
    now = standing(read(desk.paths), model)
    return Changed(model, _name(now.champion), gone.release, _bring_up(desk, hosts))


def share(desk: Desk, model: str, part: float, *, reason: str = "",
          evidence: Mapping[str, Any] | None = None) -> Release:
    """Give the canary that part of the conversations, from 0 to 1. Raises UsageError where there is none."""
    if not 0.0 <= part <= 1.0:
        raise UsageError(f"a share is between 0 and 1, not {part:g}")
    with deciding(desk.paths):
        canary = standing(read(desk.paths), model).canary
        if canary is None:
            raise UsageError(f"{model} has no canary", hint="`swarmctl deploy` makes one")
        made = _record(desk, "share", canary, reason, evidence, part)
    turn(desk.paths)
    return made


def judged(paths: Paths, inventory: Path, model: str) -> Judgement:
    """What people's votes say of the canary: blind comparisons where there are any, else their thumbs.

    Raises UsageError where there is no canary, LedgerError.
    """
    how = standing(read(paths), model)
    if how.canary is None:
        _require_model(read_inventory(inventory), model)
        raise UsageError(f"{model} has no canary", hint="`swarmctl deploy` makes one")
    old = how.champion.sha256 if how.champion else own_digest(paths, inventory, model)
    blind = votes(blind_votes(paths, how.canary.sha256, old))
    rated = votes(thumbs(paths, how.canary.sha256, old, how.canary.id))
    seen, name = (blind, "blind comparisons") if blind.wins + blind.losses else (rated, "ratings")
    return Judgement(seen.verdict, (_told(seen, name),))


def own_digest(paths: Paths, inventory_path: Path, model: str) -> str:
    """The sha256 of the inventory's own weights of a model."""
    inventory = read_inventory(inventory_path)
    return resolve_model(inventory.models[model], inventory_path.absolute().parent, paths,
                         airgap=inventory.airgap).sha256


def history(paths: Paths, model: str | None = None) -> tuple[Release, ...]:
    """What was done with a model's releases, or with all, oldest first."""
    return tuple(one for one in read(paths) if model in (None, one.model))


def _leave(desk: Desk, model: str, release: str) -> None:
    """Send nobody to a release any more, let it end what it answers, and take it out of memory."""
    turn(desk.paths)
    fleet = read_fleet(desk.paths.fleet)
    if fleet is not None:
        swarm = make_swarm(desk.paths, fleet)
        settle(swarm, model, release, desk.note)
        let_go(swarm, model, release)


def _told(seen: Votes, name: str) -> str:
    if not seen.wins + seen.losses:
        return f"{name}: nobody has said anything decisive yet"
    when = f" after the first {seen.at} that were decisive" if seen.at else ""
    return (f"{name}: {seen.wins} for the canary, {seen.losses} against it, {seen.ties} ties; evidence "
            f"{seen.better:.3g} to 1 that it is better, {seen.worse:.3g} to 1 that it is worse{when}")


def _risen(how: Standing, model: str, release: str | None) -> Release:
    if release is None:
        if how.canary is None:
            raise UsageError(f"{model} has no canary to promote", hint=f"served by {_name(how.champion)}; "
                             "`swarmctl deploy` makes a canary")
        return how.canary
    name = release.removeprefix(f"{model}:")
    found = how.known(name)
    if found is None:
        known = ", ".join(dict.fromkeys(one.release for one in how.history if one.release)) or "none"
        raise UsageError(f"{model} has no release {name}", hint=f"it has {known}")
    if how.champion and how.champion.release == name:
        raise UsageError(f"{name} serves {model} already")
    return found


def _hosts(desk: Desk, model: str) -> tuple[str, ...]:
    inventory = read_inventory(desk.inventory)
    _require_model(inventory, model)
    return tuple(host.name for host in inventory.hosts
                 if any(placement.model == model for placement in host.models))


def _require_model(inventory: Inventory, model: str) -> None:
    if model not in inventory.models:
        raise UsageError(f"the inventory has no model {model}", hint=f"it has {', '.join(inventory.models)}")


def _taken_back(how: Standing) -> Release:
    """What a rollback takes away: the canary, else the champion. Raises UsageError."""
    gone = how.canary or (how.champion if how.past else None)
    if gone is None:
        raise UsageError(f"{how.model} has no release to take back",
                         hint=f"served by {_name(how.champion)}, and by nothing before")
    return gone


def _record(desk: Desk, action: str, one: Release, reason: str, evidence: Mapping[str, Any] | None,
            part: float = 0.0) -> Release:
    return append(desk.paths, desk.clock(), action=action, model=one.model, release=one.release,
                  sha256=one.sha256, size=one.size, share=part, run=one.run, dataset=one.dataset, by=desk.by,
                  reason=reason, evidence=dict(evidence or {}))


def _bring_up(desk: Desk, hosts: Sequence[str], *, previous: bool = False) -> dict[str, SwarmError]:
    """Make hosts what is wanted now; those where that failed. What was decided stands all the same."""
    try:
        return {one.host: one.error for one in desk.bring_up(only=hosts, previous=previous) if one.error}
    except LockBusy as exc:
        return dict.fromkeys(hosts, exc)


def _name(release: Release | None) -> str:
    return release.release if release else OWN
