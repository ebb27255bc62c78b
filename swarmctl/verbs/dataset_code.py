"""`dataset code`: from local git repositories to a training set for a code model.

Only tracked files of HEAD and the last commits are read; what is left out is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.dispatch.record import timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.repository import LARGEST_BLOB, open_repository
from swarmctl.learning import code, flags, licences, near
from swarmctl.learning.card import card_of
from swarmctl.learning.refine import DEFAULT_CAP, refine
from swarmctl.ledger import snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from swarmctl.fleet.repository import Repository
    from swarmctl.learning.code import Change, Source
    from swarmctl.learning.pairs import Row
    from swarmctl.ledger.snapshots import Built
    from swarmctl.paths import Paths

COMMITS = 2_000


@dataclass(frozen=True, slots=True)
class CodeWanted:
    """Which code to take: licences by SPDX identifier (`any`, or `none` for code without one), and forms."""

    repositories: tuple[Path, ...]
    licences: tuple[str, ...] = ()
    forms: tuple[str, ...] = code.FORMS
    cap: int = DEFAULT_CAP
    commits: int = COMMITS
    keep_flagged: bool = False


def build_code(paths: Paths, wanted: CodeWanted, now: float, *, dry_run: bool = False) -> Built:
    """Build an SFT dataset of code. Raises UsageError (no repository, no such form), SwarmError where
    nothing is left."""
    if unknown := set(wanted.forms) - set(code.FORMS):
        raise UsageError(f"--form {min(unknown)}: no such form", hint=" | ".join(code.FORMS))
    taken = frozenset(wanted.licences) | (licences.PERMISSIVE if not wanted.licences else frozenset())
    dropped: Counter[str] = Counter()
    under: Counter[str] = Counter()
    rows: list[Row] = []
    for folder in wanted.repositories:
        repository = open_repository(folder.expanduser())
        sources = _distinct(list(_sources(repository, taken, dropped)), dropped)
        under.update(source.licence for source in sources)
        rows += _rows(repository, sources, wanted, dropped)
    refined = refine(rows, cap=wanted.cap, keep_flagged=wanted.keep_flagged)
    card = card_of("sft", refined, dropped, timestamp(now))
    card |= {"licences": dict(under.most_common()), "repositories": [str(path)
                                                                     for path in wanted.repositories]}
    if not refined.train:
        reasons = "\n".join(f"{count:,} left out: {reason}" for reason, count in card["dropped"].items())
        raise SwarmError("nothing in these repositories is left to train on", hint=reasons
                         or "are they empty?")
    return snapshots.keep(paths, "sft", refined, card, dry_run=dry_run)


def _sources(repository: Repository, taken: frozenset[str], dropped: Counter[str]) -> Iterator[Source]:
    """The files that may be learned from."""
    listed = dict(repository.files())
    own = _licence(repository, [path for path in listed if "/" not in path
                                and licences.is_licence_file(path)])
    wanted = []
    for path, size in listed.items():
        reason = code.unwanted_path(path) or ("longer than 1 MiB" if size > LARGEST_BLOB else "")
        if reason:
            dropped[f"file: {reason}"] += 1
        else:
            wanted.append(path)
    marked = repository.marked(wanted)
    dropped["file: generated or minified"] += len(marked)
    for path, raw in repository.texts([path for path in wanted if path not in marked]):
        text = _decoded(raw)
        reason = "not text" if text is None else code.unwanted_text(text) or _secret(text)
        if text is None or reason:
            dropped[f"file: {reason}"] += 1
            continue
        header = licences.spdx(text)
        licence = own if header == licences.NONE else header
        if licences.allowed(licence, taken):
            yield code.Source(repository.name, repository.commit, path, text, licence)
        else:
            dropped[f"file: licence {licence}"] += 1


def _licence(repository: Repository, names: Sequence[str]) -> str:
    """What the root's texts say: several are a choice between them."""
    found = {licences.licence_of(raw.decode("utf-8", "replace")) for _, raw in repository.texts(names)}
    return " OR ".join(sorted(found - {licences.NONE})) or licences.NONE


def _secret(text: str) -> str:
    found = next(flags.secrets(text), "")
    return f"holds a secret ({found})" if found else ""


def _distinct(sources: Sequence[Source], dropped: Counter[str]) -> list[Source]:
    gone = {later for _, later in near.near_pairs([source.text for source in sources], numbers=False)}
    dropped["file: nearly the same as another file"] += len(gone)
    return [source for place, source in enumerate(sources) if place not in gone]


def _rows(repository: Repository, sources: Sequence[Source], wanted: CodeWanted,
          dropped: Counter[str]) -> Iterator[Row]:
    at = next((when for _, when, _, _ in repository.commits(1)), "")
    for source in sources:
        yield from code.rows_of(source, wanted.forms, at)
    if "commit" not in wanted.forms:
        return
    kept = {source.path for source in sources}
    for change in _changes(repository, wanted.commits):
        made = code.change_row(change) if change.path in kept else "of a file that was left out"
        if isinstance(made, str):
            dropped[f"commit: {made}"] += 1
        else:
            yield made


def _changes(repository: Repository, most: int) -> Iterator[Change]:
    """The commits that changed one file."""
    for commit, when, message, diff in repository.commits(most):
        files = diff.split("\ndiff --git ")[1:]
        if len(files) != 1:
            continue
        lines = files[0].splitlines()
        path = next((line[6:].rstrip("\t") for line in lines if line.startswith("+++ b/")), "")
        first = next((place for place, line in enumerate(lines) if line.startswith("@@ ")), None)
        if path and first is not None:
            yield code.Change(repository.name, commit, when, message, path, tuple(lines[first:]))


def _decoded(raw: bytes) -> str | None:
    try:
        return None if b"\0" in raw[:8000] else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
