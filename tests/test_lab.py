"""The lab's hosts are real, apart, hurt on demand, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import swarmctl
from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet import tunnels
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.remote import connect
from swarmctl.inventory import parse_inventory
from swarmctl.lab import network, processes
from swarmctl.lab.lab import Lab
from swarmctl.lab.share import V1, V2, make_share, remove_share
from swarmctl.lab.sshd import greets, sshd_config
from swarmctl.verbs.lab import lab_cut, lab_down, lab_folder, lab_mend, lab_status, lab_up

both_modes = pytest.mark.parametrize("mode", ["loopback", pytest.param("netns", marks=pytest.mark.netns)])


def inventory(lab: Lab):
    return parse_inventory(lab.paths.inventory.read_text(), str(lab.paths.inventory))


def runs(lab: Lab, name: str, *argv: str) -> str:
    remote = connect(inventory(lab).host(name), lab.paths, str(lab.ssh_config))
    try:
        return remote.run(argv, timeout=10).stdout.strip()
    finally:
        remote.close()


@both_modes
def test_three_hosts_answer_each_in_its_own_home(make_lab, mode):
    lab = make_lab(mode)
    homes = {host.name: runs(lab, host.name, "sh", "-c", "cd && pwd") for host in lab.hosts}
    assert homes == {host.name: str(host.folder / "home") for host in lab.hosts}
    assert list(homes) == ["worlock", "spinoza", "calisota"]
    lab.stop()


@pytest.mark.netns
def test_a_namespace_has_a_host_name_an_address_and_a_loopback_of_its_own(lab_netns):
    names = {host.name: runs(lab_netns, host.name, "hostname") for host in lab_netns.hosts}
    assert all(name == hostname for name, hostname in names.items())
    assert len({host.address for host in lab_netns.hosts}) == 3
    assert {host.llamacpp_port for host in lab_netns.hosts} == {8090}


@pytest.mark.netns
def test_spinoza_has_half_a_cpu_where_control_groups_allow(lab_netns):
    group = make_share("swarmctl-probe", 0.5)
    remove_share("swarmctl-probe")
    if group is None:
        pytest.skip("no cpu controller may be used here")
    name = lab_netns.host("spinoza").space.name
    assert name in runs(lab_netns, "spinoza", "cat", "/proc/self/cgroup")
    assert name not in runs(lab_netns, "worlock", "cat", "/proc/self/cgroup")
    quota = [path.read_text().split()[0] for path in group.parent.glob(f"{name}/cpu.*") if path.name in {
        "cpu.cfs_quota_us", "cpu.max"}]
    assert quota == ["50000"]


@both_modes
def test_down_leaves_no_process_no_socket_and_no_namespace(make_lab, mode):
    lab = make_lab(mode)
    runs(lab, "worlock", "sh", "-c",
         "setsid sleep 1000 >/dev/null 2>&1 </dev/null & setsid setsid sleep 1001 "
                                     ">/dev/null 2>&1 </dev/null & exit 0")
    started = lab.host("worlock").state().started
    assert len(started) == 2
    tunnels.open_tunnel(lab.paths, host_name="worlock", ssh="worlock", ports=(9,),
                        ssh_config=str(lab.ssh_config))
    pids = [host.sshd for host in lab.hosts]
    lab.stop()
    assert not any(processes.alive(pid) for pid in (*started, *pids))
    assert not list(lab.paths.runtime.glob("*.ctl"))
    assert not _mentions(str(lab.folder))
    if mode == "netns":
        assert not any((root / lab.host("spinoza").space.name).exists() for root in (V1, V2))
        assert lab.hosts[0].space.name not in subprocess.run(("ip", "netns"), capture_output=True, text=True,
                                                             check=True).stdout


@both_modes
def test_a_lab_that_was_down_comes_up_again_the_same(make_lab, mode):
    lab = make_lab(mode)
    before = [(host.address, host.port, host.public_key()) for host in lab.hosts]
    lab.stop()
    again = lab_up(lab.folder)
    assert [(host.address, host.port, host.public_key()) for host in again.hosts] == before
    assert runs(again, "spinoza", "echo", "in") == "in"
    again.stop()


def test_ssh_reaches_a_host_by_the_labs_config_alone(lab, tmp_path):
    argv = ("ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", "worlock", "echo", "hello")
    done = subprocess.run(argv, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
                          timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


def test_up_twice_starts_nothing_twice(lab):
    pids = [host.sshd for host in lab.hosts]
    assert [host.sshd for host in lab_up(lab.folder).hosts] == pids


def test_two_labs_do_not_meet(make_lab):
    one, two = make_lab(), make_lab()
    ports = [host.port for made in (one, two) for host in made.hosts]
    assert len(set(ports)) == 6
    one.stop()
    assert all(host.greets for host in two.status())
    two.stop()


@both_modes
def test_a_cut_host_is_silent_until_it_is_mended(make_lab, mode):
    lab = make_lab(mode)
    lab_cut(lab.folder, "spinoza")
    assert [state.greets for state in lab_status(lab.folder)] == [True, False, True]
    lab_mend(lab.folder, "spinoza")
    limit = time.monotonic() + 5
    while not lab.host("spinoza").state().greets and time.monotonic() < limit:
        time.sleep(0.1)
    assert runs(lab, "spinoza", "echo", "in") == "in"
    lab.stop()


def test_a_killed_sshd_leaves_what_it_started(lab):
    runs(lab, "worlock", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & exit 0")
    lab.host("worlock").kill_sshd()
    state = lab.host("worlock").state()
    assert (state.sshd, state.greets, len(state.started)) == (None, False, 1)
    lab.host("worlock").start()
    assert runs(lab, "worlock", "echo", "in") == "in"


def test_a_process_that_only_has_its_number_is_not_its_sshd(lab):
    """Numbers come around again within minutes on a busy machine."""
    host = lab.host("worlock")
    host.kill_sshd()
    with subprocess.Popen(("sleep", "600")) as stranger:
        (host.folder / "sshd.pid").write_text(f"{stranger.pid}\n")
        assert host.state().sshd is None
        host.stop()
        assert stranger.poll() is None
        host.start()
        assert host.state().greets
        stranger.kill()


def test_the_inventory_is_one_that_swarmctl_reads(lab_loopback):
    read = inventory(lab_loopback)
    assert [host.name for host in read.hosts] == ["worlock", "spinoza", "calisota"]
    assert read.ssh_config == str(lab_loopback.ssh_config)
    assert {name: model.source for name, model in read.models.items()} == {"tiny-small": "shipped:small",
                                                                          "tiny-large": "shipped:large"}
    placed = {host.name: [(place.model, place.context) for place in host.models] for host in read.hosts}
    assert placed == {"worlock": [("tiny-large", 1024)], "spinoza": [("tiny-small", 512)],
                      "calisota": [("tiny-large", 256)]}
    ports = [host.llamacpp.port for host in read.hosts]
    assert all(abs(a - b) >= network.PORTS_A_HOST for a in ports for b in ports if a != b)
    assert [Path(host.data_dir) for host in read.hosts] == [host.data_dir for host in lab_loopback.hosts]


def test_a_hundred_hosts_are_planned_apart(tmp_path):
    lab = Lab.create(tmp_path / "big", hosts=40)
    ports = {host.port for host in lab.hosts}
    servers = {host.llamacpp_port + step for host in lab.hosts for step in range(network.PORTS_A_HOST)}
    assert (len(ports), len(servers), ports & servers) == (40, 40 * network.PORTS_A_HOST, set())
    assert lab.hosts[3].name == "host004"


def test_the_cache_is_shared_and_survives_a_wipe(tmp_path):
    cache = tmp_path / "cache"
    lab = Lab.create(tmp_path / "lab", cache=cache)
    (cache / "built").write_text("dear")
    assert (lab.paths.cache / "built").read_text() == "dear"
    lab.wipe()
    assert not lab.folder.exists()
    assert (cache / "built").read_text() == "dear"


def test_another_mode_than_the_lab_has_is_refused(lab):
    with pytest.raises(UsageError) as caught:
        lab_up(lab.folder, hosts=5)
    assert "--wipe" in (caught.value.hint or "")


def test_where_there_is_no_lab_that_is_said(tmp_path):
    assert lab_down(tmp_path) is None
    with pytest.raises(SwarmError, match="no lab"):
        lab_status(tmp_path)


def test_the_lab_is_found_from_within_its_own_home(lab_loopback):
    assert lab_folder(lab_loopback.paths, lab_loopback.environ) == lab_loopback.folder
    assert lab_folder(lab_loopback.paths, {}) == lab_loopback.paths.state / "lab"


def test_an_interrupted_start_leaves_nothing_running(tmp_path, monkeypatch):
    lab = Lab.create(tmp_path / "lab")
    real = type(lab.hosts[0]).start

    def start(host) -> None:
        if host.name == "calisota":
            raise KeyboardInterrupt
        real(host)

    monkeypatch.setattr(type(lab.hosts[0]), "start", start)
    with pytest.raises(KeyboardInterrupt):
        lab.start()
    assert not _mentions(str(lab.folder))


def test_the_command_makes_shows_and_removes_a_lab(tmp_path):
    def swarmctl(*words: str, **more) -> subprocess.CompletedProcess[str]:
        return subprocess.run((sys.executable, "-m", "swarmctl", *words), capture_output=True, text=True,
                              timeout=30,
                              env={**os.environ, "SWARMCTL_HOME": str(tmp_path / "me"), **more}, check=False)

    assert swarmctl("lab", "status").returncode == 1
    assert swarmctl("lab", "up").returncode == 0
    try:
        exported = swarmctl("lab", "env").stdout.strip()
        home = tmp_path / "me" / "state" / "lab" / "home"
        assert exported == f"export SWARMCTL_HOME={home}"
        inside = {"SWARMCTL_HOME": str(home)}
        states = json.loads(swarmctl("lab", "status", "--json", **inside).stdout)
        assert [state["greets"] for state in states] == [True, True, True]
        shown = swarmctl("trust", "worlock", **inside)
        assert (shown.returncode, shown.stdout) == (0, "")
        assert "SHA256:" in shown.stderr
        (home / "state" / "known_hosts").write_text("")
        assert swarmctl("trust", "worlock", **inside).returncode == 2
        assert swarmctl("trust", "worlock", "--yes", **inside).returncode == 0
        assert "ssh-ed25519" in (home / "state" / "known_hosts").read_text()
    finally:
        assert swarmctl("lab", "down", "--wipe").returncode == 0
    assert not (tmp_path / "me" / "state" / "lab").exists()
    assert not _mentions(str(tmp_path))


A_LAB_OF_MY_OWN = """
import os, sys
from pathlib import Path
from swarmctl.fleet.tunnels import is_up, open_tunnel
from swarmctl.lab.lab import Lab
lab = Lab.create(Path(sys.argv[1]))
lab.start()
try:
    found = open_tunnel(lab.paths, host_name="worlock", ssh="worlock", ports=(9,),
                        ssh_config=str(lab.ssh_config))
    print(os.getuid() != 0, all(state.greets for state in lab.status()), is_up(found[9]))
finally:
    lab.wipe()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_without_root_has_a_lab_too():
    """Runs as a user that only a mount namespace of the test knows, with a copy of swarmctl that it may
    read and the system's Python."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None or not can_run(python):
        pytest.skip("needs a Python 3.11 that every user may run")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(Path(swarmctl.__file__).parent, Path(folder) / "swarmctl",
                        ignore=shutil.ignore_patterns("shipped", "__pycache__"))
        (Path(folder) / "own").mkdir()
        for path in (Path(folder), Path(folder) / "own"):
            os.chown(path, 65533, 65533)
        users = Path("/etc/passwd").read_text() + f"someone:x:65533:65533::{folder}/own:/bin/sh\n"
        (Path(folder) / "passwd").write_text(users)
        script = ('mount --bind "$1" /etc/passwd && shift && '
                  'exec setpriv --reuid=65533 --regid=65533 --clear-groups "$@"')
        argv = ("unshare", "--mount", "sh", "-c", script, "sh", f"{folder}/passwd", python, "-c",
                A_LAB_OF_MY_OWN,
                f"{folder}/own/lab")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=folder,
                              env={"PATH": "/usr/bin:/bin", "HOME": f"{folder}/own", "LOGNAME": "someone"})
        assert (done.stdout.strip(), done.stderr) == ("True True True", "")
        assert not _mentions(folder)


def can_run(python: str) -> bool:
    return subprocess.run((python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"), timeout=10,
                          check=False).returncode == 0


# -- as data --

def test_the_config_of_an_sshd_opens_nothing_but_its_own_port():
    text = sshd_config(Path("/l a/hosts/w"), "127.0.0.1", 2022)
    assert "ListenAddress 127.0.0.1" in text
    assert "PasswordAuthentication no" in text
    assert 'SetEnv "HOME=/l a/hosts/w/home" "SWARMCTL_LAB_HOST=/l a/hosts/w"' in text


def test_free_ports_do_not_overlap():
    found = free_ports(20, 4)
    assert all(abs(a - b) >= 4 for a in found for b in found if a != b)
    assert not any(greets("127.0.0.1", port, 0.2) for port in found)


def test_frozen_processes_are_ended_too():
    process = subprocess.Popen(("sleep", "1000"))
    processes.send((process.pid,), signal.SIGSTOP)
    processes.end((process.pid,), grace=2)
    assert process.wait(60) == -signal.SIGTERM


def _mentions(text: str) -> list[str]:
    """Processes that have this in their command line."""
    shown = subprocess.run(("ps", "-A", "-ww", "-o", "args="), capture_output=True, text=True,
                           check=True).stdout
    return [line for line in shown.splitlines() if text in line]
