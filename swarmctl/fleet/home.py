"""swarmctl's own folders on this machine, as they are found: a small file is written to each, and removed."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.diagnosis.home import Folder

if TYPE_CHECKING:
    from swarmctl.paths import Paths

#: A page, as a smaller file may find room where nothing else does.
TRIED = bytes(4096)


def look_at_home(paths: Paths) -> tuple[Folder, ...]:
    """Each of our folders, or where it would be made."""
    return tuple(_look(name, _there(getattr(paths, name))) for name in ("data", "state", "cache", "runtime"))


def _look(name: str, folder: Path) -> Folder:
    error, said = _tried(folder)
    try:
        seen = os.statvfs(folder)
        disk, free = folder.stat().st_dev, seen.f_bavail * seen.f_frsize
    except OSError:
        disk, free = 0, 0
    return Folder(name, str(folder), disk, free, error, said)


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next((one for one in (folder, *folder.parents) if one.is_dir()), Path("/"))


def _tried(folder: Path) -> tuple[int, str]:
    """The errno of writing there, and its words; 0 where it went well."""
    file = folder / f".swarmctl-{secrets.token_hex(6)}"
    try:
        try:
            file.write_bytes(TRIED)
        finally:
            with suppress(OSError):
                file.unlink()
    except OSError as exc:
        return exc.errno or -1, exc.strerror or str(exc)
    return 0, ""
