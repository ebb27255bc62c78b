"""How much of anything a client may have: bytes, seconds, turns at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """`body` and `head_bytes` are in bytes, `head`, `upload`, `turn`, `stall`, `idle` and `drain` in seconds:
    for a request's headers, its body, its answer, a client that does not read on, a connection without a
    request, and what is under way when the gateway stops. `at_once` turns are answered at a time over
    `connections`."""

    body: int = 32 << 20
    head: float = 10.0
    head_bytes: int = 64 << 10
    upload: float = 60.0
    turn: float = 600.0
    stall: float = 60.0
    idle: float = 75.0
    drain: float = 30.0
    at_once: int = 128
    connections: int = 1024


DEFAULT_BOUNDS = Bounds()
