"""Who acts, as records name them."""

from __future__ import annotations

import getpass
import socket


def who() -> str:
    """The person and machine: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process of a user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
