"""How many second requests may be sent (hedge): all processes of this machine share one budget, which keeps
them to a twentieth of the questions, so that a bad hour of one host does not become twice the load on all
others.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmctl.paths import Paths

#: What a question pays in, and how much may be saved up; a second request costs 1.
SHARE, SAVED = 0.05, 2.0
#: Bytes of the balance: as many are read as are written, so that garbage behind them means nothing.
WIDTH = 10


def pay_in(paths: Paths) -> None:
    """A question that might be hedged was asked."""
    _change(paths, SHARE)


def pay(paths: Paths) -> bool:
    """Take a second request out of the budget; False where it is spent."""
    return _change(paths, -1.0)


def _change(paths: Paths, by: float) -> bool:
    """Change the balance, if it stays above zero. One that somebody else is changing just now, or that cannot
    be kept, allows nothing."""
    file = f"{paths.state}/hedges"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        after = min(SAVED, _balance(os.pread(descriptor, WIDTH, 0)) + by)
        if after < 0:
            return False
        os.pwrite(descriptor, f"{after:<{WIDTH}.4f}".encode(), 0)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _balance(said: bytes) -> float:
    try:
        return max(0.0, float(said))
    except ValueError:
        return 1.0
