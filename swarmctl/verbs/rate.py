"""`rate`: a person's word on one answer; what is recorded of it is in dispatch.rating."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.dispatch.rating import NOTES, VALUES, Opinion, Rated, rate, undo
from swarmctl.errors import SwarmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOTES", "VALUES", "Opinion", "Rated", "edit", "editor", "rate", "undo"]

EDITORS = ("sensible-editor", "nano", "vim", "vi")


def editor(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The person's editor as argv: $VISUAL, $EDITOR, or the first of EDITORS there is. Raises UsageError."""
    chosen = environ.get("VISUAL") or environ.get("EDITOR")
    if not chosen:
        chosen = next((name for name in EDITORS if shutil.which(name, path=environ.get("PATH"))), None)
    try:
        argv = tuple(shlex.split(chosen or ""))
    except ValueError as exc:
        raise UsageError(f"$VISUAL or $EDITOR is not a command: {chosen!r}") from exc
    if not argv:
        raise UsageError("there is no editor to correct the answer in",
                         hint="set $EDITOR, or give the text: --correction TEXT, or - to read stdin")
    return argv


def edit(argv: tuple[str, ...], text: str) -> str:
    """What a person makes of a text in their editor. Without a timeout: people think.

    Raises SwarmError where the editor fails.
    """
    with tempfile.TemporaryDirectory(prefix="swarmctl-") as folder:
        path = Path(folder) / "answer.md"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            done = subprocess.run((*argv, str(path)), check=False)
        except OSError as exc:
            raise SwarmError(f"the editor {argv[0]!r} did not start: {exc.strerror}",
                             hint="set $VISUAL or $EDITOR; nothing was recorded") from exc
        if done.returncode:
            raise SwarmError(f"the editor {argv[0]!r} ended with status {done.returncode}",
                             hint="nothing was recorded")
        changed = path.read_text(encoding="utf-8", errors="surrogateescape")
    return changed if text.endswith("\n") else changed.removesuffix("\n")
