"""llama.cpp's converters on this machine: taken once out of the pinned source, kept in the store."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.jobs.gguf import CONVERTER, PARTS
from swarmctl.runtimes.llamacpp_build import LLAMACPP, SOURCE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.fleet.store import Store


def converter(store: Store, note: Callable[[str], None]) -> Path:
    """The folder of convert_hf_to_gguf.py and what it imports. Raises SwarmError where there is no source."""
    kept = store.root / "sources" / f"converters-{LLAMACPP}"
    if (kept / CONVERTER).is_file():
        return kept
    sdist = store.sdist(note)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".part-") as scratch:
        part = Path(scratch) / "new"
        _take(sdist, part)
        try:
            part.rename(kept)
        except OSError as exc:
            if not (kept / CONVERTER).is_file():
                raise SwarmError(f"{kept} cannot be made: {exc.strerror}") from exc
    return kept


def converter_tar(store: Store, note: Callable[[str], None]) -> Path:
    """The same as hosts get it: a tar whose bytes follow from the source alone."""
    kept = store.root / "sources" / f"converters-{LLAMACPP}.tar.gz"
    if not kept.exists():
        folder = converter(store, note)
        part = kept.with_name(f".{kept.name}.{os.getpid()}.part")
        with tarfile.open(part, "w:gz", compresslevel=6) as tar:
            tar.add(folder, ".", filter=_plain)
        part.replace(kept)
    return kept


def _take(sdist: Path, to: Path) -> None:
    wanted = tuple(f"{SOURCE_FOLDER}/{part}" for part in PARTS)
    try:
        with tarfile.open(sdist) as tar:
            for member in tar:
                if member.isreg() and member.name.startswith(wanted) and ".." not in member.name:
                    place = to / member.name.removeprefix(f"{SOURCE_FOLDER}/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    stream = tar.extractfile(member)
                    assert stream is not None
                    with place.open("wb") as file:
                        shutil.copyfileobj(stream, file)
    except (OSError, tarfile.TarError) as exc:
        raise SwarmError(f"{sdist} cannot be unpacked: {exc}") from exc
    if not (to / CONVERTER).is_file():
        raise SwarmError(f"{sdist} holds no {CONVERTER}", hint="remove it and try again")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return None if "__pycache__" in member.name else member
