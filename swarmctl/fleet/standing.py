"""Hosts that an admin set aside: cordoned or draining. Neither gets new questions; servers stay.

One small file a host in state, written by rename. Unlike a mark (dispatch.marks), which is a wish to wait and
runs out, this is a person's word: it holds until `uncordon`, and is never ignored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from swarmctl.atomic import write_whole
from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths

State = Literal["cordoned", "draining"]


@dataclass(frozen=True, slots=True)
class Aside:
    """A host that takes no new questions, since when (seconds since 1970)."""

    host: str
    state: State
    since: float

    @property
    def why(self) -> str:
        """As a person reads it, with the way back."""
        return f"{self.state} since {self.since_words}; `swarmctl uncordon {self.host}` takes it back"

    @property
    def since_words(self) -> str:
        """Since when, in this machine's time."""
        return datetime.fromtimestamp(self.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def set_aside(paths: Paths, host: str, state: State, now: float) -> Aside:
    """Take a host out for new questions. One that is out already keeps its time."""
    before = read_aside(paths, host)
    aside = Aside(host, state, before.since if before else now)
    try:
        write_whole(_file(paths, host), json.dumps(asdict(aside)))
    except OSError as exc:
        raise SwarmError(f"it could not be set aside: {exc}", host=host) from exc
    return aside


def take_back(paths: Paths, host: str) -> bool:
    """Let a host have questions again. False where it was not set aside."""
    try:
        _file(paths, host).unlink()
    except FileNotFoundError:
        return False
    return True


def read_aside(paths: Paths, host: str) -> Aside | None:
    """How a host was set aside, or None.

    A file that is there and cannot be read means cordoned: a person's word is not lost to a torn disk.
    """
    file = _file(paths, host)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        state: State = "draining" if raw["state"] == "draining" else "cordoned"
        return Aside(host, state, float(raw["since"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return Aside(host, "cordoned", 0.0)


def _file(paths: Paths, host: str) -> Path:
    return paths.state / "standing" / f"{host}.json"
