"""Roads to servers that listen on a host's loopback: OpenSSH forwards onto unix sockets that outlive the
command.

One multiplexed master a host (ssh_config(5), ControlMaster) carries every forward. Measured against
fabric's forwards in docs/hosts.md: with a warm tunnel `ask` makes no SSH handshake at all. `ask` loads this
module, so it imports nothing heavy, and what opens a tunnel only where one is opened. Sockets lie in
`paths.runtime`, a folder that only its owner may enter; the name of a socket is a hash, because a socket's
path may not be long.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import tempfile
import time
from hashlib import sha256
from typing import TYPE_CHECKING, TextIO

from swarmctl.errors import HostUnreachable, SwarmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from swarmctl.fleet.ssh_config import Resolved
    from swarmctl.paths import Paths

LINGER = "4h"  # an idle master ends by itself
CONTROL_TIMEOUT = 5.0
CONNECT_PROBE = 1.0


def socket_path(paths: Paths, host_name: str, port: int) -> Path:
    """Where the near end of the tunnel to that host's 127.0.0.1:`port` is, or would be."""
    return paths.runtime / f"{_tag(host_name)}-{port}"


def control_path(paths: Paths, host_name: str) -> Path:
    """The control socket of a host's master."""
    return paths.runtime / f"{_tag(host_name)}.ctl"


def is_up(path: Path) -> bool:
    """Whether a process of this user listens on the near end. A master that lost its host ends within ten
    seconds."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CONNECT_PROBE)
        try:
            if path.lstat().st_uid != os.getuid():
                return False
            sock.connect(str(path))
        except OSError:
            return False
    return True


def open_tunnel(paths: Paths, *, host_name: str, ssh: str, ports: Sequence[int],
                ssh_config: str | None = None,
                connect_timeout: float = 5.0, linger: str = LINGER) -> dict[int, Path]:
    """Make the tunnels to those ports of a host and say where their near ends are. Open ones are left alone.

    Raises HostUnreachable, HostKeyUnknown, HostKeyChanged or AuthenticationFailed.
    """
    found = {port: socket_path(paths, host_name, port) for port in ports}
    if all(is_up(path) for path in found.values()):
        return found
    with _locked(paths, host_name, connect_timeout * 2 + CONTROL_TIMEOUT):
        missing = {port: path for port, path in found.items() if not is_up(path)}
        control = control_path(paths, host_name)
        for last in (False, True):
            if missing and not _master_alive(control):
                _start_master(paths, host_name, ssh, ssh_config, connect_timeout, linger)
            try:
                for port, path in missing.items():
                    _forward(control, host_name, port, path)
            except HostUnreachable:
                if last or is_up(control):
                    raise
                continue  # an idle master has just reached its end
            break
    return found


def master_is_up(paths: Paths, host_name: str) -> bool:
    """Whether a host's master runs, as far as a look at its socket tells."""
    return is_up(control_path(paths, host_name))


def leads_to(paths: Paths, host_name: str, resolved: Resolved) -> bool:
    """Whether a host's master was opened to that very destination. On a road with hops nobody knows."""
    if resolved.jumps or resolved.option("proxycommand"):
        return False
    try:
        return _aim_path(control_path(paths, host_name)).read_text(encoding="ascii") == _aim(resolved)
    except OSError:
        return False


def command_argv(paths: Paths, host_name: str, command: str) -> tuple[str, ...]:
    """The `ssh` command that runs a shell command over a host's master, and never on a road of its own."""
    options = ("ControlMaster=no", "ProxyCommand=false", "LogLevel=ERROR")
    return ("ssh", "-F", "none", "-T", *(part for option in options for part in ("-o", option)),
            "-S", _escape(control_path(paths, host_name)), "swarmctl", command)


def forward_port(paths: Paths, *, host_name: str, ssh: str, port: int, near: int,
                 ssh_config: str | None = None, connect_timeout: float = 5.0) -> None:
    """Make 127.0.0.1:`near` of this machine lead to that host's 127.0.0.1:`port`, for programs that speak
    to no socket (a browser), until `unforward_port` or the master's end. Raises as `open_tunnel`."""
    open_tunnel(paths, host_name=host_name, ssh=ssh, ports=(port,), ssh_config=ssh_config,
                connect_timeout=connect_timeout)
    argv = _control_argv(control_path(paths, host_name), "forward", "-o", "ExitOnForwardFailure=yes",
                         "-L", f"127.0.0.1:{near}:127.0.0.1:{port}")
    status, said = _run(argv, CONTROL_TIMEOUT)
    if status != 0:
        raise HostUnreachable(f"no tunnel to its port {port} ({said.strip() or 'ssh gave no reason'})",
                              host=host_name)


def unforward_port(paths: Paths, *, host_name: str, port: int, near: int) -> None:
    """Undo `forward_port`."""
    _run(_control_argv(control_path(paths, host_name), "cancel", "-L", f"127.0.0.1:{near}:127.0.0.1:{port}"),
         CONTROL_TIMEOUT)


def close_tunnel(paths: Paths, host_name: str) -> bool:
    """End a host's master and its forwards. False where none was running."""
    return _close(paths, _tag(host_name))


def close_all(paths: Paths) -> int:
    """End every master of this runtime folder; how many were running."""
    return sum(_close(paths, control.stem) for control in sorted(paths.runtime.glob("*.ctl")))


def master_argv(resolved: Resolved, control: Path, *, known_hosts: Path, ssh_config: str | None,
                connect_timeout: float, linger: str, proxy: Sequence[str] | None = None) -> tuple[str, ...]:
    """The command that starts a master in the background. It ends with 0 once the host has let us in.

    The user's own forwards, commands and multiplexing in the SSH config are not for this connection.
    """
    from swarmctl.fleet.ssh_config import client_argv, proxy_option

    own = ("ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no",
           "RemoteCommand=none",
           "RequestTTY=no", "ControlMaster=yes", f"ControlPersist={linger}", "StreamLocalBindUnlink=yes",
           "StreamLocalBindMask=0177")
    start = client_argv(resolved, known_hosts=known_hosts, ssh_config=ssh_config,
                        connect_timeout=connect_timeout)
    options = tuple(part for option in own for part in ("-o", option))
    return (*start, *options, *proxy_option(proxy), "-S", _escape(control), "-N", "-f",
            *resolved.destination.argv)


def forward_argv(control: Path, port: int, path: Path) -> tuple[str, ...]:
    """The command that adds a forward to a master. It reads no config: the master has connected already."""
    near = str(path).replace("\\", "\\\\").replace(":", "\\:")
    return _control_argv(control, "forward", "-o", "ExitOnForwardFailure=yes", "-L",
                         f"{near}:127.0.0.1:{port}")


def _control_argv(control: Path, command: str, *more: str) -> tuple[str, ...]:
    return ("ssh", "-F", "none", "-S", _escape(control), "-O", command, *more, "swarmctl")


def _escape(control: Path) -> str:
    return str(control).replace("%", "%%")


def _aim_path(control: Path) -> Path:
    """Beside the control socket: where its master leads."""
    return control.with_suffix(".to")


def _aim(resolved: Resolved) -> str:
    """A destination in a word: what decides which machine and user a connection ends at."""
    aim = (resolved.hostname, resolved.port, resolved.user, resolved.known_as)
    return sha256(repr(aim).encode()).hexdigest()


def _tag(host_name: str) -> str:
    return sha256(host_name.encode()).hexdigest()[:12]


def _start_master(paths: Paths, host_name: str, ssh: str, ssh_config: str | None, connect_timeout: float,
                  linger: str) -> None:
    from swarmctl.fleet.ssh_config import hop_names, jump_argv, resolve
    from swarmctl.fleet.ssh_stderr import error_from_stderr

    control = control_path(paths, host_name)
    control.unlink(missing_ok=True)  # left by a master that was killed
    _aim_path(control).unlink(missing_ok=True)
    resolved = resolve(ssh, ssh_config)

    def lookup(hop: str) -> Resolved:
        return resolve(hop, ssh_config)

    proxy = jump_argv(resolved, lookup=lookup, known_hosts=paths.known_hosts, ssh_config=ssh_config,
                      connect_timeout=connect_timeout)
    argv = master_argv(resolved, control, known_hosts=paths.known_hosts, ssh_config=ssh_config,
                       connect_timeout=connect_timeout, linger=linger, proxy=proxy)
    patience = connect_timeout * (2 + len(resolved.jumps))
    status, said = _run(argv, patience)
    if status is None:
        raise HostUnreachable(f"no SSH connection within {patience:g} s", host=host_name,
                              hint="it accepts connections and says nothing: is it asleep or overloaded?")
    if status != 0:
        # A master that will persist silences its ProxyCommand, so the jump hosts are asked what is wrong.
        jump_status, jump_said = _run(proxy, patience) if proxy else (0, "")
        raise error_from_stderr(jump_said if jump_status else said, host_name, ssh,
                                hop_names(resolved, lookup), ssh_config=ssh_config)
    with contextlib.suppress(OSError):  # a full disk: `up` then finds its own way
        _aim_path(control).write_text(_aim(resolved), encoding="ascii")


def _forward(control: Path, host_name: str, port: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    status, said = _run(forward_argv(control, port, path), CONTROL_TIMEOUT)
    if status != 0 or not is_up(path):
        raise HostUnreachable(f"no tunnel to its port {port} ({said.strip() or 'ssh gave no reason'})",
                              host=host_name,
                              hint="its sshd_config must allow TCP forwarding (AllowTcpForwarding)")


def _master_alive(control: Path) -> bool:
    if not is_up(control):
        return False
    status, _ = _run(_control_argv(control, "check"), CONTROL_TIMEOUT)
    return status == 0


def _close(paths: Paths, tag: str) -> bool:
    control = paths.runtime / f"{tag}.ctl"
    running = is_up(control)
    if running:
        _run(_control_argv(control, "exit"), CONTROL_TIMEOUT)
        _await_end(control)
    for path in (control, _aim_path(control), *paths.runtime.glob(f"{tag}-*")):
        path.unlink(missing_ok=True)
    return running


def _await_end(control: Path) -> None:
    limit = time.monotonic() + CONTROL_TIMEOUT
    while is_up(control) and time.monotonic() < limit:
        time.sleep(0.02)


def _run(argv: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Run an ssh command; status None past the timeout. Its stderr goes to a file: a master that stays in the
    background would hold a pipe open for ever."""
    with tempfile.TemporaryFile() as stderr:
        try:
            done = subprocess.run(tuple(argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=stderr,
                                  timeout=timeout, check=False, start_new_session=True)
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        except FileNotFoundError as exc:
            raise SwarmError("the OpenSSH client `ssh` is not on PATH",
                             hint="install openssh-client") from exc
        stderr.seek(0)
        return status, stderr.read().decode(errors="replace")


@contextlib.contextmanager
def _locked(paths: Paths, host_name: str, timeout: float) -> Iterator[None]:
    """One process at a time opens or mends a host's tunnels."""
    with _lock_file(paths, host_name) as file:
        limit = time.monotonic() + timeout
        while not _try_lock(file.fileno()):
            if time.monotonic() > limit:
                raise HostUnreachable("another swarmctl has been opening its tunnel for too long",
                                      host=host_name)
            time.sleep(0.02)
        yield


def _lock_file(paths: Paths, host_name: str) -> TextIO:
    try:
        _private_folder(paths.runtime)
        return (paths.runtime / f"{_tag(host_name)}.lock").open("w")
    except OSError as exc:
        raise SwarmError(f"{paths.runtime} cannot hold tunnels' sockets: {exc.strerror or exc}",
                         hint="`swarmctl doctor` says what is wrong, and what mends it") from exc


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private_folder(folder: Path) -> None:
    """Make the folder 0700 and refuse one that somebody else owns, or could put another in place of."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    seen, above = folder.lstat(), folder.parent.stat()
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid()
    if not ours or above.st_uid not in {0, os.getuid()}:
        raise SwarmError(f"{folder} belongs to somebody else, so tunnels in it would not be private",
                         hint="set XDG_RUNTIME_DIR to a folder of your own")
    if stat.S_IMODE(seen.st_mode) & 0o077:
        folder.chmod(0o700)
