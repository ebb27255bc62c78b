"""Files to and from a host over plain commands: resumed, verified by SHA-256 on the host, put in place by
rename.

One exec channel and `cat` instead of SFTP: faster with paramiko (docs/hosts.md has the numbers), and it
works where no SFTP server is installed. The scripts are POSIX sh without newline, backslash or exclamation
mark, so that they pass through any login shell (fish, csh) as one quoted word.
"""

from __future__ import annotations

import errno
import time
from functools import partial
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from swarmctl.errors import CommandFailed, DiskFull, SwarmError, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.fleet.shell import Completed

CHUNK = 1 << 18
WHOLE = -1
SPARE = 1 << 20  # a filesystem filled to its last byte breaks more than this transfer

#: $1 is the destination: prints the size of what is there, of its .part (-1 where there is none), and free
#: bytes.
LOOK = ('d=$(dirname -- "$1") && mkdir -p -- "$d" && '
        'for f in "$1" "$1.part"; do if [ -f "$f" ]; then wc -c < "$f"; else echo -1; fi; done && '
        'df -Pk -- "$d" | tail -n 1 | tr -s " " | sed "s/%.*//; s/ [^ ]*$//; s/.* //"')
DROP = 'rm -f -- "$1.part"'
#: openssl first: it uses the processor's SHA instructions, which coreutils' sha256sum often does not (a
#: third of the CPU where this was measured)
_HASHED = ('{ if command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r; '
           'elif command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }')
#: Prints the SHA-256 of $1.
HASH = _HASHED + ' < "$1"'
#: Write, then print the SHA-256 of the whole: what was just written is still in memory, so a second look is
#: cheaper than the pipe of a `tee` into the hash (docs/models.md has the numbers).
APPEND = 'cat >> "$1.part" && ' + _HASHED + ' < "$1.part"'
START = 'cat > "$1.part" && ' + _HASHED + ' < "$1.part"'
#: The bytes must be on the disk before the name says that they are.
PLACE = '{ sync "$1.part" 2>/dev/null || sync; } && mv -f -- "$1.part" "$1"'


class Executes(Protocol):
    """What a transfer needs of a host: run a command with bytes going in and out as they come."""

    host: str

    def execute(self, argv: Sequence[str], *, timeout: float, source: Iterator[bytes] | None = None,
                sink: Callable[[bytes], None] | None = None) -> Completed:
        """Run to the end, whatever its status."""
        ...


class Origin(NamedTuple):
    """Bytes to be put somewhere, wherever they are.

    `send(argv, offset, timeout)` runs the receiving command at the destination, with the bytes from `offset`
    on as its input, to the end, whatever its status. `name` is for a person.
    """

    name: str
    size: Callable[[], int]
    send: Callable[[tuple[str, ...], int, float], Completed]


def put(remote: Executes, local: Path, path: str, *, sha256: str, timeout: float,
        progress: Callable[[int], None] | None = None) -> bool:
    """Copy `local` to `path` on the host. See `Remote.put`. False where it was there already."""
    def send(argv: tuple[str, ...], offset: int, limit: float) -> Completed:
        return remote.execute(argv, timeout=limit, source=_chunks(local, offset, progress))

    return put_from(remote, Origin(str(local), partial(_size, local), send), path, sha256=sha256,
                    timeout=timeout, progress=progress)


def put_from(remote: Executes, origin: Origin, path: str, *, sha256: str, timeout: float,
             progress: Callable[[int], None] | None = None) -> bool:
    """Copy the origin's bytes to `path` on the host: resumed, verified there, named last. False where they
    were there already and none moved.

    A .part that turns out to be of another file is dropped, and the copy starts again, once. Only `send`
    knows how far it is; `progress` is told by us where nothing had to be sent.
    """
    deadline = time.monotonic() + timeout
    resumed = _put_once(remote, origin, path, sha256, deadline, progress)
    if resumed is None or resumed == WHOLE:
        return resumed is None
    if resumed == 0 or _put_once(remote, origin, path, sha256, deadline, progress) is not None:
        raise TransferFailed(f"{path}: the bytes that arrived have not the SHA-256 {sha256[:12]}…",
                             host=remote.host,
                             hint=f"has {origin.name} changed meanwhile? "
                                  "What arrived has been removed; try again")
    return True


def get(remote: Executes, path: str, local: Path, *, timeout: float,
        progress: Callable[[int], None] | None = None) -> None:
    """Copy `path` of the host to `local`, through a temporary name."""
    part = local.with_name(f"{local.name}.part")
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            done = remote.execute(("cat", "--", path), timeout=timeout,
                                  sink=partial(_receive, file, progress))
        if done.exit_status != 0:
            raise TransferFailed(f"cannot read {path}: {done.stderr.strip()}", host=remote.host)
        part.replace(local)
    except OSError as exc:
        raise _local_failure(local, exc) from exc
    finally:
        part.unlink(missing_ok=True)


def _receive(file: BinaryIO, progress: Callable[[int], None] | None, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as exc:
        raise _local_failure(Path(file.name), exc) from exc
    if progress:
        progress(file.tell())


def _local_failure(local: Path, exc: OSError) -> SwarmError:
    if exc.errno == errno.ENOSPC:
        return DiskFull(f"no room here for {local}", hint="free some space on this machine")
    return SwarmError(f"{local}: {exc.strerror or exc}")


def _put_once(remote: Executes, origin: Origin, path: str, sha256: str, deadline: float,
              progress: Callable[[int], None] | None) -> int | None:
    """Copy; None where that was right, WHOLE where the file was there already, else the offset from which
    wrong bytes were resumed."""
    size = origin.size()
    there, part, free = _look(remote, path, deadline)
    if there == size and _hash(remote, path, deadline) == sha256:
        if progress:
            progress(size)
        return WHOLE
    offset = part if 0 < part <= size else 0
    missing = size - offset - (free + (part - offset if part > 0 else 0)) + SPARE
    if missing > 0 and size > offset:
        raise _disk_full(remote.host, path, size - offset, missing)
    found = ""
    if offset < size or size == 0:
        found = _send(remote, origin, path, offset, deadline)
    if (found or _hash(remote, f"{path}.part", deadline)) != sha256:
        _script(remote, DROP, path, deadline)
        return offset
    _check(remote, _script(remote, PLACE, path, deadline), path)
    return None


def _look(remote: Executes, path: str, deadline: float) -> tuple[int, int, int]:
    done = _check(remote, _script(remote, LOOK, path, deadline), path)
    there, part, *free = done.stdout.split()
    known = free and free[0].isdigit()
    return int(there), int(part), int(free[0]) * 1024 if known else 1 << 62


def _hash(remote: Executes, path: str, deadline: float) -> str:
    done = _check(remote, _script(remote, HASH, path, deadline), path)
    return done.stdout.split()[0].lower()


def _send(remote: Executes, origin: Origin, path: str, offset: int, deadline: float) -> str:
    """Send from `offset` on; the SHA-256 of the whole that is there then."""
    done = origin.send(("sh", "-c", APPEND if offset else START, "sh", path), offset, _left(deadline))
    if done.exit_status == 0:
        return done.stdout.split()[0].lower()
    size = origin.size()
    _, part, free = _look(remote, path, deadline)
    if free < size - max(part, 0):
        _script(remote, DROP, path, deadline)
        raise _disk_full(remote.host, path, size, size - max(part, 0) - free + SPARE)
    raise TransferFailed(f"cannot write {path}: {done.stderr.strip()}", host=remote.host,
                         hint="what arrived is kept: the next run resumes")


def _chunks(local: Path, offset: int, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """The file's bytes from `offset` on. `progress` hears of each piece once the next is asked for."""
    try:
        with local.open("rb") as file:
            file.seek(offset)
            while True:
                if progress:
                    progress(file.tell())
                data = file.read(CHUNK)
                if not data:
                    return
                yield data
    except OSError as exc:
        raise _local_failure(local, exc) from exc


def _script(remote: Executes, script: str, path: str, deadline: float) -> Completed:
    return remote.execute(("sh", "-c", script, "sh", path), timeout=_left(deadline))


def _check(remote: Executes, done: Completed, path: str) -> Completed:
    if done.exit_status != 0:
        raise CommandFailed(f"{path}: {done.stderr.strip() or 'the command failed'}", host=remote.host,
                            exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)
    return done


def _disk_full(host: str, path: str, need: int, missing: int) -> DiskFull:
    return DiskFull(f"no room for {path}: {need / 1e6:,.1f} MB to write, {missing / 1e6:,.1f} MB too little",
                    host=host, hint="free some space there, or choose another data_dir in the inventory")


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


def _size(local: Path) -> int:
    try:
        return local.stat().st_size
    except OSError as exc:
        raise _local_failure(local, exc) from exc


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, in hexadecimal."""
    digest = new_sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
