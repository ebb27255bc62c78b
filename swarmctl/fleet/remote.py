"""One host over SSH: run a command, move files. The only module that knows fabric.

`Remote` is the seam: FabricRemote for hosts over SSH, LocalRemote for `ssh: local`, and a function-fed fake in tests.
Commands are argv tuples joined with shlex; success is an exit status, never a text match. Foreign exceptions become
`swarmctl.errors` here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. Output is decoded as UTF-8 with replacement; `seconds` is wall-clock."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: str
    stderr: str
    seconds: float


class Remote(Protocol):
    """A host where commands can be run. Methods raise `RemoteError`s with the host's name, never foreign errors."""

    host: str

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, check: bool = True,
            on_line: Callable[[str], None] | None = None) -> Completed:
        """Run a command. `on_line` gets each line of stdout as it comes.

        Raises CommandFailed on a non-zero status where `check`, CommandTimeout past `timeout` seconds (the remote
        process is told to end), ConnectionLost, HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationFailed.
        """
        ...

    def put(self, local: Path, remote: str, *, sha256: str, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """Copy a file there: resumes a broken `remote`.part, verifies `sha256` on the host, then renames.

        `progress` gets the total bytes there so far. Raises TransferFailed (what arrived is kept) and DiskFull.
        """
        ...

    def get(self, remote: str, local: Path, *, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """Copy a file here through a temporary name."""
        ...

    def close(self) -> None:
        """Drop the connection. The object may be used again and then reconnects."""
        ...
