"""Loading a command without looking for rubbish meanwhile.

What modules define stays, so the collector's passes over it while they load find nothing; they are a tenth of
the CPU of a short command. Once the command is loaded it collects as ever, and leaves what was loaded alone.
"""

from __future__ import annotations

import gc


def begin() -> None:
    """Stop collecting."""
    gc.disable()


def end() -> None:
    """Collect again, from what is made from here on; nothing where `begin` was not called."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
