"""Every error a person can meet, in one tree.

Foreign exceptions are translated once, at the adapter that meets them, with ``raise ... from exc``;
`cli.main` shows what arrives there. An error says which host, what failed, and what to do next.
"""

from __future__ import annotations


class SwarmError(Exception):
    """Something failed that a person can act on.

    `message` says what failed, `host` where, `hint` what to do next; `exit_code` is the process's exit status
    (0 done, 1 failed, 2 usage, 3 some hosts failed).
    """

    exit_code = 1

    def __init__(self, message: str, *, host: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.host}: {self.message}" if self.host else self.message


class UsageError(SwarmError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class VectorsOnly(UsageError):
    """A model was asked to chat that makes vectors and nothing else."""


class InventoryError(SwarmError):
    """The inventory cannot be used. `message` holds one line a problem, each with file, line, field and the
    fix."""

    exit_code = 2


class RecipeError(SwarmError):
    """A recipe cannot be used. `message` holds one line a problem, each with file, line, key and the fix."""

    exit_code = 2


class JobFailed(SwarmError):
    """A job on a host ended without its result. The run's folder is kept; `hint` says how to go on."""


class JobCut(JobFailed):
    """A job was killed, or its host went down: `resume` goes on with it."""


class Unfit(SwarmError):
    """Preflight: a job would not fit its host, or its model could not be served. Nothing was started."""


class SomeHostsFailed(SwarmError):
    """Some hosts did what was asked and some did not; the report has been shown."""

    exit_code = 3


class RemoteError(SwarmError):
    """A host could not be used over SSH."""


class HostUnreachable(RemoteError):
    """No TCP connection, no SSH banner, or the name does not resolve, within the timeout."""


class HostKeyUnknown(RemoteError):
    """The host's key is in no known_hosts file; `hint` names the command that would accept it."""


class HostKeyChanged(RemoteError):
    """The host presents another key than the recorded one: reinstalled, or somebody in between."""


class AuthenticationFailed(RemoteError):
    """The host is there and refuses every key we offered."""


class ConnectionLost(RemoteError):
    """The connection broke in the middle of something."""


class CommandTimeout(RemoteError):
    """A remote command ran past its limit."""


class CommandFailed(RemoteError):
    """A remote command ended with a non-zero status. `exit_status`, `stdout` and `stderr` are the
    command's."""

    def __init__(self, message: str, *, host: str | None = None, hint: str | None = None,
                 exit_status: int = 1, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message, host=host, hint=hint)
        self.exit_status = exit_status
        self.stdout = stdout
        self.stderr = stderr


class TransferFailed(RemoteError):
    """Bytes did not arrive whole. What arrived is kept, so the next run resumes."""


class DiskFull(RemoteError):
    """There is no room at the destination. Nothing is left half-installed."""


class LockBusy(SwarmError):
    """Another swarmctl process holds the lock."""


class ServerError(SwarmError):
    """A model server could not be used."""


class ServerUnavailable(ServerError):
    """The server gave no first token: refused, still loading, out of slots, or it timed out."""


class ServerFull(ServerUnavailable):
    """The server is well, and its own queue is full: asking it again at once would only make it longer."""


class StreamBroken(ServerError):
    """The stream ended in the middle of an answer, without its closing record."""


class RequestRejected(ServerError):
    """The server understood the request and refuses it (HTTP 4xx): another host would refuse it too."""


class ContextExceeded(RequestRejected):
    """The prompt is longer than the server's context; a host with a larger one can take it."""


class Unsupported(RequestRejected):
    """This model or its runtime cannot do what is asked, such as calling tools; another one may."""


class NoCandidate(SwarmError):
    """No (host, model) pair can take this request; the message says why for each."""


class Busy(SwarmError):
    """Every slot is taken and the queue is full, or waiting took too long. `retry_after` is in how many
    seconds asking again is likely to find a slot."""

    def __init__(self, message: str, *, retry_after: float, host: str | None = None,
                 hint: str | None = None) -> None:
        super().__init__(message, host=host, hint=hint)
        self.retry_after = retry_after


class PromptTooLong(NoCandidate):
    """Every candidate is up, and the prompt fits the context of none."""


class Garbled(SwarmError):
    """A file that swarmctl wrote for itself is not what it wrote; the message names the field. Whoever reads
    the file says which it is, or does without."""


class LedgerError(SwarmError):
    """The journal could not be written or read. What was asked has not been recorded."""
