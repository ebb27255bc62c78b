"""One host over SSH: run a command, move files. The only module that knows fabric.

`Remote` is the seam: FabricRemote for hosts over SSH, LocalRemote for `ssh: local`, and a function-fed fake
in tests. Commands are argv tuples joined with shlex; success is an exit status, never a text match. Foreign
exceptions become `swarmctl.errors` here and nowhere else. fabric holds the connection; commands run on
channels of our own, because its runner takes only text on stdin, and polls.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from swarmctl.errors import AuthenticationFailed, ConnectionLost, HostUnreachable, RemoteError
from swarmctl.fleet.hostkeys import Gate, fingerprint, read_known_hosts
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.shell import (
    Completed,
    Feeder,
    Output,
    Remote,
    ShellRemote,
    announcing,
    ending,
    shorten,
    timed_out,
    without_announcement,
)
from swarmctl.fleet.ssh_config import Resolved, hop_names, public_blobs, resolve
from swarmctl.fleet.ssh_stderr import (
    AUTHENTICATION_HINT,
    UNREACHABLE_HINT,
    as_typed,
    error_from_stderr,
    key_changed,
)
from swarmctl.fleet.wire import Proxy, drain, open_proxy, open_tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fabric import Config, Connection
    from paramiko import Channel, PKey, SSHClient, Transport

    from swarmctl.fleet.certificates import Certificate
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

__all__ = ["Completed", "FabricRemote", "LocalRemote", "Remote", "connect", "translate"]

STALL_LIMIT = 30.0  # seconds without a byte moving before a write is given up
KILL_TIMEOUT = 5.0
KEEPALIVE = 5  # seconds of silence before a keepalive; wire.DEAD_AFTER decides when no answer means broken


def connect(host: Host, paths: Paths, ssh_config: str | None = None) -> ShellRemote:
    """The remote for an inventory host. Nothing is reached before the first command."""
    if host.local:
        return LocalRemote(host.name)
    return FabricRemote(host, paths, ssh_config)


class FabricRemote(ShellRemote):
    """A host over SSH, on one connection that is made at the first command and kept."""

    def __init__(self, host: Host, paths: Paths, ssh_config: str | None = None) -> None:
        self.host = host.name
        self._target = host.ssh
        self._typed = as_typed(host.ssh, ssh_config)
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
            channel.exec_command(shlex.join(announcing(argv)))
            if source:
                feeder = Feeder(source, channel.sendall, channel.shutdown_write)
            else:
                channel.shutdown_write()
            output, error = Output(sink), Output()
            self._collect(channel, argv, output, error, started, timeout)
        except foreign_errors() as exc:
            raise translate(exc, self.host, self._typed, connecting=False) from exc
        finally:
            channel.close()
        if feeder:
            feeder.finish(STALL_LIMIT)
        return Completed(tuple(argv), channel.exit_status, output.text, without_announcement(error.text),
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
            ended = drain(channel, output, error, deadline)
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
        argv, session = ending(error.text), self._session
        if not argv or not session:
            return
        with contextlib.suppress(*foreign_errors()):
            channel = session.channel()
            channel.exec_command(shlex.join(argv))
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
                raise translate(exc, self.host, self._typed, connecting=True) from exc


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
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its threads write tracebacks
    resolved = resolve(target, ssh_config, paths.state / "ssh")
    proxy = open_proxy(resolved, paths.known_hosts, ssh_config, timeout)
    patience = timeout * (1 + len(resolved.jumps))
    gate = Gate(host, resolved.known_as, read_known_hosts((paths.known_hosts, *resolved.known_hosts)))
    with contextlib.ExitStack() as undo:
        if proxy:
            undo.callback(proxy.close)
        try:
            sock = undo.enter_context(proxy.socket if proxy else open_tcp(resolved, timeout))
            connection = _connection(resolved, sock, gate, patience)
            undo.callback(connection.client.close)
            connection.open()
        except foreign_errors() as exc:
            said = proxy.failure() if proxy else None
            if said is None:
                raise
            names = hop_names(resolved, lambda hop: resolve(hop, ssh_config))
            raise error_from_stderr(said, host, target, names, ssh_config=ssh_config) from exc
        undo.pop_all()
    connection.transport.set_keepalive(KEEPALIVE)
    return Session(connection, proxy, patience)


def _connection(resolved: Resolved, sock: socket.socket, gate: Gate, patience: float) -> Connection:
    """fabric's connection over bytes that are there already. It reads no config: `ssh -G` has read it."""
    import fabric

    policy = GatePolicy(gate)
    made = fabric.Connection(
        resolved.hostname, user=resolved.user, port=resolved.port, forward_agent=False,
        config=_no_config(),
        connect_kwargs={
            "sock": sock, "timeout": patience, "banner_timeout": patience, "auth_timeout": patience,
            "channel_timeout": patience, "transport_factory": policy.transport,
            "auth_strategy": KeyAuthentication(resolved),
        })
    made.client.set_missing_host_key_policy(policy)
    return made


def _no_config() -> Config:
    """A fabric configuration that read no file. One for each connection: reading one is no matter for several
    threads."""
    from fabric import Config
    from paramiko import SSHConfig

    return Config(lazy=True, ssh_config=SSHConfig())


class GatePolicy:
    """What paramiko asks of its host key policy and transport, answered by the gate.

    paramiko's own host key list knows one key type a host, and neither certificates nor markers.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._presented = b""

    def transport(self, sock: socket.socket, **options: Any) -> Transport:  # noqa: ANN401  its signature
        """A transport that asks for the gate's algorithms and keeps the very bytes the host presented."""
        import paramiko

        policy = self

        class GatedTransport(paramiko.Transport):
            @property
            def preferred_keys(self) -> tuple[str, ...]:
                return policy._gate.algorithms(super().preferred_keys)

            @property
            def preferred_ciphers(self) -> tuple[str, ...]:
                """AES-GCM first, as OpenSSH has it: one pass instead of a cipher and a MAC, half the CPU."""
                known = super().preferred_ciphers
                return tuple(sorted(known, key=lambda name: "gcm@" not in name))

            def _verify_key(self, host_key: bytes, sig: bytes) -> None:
                super()._verify_key(host_key, sig)  # type: ignore[misc]  # in paramiko, not in its types
                policy._presented = host_key

        return GatedTransport(sock, **options)

    def missing_host_key(self, _client: SSHClient, _hostname: str, _key: PKey) -> None:
        """Judge the presented key; returning accepts it."""
        self._gate.check(self._presented, time.time(), _is_signed)


def _is_signed(certificate: Certificate) -> bool:
    """Whether the authority in a certificate really signed it."""
    import paramiko

    kind = paramiko.Message(certificate.authority).get_text()
    authority = paramiko.PKey.from_type_string(kind, certificate.authority)
    return bool(authority.verify_ssh_sig(certificate.signed, paramiko.Message(certificate.signature)))


class KeyAuthentication:
    """Public keys in OpenSSH's order: the agent's, then IdentityFile's with their certificates. Never a
    prompt."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._locked: list[str] = []
        self._spoilt: list[str] = []

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
        offered = "1 key offered" if tried == 1 else f"{tried} keys offered"
        locked = f"; {', '.join(self._locked)} needs a passphrase: ssh-add it" if self._locked else ""
        spoilt = f"; {', '.join(self._spoilt)} cannot be read as a key" if self._spoilt else ""
        raise paramiko.AuthenticationException(f"{self._resolved.user}, {offered}{locked}{spoilt}")

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
            except FileNotFoundError:  # the names that OpenSSH tries of itself
                continue
            except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
                self._spoilt.append(str(file))
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
            fabric.exceptions.GroupException, fabric.exceptions.NothingToDo,
            invoke.exceptions.Failure, invoke.exceptions.ThreadException)


def translate(exc: Exception, host: str, ssh: str, *, connecting: bool) -> RemoteError:
    """The error that a foreign one means; `connecting` is true until the first channel is open."""
    import paramiko

    said = getattr(exc, "strerror", None) or str(exc).strip() or type(exc).__name__
    if isinstance(exc, paramiko.AuthenticationException):
        return AuthenticationFailed(f"it refuses every key ({said})", host=host,
                                    hint=AUTHENTICATION_HINT.format(ssh=ssh))
    if isinstance(exc, paramiko.BadHostKeyException):
        return key_changed(host, fingerprint(exc.key.asbytes()), fingerprint(exc.expected_key.asbytes()))
    if isinstance(exc, paramiko.ChannelException):
        return ConnectionLost(f"it refuses another channel ({said})", host=host,
                              hint="its sshd_config may set MaxSessions too low")
    if isinstance(exc, (paramiko.ssh_exception.IncompatiblePeer, paramiko.ssh_exception.MessageOrderError)):
        return HostUnreachable(f"its SSH server cannot be spoken to ({said})", host=host)
    if connecting and type(exc) is paramiko.SSHException:
        return HostUnreachable(f"it accepts a connection and then opens no SSH session ({said})", host=host,
                               hint=f"frozen, overloaded, or no SSH server? `ssh -v {ssh}` shows it")
    if connecting:
        return HostUnreachable(f"no SSH connection ({said})", host=host,
                               hint=UNREACHABLE_HINT.format(ssh=ssh))
    return ConnectionLost(f"the connection broke ({said})", host=host, hint="run the same again")
