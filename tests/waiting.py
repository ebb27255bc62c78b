"""Waiting for what a test expects: for as long as a slow and busy machine may take, and no longer than it
needs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Found = TypeVar("Found")


def until(condition: Callable[[], Found], seconds: float = 60.0, every: float = 0.05) -> Found:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {found!r}"
        time.sleep(every)
    return found
