"""A person's yes before something is removed for good."""

from __future__ import annotations

import sys

import typer

from swarmctl.errors import SwarmError, UsageError


def confirm_removal(what: str) -> None:
    """Ask whether to remove `what`. Raises UsageError where nobody is there to ask, SwarmError on a no."""
    if not sys.stdin.isatty():
        raise UsageError(f"this would remove {what}, and there is nobody to ask",
                         hint="--yes says so; `prune --dry-run` only looks")
    if not typer.confirm(f"remove {what}?", err=True):
        raise SwarmError("nothing was removed")
