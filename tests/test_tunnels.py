"""Tunnels outlive the command, are shared, mend themselves, and can be closed."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import until

from swarmctl.errors import AuthenticationFailed, HostUnreachable, SwarmError
from swarmctl.fleet import tunnels
from swarmctl.fleet.ssh_config import Destination, parse_resolved
from swarmctl.fleet.tunnels import (
    close_all,
    close_tunnel,
    control_path,
    forward_argv,
    is_up,
    master_argv,
    open_tunnel,
    socket_path,
)
from swarmctl.lab.processes import alive


@pytest.fixture
def far():
    """A server on loopback that greets with its own port, as a host's model server would be."""
    servers = []

    def make() -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        return server.getsockname()[1]

    yield make
    for server in servers:
        server.close()


def _greet(server: socket.socket) -> None:
    while True:
        try:
            conn, _ = server.accept()
        except OSError:
            return
        with conn, contextlib.suppress(OSError):
            conn.sendall(b"%d\n" % server.getsockname()[1])


def greeting(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        return int(sock.recv(20) or b"0")


def opened(lab, *ports: int, name="worlock", **options) -> dict[int, Path]:
    return open_tunnel(lab.paths, host_name=name, ssh=options.pop("ssh", name), ports=ports,
                       ssh_config=str(options.pop("config", lab.ssh_config)), **options)


def master_pid(lab, name="worlock") -> int:
    said = subprocess.run(("ssh", "-F", "none", "-S", str(control_path(lab.paths, name)), "-O", "check", "x"),
                          capture_output=True, text=True, check=True).stderr
    return int(said.split("pid=")[1].split(")")[0])


def test_a_port_of_the_host_is_reached_through_a_unix_socket(lab, far):
    port = far()
    found = opened(lab, port)
    assert found == {port: socket_path(lab.paths, "worlock", port)}
    assert greeting(found[port]) == port


def test_more_ports_share_one_master(lab, far):
    first, second = far(), far()
    opened(lab, first)
    pid = master_pid(lab)
    found = opened(lab, first, second)
    assert [greeting(found[port]) for port in (first, second)] == [first, second]
    assert master_pid(lab) == pid


def test_an_open_tunnel_costs_no_ssh_at_all(lab, far, monkeypatch):
    port = far()
    found = opened(lab, port)
    monkeypatch.setattr(tunnels, "_run", lambda *_: pytest.fail("started an ssh"))
    assert opened(lab, port) == found


OPEN = """
import os, sys
from swarmctl.fleet.tunnels import open_tunnel
from swarmctl.paths import Paths
open_tunnel(Paths.from_environ(os.environ), host_name="worlock", ssh="worlock", ssh_config=sys.argv[1],
            ports=[int(port) for port in sys.argv[2:]])
"""


def opening(lab, *ports: int) -> subprocess.Popen[bytes]:
    """Another process that opens tunnels to worlock."""
    return subprocess.Popen((sys.executable, "-c", OPEN, str(lab.ssh_config), *map(str, ports)),
                            env={**os.environ,
                                 **lab.environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_tunnel_outlives_the_process_that_opened_it(lab, far):
    port = far()
    process = opening(lab, port)
    assert (process.communicate(timeout=20)[0], process.returncode) == (b"", 0)
    path = socket_path(lab.paths, "worlock", port)
    assert is_up(path)
    assert greeting(path) == port


def test_a_stale_socket_is_seen_and_opened_anew(lab, far):
    port = far()
    path = opened(lab, port)[port]
    os.kill(master_pid(lab), signal.SIGKILL)
    until(lambda: not is_up(path))
    assert path.exists()
    assert greeting(opened(lab, port)[port]) == port


def test_a_tunnel_is_opened_anew_after_sshd_came_back(lab, far):
    port = far()
    path = opened(lab, port)[port]
    lab.host("worlock").restart_sshd()
    until(lambda: not is_up(path))
    assert greeting(opened(lab, port)[port]) == port


def test_an_idle_master_ends_by_itself(lab, far):
    port = far()
    path = opened(lab, port, linger="2")[port]
    until(lambda: not control_path(lab.paths, "worlock").exists())  # a look through the tunnel is use of it
    assert not is_up(path)


def test_many_processes_open_one_tunnel_at_once(lab, far):
    first, second = far(), far()
    processes = [opening(lab, *ports) for ports in ((first,), (second,), (first, second), (second, first))]
    assert [process.communicate(timeout=30)[0] for process in processes] == [b""] * 4
    assert [greeting(socket_path(lab.paths, "worlock", port)) for port in (first, second)] == [first, second]
    masters = subprocess.run(("pgrep", "-f", str(control_path(lab.paths, "worlock"))), capture_output=True,
                             text=True,
                             check=True).stdout.split()
    assert len(masters) == 1


def test_closing_removes_the_master_and_every_socket(lab, far):
    port = far()
    path = opened(lab, port)[port]
    pid = master_pid(lab)
    assert close_tunnel(lab.paths, "worlock")
    assert not path.exists()
    until(lambda: not alive(pid))
    assert not close_tunnel(lab.paths, "worlock")


def test_close_all_ends_every_master(lab, far):
    port = far()
    opened(lab, port)
    opened(lab, port, name="spinoza")
    assert close_all(lab.paths) == 2
    assert close_all(lab.paths) == 0
    assert not list(lab.paths.runtime.glob("*-*"))


def test_a_server_that_is_not_there_breaks_the_stream_and_not_the_tunnel(lab, far):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = opened(lab, port)[port]
    assert greeting(path) == 0
    assert is_up(path)


def test_a_host_that_is_off_costs_about_its_connect_timeout(lab):
    lab.host("worlock").cut()
    started = time.monotonic()
    with pytest.raises(HostUnreachable):
        opened(lab, 1, connect_timeout=1.0)
    assert time.monotonic() - started < 30, "a minute and more if it were left to TCP"


@pytest.mark.netns
@pytest.mark.slow
def test_a_master_whose_cable_is_pulled_ends_within_seconds(cable_lab, far):
    path = opened(cable_lab, 9)[9]
    cable_lab.host("worlock").cut()
    until(lambda: not is_up(path))
    with pytest.raises(HostUnreachable):
        opened(cable_lab, 9, connect_timeout=1.0)
    cable_lab.host("worlock").mend()
    assert is_up(opened(cable_lab, 9)[9])


@pytest.mark.netns
def test_a_server_inside_a_namespace_is_reached_on_its_own_loopback(cable_lab):
    space = cable_lab.host("worlock").space
    server = subprocess.Popen(("ip", "netns", "exec", space.name, sys.executable, "-m", "http.server", "8090",
                               "--bind", "127.0.0.1", "--directory", str(cable_lab.folder)),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        path = opened(cable_lab, 8090)[8090]
        until(lambda: _status(path) == 200)
    finally:
        server.terminate()
        server.wait(60)


def _status(path: Path) -> int:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        connection.request("GET", "/lab.json")
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):
        return 0
    finally:
        connection.close()


def test_a_refused_key_is_told(lab):
    (lab.host("worlock").folder / "authorized_keys").write_text("")
    with pytest.raises(AuthenticationFailed) as caught:
        opened(lab, 1)
    assert caught.value.host == "worlock"


def test_a_host_that_forbids_forwards_breaks_the_stream(lab, far):
    door = lab.host("worlock").folder / "authorized_keys"
    door.write_text("no-port-forwarding " + door.read_text())
    path = opened(lab, far())
    assert all(greeting(one) == 0 for one in path.values())


def test_the_users_own_forwards_and_multiplexing_are_left_out(lab, far, tmp_path):
    port, taken = far(), far()
    config = tmp_path / "config"
    config.write_text(f"Host *\n  LocalForward {taken} 127.0.0.1:1\n  ControlMaster auto\n"
                      f"  ControlPath {tmp_path}/mine\n  RemoteCommand false\n  RequestTTY force\n"
                      f"  LogLevel QUIET\n{lab.ssh_config.read_text()}")
    assert greeting(opened(lab, port, config=config)[port]) == port
    assert not (tmp_path / "mine").exists()


def test_a_host_behind_a_jump_host_is_tunnelled_to(lab, far, tmp_path):
    host, port = lab.host("calisota"), far()
    config = tmp_path / "config"
    config.write_text(f"Host far\n  HostName {host.address}\n  Port {host.port}\n"
                      f"  ProxyJump worlock,spinoza\n{lab.ssh_config.read_text()}")
    assert greeting(opened(lab, port, name="far", config=config)[port]) == port


def test_a_disk_that_is_full_stops_no_tunnel(lab, far, monkeypatch):
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    port = far()
    monkeypatch.setattr(Path, "write_text", full)
    assert port in open_tunnel(lab.paths, host_name="worlock", ssh="worlock", ports=(port,),
                               ssh_config=str(lab.ssh_config))


def test_a_place_that_holds_no_sockets_is_named(lab, far):
    shutil.rmtree(lab.paths.runtime, ignore_errors=True)
    lab.paths.runtime.write_text("")
    with pytest.raises(SwarmError, match="cannot hold tunnels' sockets") as caught:
        open_tunnel(lab.paths, host_name="worlock", ssh="worlock", ports=(far(),),
                    ssh_config=str(lab.ssh_config))
    assert "swarmctl doctor" in (caught.value.hint or "")


def test_the_sockets_folder_is_private_or_refused(lab, far):
    port = far()
    lab.paths.runtime.mkdir(mode=0o755, exist_ok=True)
    lab.paths.runtime.chmod(0o755)
    path = opened(lab, port)[port]
    assert lab.paths.runtime.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_sockets_folder_of_somebody_else_is_refused(lab, far, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    port = far()
    for runtime in (folder, folder / "ours"):
        paths = replace(lab.paths, runtime=runtime)
        with pytest.raises(SwarmError, match="belongs to somebody else"):
            open_tunnel(paths, host_name="worlock", ssh="worlock", ports=(port,),
                        ssh_config=str(lab.ssh_config))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a socket away needs root")
def test_a_socket_of_somebody_else_is_not_a_tunnel(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert is_up(path)
        os.chown(path, 12345, 12345)
        assert not is_up(path)


# -- as data --

def test_the_command_of_a_master():
    resolved = parse_resolved(Destination("w", "me"), "hostname h\nport 22\nuser me\nuserknownhostsfile /u\n")
    argv = master_argv(resolved, Path("/run/a%b.ctl"), known_hosts=Path("/k"), ssh_config="/c",
                       connect_timeout=5,
                       linger="4h")
    assert argv[:3] == ("ssh", "-F", "/c")
    assert argv[-8:] == ("-S", "/run/a%%b.ctl", "-N", "-f", "-l", "me", "--", "w")
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes", "ControlMaster=yes", "ControlPersist=4h",
                   "ClearAllForwardings=yes", "StreamLocalBindUnlink=yes", 'UserKnownHostsFile="/k" "/u"',
                   "ConnectTimeout=5"):
        assert option in argv


def test_the_command_that_adds_a_forward():
    argv = forward_argv(Path("/r/x.ctl"), 8090, Path("/r/a:b"))
    assert shlex.join(argv) == ("ssh -F none -S /r/x.ctl -O forward -o ExitOnForwardFailure=yes "
                                "-L '/r/a\\:b:127.0.0.1:8090' swarmctl")


def test_socket_names_are_short_and_apart_for_each_host_and_port(lab_loopback):
    paths = replace(lab_loopback.paths, runtime=Path("/" + "r" * 59))
    names = {socket_path(paths, host, port) for host in ("a", "b" * 200, "c/../d") for port in (1, 65535)}
    assert len(names) == 6
    assert all(len(str(name)) + 18 <= 104 for name in (*names, control_path(paths, "b" * 200)))
