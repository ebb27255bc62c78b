"""A way for one transfer between two hosts that do not trust each other: a key that is used once.

The host that has the bytes makes an ed25519 key; its private half never leaves that host. In the receiving
host's ~/.ssh/authorized_keys it gets one line, which allows nothing but writing that one file (forced
command, `restrict`) and soon expires. The giving host's ssh knows the receiver by the host key that this
machine knows. That an address means the same machine from over there is proven first: a random word written
over our own connection has to come back. Key and line go when the transfer has ended, however it ended; what
a killed run left behind is on record here (state/one-time), and the next push or `up` removes it.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shlex
import threading
from base64 import b64encode
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING

from swarmctl.errors import RemoteError, SwarmError
from swarmctl.fleet.host_shell import script
from swarmctl.fleet.hostkeys import read_known_hosts
from swarmctl.fleet.ssh_config import quote_path, resolve
from swarmctl.fleet.transfer import APPEND, START

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from pathlib import Path
    from types import TracebackType

    from swarmctl.fleet.blobs import Place
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.paths import Paths

TIMEOUT = 20.0
CONNECT = 5
MOST_ADDRESSES = 5
#: how OpenSSH begins to say that nothing answered at an address; what did answer says more
NO_CONNECTION = "ssh: "
#: the key lets in for so many seconds, and for one more for so many bytes that may have to be hashed first
LIFETIME, HASHED = 900, 50_000_000
#: all that the key may do: $1 is the file, $2 where the proving word lies. See transfer on its style
RECEIVE = (f'case "$SSH_ORIGINAL_COMMAND" in word) cat -- "$2";; start) {START};; append) {APPEND};; '
           '*) exit 64;; esac')
#: $1 is where the process id goes, by which `forget` finds an ssh that outlived us
NOTED = 'echo "$$" > "$1"; shift; exec "$@"'


class NoWay(SwarmError):
    """One host cannot be made to send to another; `message` says why."""


@dataclass(frozen=True, slots=True)
class OneTimeKey:
    """A key that lies on two hosts. `file` is the private half on `giver`, `word` a file on `receiver`."""

    id: str
    giver: str
    file: str
    receiver: str
    word: str


class OneTimeKeys:
    """All one-time keys of this run. Leaving the block removes those that are still there."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._open: dict[str, tuple[OneTimeKey, ShellRemote, ShellRemote, Record]] = {}
        self._over = False

    def __enter__(self) -> OneTimeKeys:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over = True
        for key in [key for key, *_ in tuple(self._open.values())]:
            self.close(key)

    def make(self, source: Place, to: Place, size: int) -> tuple[OneTimeKey, tuple[str, ...]]:
        """A key by which `source`'s host may write `to`, and the `ssh` command that does so over there.

        Raises NoWay; nothing is left behind then.
        """
        known = _host_keys(to, self._paths)
        key = _named(source, to)
        record = Record.write(self._paths.state / "one-time", key)
        with self._lock:
            self._open[key.id] = key, source.remote, to.remote, record
        try:
            now, *addresses = _verb(to.remote, "look").splitlines()
            public = _verb(source.remote, "make", key.file, f"swarmctl-one-time-{key.id}", known)
            word = secrets.token_hex(16)
            if self._over:
                raise NoWay("interrupted")
            _verb(to.remote, "allow", key.id, _line(key, to, public, _expiry(now, size)), key.word, word)
            return key, _proven(source, key, _commands(key, to, addresses), word)
        except SwarmError as exc:
            self.close(key)
            raise exc if isinstance(exc, NoWay) else NoWay(str(exc)) from exc

    def close(self, key: OneTimeKey) -> None:
        """Remove a key from both hosts. What cannot be reached now stays on record for the next run."""
        with self._lock:
            _, giver, receiver, record = self._open.pop(key.id, (None, None, None, None))
        if giver and receiver and record:
            record.end(gone=_removed(key, ((key.receiver, receiver), (key.giver, giver))))


def sweep(paths: Paths, remote: Callable[[str], ShellRemote | None], known: Container[str]) -> None:
    """Remove from hosts what killed runs left there. `remote` gives a host by name, or None for one that
    cannot be had now; of one that is not `known` any more only the note goes: its line expires by itself."""
    for path in sorted((paths.state / "one-time").glob("*.json")):
        record = Record.abandoned(path)
        if record is None:
            continue
        try:
            key = OneTimeKey(**json.loads(record.text()))
        except (ValueError, TypeError):
            record.end(gone=True)
            continue
        remotes = [(name, remote(name) if name in known else None) for name in (key.receiver, key.giver)]
        record.end(gone=_removed(key, [(name, there) for name, there in remotes if name in known]))


@dataclass(frozen=True, slots=True)
class Record:
    """A note on this machine that a key lies on hosts, locked for as long as its process lives."""

    path: Path
    file: IO[str]

    @classmethod
    def write(cls, folder: Path, key: OneTimeKey) -> Record:
        """Note a key, before it is made."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key.id}.json"
        file = path.open("w+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(key)))
        file.flush()
        return cls(path, file)

    @classmethod
    def abandoned(cls, path: Path) -> Record | None:
        """The note of a process that is gone; None where its process lives, or somebody else was quicker."""
        try:
            file = path.open("r+", encoding="utf-8")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return cls(path, file)

    def text(self) -> str:
        """What is noted."""
        return self.file.read()

    def end(self, *, gone: bool) -> None:
        """Let go of the note, and remove it once the key is gone."""
        if gone:
            self.path.unlink(missing_ok=True)
        self.file.close()


def receiving(argv: tuple[str, ...]) -> str:
    """What to say to RECEIVE instead of the receiving command `argv` of a transfer."""
    return "append" if APPEND in argv else "start"


def _named(source: Place, to: Place) -> OneTimeKey:
    name = secrets.token_hex(8)
    return OneTimeKey(name, source.remote.host, f"{source.data_dir}/incoming/one-time-{name}",
                      to.remote.host, f"{to.data_dir}/incoming/word-{name}")


def _host_keys(to: Place, paths: Paths) -> str:
    """Lines of known_hosts: the keys this machine knows the host by, under its bare name."""
    there = resolve(to.ssh, to.ssh_config)
    lines = [f"{key.marker} {_alias(to)} {key.kind} {b64encode(key.blob).decode()}".lstrip()
             for key in read_known_hosts((paths.known_hosts, *there.known_hosts))
             if key.matches(there.known_as)]
    if not lines:
        raise NoWay("this machine has no host key of it on record")
    return "\n".join(dict.fromkeys(lines))


def _alias(to: Place) -> str:
    return resolve(to.ssh, to.ssh_config).known_as.removeprefix("[").partition("]")[0]


def _expiry(now: str, size: int) -> str:
    """In the receiver's own time, as its sshd reads it."""
    until = datetime.strptime(now, "%Y%m%d%H%M%S") + timedelta(seconds=LIFETIME + size // HASHED)  # noqa: DTZ007
    return f"{until:%Y%m%d%H%M%S}"


def _line(key: OneTimeKey, to: Place, public: str, expiry: str) -> str:
    command = shlex.join(("sh", "-c", RECEIVE, "sh", to.path, key.word))
    if "\n" in command or "\\" in command:
        raise NoWay("a path there has a character that authorized_keys cannot hold")
    quoted = command.replace('"', '\\"')
    return f'restrict,command="{quoted}",expiry-time="{expiry}" {public.strip()}'


def _commands(key: OneTimeKey, to: Place, addresses: list[str]) -> list[tuple[str, ...]]:
    """The giver's possible `ssh` commands: the address this machine uses, then the host's own."""
    there = resolve(to.ssh, to.ssh_config)
    found = [(there.hostname, str(there.port)),
             *(tuple(line.split()) for line in addresses if not line.lower().startswith("fe80:"))]
    options = ("BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "IdentityAgent=none",
               f"UserKnownHostsFile={quote_path(f'{key.file}.hosts')}", "GlobalKnownHostsFile=/dev/null",
               f"HostKeyAlias={_alias(to)}", "UpdateHostKeys=no", f"ConnectTimeout={CONNECT}",
               "ServerAliveInterval=5", "ClearAllForwardings=yes", "ForwardAgent=no", "LogLevel=ERROR")
    start = ("sh", "-c", NOTED, "sh", f"{key.file}.pid", "ssh", "-T", "-F", "/dev/null", "-i", key.file,
             *(part for option in options for part in ("-o", option)))
    return [(*start, "-p", port, "--", f"{there.user}@{address}")
            for address, port in dict.fromkeys(found)][:MOST_ADDRESSES]


def _proven(source: Place, key: OneTimeKey, commands: list[tuple[str, ...]], word: str) -> tuple[str, ...]:
    """The first command that brings the word back."""
    said = ""
    for argv in commands:
        done = source.remote.run((*argv, "word"), timeout=TIMEOUT, check=False)
        if done.exit_status == 0 and done.stdout.strip() == word:
            return argv
        why = " ".join(done.stderr.split())[-160:] or "another machine answers at that address"
        said = why if not said or said.startswith(NO_CONNECTION) else said
    raise NoWay(f"{key.giver} does not get to {key.receiver} over SSH ({said})")


def _removed(key: OneTimeKey, remotes: Sequence[tuple[str, ShellRemote | None]]) -> bool:
    """Remove a key from the hosts given, the line that lets it in first; whether that is done."""
    done = True
    for name, remote in remotes:
        verbs = {key.receiver: ("forbid", key.id, key.word), key.giver: ("forget", key.file)}
        try:
            if remote is None:
                done = False
            else:
                _verb(remote, *verbs[name])
        except SwarmError:
            done = False
    return done


def _verb(remote: ShellRemote, verb: str, *arguments: str) -> str:
    done = remote.run(("sh", "-s", "--", verb, *arguments), timeout=TIMEOUT, check=False,
                      stdin=script("one_time_key.sh").encode())
    if done.exit_status != 0:
        said = " ".join(done.stderr.split())[-200:] or f"status {done.exit_status}"
        raise RemoteError(said, host=remote.host)
    return done.stdout
