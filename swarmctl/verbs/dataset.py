"""`dataset`: from what people said of answers to an immutable training set, and the ones that are there.

Reading and writing meet here; every rule of what becomes a row is in `learning`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.record import timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.learning import forms, raters
from swarmctl.learning.card import card_of
from swarmctl.learning.imported import Imported, as_kind
from swarmctl.learning.labels import Labels
from swarmctl.learning.pairs import KINDS, make, models_match, one_sided
from swarmctl.learning.refine import DEFAULT_CAP, refine
from swarmctl.ledger import snapshots
from swarmctl.ledger.labels import read_labels
from swarmctl.ledger.moment import moment
from swarmctl.ledger.parquet import read_json_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swarmctl.learning.pairs import Kind
    from swarmctl.learning.refine import Refined
    from swarmctl.ledger.snapshots import Built, Snapshot
    from swarmctl.paths import Paths

#: Lines of a file that are named one by one.
NAMED = 20
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
    skip_bad: bool = False
    liked: bool = False
    keep_flagged: bool = False
    without: tuple[str, ...] = ()


def build(paths: Paths, wanted: Wanted, now: float, *, dry_run: bool = False) -> Built:
    """Build a dataset. The same labels give the same content, and then the dataset that is there.

    Raises UsageError for a wish that means nothing, SwarmError where no row is left or a KTO set is
    one-sided.
    """
    kind = _kind(wanted.kind)
    found = _imported(wanted)
    since = moment(wanted.since, now) if wanted.since else None
    own = Labels({}) if wanted.only else _since(read_labels(paths), since)
    labels = own.joined(found.labels())
    fair, floods, set_aside = _fair(labels, wanted)
    made = make(fair, kind, liked=wanted.liked)
    dropped = made.dropped + set_aside + found.dropped
    every = [*made.rows, *as_kind(found.rows, kind, dropped, liked=wanted.liked)]
    rows = [row for row in every if models_match(row, wanted.model)]
    if len(rows) < len(every):
        dropped[f"no answer of {wanted.model}"] = len(every) - len(rows)
    refined = refine(rows, cap=wanted.cap, keep_flagged=wanted.keep_flagged)
    doubts = tuple(doubt.reason for doubt in raters.doubts(fair))
    card = card_of(kind, refined, dropped, timestamp(now))
    card |= {"model": wanted.model, "until": labels.newest, "raters": [*floods, *doubts]}
    if wanted.files:
        card["imported"] = [path.name for path in wanted.files]
    _refuse(kind, refined, card)
    return snapshots.keep(paths, kind, refined, card, dry_run=dry_run)


def listing(paths: Paths) -> tuple[Snapshot, ...]:
    """Every dataset, oldest first."""
    return snapshots.snapshots(paths)


def show(paths: Paths, name: str) -> Snapshot:
    """The dataset of a name or its beginning. Raises UsageError."""
    return snapshots.find(paths, name)


def rows_of(snapshot: Snapshot, count: int) -> list[dict[str, Any]]:
    """The first rows that are trained on."""
    return read_json_rows(snapshot.folder / "train.parquet", count)


def check(paths: Paths, name: str) -> tuple[Snapshot, tuple[str, ...]]:
    """A dataset and what of it is not as it was written."""
    found = snapshots.find(paths, name)
    return found, snapshots.check(found)


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise UsageError(f"--kind {text}: no such kind", hint=" | ".join(KINDS))


def _imported(wanted: Wanted) -> Imported:
    """What the files of --from hold. Raises UsageError, naming each line that is in no known form."""
    found = Imported()
    for path in wanted.files:
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            line = exc.object[:exc.start].count(b"\n") + 1
            raise UsageError(f"{path} line {line} is not UTF-8",
                             hint="convert it: iconv -f LATIN1 -t UTF-8") from exc
        forms.read(str(path), text, found)
    if found.bad and not wanted.skip_bad:
        shown = [f"{bad.where}: {bad.reason}" for bad in found.bad[:NAMED]]
        more = [f"… and {len(found.bad) - NAMED} more"] if len(found.bad) > NAMED else []
        raise UsageError(f"{len(found.bad)} lines are in no known form", hint="\n".join(
            [*shown, *more, "nothing was written; mend them, or pass over them with --skip-bad"]))
    found.dropped["in no known form"] += len(found.bad)
    return found


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
