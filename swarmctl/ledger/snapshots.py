"""Datasets on disk: an immutable folder each, with Parquet files, a card and the lineage of every row.

A folder is written beside its place and renamed there, so one that is there is whole. Its name ends with the
first eight digits of its content's hash; the card holds the hash of every file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from typing import TYPE_CHECKING, Any

from swarmctl.errors import DiskFull, LedgerError, UsageError
from swarmctl.learning.card import HELD_OUT_COLUMNS, digest_of
from swarmctl.learning.card import content as content_of
from swarmctl.learning.card import page as card_page
from swarmctl.ledger.journal import make_private_folder, sync_folder
from swarmctl.ledger.parquet import read_json_rows, write_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from swarmctl.learning.card import Content
    from swarmctl.learning.pairs import Kind, Row
    from swarmctl.learning.refine import Refined
    from swarmctl.paths import Paths

#: What is said of a build whose dataset was there: its rows are the same, what was left out need not be.
TOLD_ANEW = ("dropped", "flags", "raters", "warnings", "until")
NAME = re.compile(r"(?:dpo|kto|sft)-\d{8}-[0-9a-f]{8}")
TURNS = "STRUCT(role VARCHAR, content VARCHAR)[]"
TYPES: Mapping[str, str] = {
    "prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "completion": TURNS, "label": "BOOLEAN",
    "tools": "VARCHAR", "group": "VARCHAR", "reference": "VARCHAR"}
LINEAGE: Mapping[str, str] = {
    "split": "VARCHAR", "row": "BIGINT", "group": "VARCHAR", "source": "VARCHAR", "at": "VARCHAR",
    "exchanges": "VARCHAR[]", "ratings": "VARCHAR[]", "models": "VARCHAR[]", "origin": "VARCHAR"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A dataset that is there: its folder and its card."""

    folder: Path
    card: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Kind, day and hash."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Built:
    """What was made, or would be: `snapshot` is None after a dry run. `new` tells whether it was not there
    yet."""

    card: Mapping[str, Any]
    snapshot: Snapshot | None
    new: bool


def keep(paths: Paths, kind: Kind, refined: Refined, card: Mapping[str, Any], *, dry_run: bool) -> Built:
    """Write refined rows as a dataset, or say what it would be. Raises as `write`."""
    made = content_of(kind, refined.train, refined.heldout)
    new = all(one.card["sha256"] != made.sha256 for one in snapshots(paths))
    if dry_run:
        return Built({**card, "sha256": made.sha256}, None, new)
    found = write(paths, made, card, refined.train, refined.heldout)
    told = {} if new else {key: card[key] for key in TOLD_ANEW}
    return Built({**found.card, **told}, found, new)


def write(paths: Paths, content: Content, card: Mapping[str, Any], train: Sequence[Row],
          heldout: Sequence[Row]) -> Snapshot:
    """Write a dataset, or give the one that is there with the same content. `card` needs no name, hash or
    files.

    Raises LedgerError, or DiskFull: then nothing of it is left.
    """
    known = next((one for one in snapshots(paths) if one.card["sha256"] == content.sha256), None)
    if known is not None:
        return known
    day = str(card["created"])[:10].replace("-", "")
    name = f"{content.kind}-{day}-{content.sha256[:8]}"
    folder = paths.datasets / name
    part = paths.datasets / f".{name}.{os.getpid()}.part"
    try:
        make_private_folder(paths.datasets)
        _clear_abandoned(paths.datasets)
        part.mkdir(mode=0o700)
        full = _fill(part, content, {**card, "name": name, "sha256": content.sha256}, train, heldout)
        part.rename(folder)
        sync_folder(paths.datasets)
    except OSError as exc:
        there = _read(folder) if exc.errno in (errno.EEXIST, errno.ENOTEMPTY) else None
        if there is not None:  # another build was first
            return there
        raise _failure(folder, exc) from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Snapshot(folder, full)


def snapshots(paths: Paths) -> tuple[Snapshot, ...]:
    """All datasets, oldest first. A folder without a card in our form is passed over."""
    try:
        folders = [path for path in paths.datasets.iterdir() if NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise LedgerError(f"cannot read {paths.datasets}: {exc.strerror}",
                          hint="is it a folder of yours?") from exc
    found = [one for one in map(_read, folders) if one is not None]
    return tuple(sorted(found, key=lambda one: (str(one.card["created"]), one.name)))


def find(paths: Paths, name: str) -> Snapshot:
    """The dataset of a name or of its beginning; `latest`, or `latest:KIND`, is the newest. Raises
    UsageError."""
    there = snapshots(paths)
    if name == "latest" or name.startswith("latest:"):
        kind = name.partition(":")[2]
        found = [one for one in there if kind in ("", one.card["kind"])][-1:]
    else:
        found = [one for one in there if one.name == name] or [one for one in there
                                                               if one.name.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} datasets are" if found else "no dataset is"
        names = ", ".join(one.name for one in (found or there)[-10:])
        raise UsageError(f"{what} called {name!r}", hint=f"there are: {names}" if names else
                         "none is there yet: `swarmctl dataset build`")
    return found[0]


def check(snapshot: Snapshot) -> tuple[str, ...]:
    """What is not as it was written, one line each; nothing where all is."""
    wrong = []
    for name, digest in dict(snapshot.card.get("files") or {}).items():
        path = snapshot.folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif _sha256(path) != digest:
            wrong.append(f"{name} was changed")
    if wrong:
        return tuple(wrong)
    digest = digest_of({"train": read_json_rows(snapshot.folder / "train.parquet"),
                        "test": read_json_rows(snapshot.folder / "heldout.parquet")})
    if digest != snapshot.card["sha256"] or not snapshot.name.endswith(digest[:8]):
        wrong.append("the rows do not have the hash that the card and the name say")
    return tuple(wrong)


def _fill(part: Path, content: Content, card: Mapping[str, Any], train: Sequence[Row],
          heldout: Sequence[Row]) -> dict[str, Any]:
    columns = {name: TYPES[name] for name in content.columns}
    write_parquet(part / "train.parquet", content.train, columns)
    write_parquet(part / "heldout.parquet", content.heldout,
             columns | {name: TYPES[name] for name in HELD_OUT_COLUMNS})
    lines = (line for split, rows in (("train", train), ("test", heldout))
             for line in (_lineage(split, number, row) for number, row in enumerate(rows)))
    write_parquet(part / "lineage.parquet", lines, LINEAGE)
    (part / "README.md").write_text(card_page(card, content.columns), encoding="utf-8")
    full = {**card, "files": {path.name: _sha256(path) for path in sorted(part.iterdir())}}
    (part / "card.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    for path in part.iterdir():
        path.chmod(0o400)
    return full


def _lineage(split: str, number: int, row: Row) -> dict[str, Any]:
    return {"split": split, "row": number, "group": row.group, "source": row.source, "at": row.at,
            "exchanges": row.answers, "ratings": row.votes, "models": row.models, "origin": row.origin}


def _read(folder: Path) -> Snapshot | None:
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        return Snapshot(folder, card) if {"kind", "sha256", "created", "rows"} <= card.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _clear_abandoned(folder: Path) -> None:
    """Remove what builds that were killed have left."""
    for path in folder.glob(".*.part"):
        owner = path.name.split(".")[-2]
        with suppress(OSError, ValueError, ProcessLookupError):
            if not _alive(int(owner)):
                shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _failure(folder: Path, exc: OSError) -> Exception:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full: {folder} was not written",
                        hint="free some space and build it again")
    return LedgerError(f"cannot write {folder}: {exc.strerror or exc}", hint="is the folder yours to write?")
