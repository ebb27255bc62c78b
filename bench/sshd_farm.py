"""Many OpenSSH servers on this machine's loopback, one process and one port a host, for benches.

As root each has processes of its own (a PID namespace), as hosts do: what a survey or a playbook sees of one
is not the sum of all, and nothing that was started on a host outlives it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

START_TIMEOUT = 120.0
APART = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")


@contextlib.contextmanager
def farm(folder: Path, count: int, more: dict[str, str] | None = None):
    """Run `count` servers, with `more` lines in the config of those it names; yields an ssh_config that
    names them h001, h002, … and a function that says how many seconds of CPU the servers and all that ran
    in them have used so far."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
    if sshd is None:
        raise SystemExit("this bench needs OpenSSH's sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd run by root wants its chroot there
    (folder / "home").mkdir()
    key = _key(folder / "id")
    (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    ports = _free_ports(count)
    servers = []
    prefix = _prefix()
    try:
        for number, port in enumerate(ports, 1):
            name = f"h{number:03d}"
            servers.append(_start((*prefix, sshd), folder, name, port, (more or {}).get(name, "")))
        _wait(ports)
        yield _client_config(folder, key, ports), lambda: sum(_cpu(server.pid) for server in servers)
    finally:
        for server in servers:
            server.kill() if prefix else server.terminate()
        for server in servers:
            server.wait(10)


def _prefix():
    """The command that gives a host its own processes, where that can be had."""
    tried = shutil.which(APART[0]) and subprocess.run((*APART, "true"), check=False, capture_output=True)
    return APART if tried and tried.returncode == 0 else ()


def _start(argv, folder, name, port, more):
    host_key = _key(folder / f"{name}.key")
    config = folder / f"{name}.conf"
    config.write_text(f"{more}Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\n"
                      "UsePAM no\n"
                      f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\n"
                      f"SetEnv HOME={folder}/home\n"  # and not the start-up files of this user
                      "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
                      "Subsystem sftp internal-sftp\nMaxSessions 50\n")
    return subprocess.Popen([*argv, "-D", "-f", str(config), "-E", str(folder / f"{name}.log")],
                            stdin=subprocess.DEVNULL)


def _client_config(folder, key, ports):
    config, known = folder / "ssh_config", folder / "known_hosts"
    lines = [f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  User {getpass.getuser()}\n"
             f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n"]
    keys = []
    for number, port in enumerate(ports, 1):
        name = f"h{number:03d}"
        lines.append(f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n")
        kind, blob = (folder / f"{name}.key.pub").read_text().split()[:2]
        keys.append(f"[127.0.0.1]:{port} {kind} {blob}\n")
    config.write_text("".join(lines))
    known.write_text("".join(keys))
    return config


def _key(path):
    argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    subprocess.run(argv, check=True, timeout=30)
    return path


def _cpu(pid):
    """A server's own CPU seconds and those of its children that have ended (proc(5), stat)."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == APART[0]:
        pid = below[0]
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _wait(ports):
    deadline = time.monotonic() + START_TIMEOUT
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"sshd on port {port} does not answer") from None
                time.sleep(0.05)
