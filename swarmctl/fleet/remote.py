"""One host over SSH: run a command, move files. The only module that knows fabric.

`Remote` is the seam: FabricRemote for hosts over SSH, LocalRemote for `ssh: local`, and a function-fed fake
in tests. Commands are argv tuples joined with shlex; success is an exit status, never a text match. Foreign
exceptions become `swarmctl.errors` here and nowhere else. fabric holds the connection; commands run on
channels of our own, because its runner takes only text on stdin, and polls.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import shlex
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from swarmctl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostUnreachable,
    RemoteError,
)
from swarmctl.fleet.certificates import SUFFIX, Certificate, parse_certificate
from swarmctl.fleet.hostkeys import (
    KnownKey,
    authorities,
    fingerprint,
    judge,
    known_algorithms,
    known_kinds,
    read_known_hosts,
    recorded,
)
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.shell import Completed, Feeder, Output, Remote, ShellRemote, shorten, timed_out
from swarmctl.fleet.ssh_config import Resolved, hop_names, public_blobs, resolve
from swarmctl.fleet.ssh_stderr import (
    AUTHENTICATION_HINT,
    UNREACHABLE_HINT,
    error_from_stderr,
    key_changed,
    key_unknown,
)
from swarmctl.fleet.wire import Proxy, open_proxy, open_tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fabric import Connection
    from paramiko import Channel, PKey, SSHClient, Transport

    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

__all__ = ["Completed", "FabricRemote", "LocalRemote", "Remote", "connect", "translate"]

STALL_LIMIT = 30.0  # seconds without a byte moving before a write is given up
KILL_TIMEOUT = 5.0
KEEPALIVE = 5  # seconds of silence before a keepalive; wire.DEAD_AFTER decides when no answer means broken
PIECE = 1 << 18
#: Says its process id on stderr and becomes the command. Closing a channel leaves a silent command running
#: under
#: OpenSSH, and its sshd takes no signals (RFC 4254, 6.9) for root or without privilege separation.
ANNOUNCE = 'echo "swarmctl-pid $$" >&2; exec "$@"'
END = ('kill -TERM -"$1" 2>/dev/null || kill -TERM "$1"; sleep 1; '
       'kill -KILL -"$1" 2>/dev/null || kill -KILL "$1"')
_ANNOUNCED = re.compile(r"^swarmctl-pid (\d+)\r?\n", re.MULTILINE)


def connect(host: Host, paths: Paths, ssh_config: str | None = None) -> Remote:
    """The remote for an inventory host. Nothing is reached before the first command."""
    if host.local:
        return LocalRemote(host.name)
    return FabricRemote(host, paths, ssh_config)


class FabricRemote(ShellRemote):
    """A host over SSH, on one connection that is made at the first command and kept."""

    def __init__(self, host: Host, paths: Paths, ssh_config: str | None = None) -> None:
        self.host = host.name
        self._target = host.ssh
        self._timeout = host.connect_timeout
        self._paths = paths
        self._ssh_config = ssh_config
        self._lock = threading.Lock()
        self._session: Session | None = None

    def execute(self, argv: Sequence[str], *, timeout: float, source: Iterator[bytes] | None = None,
                sink: Callable[[bytes], None] | None = None) -> Completed:
        """See ShellRemote.execute. Each command has a channel of its own on the kept connection."""
        started = time.monotonic()
        channel = self._channel()
        feeder = None
        try:
            channel.settimeout(STALL_LIMIT)
            channel.exec_command(shlex.join(("sh", "-c", ANNOUNCE, "sh", *argv)))
            if source:
                feeder = Feeder(source, channel.sendall, channel.shutdown_write)
            else:
                channel.shutdown_write()
            output, error = Output(sink), Output()
            self._collect(channel, argv, output, error, started, timeout)
        except foreign_errors() as exc:
            raise translate(exc, self.host, connecting=False) from exc
        finally:
            channel.close()
        if feeder:
            feeder.finish(STALL_LIMIT)
        return Completed(tuple(argv), channel.exit_status, output.text, _ANNOUNCED.sub("", error.text),
                         time.monotonic() - started)

    def close(self) -> None:
        """Drop the connection, and with it its jump hosts."""
        with self._lock:
            session, self._session = self._session, None
        if session:
            session.close()

    def _collect(self, channel: Channel, argv: Sequence[str], output: Output, error: Output,
                 started: float, timeout: float) -> None:
        """Read both streams to their end and wait for the status."""
        deadline = started + timeout
        try:
            ended = _drain(channel, output, error, deadline)
        except KeyboardInterrupt:
            self._end(error)
            raise
        if not ended:
            self._end(error)
            raise timed_out(self.host, argv, timeout)
        if channel.exit_status == -1 and not (self._session and self._session.alive):
            raise ConnectionLost(f"the connection broke during `{shorten(argv)}`", host=self.host,
                                 hint="run the same again; every step here can be repeated")

    def _end(self, error: Output) -> None:
        """End the command that announced itself on `error`, and its process group."""
        announced = _ANNOUNCED.search(error.text)
        session = self._session
        if not announced or not session:
            return
        with contextlib.suppress(*foreign_errors()):
            channel = session.channel()
            channel.exec_command(shlex.join(("sh", "-c", END, "sh", announced[1])))
            channel.status_event.wait(KILL_TIMEOUT)
            channel.close()

    def _channel(self) -> Channel:
        """A new channel; where the kept connection has died since its last use, on a new connection."""
        with self._lock:
            if self._session and self._session.alive:
                with contextlib.suppress(*foreign_errors()):
                    return self._session.channel()
            if self._session:
                self._session.close()
            self._session = None
            try:
                self._session = open_session(self.host, self._target, self._paths, self._ssh_config,
                                             self._timeout)
                return self._session.channel()
            except foreign_errors() as exc:
                raise translate(exc, self.host, connecting=True) from exc


def _drain(channel: Channel, output: Output, error: Output, deadline: float) -> bool:
    """Read both streams to their end and wait for the status; False past the deadline."""
    with selectors.PollSelector() as selector:
        selector.register(channel.fileno(), selectors.EVENT_READ)
        while True:
            over = channel.eof_received or channel.closed
            while channel.recv_ready():
                output.add(channel.recv(PIECE))
            while channel.recv_stderr_ready():
                error.add(channel.recv_stderr(PIECE))
            if over:
                break
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
    return bool(channel.status_event.wait(max(0.0, deadline - time.monotonic())))


class Session:
    """An authenticated connection: fabric's, and the process that carries it where there are jump hosts."""

    def __init__(self, connection: Connection, proxy: Proxy | None, timeout: float) -> None:
        self._connection = connection
        self._proxy = proxy
        self._timeout = timeout

    @property
    def alive(self) -> bool:
        """Whether the transport still runs, as far as we have heard."""
        return bool(self._connection.is_connected)

    def channel(self) -> Channel:
        """Open one more channel."""
        opened: Channel = self._connection.transport.open_session(timeout=self._timeout)
        return opened

    def close(self) -> None:
        """End the connection and its proxy."""
        self._connection.close()
        if self._proxy:
            self._proxy.close()


def open_session(host: str, target: str, paths: Paths, ssh_config: str | None, timeout: float) -> Session:
    """Connect, check the host key strictly, authenticate. Raises RemoteErrors and foreign errors."""
    import fabric
    import paramiko

    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else threads print tracebacks on stderr
    resolved = resolve(target, ssh_config)
    proxy = open_proxy(resolved, paths.known_hosts, ssh_config, timeout)
    patience = timeout * (1 + len(resolved.jumps))
    gate = HostKeyGate(host, resolved.known_as, read_known_hosts((paths.known_hosts, *resolved.known_hosts)))
    try:
        sock = proxy.socket if proxy else open_tcp(resolved, timeout)
        connection = fabric.Connection(
            resolved.hostname, user=resolved.user, port=resolved.port, forward_agent=False,
            config=fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig()),
            connect_kwargs={"sock": sock, "timeout": patience, "banner_timeout": patience,
                            "auth_timeout": patience,
                            "channel_timeout": patience, "transport_factory": gate.transport,
                            "auth_strategy": KeyAuthentication(resolved)})
        connection.client.set_missing_host_key_policy(gate)
        connection.open()
    except BaseException as exc:
        said = proxy.failure() if proxy and isinstance(exc,
                                                       (OSError, EOFError, paramiko.SSHException)) else None
        if proxy:
            proxy.close()
        if said is not None:
            raise error_from_stderr(said, host,
                                    hop_names(resolved, lambda hop: resolve(hop, ssh_config))) from exc
        raise
    connection.transport.set_keepalive(KEEPALIVE)
    return Session(connection, proxy, patience)


class HostKeyGate:
    """Lets a connection through only with a recorded host key, or one that a recorded authority vouches for.

    Stands in for paramiko's policy and host key list, which know one key type a host and no certificates.
    """

    def __init__(self, host: str, name: str, known: tuple[KnownKey, ...]) -> None:
        self._host = host
        self._name = name
        self._known = known
        self._authorities = authorities(known, name)
        self._presented = b""

    def transport(self, sock: socket.socket, **options: Any) -> Transport:  # noqa: ANN401  as paramiko calls it
        """A transport that asks for certificates where we have authorities, then for the recorded key
        types."""
        import paramiko

        gate = self

        class GatedTransport(paramiko.Transport):
            @property
            def preferred_keys(self) -> tuple[str, ...]:
                plain = tuple(name for name in super().preferred_keys if not name.endswith(SUFFIX))
                first = [name for name in known_algorithms(known_kinds(gate._known, gate._name))
                         if name in plain]
                vouched = [name + SUFFIX for name in plain] if gate._authorities else []
                return (*vouched, *first, *(name for name in plain if name not in first))

            def _verify_key(self, host_key: bytes, sig: bytes) -> None:
                super()._verify_key(host_key, sig)  # type: ignore[misc]  # in paramiko, not in its types
                gate._presented = host_key

        return GatedTransport(sock, **options)

    def missing_host_key(self, _client: SSHClient, _hostname: str, key: PKey) -> None:
        """Judge the presented key; returning accepts it."""
        certificate = parse_certificate(self._presented)
        blob = certificate.key if certificate else self._presented
        verdict = judge(self._known, self._name, blob)
        if verdict == "known" or (verdict != "revoked" and certificate and self._vouched(certificate)):
            return
        shown = f"{key.get_name()} {fingerprint(blob)}"
        if verdict == "unknown":
            raise key_unknown(self._host, shown)
        was = ", ".join(f"{old.kind} {fingerprint(old.blob)}" for old in recorded(self._known, self._name))
        raise key_changed(self._host, shown, was if verdict == "changed" else "revoked")

    def _vouched(self, certificate: Certificate) -> bool:
        """Whether a recorded authority signed it, for this host and for now."""
        import paramiko

        bare = self._name.removeprefix("[").partition("]")[0]
        if certificate.authority not in self._authorities or not certificate.vouches_for(bare, time.time()):
            return False
        kind = paramiko.Message(certificate.authority).get_text()
        authority = paramiko.PKey.from_type_string(kind, certificate.authority)
        return bool(authority.verify_ssh_sig(certificate.signed, paramiko.Message(certificate.signature)))


class KeyAuthentication:
    """Public keys in OpenSSH's order: the agent's, then IdentityFile's with their certificates. Never a
    prompt."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._locked: list[str] = []

    def authenticate(self, transport: Transport) -> None:
        """Try every key; raises AuthenticationException when none was accepted."""
        import paramiko

        tried = 0
        for key in self._keys():
            tried += 1
            try:
                more = transport.auth_publickey(self._resolved.user, key)
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    break
                continue
            if not more:
                return
            raise paramiko.AuthenticationException(f"a key is not enough, it also wants {', '.join(more)}")
        locked = f"; {', '.join(self._locked)} needs a passphrase: ssh-add it" if self._locked else ""
        raise paramiko.AuthenticationException(f"{self._resolved.user}, {tried} keys offered{locked}")

    def _keys(self) -> Iterator[PKey]:
        import paramiko

        files = self._resolved.identity_files
        only = self._resolved.option("identitiesonly") == "yes"
        allowed = {blob for file in files for blob in public_blobs(file)} if only else None
        for key in _agent_keys(self._resolved.agent_socket):
            if allowed is None or key.asbytes() in allowed:
                yield key
        for file in files:
            try:
                key = paramiko.PKey.from_path(file)
            except (paramiko.PasswordRequiredException, TypeError):  # cryptography's word for "encrypted"
                self._locked.append(str(file))
            except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
                continue
            else:
                yield from _with_certificates(partial(paramiko.PKey.from_path, file),
                                              self._resolved.certificate_files)
                yield key


def _agent_keys(address: str | None) -> Iterator[PKey]:
    """The keys of the SSH agent at that socket."""
    import paramiko

    if not address:
        return
    agent: Any = paramiko.agent.AgentSSH()
    with socket.socket(socket.AF_UNIX) as conn, contextlib.suppress(OSError, paramiko.SSHException):
        conn.settimeout(KILL_TIMEOUT)
        conn.connect(address)
        agent._connect(conn)  # what paramiko.Agent() does, for the one address in SSH_AUTH_SOCK
        yield from agent.get_keys()


def _with_certificates(load: Callable[[], Any], files: Sequence[str]) -> Iterator[Any]:
    """The key once with each CertificateFile that is made for it. A key object carries one certificate."""
    import paramiko

    for file in files:
        key = load()
        with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
            key.load_certificate(file)
            yield key


def foreign_errors() -> tuple[type[Exception], ...]:
    """All that paramiko, fabric and the sockets below them raise."""
    import fabric.exceptions
    import invoke.exceptions
    import paramiko

    return (paramiko.SSHException, paramiko.pkey.UnknownKeyType, OSError, EOFError,
            fabric.exceptions.GroupException,
            fabric.exceptions.NothingToDo, invoke.exceptions.Failure, invoke.exceptions.ThreadException)


def translate(exc: Exception, host: str, *, connecting: bool) -> RemoteError:
    """The error that a foreign one means; `connecting` is true until the first channel is open."""
    import paramiko

    said = str(exc).strip() or type(exc).__name__
    if isinstance(exc, paramiko.AuthenticationException):
        return AuthenticationFailed(f"it refuses every key ({said})", host=host,
                                    hint=AUTHENTICATION_HINT.format(host=host))
    if isinstance(exc, paramiko.BadHostKeyException):
        return key_changed(host, fingerprint(exc.key.asbytes()), fingerprint(exc.expected_key.asbytes()))
    if isinstance(exc, paramiko.ChannelException):
        return ConnectionLost(f"it refuses another channel ({said})", host=host,
                              hint="its sshd_config may set MaxSessions too low")
    if isinstance(exc, (paramiko.ssh_exception.IncompatiblePeer, paramiko.ssh_exception.MessageOrderError)):
        return HostUnreachable(f"its SSH server cannot be spoken to ({said})", host=host)
    if connecting:
        return HostUnreachable(f"no SSH connection ({said})", host=host,
                               hint=UNREACHABLE_HINT.format(host=host))
    return ConnectionLost(f"the connection broke ({said})", host=host, hint="run the same again")
