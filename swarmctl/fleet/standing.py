"""Hosts that are set aside: cordoned, draining or upgrading. None gets new questions; servers stay.

One small file a host in state, written by rename. Unlike a mark (dispatch.marks), which is a wish to wait and
runs out, cordoned and draining are a person's word: it holds until `uncordon`, and is never ignored.
Upgrading holds as long as the process that upgrades: it keeps a flock on the file, which no kill outlives.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled, SwarmError
from swarmctl.typed import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from swarmctl.paths import Paths

State = Literal["cordoned", "draining", "upgrading"]


@dataclass(frozen=True, slots=True)
class Aside:
    """A host that takes no new questions, since when (seconds since 1970)."""

    host: str
    state: State
    since: float

    @property
    def why(self) -> str:
        """As a person reads it, with the way back."""
        if self.state == "upgrading":
            return f"it is being upgraded, since {self.since_words}, and comes back by itself"
        return f"{self.state} since {self.since_words}; `swarmctl uncordon {self.host}` takes it back"

    @property
    def since_words(self) -> str:
        """Since when, in this machine's time."""
        return datetime.fromtimestamp(self.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def set_aside(paths: Paths, host: str, state: State, now: float) -> Aside:
    """Take a host out for new questions. One that is out already keeps its time."""
    before = read_aside(paths, host)
    aside = Aside(host, state, before.since if before else now)
    file = _file(paths, host)
    try:
        write_whole(file, json.dumps(asdict(aside)))
    except OSError as exc:
        raise _unwritable(file, host, exc) from exc
    return aside


def take_back(paths: Paths, host: str) -> bool:
    """Let a host have questions again. False where it was not set aside."""
    file = _file(paths, host)
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise SwarmError(f"it stays set aside: {file}: {exc.strerror}", host=host,
                         hint=f"is {file.parent} yours?") from exc
    return True


@contextmanager
def upgrading(paths: Paths, host: str, now: float) -> Iterator[None]:
    """Take a host out for new questions while the block runs, and no longer than this process lives. One that
    a person set aside stays so."""
    if read_aside(paths, host) is not None:
        yield
        return
    file = _file(paths, host)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = part.open("w", encoding="utf-8")
    except OSError as exc:
        raise _unwritable(file, host, exc) from exc
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps(asdict(Aside(host, "upgrading", now))))
        held.flush()
        part.replace(file)
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                if os.fstat(held.fileno()).st_ino == file.stat().st_ino:  # else a person cordoned it
                    file.unlink()


def read_aside(paths: Paths, host: str) -> Aside | None:
    """How a host was set aside, or None.

    A file that is there and cannot be read means cordoned: a person's word is not lost to a torn disk.
    """
    file = _file(paths, host)
    try:
        with file.open(encoding="utf-8") as opened:
            raw = parse(opened.read())
            if raw["state"] == "upgrading" and not _held(opened.fileno()):
                return None
        state: State = raw["state"] if raw["state"] in ("draining", "upgrading") else "cordoned"
        return Aside(host, state, min(float(raw["since"]), time.time()))
    except FileNotFoundError:
        return None
    except (OSError, Garbled, ValueError, TypeError, KeyError):
        return Aside(host, "cordoned", 0.0)


def _held(descriptor: int) -> bool:
    """Whether the process that wrote the file still lives."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _unwritable(file: Path, host: str, exc: OSError) -> SwarmError:
    return SwarmError(f"it could not be set aside: {file}: {exc.strerror or exc}", host=host,
                      hint=f"is the disk full, or {file.parent} not yours?")


def _file(paths: Paths, host: str) -> Path:
    return paths.state / "standing" / f"{host}.json"
