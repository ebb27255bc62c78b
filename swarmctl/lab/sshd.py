"""One sshd of the lab: its config as text, its start, its end. It serves one host and is nobody's system
service.

Works for any user above port 1024; as root it also needs the folder that sshd drops its privileges in.
Sessions get a home folder of their own and SWARMCTL_LAB_HOST, by which everything started in them is found
again.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "SWARMCTL_LAB_HOST"
START_TIMEOUT = 30.0
PRIVILEGE_SEPARATION = Path("/run/sshd")
_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/sbin"
#: OpenSSH 9.8 and later shuts out an address that failed often; all of the lab's hosts share one client.
PENALTIES = "PerSourcePenalties no"


def sshd_config(folder: Path, address: str, port: int, *, pam: bool = False) -> str:
    """The config of a host whose files lie in `folder`. `{folder}/authorized_keys` lets the lab's key in;
    what a session writes to its own ~/.ssh/authorized_keys counts, as it does anywhere.

    Without PAM, sshd refuses an account with a locked password, as root's is on some systems.
    """
    return "\n".join((
        f"Port {port}",
        f"ListenAddress {address}",
        f'HostKey "{folder}/host_key"',
        f'AuthorizedKeysFile "{folder}/authorized_keys" "{folder}/home/.ssh/authorized_keys"',
        f'PidFile "{folder}/sshd.pid"',
        "AuthenticationMethods publickey",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"UsePAM {'yes' if pam else 'no'}",
        "StrictModes no",
        "UseDNS no",
        "PrintMotd no",
        "MaxStartups 500:30:1000",
        "MaxSessions 200",
        "AllowTcpForwarding yes",
        "AllowStreamLocalForwarding yes",
        "Subsystem sftp internal-sftp",
        f'SetEnv "HOME={folder}/home" "{MARK}={folder}"',
        "",
    ))


def find_sshd() -> str:
    """The absolute path of sshd, which it needs to start itself anew for each session."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{_PLACES}")
    if found:
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        return find_sshd()
    raise SwarmError("the lab needs an SSH server, and there is no sshd here",
                     hint="install it: sudo apt-get install openssh-server")


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair, in place of one that is there."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    _checked(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)))


def start_sshd(folder: Path, address: str, port: int, prefix: Sequence[str] = ()) -> int:
    """Start the host's sshd and wait until it greets; its process id. `prefix` is a command that runs it
    elsewhere."""
    sshd = find_sshd()
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    config = folder / "sshd_config"
    text = sshd_config(folder, address, port, pam=_password_locked(getpass.getuser()))
    config.write_text(f"{PENALTIES}\n{text}", encoding="utf-8")
    if subprocess.run((sshd, "-t", "-f", str(config)), capture_output=True, timeout=START_TIMEOUT,
                      check=False).returncode != 0:
        config.write_text(text, encoding="utf-8")
    pid_file = folder / "sshd.pid"
    pid_file.unlink(missing_ok=True)
    _checked((*prefix, sshd, "-f", str(config), "-E", str(folder / "sshd.log")))
    return _await_pid(pid_file, folder)


def greets(address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether an SSH server greets there."""
    try:
        with socket.create_connection((address, port), timeout) as sock:
            sock.settimeout(timeout)
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


def _password_locked(user: str) -> bool:
    """Whether /etc/shadow says so; who may not read it is not asked by sshd either."""
    try:
        lines = Path("/etc/shadow").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)


def _await_pid(pid_file: Path, folder: Path) -> int:
    """sshd writes its process id once it listens."""
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit:
        text = pid_file.read_text(encoding="ascii").strip() if pid_file.exists() else ""
        if text:
            return int(text)
        time.sleep(0.01)
    log = (folder / "sshd.log").read_text(encoding="utf-8", errors="replace")[-500:]
    raise SwarmError(f"the lab's sshd in {folder} did not start: {log.strip()}")


def _checked(argv: Sequence[str]) -> None:
    done = subprocess.run(tuple(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace",
                          timeout=START_TIMEOUT, check=False)
    if done.returncode != 0:
        raise SwarmError(f"`{argv[0]}` failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _install() -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (("apt-get", "-qq", "update"), ("apt-get", "-qq", "-y", "install", "openssh-server")):
        try:
            subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           timeout=300,
                           check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
            raise SwarmError("there is no sshd here, and `apt-get install openssh-server` failed",
                             hint="install openssh-server by hand") from exc
