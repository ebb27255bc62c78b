"""Hosts that were put to sleep: since when, and that they are back.

One small file a host in state, written by rename. It is kept apart from being set aside (fleet.standing),
which is a person's word, for a cordoned host may sleep too: sleep holds until the host has been seen awake.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled
from swarmctl.typed import build, load

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Asleep:
    """A host that was put to sleep, when (seconds since 1970), and by which command."""

    host: str
    since: float
    command: str = ""

    @property
    def why(self) -> str:
        """As a person reads it, with the way back."""
        since = datetime.fromtimestamp(self.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        return f"asleep since {since}; `swarmctl wake {self.host}` wakes it"


def fell_asleep(paths: Paths, host: str, command: str, now: float) -> Asleep:
    """Remember that a host was put to sleep."""
    asleep = Asleep(host, now, command)
    write_whole(_sleep(paths, host), json.dumps(asdict(asleep)))
    return asleep


def read_asleep(paths: Paths, host: str) -> Asleep | None:
    """That a host was put to sleep and was not seen awake since; None else."""
    try:
        return build(Asleep, load(_sleep(paths, host)))
    except (OSError, Garbled):
        return None


def seen_awake(paths: Paths, host: str, now: float) -> bool:
    """A host answers: where it slept, it is awake since now. Whether it slept."""
    if not _sleep(paths, host).exists():
        return False
    write_whole(_awake(paths, host), json.dumps({"since": now}))
    _sleep(paths, host).unlink(missing_ok=True)
    return True


def awake_since(paths: Paths, host: str) -> float:
    """When it was last seen to be back from sleep; 0 where it never was."""
    try:
        return float(json.loads(_awake(paths, host).read_text(encoding="utf-8"))["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _sleep(paths: Paths, host: str) -> Path:
    return paths.state / "asleep" / f"{host}.json"


def _awake(paths: Paths, host: str) -> Path:
    return paths.state / "asleep" / f"{host}.awake"
