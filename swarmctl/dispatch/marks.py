"""Marks on hosts that did not answer, so that a host that is off costs its connect timeout once and not per
ask.

One small file a host in state, written by rename. A mark is a wish to wait, never a verdict: it runs out by
itself, `status`, `up` and a look beside the questions (returning) remove it when they reach the host, and it
is ignored when no host is left without one.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled
from swarmctl.fleet.asleep import read_asleep
from swarmctl.typed import build, load

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths

FIRST_PAUSE = 30.0
LONGEST_PAUSE = 600.0
#: A host that is only there at times is looked for often: its owner has just switched it on.
INTERMITTENT_PAUSE = 60.0
#: One that we put to sleep comes back by `wake`, which says so; only a person at its keyboard is unannounced.
ASLEEP_PAUSE = 600.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A host that did not answer. Times are seconds since 1970; `failures` counts them in a row.

    With `verify` (an intermittent host) the end of the pause is not enough: it must generate a token first.
    """

    host: str
    why: str
    since: float
    until: float
    failures: int
    verify: bool = False


def mark_down(paths: Paths, host: str, why: str, now: float, *, verify: bool = False) -> Mark:
    """Leave a host alone for a while: 30 s, doubling with each failure in a row up to 10 minutes; always 60 s
    with `verify`, 10 minutes where it was put to sleep. On a full disk it is not left alone: a question goes
    on to the next host all the same."""
    before = read_mark(paths, host)
    failures = before.failures + 1 if before else 1
    pause = INTERMITTENT_PAUSE if verify else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10))
    if asleep := read_asleep(paths, host):
        why, pause, verify = asleep.why, ASLEEP_PAUSE, True
    mark = Mark(host, why, before.since if before else now, now + pause, failures, verify)
    with suppress(OSError):
        write_whole(_file(paths, host), json.dumps(asdict(mark)))
    return mark


def clear_mark(paths: Paths, host: str) -> None:
    """The host answered."""
    with suppress(OSError):
        _file(paths, host).unlink()


def read_mark(paths: Paths, host: str) -> Mark | None:
    """The host's mark, also one that has run out; None where there is none that can be read."""
    try:
        return build(Mark, load(_file(paths, host)))
    except (OSError, Garbled):
        return None


def _file(paths: Paths, host: str) -> Path:
    return paths.state / "down" / f"{host}.json"
