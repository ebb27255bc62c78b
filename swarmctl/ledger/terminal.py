"""What this terminal last asked, so that `rate` and `ask -c` need no id. One small file a terminal, in state.

A terminal is its tty and its session's id: two windows never share one, and a recycled tty is not the old
one.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Last:
    """The last exchange of a terminal and the conversation it belongs to."""

    exchange: str
    conversation: str


def terminal_id(environ: Mapping[str, str]) -> str:
    """Name this terminal. SWARMCTL_TERMINAL overrides it (for scripts that keep several conversations)."""
    given = environ.get("SWARMCTL_TERMINAL")
    if given:
        return re.sub(r"[^A-Za-z0-9._-]", "-", given)[:64]
    return f"{_tty()}-{os.getsid(0)}"


def remember(paths: Paths, terminal: str, last: Last) -> None:
    """Note the last exchange of a terminal."""
    write_whole(_file(paths, terminal), json.dumps(asdict(last)))


def recall(paths: Paths, terminal: str) -> Last | None:
    """What `remember` noted for this terminal, or None."""
    try:
        return Last(**json.loads(_file(paths, terminal).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _file(paths: Paths, terminal: str) -> Path:
    return paths.state / "terminals" / f"{terminal}.json"


def _tty() -> str:
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd).removeprefix("/dev/").replace("/", "-")
        except OSError:
            continue
    return "notty"
