"""host.sh, called verb by verb over a `Remote`. Its exit statuses become errors here."""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING

from swarmctl.errors import CommandFailed, DiskFull, RemoteError, SwarmError

if TYPE_CHECKING:
    from swarmctl.fleet.shell import Completed, Remote

#: one line without backslash or exclamation mark: it passes through any login shell (see transfer)
RECEIVE = 'mkdir -p -- "$1" && cat > "$1/$2"'
TOOL_MISSING, DOES_NOT_RUN, LOCK_HELD = 4, 5, 6


class ToolMissing(RemoteError):
    """A host lacks a program that is needed there; `message` names it."""


class RuntimeUnfit(RemoteError):
    """A build of the runtime does not run on this host: other libraries, or a processor without its
    instructions."""


@cache
def script(name: str) -> str:
    """The text of a shell script of ours: host.sh, build.sh or supervise.sh."""
    package = "swarmctl.runtimes" if name == "supervise.sh" else "swarmctl.fleet"
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def on_host(remote: Remote, verb: str, data_dir: str, *arguments: str, timeout: float = 30.0,
            payload: bytes | None = None) -> str:
    """Run a verb of host.sh and return what it printed. Raises an error that says what to do about it."""
    done = attempt(remote, verb, data_dir, *arguments, timeout=timeout, payload=payload)
    if done.exit_status != 0:
        raise explain(remote.host, verb, done)
    return done.stdout


def attempt(remote: Remote, verb: str, data_dir: str, *arguments: str, timeout: float = 30.0,
            payload: bytes | None = None) -> Completed:
    """Run a verb of host.sh, whatever its exit status. `payload` is put in a file that is its first
    argument."""
    if payload is not None:
        name = f"{verb}-{sha256(payload).hexdigest()[:16]}-{os.getpid()}"
        sent = remote.run(("sh", "-c", RECEIVE, "sh", f"{data_dir}/incoming", name), timeout=timeout,
                          stdin=payload, check=False)
        if sent.exit_status != 0:
            return sent
        arguments = (f"{data_dir}/incoming/{name}", *arguments)
    return remote.run(("sh", "-s", "--", verb, data_dir, *arguments), timeout=timeout,
                      stdin=script("host.sh").encode(), check=False)


def explain(host: str, verb: str, done: Completed) -> SwarmError:
    """The error that a failed verb means."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
    why = "; ".join(said) or f"exit status {done.exit_status}"
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        return DiskFull(f"the disk is full ({verb}); nothing is half-installed", host=host,
                        hint="free some space under data_dir, or name another data_dir, and run `up` again")
    if done.exit_status == TOOL_MISSING:
        return ToolMissing(f"{why} is missing on the host", host=host)
    if done.exit_status == DOES_NOT_RUN:
        return RuntimeUnfit(f"the runtime does not run here: {why}", host=host)
    return CommandFailed(f"{verb} failed: {why}", host=host, exit_status=done.exit_status,
                         stdout=done.stdout, stderr=done.stderr)
