"""The seam: what a `Remote` is, and run, put and get built on one way to execute a command.

Whoever can run argv with bytes going in and coming out is a remote: over SSH (remote.py) or here
(local.py). Output is bounded, lines are handed on as they come, and stdin is fed from a thread so that no
pipe can block another.
"""

from __future__ import annotations

import re
import shlex
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from swarmctl.errors import CommandFailed, CommandTimeout
from swarmctl.fleet import transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Says its process id on stderr and becomes the command. Closing a channel leaves a silent command running
#: under OpenSSH, and its sshd takes no signals (RFC 4254, 6.9) for root or without privilege separation.
ANNOUNCE = 'echo "swarmctl-pid $$" >&2; exec "$@"'
END = ('kill -TERM -"$1" 2>/dev/null || kill -TERM "$1"; sleep 1; '
       'kill -KILL -"$1" 2>/dev/null || kill -KILL "$1"')
_ANNOUNCED = re.compile(r"^swarmctl-pid (\d+)\r?\n", re.MULTILINE)
OUTPUT_LIMIT = 32 << 20  # bytes kept of each stream


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. Output is decoded as UTF-8 with replacement; `seconds` is wall-clock.

    `exit_status` is negative where a signal ended the command.
    """

    argv: tuple[str, ...]
    exit_status: int
    stdout: str
    stderr: str
    seconds: float


class Remote(Protocol):
    """A host where commands can be run. Methods raise `RemoteError`s with its name, never foreign errors."""

    host: str

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, check: bool = True,
            on_line: Callable[[str], None] | None = None) -> Completed:
        """Run a command. `on_line` gets each line of stdout as it comes.

        Raises CommandFailed on a non-zero status where `check`, CommandTimeout past `timeout` seconds (the
        remote process is told to end), ConnectionLost, HostUnreachable, HostKeyUnknown, HostKeyChanged,
        AuthenticationFailed.
        """
        ...

    def put(self, local: Path, remote: str, *, sha256: str, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """Copy a file there: resumes a broken `remote`.part, verifies `sha256` on the host, then renames.

        `progress` gets the total bytes there so far, first the offset it resumes from. Raises
        TransferFailed or ConnectionLost (what arrived is kept, unless its hash is wrong) and DiskFull
        (nothing is kept).
        """
        ...

    def get(self, remote: str, local: Path, *, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """Copy a file here through a temporary name."""
        ...

    def close(self) -> None:
        """Drop the connection. The object may be used again and then reconnects."""
        ...


class ShellRemote:
    """run, put and get on top of `execute`, the same for every remote."""

    host: str

    def execute(self, argv: Sequence[str], *, timeout: float, source: Iterator[bytes] | None = None,
                sink: Callable[[bytes], None] | None = None) -> Completed:
        """Run to the end, whatever its status. `source` feeds stdin; `sink` sees each piece of stdout."""
        raise NotImplementedError

    def close(self) -> None:
        """See Remote.close."""
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, check: bool = True,
            on_line: Callable[[str], None] | None = None) -> Completed:
        """See Remote.run."""
        lines = Lines(on_line) if on_line else None
        done = self.execute(argv, timeout=timeout, source=None if stdin is None else iter((stdin,)),
                            sink=lines.add if lines else None)
        if lines:
            lines.end()
        return checked(self.host, done) if check else done

    def put(self, local: Path, remote: str, *, sha256: str, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """See Remote.put."""
        transfer.put(self, local, remote, sha256=sha256, timeout=timeout, progress=progress)

    def get(self, remote: str, local: Path, *, timeout: float,
            progress: Callable[[int], None] | None = None) -> None:
        """See Remote.get."""
        transfer.get(self, remote, local, timeout=timeout, progress=progress)


class Lines:
    """Cuts bytes into lines and hands each on."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def end(self) -> None:
        """Hand on a last line without newline."""
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))


class Output:
    """What one stream said, up to OUTPUT_LIMIT; with a `sink`, that is told first."""

    def __init__(self, sink: Callable[[bytes], None] | None = None) -> None:
        self._sink = sink
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._sink and data:
            self._sink(data)
        self._kept += data[:max(0, OUTPUT_LIMIT - len(self._kept))]

    @property
    def text(self) -> str:
        """All that was kept."""
        return self._kept.decode(errors="replace")


class Feeder:
    """Feeds stdin from a thread. A reader that stops reading is its own affair; a source that fails is
    ours."""

    def __init__(self, source: Iterator[bytes], write: Callable[[bytes], object],
                 close: Callable[[], object]) -> None:
        self._source = source
        self._write = write
        self._close = close
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._feed, name="swarmctl-stdin", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> None:
        """Wait for the thread and raise what the source raised."""
        self._thread.join(timeout)
        if self._failure:
            raise self._failure

    def _feed(self) -> None:
        try:
            for data in self._source:
                if not self._offer(data):
                    return
        except Exception as exc:  # noqa: BLE001  carried over to the waiting thread by finish()
            self._failure = exc
        finally:
            self._offer(b"", last=True)

    def _offer(self, data: bytes, *, last: bool = False) -> bool:
        try:
            if last:
                self._close()
            else:
                self._write(data)
        except (OSError, EOFError, ValueError):
            return False
        return True


def announcing(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that says its process id and becomes `argv`."""
    return ("sh", "-c", ANNOUNCE, "sh", *argv)


def ending(stderr: str) -> tuple[str, ...] | None:
    """The command that ends the one which announced itself there, with its process group."""
    announced = _ANNOUNCED.search(stderr)
    return ("sh", "-c", END, "sh", announced[1]) if announced else None


def without_announcement(stderr: str) -> str:
    """What the command itself said."""
    return _ANNOUNCED.sub("", stderr, count=1)


def timed_out(host: str, argv: Sequence[str], timeout: float) -> CommandTimeout:
    """A command ran past its limit."""
    return CommandTimeout(f"`{shorten(argv)}` did not end within {timeout:g} s and was told to stop",
                          host=host)


def shorten(argv: Sequence[str], width: int = 120) -> str:
    """A command as a person reads it, on one line."""
    line = " ".join(shlex.join(argv).split())
    return line if len(line) <= width else f"{line[:width - 1]}…"


def checked(host: str, done: Completed) -> Completed:
    """The same, if it ended well; else raises CommandFailed."""
    if done.exit_status == 0:
        return done
    said = (done.stderr.strip() or done.stdout.strip())[-500:] or "it said nothing"
    status = f"status {done.exit_status}" if done.exit_status >= 0 else "a signal"
    raise CommandFailed(f"`{shorten(done.argv)}` ended with {status}: {said}", host=host,
                        exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)
