"""Questions that the terminals of this machine have under way at servers which do not tell how busy they are.

Ollama has no count of its requests. One small file each while an answer comes, named after the process that
waits for it; files of processes that are gone count for nothing. Other people's questions are not seen here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate

#: runtimes that count for themselves
TELLING = frozenset({"llamacpp"})


@contextlib.contextmanager
def in_flight(paths: Paths, candidate: Candidate) -> Iterator[None]:
    """Count a question as under way until the block ends. A full disk does not keep it from being asked."""
    if candidate.runtime in TELLING:
        yield
        return
    file = _folder(paths, candidate) / f"{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def count_in_flight(paths: Paths, candidate: Candidate) -> int:
    """How many questions are under way from this machine; 0 for a server that counts for itself."""
    try:
        files = list(_folder(paths, candidate).iterdir())
    except OSError:
        return 0
    return sum(_counts(file) for file in files)


def _counts(file: Path) -> bool:
    try:
        os.kill(int(file.name.partition("-")[0]), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        with contextlib.suppress(OSError):
            file.unlink()
        return False
    return True


def _folder(paths: Paths, candidate: Candidate) -> Path:
    return paths.state / "in-flight" / f"{candidate.host}@{candidate.server}"
