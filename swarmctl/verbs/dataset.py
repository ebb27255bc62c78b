"""`dataset`: from what people said of answers to an immutable training set, and the ones that are there.

Reading and writing meet here; every rule of what becomes a row is in `learning`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.record import timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.learning import card as cards
from swarmctl.learning import raters
from swarmctl.learning.pairs import KINDS, make, models_match, one_sided
from swarmctl.learning.refine import DEFAULT_CAP, refine
from swarmctl.ledger import snapshots
from swarmctl.ledger.labels import read_labels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swarmctl.learning.labels import Labels
    from swarmctl.learning.pairs import Kind
    from swarmctl.learning.refine import Refined
    from swarmctl.ledger.snapshots import Snapshot
    from swarmctl.paths import Paths

UNITS: Mapping[str, str] = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MEND = ("one way out: ask the same again and rate each answer, correct bad ones with `rate --correct`, or\n"
        "compare two models blind with `compare`")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dataset to build. `files` are ratings and chats of other programs; without the ledger where
    `only`."""

    kind: str = "dpo"
    model: str | None = None
    since: str | None = None
    cap: int = DEFAULT_CAP
    files: tuple[Path, ...] = ()
    only: bool = False
    liked: bool = False
    keep_flagged: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """What was made, or would be: `snapshot` is None after a dry run. `new` tells whether it was not there
    before."""

    card: Mapping[str, Any]
    snapshot: Snapshot | None
    new: bool


def build(paths: Paths, wanted: Wanted, now: float, *, dry_run: bool = False) -> Built:
    """Build a dataset. The same labels give the same content, and then the dataset that is there.

    Raises UsageError for a wish that means nothing, SwarmError where no row is left or a KTO set is
    one-sided.
    """
    kind = _kind(wanted.kind)
    labels = _since(read_labels(paths), _moment(wanted.since, now))
    fair, floods, set_aside = _fair(labels, wanted)
    made = make(fair, kind, liked=wanted.liked)
    rows = [row for row in made.rows if models_match(row, wanted.model)]
    dropped = Counter(made.dropped) + set_aside
    if len(rows) < len(made.rows):
        dropped[f"no answer of {wanted.model}"] = len(made.rows) - len(rows)
    refined = refine(rows, cap=wanted.cap, keep_flagged=wanted.keep_flagged)
    doubts = tuple(doubt.reason for doubt in raters.doubts(labels))
    card = _card(kind, refined, dropped + refined.dropped, now)
    card |= {"model": wanted.model, "until": labels.newest, "raters": [*floods, *doubts]}
    _refuse(kind, refined, card)
    return _written(paths, kind, refined, card, dry_run=dry_run)


def listing(paths: Paths) -> tuple[Snapshot, ...]:
    """Every dataset, oldest first."""
    return snapshots.snapshots(paths)


def show(paths: Paths, name: str) -> Snapshot:
    """The dataset of a name or its beginning. Raises UsageError."""
    return snapshots.find(paths, name)


def rows_of(snapshot: Snapshot, count: int) -> list[dict[str, Any]]:
    """The first rows that are trained on."""
    return snapshots.read_rows(snapshot.folder / "train.parquet", count)


def check(paths: Paths, name: str) -> tuple[Snapshot, tuple[str, ...]]:
    """A dataset and what of it is not as it was written."""
    found = snapshots.find(paths, name)
    return found, snapshots.check(found)


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise UsageError(f"--kind {text}: no such kind", hint=" | ".join(KINDS))


def _since(labels: Labels, moment: float | None) -> Labels:
    if moment is None:
        return labels
    old = {one.id for one in labels.said if one.seconds < moment}
    return labels.without(old)


def _fair(labels: Labels, wanted: Wanted) -> tuple[Labels, list[str], Counter[str]]:
    """The labels without those of floods and of raters who are not wanted; whom, and how many."""
    said = {one.id for one in labels.said if one.terminal in wanted.without}
    counted = Counter({"of a rater who was left out": len(said)} if said else {})
    if wanted.keep_flagged:
        return labels.without(said), [], counted
    found = raters.floods(labels.without(said))
    flooded = {vote for flood in found for vote in flood.votes}
    if flooded:
        counted["part of a flood of ratings"] = len(flooded)
    return labels.without(said | flooded), [f"left out: {flood.reason}" for flood in found], counted


def _card(kind: Kind, refined: Refined, dropped: Counter[str], now: float) -> dict[str, Any]:
    train, heldout = refined.train, refined.heldout
    return {
        "version": cards.CARD_VERSION, "kind": kind, "created": timestamp(now),
        "rows": {"train": len(train), "heldout": len(heldout)},
        "sources": cards.sources([*train, *heldout]),
        "dropped": {reason: count for reason, count in dropped.most_common() if count},
        "flags": dict(refined.flagged.most_common()), "length_gap": cards.length_gap([*train, *heldout]),
        "warnings": list(cards.warnings(train, heldout))}


def _refuse(kind: Kind, refined: Refined, card: Mapping[str, Any]) -> None:
    rows = (*refined.train, *refined.heldout)
    reasons = "\n".join(f"{count} left out: {reason}" for reason, count in card["dropped"].items())
    if not rows:
        raise SwarmError(f"nothing of what is recorded makes a {kind} row",
                         hint="\n".join(line for line in (reasons, MEND) if line))
    if kind == "kto" and (sides := one_sided(rows)) is not None:
        good, bad = sides
        few = "disliked" if bad < good else "liked"
        raise SwarmError(f"{good} answers are liked and {bad} disliked: too one-sided for KTO", hint=(
            f"KTO needs at least a tenth of each; rate {few} answers too, or correct bad ones "
            "(a correction counts for both),\nor build --kind dpo or sft, which need no balance"))
    if not refined.train:
        raise SwarmError(f"all {len(rows)} rows are of prompts that are held out for ever",
                         hint=MEND)


def _written(paths: Paths, kind: Kind, refined: Refined, card: dict[str, Any], *, dry_run: bool) -> Built:
    content = cards.content(kind, refined.train, refined.heldout)
    there = {one.card["sha256"] for one in snapshots.snapshots(paths)}
    if dry_run:
        return Built({**card, "sha256": content.sha256}, None, content.sha256 not in there)
    found = snapshots.write(paths, content, card, refined.train, refined.heldout)
    return Built(found.card, found, content.sha256 not in there)


def _moment(text: str | None, now: float) -> float | None:
    """30m, 12h, 2d, 1w back from now, or a date of this machine's zone, in seconds since 1970."""
    if text is None:
        return None
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    try:
        if span:
            return now - timedelta(**{UNITS[span[2]]: int(span[1])}).total_seconds()
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"--since {text}: no such time",
                         hint="30m, 12h, 2d, 1w, 2026-11-23 or 2026-11-23T09:00") from exc
