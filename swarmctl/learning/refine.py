"""From rows as they were made to a dataset: flagged ones out, duplicates out, so many a prompt, split for
ever. Pure.

The order matters: what is left out for a secret must not stand for its duplicate, and a training row that is
near a held-out prompt goes, or the held-out share would measure memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.learning import flags, near
from swarmctl.learning.labels import normal
from swarmctl.learning.pairs import CODE, by_prompt
from swarmctl.learning.split import group_of, held_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.learning.pairs import Row

DEFAULT_CAP = 4
#: Of one prompt no more than so many times the cap are compared with each other.
COMPARED = 25


@dataclass(frozen=True, slots=True)
class Refined:
    """The two shares, what was left out and why, and how many rows had which flag."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]
    dropped: Counter[str]
    flagged: Counter[str]


def refine(rows: Sequence[Row], *, cap: int = DEFAULT_CAP, keep_flagged: bool = False) -> Refined:
    """Everything that is done to rows before they are written. Each row comes back with its group."""
    dropped: Counter[str] = Counter()
    marked = [(row, _flags(row)) for row in rows]
    flagged = Counter(flag for _, found in marked for flag in found)
    clean = [row for row, found in marked if keep_flagged or not found]
    if len(clean) < len(rows):
        dropped["flagged: a secret or personal data"] = len(rows) - len(clean)
    grouped = [row if row.group else replace(row, group=group_of(row.prompt)) for row in clean]
    few = by_prompt(grouped, cap * COMPARED)
    capped = by_prompt(_distinct(few.rows, dropped), cap)
    if over := few.dropped.total() + capped.dropped.total():
        what = "file" if rows[0].source in CODE else "prompt"
        dropped[f"more than {cap} of one {what}"] = over
    train = [row for row in capped.rows if not held_out(row.group)]
    heldout = tuple(row for row in capped.rows if held_out(row.group))
    leaking = near.near_any([asked(row) for row in train], sorted({asked(row) for row in heldout}))
    if leaking:
        dropped["nearly a held-out prompt"] = len(leaking)
    return Refined(tuple(row for place, row in enumerate(train) if place not in leaking), heldout,
                   dropped, flagged)


def asked(row: Row) -> str:
    """The last user message: what the split goes by, and duplicates of prompts."""
    return next((turn.content for turn in reversed(row.prompt) if turn.role == "user"), "")


def _flags(row: Row) -> tuple[str, ...]:
    text = "\n".join((*(turn.content for turn in row.prompt), *row.texts))
    return flags.flags(text)


def _distinct(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Rows without exact and near duplicates; the newest stays, and it keeps its place."""
    newest = sorted(range(len(rows)), key=lambda place: (rows[place].at, place), reverse=True)
    seen: set[tuple[str, ...]] = set()
    kept = []
    for place in newest:
        row = rows[place]
        key = (_whole_prompt(row), row.tools, str(row.label), *map(normal, row.texts))
        if key in seen:
            dropped["the same as another row"] += 1
        else:
            seen.add(key)
            kept.append(place)
    gone = near.duplicates([(asked(row), _before(row), f"{row.label} {row.tools}", *row.texts)
                            for row in (rows[place] for place in kept)])
    if gone:
        dropped["nearly the same as another row"] += len(gone)
    return [rows[place] for place in sorted(kept[each] for each in range(len(kept)) if each not in gone)]


def _whole_prompt(row: Row) -> str:
    return "\n".join(f"{turn.role}: {normal(turn.content)}" for turn in row.prompt)


def _before(row: Row) -> str:
    """All turns but the last user message."""
    last = max((place for place, turn in enumerate(row.prompt) if turn.role == "user"), default=-1)
    return "\n".join(f"{turn.role}: {turn.content}" for place, turn in enumerate(row.prompt) if place != last)
