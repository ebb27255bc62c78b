"""The breakers of this machine's questions, one small file a server in state/breakers, written by rename.

A mark (dispatch.marks) is of a host that cannot be reached; a breaker is of one model on a host that can: it
refuses, breaks off or is full. A closed breaker has no file. Of a half-open one the probe is a lock that one
question at a time holds, and that the kernel frees when its process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled, RequestRejected, ServerError, ServerFull, StreamBroken
from swarmctl.routing.breaker import CLOSED, Breaker, failed, spoke
from swarmctl.typed import load

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths
    from swarmctl.routing.breaker import Kind
    from swarmctl.routing.cost import Candidate


class Pass:
    """Leave to ask a server; of one that is half-open, the only one until it is closed."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor

    @property
    def probes(self) -> bool:
        """Whether everybody else is kept from it meanwhile."""
        return self._descriptor is not None

    def close(self) -> None:
        """Give it back; once more does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_breaker(paths: Paths, host: str, server: str) -> Breaker:
    """The breaker of a server; a closed one where nothing that can be read says otherwise."""
    try:
        raw = load(_file(paths, host, server))
        return Breaker(float(raw["failures"]), float(raw["until"]), float(raw["since"]), str(raw["why"]),
                       float(raw.get("last", 0.0)))
    except (OSError, Garbled, ValueError, TypeError, KeyError):
        return CLOSED


def leave(paths: Paths, candidate: Candidate, now: float) -> Pass | None:
    """Leave to ask a candidate now; None where its breaker is open, or half-open and tried by another."""
    if not os.path.exists(_file(paths, candidate.host, candidate.server)):  # noqa: PTH110  on every way
        return Pass()
    state = read_breaker(paths, candidate.host, candidate.server).state(now)
    if state != "half-open":
        return Pass() if state == "closed" else None
    probe = _probe(paths, candidate)
    if probe and read_breaker(paths, candidate.host, candidate.server).state(now) == "open":
        probe.close()  # the probe before ours failed a moment ago
        return None
    return probe


def note_failure(paths: Paths, candidate: Candidate, exc: ServerError, now: float, cost: float) -> None:
    """A server failed a question after `cost` seconds. A question that it refuses for what it is says nothing
    about the server."""
    if isinstance(exc, RequestRejected):
        return
    kind: Kind = "full" if isinstance(exc, ServerFull) else \
        "broken" if isinstance(exc, StreamBroken) else "refused"
    before = read_breaker(paths, candidate.host, candidate.server)
    after = failed(before, kind, exc.message, now, cost=cost, luck=random.random())  # noqa: S311
    if after != before:
        _write(paths, candidate, after)


def note_first_word(paths: Paths, candidate: Candidate) -> None:
    """A server that was half-open speaks: all may come back, long before its answer is whole."""
    before = read_breaker(paths, candidate.host, candidate.server)
    if before != CLOSED:
        _write(paths, candidate, spoke(before))


def note_success(paths: Paths, candidate: Candidate) -> None:
    """A server answered: its breaker is closed."""
    with suppress(OSError):
        os.unlink(_file(paths, candidate.host, candidate.server))  # noqa: PTH108  on every question's way


def _write(paths: Paths, candidate: Candidate, breaker: Breaker) -> None:
    with suppress(OSError):
        write_whole(_file(paths, candidate.host, candidate.server), json.dumps(asdict(breaker)))


def _probe(paths: Paths, candidate: Candidate) -> Pass | None:
    file = _file(paths, candidate.host, candidate.server).with_suffix(".probe")
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return Pass()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Pass(descriptor)


def _file(paths: Paths, host: str, server: str) -> Path:
    return paths.state / "breakers" / f"{host}@{server}.json"
