"""What `ssh -G` answered, for as long as it would answer the same: one process less for each host looked at.

An answer is kept with the files that OpenSSH read for it (`ssh -v` names them), those it would have read, and
what its Includes matched. It counts while each of them is, to the inode and the nanosecond, as it was; while
one of them has changed within the last seconds nothing is kept. What more than these files decides (Match
exec, networks, environment variables, names looked up in DNS) is asked of OpenSSH every time.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import re
import shlex
import shutil
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: A file this young may change again without its time or size telling so.
SETTLED = 2.0
LONGEST = 1 << 20
SYSTEM = ("/etc/ssh", "/usr/local/etc/ssh", "/opt/homebrew/etc/ssh")
_READ = re.compile(r"^debug1: Reading configuration data (.+?)\r?$", re.MULTILINE)
_INCLUDE = re.compile(r"^[ \t]*include\b[ \t]*=?[ \t]*(.*)$", re.MULTILINE | re.IGNORECASE)
_MATCH = re.compile(r"^[ \t]*match\b(.*)$", re.MULTILINE | re.IGNORECASE)
_NAMES = r"(?:host|originalhost|user|localuser)[ \t=]+[^\s\"]+"
_PLAIN_MATCH = re.compile(rf"(?:!?(?:all|canonical|final|{_NAMES})[ \t]*)+", re.IGNORECASE)
_NAMES_LOOKED_UP = re.compile(r"^canonicalizehostname (?!no$|false$)", re.MULTILINE)


def remembered(folder: Path, argv: Sequence[str], ask: Callable[[], tuple[str, str]]) -> str:
    """What the command `argv` says. `ask` runs it with `-v` and returns its output and its stderr. Notes lie
    in `folder`; one that cannot be read or written is none."""
    path = folder / sha256(repr((argv, _program(argv[0]), _home())).encode()).hexdigest()[:24]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["argv"] == list(argv) and _stands(note):
            return str(note["said"])
    began = time.time()
    said, stderr = ask()
    note = _note(argv, said, stderr, began)
    if note:
        with contextlib.suppress(OSError):
            write_whole(path, json.dumps(note))
    return said


def _stands(note: dict[str, Any]) -> bool:
    """Whether every file is as it was, and every Include finds the same."""
    return (all(_look(path) == was for path, was in note["files"].items())
            and all(_found(pattern) == found for pattern, found in note["includes"].items()))


def _note(argv: Sequence[str], said: str, stderr: str, began: float) -> dict[str, Any] | None:
    """What to keep; None where more than files decides, or a file may be changing right now."""
    read = _READ.findall(stderr)
    relative = "-F" in argv and not argv[argv.index("-F") + 1].startswith("/")
    if relative or _NAMES_LOOKED_UP.search(said):
        return None
    includes: dict[str, list[str]] = {}
    for path in read:
        patterns = _patterns(path)
        if patterns is None:
            return None
        includes |= {pattern: _found(pattern) for pattern in patterns}
    usual = (f"{_home()}/.ssh/config", *(f"{folder}/ssh_config" for folder in SYSTEM))
    watched = {*read, *usual, *(path for found in includes.values() for path in found)}
    files = {path: _look(path) for path in sorted(watched)}
    if any(look and max(look[:2]) > (began - SETTLED) * 1e9 for look in files.values()):
        return None
    return {"argv": list(argv), "said": said, "files": files, "includes": includes}


def _patterns(path: str) -> tuple[str, ...] | None:
    """What the Includes of a config would match; None where the file says what no file decides."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            text = file.read(LONGEST)
    except OSError:
        return None
    if len(text) == LONGEST or "$" in text:
        return None
    if not all(_PLAIN_MATCH.fullmatch(said.strip()) for said in _MATCH.findall(text)):
        return None
    try:
        return tuple(_absolute(_INCLUDE.findall(text)))
    except ValueError:
        return None


def _absolute(values: Sequence[str]) -> Iterator[str]:
    """Include's patterns from the root: a relative one lies beside the user's config or the system's. Raises
    ValueError for what only OpenSSH can read."""
    for pattern in (word for value in values for word in shlex.split(value, comments=True)):
        if "%" in pattern or (pattern.startswith("~") and not pattern.startswith("~/")):
            raise ValueError(pattern)
        if pattern.startswith("~/"):
            yield _home() + pattern[1:]
        elif pattern.startswith("/"):
            yield pattern
        else:
            yield from (f"{folder}/{pattern}" for folder in (f"{_home()}/.ssh", *SYSTEM))


def _found(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern))  # noqa: PTH207  glob(3)'s rules, as OpenSSH has them


def _look(path: str) -> list[int] | None:
    """What changes when a file does; None where it is not there."""
    try:
        seen = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_dev, seen.st_uid,
            seen.st_mode]


def _program(name: str) -> object:
    """Which program answers."""
    where = shutil.which(name)
    return where and (where, _look(where))


def _home() -> str:
    """The home that OpenSSH goes by: that of the password database."""
    return pwd.getpwuid(os.getuid()).pw_dir
