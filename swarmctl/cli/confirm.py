"""A person's yes, above all before something is removed for good."""

from __future__ import annotations

import sys

import typer

from swarmctl.errors import SwarmError, UsageError


def agreed(question: str, *, default: bool = False) -> bool:
    """What a person says to a question. The end of input is a no, and Ctrl-C ends the command as anywhere."""
    try:
        return typer.confirm(question, default=default, err=True)
    except typer.Abort as exc:  # one word for both
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exc
        sys.stderr.write("\n")
        return False


def confirm_removal(what: str, *, can_look: bool = False) -> None:
    """Ask whether to remove `what`. `can_look`: the command knows --dry-run.

    Raises UsageError where nobody is there to ask, SwarmError on a no.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"this would remove {what}, and there is nobody to ask",
                         hint="--yes says so; --dry-run only looks" if can_look else "--yes says so")
    if not agreed(f"remove {what}?"):
        raise SwarmError("nothing was removed")
