"""What this terminal last asked, so that `rate` and `ask -c` need no id. One small file a terminal, in state.

A terminal is its tty and its session's id: two windows never share one, and a recycled tty is not the old
one.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled, LedgerError
from swarmctl.typed import build, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swarmctl.paths import Paths

#: A note older than this is of a terminal that nobody comes back to.
KEPT_SECONDS = 90 * 86_400.0


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
    """Note the last exchange of a terminal.

    The exchange itself is in the journal. Where this note cannot be written the old one goes, so that `rate`
    asks for an id instead of rating another answer than the last. Raises LedgerError where it stays: no
    later command may take it for the last.
    """
    path = _file(paths, terminal)
    try:
        if not path.exists():
            _forget_closed(path.parent, time.time() - KEPT_SECONDS)
        write_whole(path, json.dumps(asdict(last)))
    except OSError as exc:
        with suppress(OSError):
            path.unlink()
        if os.path.lexists(path):
            raise _stays(path, last, exc) from exc


def forget(paths: Paths, terminal: str) -> None:
    """Its last answer is none that `rate` could rate: it was not recorded."""
    with suppress(OSError):
        _file(paths, terminal).unlink()


def recall(paths: Paths, terminal: str) -> Last | None:
    """What `remember` noted for this terminal, or None."""
    try:
        return build(Last, load(_file(paths, terminal)))
    except (OSError, Garbled):
        return None


def _stays(path: Path, last: Last, exc: OSError) -> LedgerError:
    return LedgerError(
        f"cannot note this terminal's last answer in {path}: {exc.strerror or exc}",
        hint=f"the answer is recorded: `swarmctl rate up {last.exchange}` rates it; without one, `rate` and\n"
             f"`ask -c` would mean the one before. {path.parent} must be a folder that you may write")


def _forget_closed(folder: Path, before: float) -> None:
    """Remove the notes of terminals that have long been closed; done when a new terminal first asks."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.stat().st_mtime < before:
                path.unlink()


def _file(paths: Paths, terminal: str) -> Path:
    return paths.state / "terminals" / f"{terminal}.json"


def _tty() -> str:
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd).removeprefix("/dev/").replace("/", "-")
        except OSError:
            continue
    return "notty"
