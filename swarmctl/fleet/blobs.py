"""Model bytes between machines: to several hosts, from host to host, and into an Ollama. Never twice.

A blob is a file under its hash. It goes from this machine or from a host that has it; every way there is
resumed where it broke and verified by the host that receives it. Where one host's SSH reaches another the
bytes go straight between the two; else they stream through this machine, without a file here. Which of these
it shall be is decided in sharing.py.
"""

from __future__ import annotations

import queue
import secrets
import shlex
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from swarmctl.errors import RemoteError, SwarmError, TransferFailed
from swarmctl.fleet.host_shell import ToolMissing
from swarmctl.fleet.install import require_space, transfer_time
from swarmctl.fleet.ssh_config import resolve
from swarmctl.fleet.transfer import Origin, put, put_from
from swarmctl.runtimes import ollama_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import Completed, ShellRemote
    from swarmctl.runtimes.base import Endpoint

PIECES = 64  # that may wait in this machine's memory between two hosts
STALL = 60.0
CHECK_TIMEOUT = 20.0
DIRECT_CONNECT = 5
#: $1 is the file, $2 the first byte (1 is the first); the rest is the command that takes them
FROM = 'f=$1; n=$2; shift 2; tail -c "+$n" -- "$f" | "$@"'
NONCE = 'mkdir -p -- "$1" && echo "$3" > "$1/$2"'
SIZE = 'wc -c < "$1" 2>/dev/null || echo 0'
#: into an Ollama on the same machine: $1 the file, $2 the port, $3 the hash. Ollama checks the hash itself
POST = ('command -v curl >/dev/null 2>&1 || exit 4; '
        'curl -sS --noproxy "*" -o /dev/null -w "%{http_code}" -T "$1" -X POST '
        '"http://127.0.0.1:$2/api/blobs/sha256:$3"')
READABLE = 'head -c 1 -- "$1" >/dev/null && wc -c < "$1"'
REMOVE = 'rm -f -- "$1" "$1.part"'


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by their hash, and what a person calls them."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """A file on a host. `ssh` is the host's destination in the inventory, `data_dir` absolute there."""

    remote: ShellRemote
    path: str
    data_dir: str
    ssh: str
    ssh_config: str | None = None


def blob_path(data_dir: str, sha256: str) -> str:
    """Where llama.cpp's weights lie."""
    return f"{data_dir}/blobs/sha256-{sha256}"


def passing_path(data_dir: str, sha256: str) -> str:
    """Where bytes wait that are for an Ollama; what is forgotten there goes after a week."""
    return f"{data_dir}/incoming/sha256-{sha256}"


def from_here(local: Path, to: Place, blob: Blob, tell: Teller) -> bool:
    """Copy a file of this machine; whether bytes had to move. Raises DiskFull with the numbers, before any
    byte, and RemoteErrors."""
    _need(to, blob)
    return put(to.remote, local, to.path, sha256=blob.sha256, timeout=transfer_time(blob.size),
               progress=tell.bytes(blob.size))


def from_host(source: Place, to: Place, blob: Blob, tell: Teller, ssh: tuple[str, ...] = (),
              command: Callable[[tuple[str, ...]], str] = shlex.join) -> bool:
    """Copy a host's file to another host; whether bytes had to move. With `ssh` (see `reaches`) they go
    straight there, else through this machine's memory. `command` is what that `ssh` is told to run.

    Raises DiskFull with the numbers, before any byte, and RemoteErrors.
    """
    _need(to, blob)
    send = partial(_straight, source, to, (ssh, command), blob, tell) if ssh else \
        partial(_through_here, source, to, blob, tell)
    return put_from(to.remote, Origin(source.path, lambda: blob.size, send), to.path, sha256=blob.sha256,
                    timeout=transfer_time(blob.size), progress=tell.bytes(blob.size))


def reaches(source: Place, to: Place) -> tuple[str, ...]:
    """The `ssh` command by which one host gets to the other without a prompt; empty where it does not.

    The names and keys are that host's own affair: no agent is forwarded, no key is accepted for it. A word
    written over our own connection must come back over theirs, because an address may mean another machine
    from over there.
    """
    if source.ssh == "local" or to.ssh == "local":
        return ()
    there = resolve(to.ssh, to.ssh_config)
    argv = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o",
            f"ConnectTimeout={DIRECT_CONNECT}", "-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no",
            "-o", "ServerAliveInterval=5", "-p", str(there.port), "--", f"{there.user}@{there.hostname}")
    name, word = f"hello-{secrets.token_hex(8)}", secrets.token_hex(16)
    folder = f"{to.data_dir}/incoming"
    to.remote.run(("sh", "-c", NONCE, "sh", folder, name, word), timeout=CHECK_TIMEOUT)
    try:
        said = source.remote.run((*argv, "cat", f"'{folder}/{name}'"), timeout=CHECK_TIMEOUT, check=False)
    except RemoteError:
        return ()
    finally:
        to.remote.run(("sh", "-c", REMOVE, "sh", f"{folder}/{name}"), timeout=CHECK_TIMEOUT, check=False)
    return argv if said.exit_status == 0 and said.stdout.strip() == word else ()


def into_ollama(at: Place, port: int, endpoint: Endpoint, blob: Blob, tag: str, *,
                recipe: Mapping[str, Any] | None, tell: Teller, over: str = "") -> None:
    """Make a model in the Ollama of a host out of a GGUF that lies at `at` there; out of the model `over` and
    that file, a LoRA adapter, where one is named. Raises ToolMissing, DiskFull and ServerErrors."""
    hand_over(at, port, endpoint, blob, tell)
    if over:
        make_model(at.remote.host, endpoint, tag, {}, recipe={**(recipe or {}), "from": over}, tell=tell,
                   adapters={"adapter.gguf": blob.sha256})
        return
    make_model(at.remote.host, endpoint, tag, {"model.gguf": blob.sha256}, recipe=recipe, tell=tell)


def hand_over(at: Place, port: int, endpoint: Endpoint, blob: Blob, tell: Teller) -> None:
    """Have the Ollama of a host take a file that lies at `at` there; the bytes take the short way on that
    host. Raises ToolMissing, TransferFailed and ServerErrors."""
    if ollama_models.has_blob(endpoint, blob.sha256):
        return
    tell("handing it to Ollama")
    done = at.remote.run(("sh", "-c", POST, "sh", at.path, str(port), blob.sha256),
                         timeout=transfer_time(blob.size), check=False)
    if done.exit_status == 4:
        raise ToolMissing("curl is missing there, which hands Ollama its models", host=at.remote.host,
                          hint="install curl on that host")
    if done.exit_status != 0 or done.stdout.strip() not in ("200", "201"):
        said = done.stderr.strip() or f"HTTP {done.stdout.strip()}"
        raise TransferFailed(f"Ollama on port {port} did not take {blob.name}: {said}",
                             host=at.remote.host, hint="is its disk full? Its own log says so")


def make_model(host: str, endpoint: Endpoint, tag: str, files: Mapping[str, str], *,
               recipe: Mapping[str, Any] | None, tell: Teller,
               adapters: Mapping[str, str] | None = None) -> None:
    """Have an Ollama make a model of what it was handed: file name → sha256. Raises DiskFull and
    ServerErrors."""
    try:
        ollama_models.create(endpoint, tag, files, recipe=recipe, adapters=adapters,
                             tell=lambda stage: tell(f"Ollama: {stage.status[:60]}"))
    except SwarmError as exc:
        raise type(exc)(f"Ollama could not make {tag}: {exc.message}", host=host, hint=exc.hint) from exc


def forget(at: Place) -> None:
    """Remove a file there."""
    at.remote.run(("sh", "-c", REMOVE, "sh", at.path), timeout=CHECK_TIMEOUT)


def size_there(remote: ShellRemote, path: str) -> int:
    """The size of a host's file. Raises CommandFailed where it cannot be read."""
    return int(remote.run(("sh", "-c", READABLE, "sh", path), timeout=CHECK_TIMEOUT).stdout)


def _need(to: Place, blob: Blob) -> None:
    """What is there, or has come of it so far, needs no room again."""
    words = to.remote.run(("sh", "-c", f'{SIZE}; {SIZE.replace("$1", "$2")}', "sh", to.path,
                           f"{to.path}.part"), timeout=CHECK_TIMEOUT).stdout.split()
    whole, part = (int(word) for word in words[:2])
    if whole != blob.size:
        require_space(to.remote, to.data_dir, max(0, blob.size - part), f"model {blob.name}")


def _straight(source: Place, to: Place, over_there: tuple[tuple[str, ...], Callable[[tuple[str, ...]], str]],
              blob: Blob, tell: Teller, argv: tuple[str, ...], offset: int, limit: float) -> Completed:
    """Have the source feed the receiving command over its own SSH, and say how far it is meanwhile."""
    ssh, command = over_there
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            try:
                said = to.remote.run(("sh", "-c", SIZE, "sh", f"{to.path}.part"), timeout=CHECK_TIMEOUT)
            except RemoteError:
                return
            if said.stdout.strip().isdigit() and not over.is_set():
                tell.bytes(blob.size)(int(said.stdout))

    watcher = threading.Thread(target=watch, name="swarmctl-watch", daemon=True)
    watcher.start()
    try:
        return source.remote.execute(("sh", "-c", FROM, "sh", source.path, str(offset + 1), *ssh,
                                      command(argv)), timeout=limit)
    finally:
        over.set()
        watcher.join(CHECK_TIMEOUT)


def _through_here(source: Place, to: Place, blob: Blob, tell: Teller, argv: tuple[str, ...], offset: int,
                  limit: float) -> Completed:
    """Stream from one host to the other through a bounded queue."""
    pipe = _Pipe()

    def read() -> None:
        try:
            done = source.remote.execute(("tail", "-c", f"+{offset + 1}", "--", source.path), timeout=limit,
                                         sink=pipe.add)
        except (SwarmError, BrokenPipeError) as exc:
            pipe.end(exc if isinstance(exc, SwarmError) else None)
            return
        pipe.end(None if done.exit_status == 0 else
                 TransferFailed(f"cannot read {source.path}: {done.stderr.strip()}", host=source.remote.host))

    reader = threading.Thread(target=read, name="swarmctl-relay", daemon=True)
    reader.start()
    try:
        return to.remote.execute(argv, timeout=limit, source=pipe.pieces(offset, tell.bytes(blob.size)))
    finally:
        pipe.over.set()
        reader.join(STALL)


class _Pipe:
    """Pieces from one thread to another, at most PIECES in memory."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._queue: queue.Queue[bytes | None] = queue.Queue(PIECES)
        self._failure: SwarmError | None = None

    def add(self, data: bytes) -> None:
        """Take a piece; waits while too many wait. Raises BrokenPipeError once nobody reads any more."""
        while not self.over.is_set():
            try:
                self._queue.put(data, timeout=0.5)
            except queue.Full:
                continue
            return
        raise BrokenPipeError("the receiving side has ended")

    def end(self, failure: SwarmError | None) -> None:
        """Say that no more comes, and why where that is early."""
        self._failure = failure
        while not self.over.is_set():
            try:
                self._queue.put(None, timeout=0.5)
            except queue.Full:
                continue
            return

    def pieces(self, offset: int, progress: Callable[[int], None]) -> Iterator[bytes]:
        """The pieces in turn. Raises what broke the sending side: an early end must not look like the end."""
        there = offset
        while True:
            progress(there)
            try:
                data = self._queue.get(timeout=STALL)
            except queue.Empty as exc:
                raise TransferFailed(f"nothing came for {STALL:.0f} s",
                                     hint="what arrived is kept: the next run resumes") from exc
            if data is None:
                if self._failure:
                    raise self._failure
                return
            yield data
            there += len(data)
