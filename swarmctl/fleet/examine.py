"""What `doctor` asks of a host beyond the survey: one round trip, with its clock set against ours."""

from __future__ import annotations

import time
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from swarmctl.diagnosis import parse_examination
from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.diagnosis import Examined
    from swarmctl.fleet.remote import Remote

EXAMINE_TIMEOUT = 60.0


def examine(remote: Remote, data_dir: str,
            clock: Callable[[], float] = time.time) -> tuple[Examined, float, float]:
    """(what was found, the host's clock less ours in seconds, give or take). Raises RemoteErrors.

    The clock is read on the host between our question and its line's arrival; the middle of the two is the
    best guess, and half their distance the error (as in NTP, RFC 5905).
    """
    arrived: list[float] = []

    def note(line: str) -> None:
        if line.startswith("clock ") and not arrived:
            arrived.append(clock())

    sent = clock()
    done = remote.run(("sh", "-s", "--", data_dir), timeout=EXAMINE_TIMEOUT, stdin=_script(), on_line=note)
    try:
        found = parse_examination(done.stdout)
    except SwarmError as exc:
        raise SwarmError(exc.message, host=remote.host, hint=exc.hint) from exc
    back = arrived[0] if arrived else clock()
    return found, found.clock - (sent + back) / 2, (back - sent) / 2 + 0.5


@cache
def _script() -> bytes:
    return (files("swarmctl.fleet") / "examine.sh").read_bytes()
