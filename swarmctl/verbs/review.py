"""`review`: the operators' digest, written down, and a human's word on what is proposed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import UsageError
from swarmctl.ledger import rounds
from swarmctl.ledger.moment import moment
from swarmctl.monitor import digest as digests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from swarmctl.paths import Paths


def review(paths: Paths, since: str, now: float, topics: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The digest since then, as plain data. Raises UsageError, LedgerError."""
    return digests.digest(paths, moment(since, now), now, topics)


def written(paths: Paths, found: Mapping[str, Any]) -> Path:
    """Write the digest down as data/reviews/DATE.md."""
    file = paths.data / "reviews" / f"{found['until'][:10]}.md"
    write_whole(file, digests.markdown(found))
    return file


def show(paths: Paths, round_id: str) -> dict[str, Any]:
    """One round, by its id. Raises UsageError."""
    every = rounds.read(paths)
    found = [one for one in every if one.id == round_id]
    if len(found) != 1:
        known = ", ".join(one.id for one in every[-10:]) or "none"
        raise UsageError(f"{round_id}: no such round", hint=f"rounds: {known}")
    return digests.summary(found[0])
