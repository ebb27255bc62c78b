"""Applying steps for real: builds, copies, servers and locks on this machine, through LocalRemote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stocked import free_ports, stock
from waiting import until

from swarmctl.errors import CommandFailed, ConnectionLost, DiskFull, LockBusy, ServerUnavailable, SwarmError
from swarmctl.fleet import install
from swarmctl.fleet.converge import Supply, converge
from swarmctl.fleet.host_shell import RuntimeUnfit, ToolMissing, on_host
from swarmctl.fleet.install import build_on_host, install_runtime, progress_of
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.remote import connect
from swarmctl.fleet.store import Store, resolve_model
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host, Limits, LlamaCppWish, ModelWish, Placement
from swarmctl.paths import Paths
from swarmctl.runtimes.base import Want
from swarmctl.runtimes.llamacpp_build import LLAMACPP, SDIST, SOURCE_FOLDER, TARGETS
from swarmctl.runtimes.llamacpp_plan import plan_llamacpp, plan_removal
from swarmctl.steps import InstallRuntime, PutBlob, StartServer

STEP = InstallRuntime("mini-key", "0.3.36", "cpu", ("-DCMAKE_BUILD_TYPE=Release",), "a test")
needs_cmake = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake")


@pytest.fixture(scope="module")
def runtime_store(llamacpp_bin, tmp_path_factory):
    """A store that holds this machine's build."""
    return stock(tmp_path_factory.mktemp("cache"), llamacpp_bin)


class Swarm:
    """One local host with its folders, and the verbs of `up` on it."""

    def __init__(self, folder, store, *, models=("small",), name="here"):
        self.paths = Paths.from_environ({"SWARMCTL_HOME": str(folder / "home"), "HOME": str(folder)})
        self.data = folder / f"data-{name}"
        self.supply = Supply(self.paths, store)
        self.remote = LocalRemote(name)
        self.events = []
        wishes = {model: ModelWish(model, f"shipped:{model}", context=512) for model in models}
        files = {model: resolve_model(wish, folder, self.paths) for model, wish in wishes.items()}
        placements = tuple(Placement(model, port=port) for model, port in
                           zip(models, free_ports(len(models)), strict=True))
        host = Host(name, "local", models=placements, data_dir=str(self.data))
        self.want = Want(host, files, wishes)

    def look(self):
        return survey(self.remote, self.want.host)

    def plan(self):
        return plan_llamacpp(self.want, self.look())

    def up(self):
        converge(self.remote, self.want, self.look(), self.plan(), self.supply, self.events.append)

    def down(self):
        seen = self.look()
        converge(self.remote, self.want, seen, plan_removal(seen), self.supply, self.events.append)

    def pid(self, server, which="server"):
        return int((self.data / "servers" / server / f"{which}.pid").read_text())


@pytest.fixture
def make_swarm(tmp_path, runtime_store):
    made = []

    def make(**more):
        made.append(Swarm(tmp_path, runtime_store, **more))
        return made[-1]

    yield make
    for swarm in made:
        swarm.down()


@pytest.fixture
def swarm(make_swarm):
    return make_swarm()


def lives(pid):
    try:
        return "\tZ" not in Path(f"/proc/{pid}/status").read_text().split("State:")[1].split("\n")[0]
    except FileNotFoundError:
        return False


@pytest.mark.runtime
def test_up_serves_and_a_second_plan_is_empty(swarm):
    swarm.up()
    assert swarm.plan() == ()
    assert [event.state for event in swarm.events].count("done") == 4
    (server,) = swarm.look().servers
    assert server.speed.decode > 0
    assert server.speed.load > 0
    assert not (swarm.data / "lock").exists()


@pytest.mark.runtime
def test_a_killed_server_comes_back_by_itself_and_the_plan_stays_empty(swarm):
    swarm.up()
    first = swarm.pid("small")
    os.kill(first, signal.SIGKILL)
    until(lambda: (swarm.data / "servers/small/server.pid").exists() and swarm.pid("small") != first)
    assert swarm.plan() == ()
    assert swarm.look().servers[0].restarts == 1


@pytest.mark.runtime
def test_a_server_whose_supervisor_was_killed_is_replaced_not_doubled(swarm):
    swarm.up()
    orphan = swarm.pid("small")
    os.kill(swarm.pid("small", "supervisor"), signal.SIGKILL)
    (start, _) = swarm.plan()
    assert start.reason.startswith("nothing supervises it")
    swarm.up()
    until(lambda: not lives(orphan))
    assert swarm.plan() == ()


@pytest.mark.runtime
def test_down_stops_ours_and_nothing_else(swarm):
    swarm.up()
    server, supervisor = swarm.pid("small"), swarm.pid("small", "supervisor")
    other = subprocess.Popen(("sh", "-c", "exec sleep 600"))
    try:
        # even a number in our own pid file counts only if the process is ours
        swarm.down()
        swarm.up()
        real, watcher = swarm.pid("small"), swarm.pid("small", "supervisor")
        (swarm.data / "servers/small/supervisor.pid").write_text(f"{other.pid}\n")
        swarm.down()
        assert other.poll() is None
        assert not any(lives(pid) for pid in (server, supervisor, real))
    finally:
        other.kill()
        other.wait(60)
        if lives(watcher):
            os.killpg(watcher, signal.SIGKILL)  # its number was taken away, so `down` could not know it
    assert list((swarm.data / "servers").iterdir()) == []
    assert list((swarm.data / "blobs").iterdir()) != []


@pytest.mark.runtime
def test_a_server_that_cannot_start_fails_with_the_end_of_its_log(swarm):
    host = swarm.want.host
    swarm.want = replace(swarm.want, host=replace(host, llamacpp=LlamaCppWish(flags={"no-such-flag": True})))
    with pytest.raises(ServerUnavailable, match="no-such-flag") as caught:
        swarm.up()
    assert caught.value.host == "here"
    assert "swarmctl logs here small" in caught.value.hint
    assert swarm.events[-1].state == "failed"


@pytest.mark.runtime
def test_changed_wishes_restart_only_the_server_they_concern(make_swarm):
    swarm = make_swarm(models=("small", "large"))
    swarm.up()
    small, large = swarm.pid("small"), swarm.pid("large")
    first, second = swarm.want.host.models
    smaller = replace(swarm.want.host, models=(first, replace(second, context=256)))
    swarm.want = replace(swarm.want, host=smaller)
    assert [step.spec.name for step in swarm.plan() if isinstance(step, StartServer)] == ["large"]
    swarm.up()
    assert swarm.pid("small") == small
    assert swarm.pid("large") != large
    gone = swarm.pid("large")
    swarm.want = replace(swarm.want, host=replace(swarm.want.host, models=(first,)))
    swarm.up()
    assert not lives(gone)
    assert lives(small)
    assert [server.name for server in swarm.look().servers] == ["small"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_with_numbers_and_nothing_is_half_installed(swarm):
    swarm.data.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=70m", "swarmctl-test", str(swarm.data)), check=True)
    try:
        with pytest.raises(DiskFull, match=r"needs \d+ MB at .*, where \d+ MB are free"):
            swarm.up()
        assert not list(swarm.data.rglob("llama-server"))
        assert not list(swarm.data.rglob("*.part"))
        (swarm.data / "ballast").write_bytes(b"x" * (66 << 20))
        put = [step for step in swarm.plan() if isinstance(step, PutBlob)]
        with pytest.raises(DiskFull):
            converge(swarm.remote, swarm.want, swarm.look(), put, swarm.supply, swarm.events.append)
        assert not list((swarm.data / "blobs").glob("*"))
    finally:
        subprocess.run(("umount", str(swarm.data)), check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(swarm):
    """There are bytes enough, as the check before sees, and then no room for so many files."""
    swarm.data.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=4g,nr_inodes=12", "swarmctl-test", str(swarm.data)),
                   check=True)
    try:
        with pytest.raises(DiskFull, match="nothing is half-installed"):
            swarm.up()
        assert not list(swarm.data.rglob("llama-server"))
        assert swarm.look().runtimes == ()
    finally:
        subprocess.run(("umount", str(swarm.data)), check=True)


# --- builds, with a project of the same shape as llama.cpp's and a hundredth of its size

MAIN = '#include <cstdio>\nint main(int n, char**) { std::puts("version mini"); return n > 9; }\n'


class Mini(Store):
    """A store whose source is a small project."""

    def sdist(self, note, version=LLAMACPP, digest=None):
        note("fetching")
        return self.root / "mini" / SDIST


class Dry(Store):
    """A store that must not be asked for a source: the build that runs is joined, not begun again."""

    def sdist(self, note, version=LLAMACPP, digest=None):
        raise AssertionError("the source was asked for a second time")


@pytest.fixture
def mini(tmp_path):
    """Makes a Mini store of a main.cpp."""
    def make(main=MAIN):
        tree = tmp_path / "mini" / SOURCE_FOLDER
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "main.cpp").write_text(main)
        (tree / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.14)\nproject(mini CXX)\n"
            "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
            f"foreach(name {' '.join(TARGETS)})\n  add_executable(${{name}} main.cpp)\nendforeach()\n")
        with tarfile.open(tmp_path / "mini" / SDIST, "w:gz") as tar:
            tar.add(tree, SOURCE_FOLDER)
        return Mini(tmp_path)

    return make


def facts_of(data):
    return survey(LocalRemote("here"), Host("here", "local", data_dir=str(data)))


def teller(events):
    return Teller("here", 1, 1, "install", events.append)


@needs_cmake
def test_a_runtime_is_built_on_the_host_and_kept_for_its_likes(tmp_path, mini):
    store, data, events = mini(), tmp_path / "data", []
    build_on_host(LocalRemote("here"), STEP, facts_of(data), Limits(build_jobs=1), store, teller(events))
    assert [runtime.key for runtime in facts_of(data).runtimes] == [STEP.key]
    assert store.runtime(STEP.key) is not None
    assert any(event.fraction for event in events), "the build says how far it is"
    assert not list(data.glob("sources/*")), "the source does not stay"
    assert not (data / "builds" / STEP.key / "out").exists()


@needs_cmake
def test_a_build_that_fails_says_why_and_may_be_mended(tmp_path, mini):
    store, data = mini("int main() { return undeclared; }\n"), tmp_path / "data"
    with pytest.raises(CommandFailed, match="undeclared") as caught:
        build_on_host(LocalRemote("here"), STEP, facts_of(data), Limits(), store, teller([]))
    assert f"{data}/builds/{STEP.key}/log" in caught.value.hint
    shutil.rmtree(data / "builds")
    build_on_host(LocalRemote("here"), STEP, facts_of(data), Limits(), mini(), teller([]))


@needs_cmake
def test_a_build_goes_on_when_its_watcher_is_gone_and_is_found_again(tmp_path, mini, monkeypatch):
    store, data, remote = mini(), tmp_path / "data", LocalRemote("here")
    real = shutil.which("cmake")
    slow = tmp_path / "tools"
    slow.mkdir()
    (slow / "cmake").write_text(f'#!/bin/sh\nsleep 1\nexec {real} "$@"\n')
    (slow / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    install._begin(remote, STEP, facts_of(data), Limits(), store, teller([]))
    assert on_host(remote, "build_state", str(data), STEP.key, "0").startswith("running")
    build_on_host(remote, STEP, facts_of(data), Limits(), Dry(store.root), teller([]))
    assert store.runtime(STEP.key)


@needs_cmake
def test_a_build_that_was_stopped_goes_on_where_it_stopped(tmp_path, mini, monkeypatch):
    store, data, remote = mini(), tmp_path / "data", LocalRemote("here")
    real, slow = shutil.which("cmake"), tmp_path / "tools"
    slow.mkdir()
    (slow / "cmake").write_text(f'#!/bin/sh\ncase $1 in --build) sleep 600;; esac\nexec {real} "$@"\n')
    (slow / "cmake").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
        install._begin(remote, STEP, facts_of(data), Limits(), store, teller([]))
        log = data / "builds" / STEP.key / "log"
        until(lambda: "stage compiling" in log.read_text())
        on_host(remote, "build_stop", str(data), STEP.key)
        until(lambda: not on_host(remote, "build_state", str(data), STEP.key, "0").startswith("running"))
    stamp = (data / "builds" / STEP.key / "src").stat().st_mtime_ns
    events = []
    build_on_host(remote, STEP, facts_of(data), Limits(), store, teller(events))
    assert store.runtime(STEP.key)
    assert stamp
    assert not any("unpacking the sources" in event.detail for event in events)


class Shaky(LocalRemote):
    """Loses its connection whenever it is asked how the build is, every other time."""

    asked = 0

    def run(self, argv, **more):
        if "build_state" in argv:
            self.asked += 1
            if self.asked % 2 == 0:
                raise ConnectionLost("the connection broke", host=self.host)
        return super().run(argv, **more)


@needs_cmake
def test_a_build_is_followed_over_a_broken_connection(tmp_path, mini):
    remote, store = Shaky("here"), mini()
    build_on_host(remote, STEP, facts_of(tmp_path / "data"), Limits(), store, teller([]))
    assert remote.asked >= 3
    assert store.runtime(STEP.key)


@needs_cmake
def test_a_runtime_is_built_over_ssh(tmp_path, mini, lab_loopback):
    host = Host(lab_loopback.hosts[0].name, lab_loopback.hosts[0].name, data_dir=str(tmp_path / "there"))
    remote = connect(host, lab_loopback.paths, str(lab_loopback.ssh_config))
    store = mini()
    build_on_host(remote, STEP, survey(remote, host), Limits(), store, teller([]))
    remote.close()
    assert store.runtime(STEP.key)


@needs_cmake
def test_of_two_hosts_with_one_key_one_builds_and_the_other_gets_the_copy(tmp_path, mini):
    store, told = mini(), {"a": [], "b": []}
    failures = []

    def work(name):
        data = tmp_path / name
        try:
            install_runtime(LocalRemote(name), STEP, facts_of(data), Limits(), store, lambda _: (),
                            Teller(name, 1, 1, "install", told[name].append))
        except SwarmError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    details = {name: " ".join(event.detail for event in events) for name, events in told.items()}
    assert sum("keeping a copy" in text for text in details.values()) == 1
    assert sum("copying" in text and "is making this build" in text for text in details.values()) == 1
    for name in told:
        assert [runtime.key for runtime in facts_of(tmp_path / name).runtimes] == [STEP.key]


@needs_cmake
def test_a_host_that_has_the_build_gives_it_and_nothing_is_built(tmp_path, mini):
    build_on_host(LocalRemote("giver"), STEP, facts_of(tmp_path / "giver"), Limits(), mini(), teller([]))
    empty, events = Store(tmp_path / "other-store"), []
    install_runtime(LocalRemote("taker"), STEP, facts_of(tmp_path / "taker"), Limits(), empty,
                    lambda _: [(LocalRemote("giver"), str(tmp_path / "giver"))], teller(events))
    assert "fetching the build of giver" in [event.detail for event in events]
    assert [runtime.key for runtime in facts_of(tmp_path / "taker").runtimes] == [STEP.key]
    assert not list((tmp_path / "giver" / "outgoing").iterdir())


def test_without_a_compiler_the_error_says_what_to_install(tmp_path, mini):
    facts = replace(facts_of(tmp_path / "data"), tools={})
    with pytest.raises(ToolMissing, match=r"no C\+\+ compiler") as caught:
        build_on_host(LocalRemote("here"), STEP, facts, Limits(), mini(), teller([]))
    assert "apt install build-essential" in caught.value.hint


def test_a_build_that_does_not_run_here_is_not_installed(tmp_path):
    store, folder = Store(tmp_path / "store"), tmp_path / "bad" / "bin"
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text("#!/bin/sh\necho libfoo.so: not found >&2\nexit 127\n")
    (folder / "llama-server").chmod(0o755)
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.add(folder, "bin")
    store.add_runtime(STEP.key, tmp_path / "bad.tar.gz")
    with pytest.raises(RuntimeUnfit, match=r"libfoo\.so"):
        install_runtime(LocalRemote("here"), STEP, facts_of(tmp_path / "data"), Limits(), store,
                        lambda _: (), teller([]))
    assert not list((tmp_path / "data/runtimes/llamacpp").iterdir())


@pytest.mark.parametrize(("line", "share"), [
    ("[3/200] Building CXX object", 3 / 200), ("[ 12%] Building CXX", 0.12), ("[100%] Built", 1.0),
    ("-- Configuring", None), ("warning: [1/2]", None)])
def test_progress_is_read_from_ninja_and_make(line, share):
    assert progress_of(line) == share


# --- the host's lock


def lock_of(tmp_path, state, pid=None):
    lock = HostLock(LocalRemote("here"), str(tmp_path / "data"), tmp_path / state)
    if pid:
        lock._owner = lock._owner.rpartition(" pid ")[0] + f" pid {pid}"
    return lock


def test_a_host_that_somebody_else_changes_is_left_alone_and_they_are_named(tmp_path):
    mine, theirs = lock_of(tmp_path, "mine"), lock_of(tmp_path, "theirs")
    theirs.renew(60)
    with pytest.raises(LockBusy, match=r"theirs pid \d+ is changing this host"):
        mine.renew(60)
    theirs.renew(60)
    theirs.release()
    mine.renew(60)
    mine.release()
    assert not (tmp_path / "data/lock").exists()


def test_an_expired_lease_is_taken_over_and_its_holder_cannot_release_ours(tmp_path):
    mine, theirs = lock_of(tmp_path, "mine"), lock_of(tmp_path, "theirs")
    theirs.renew(60)
    (tmp_path / "data/lock/until").write_text(str(int(time.time()) - 1))
    mine.renew(60)
    theirs.release()
    assert "mine" in (tmp_path / "data/lock/owner").read_text()


def test_the_lock_of_our_own_dead_process_is_taken_over_at_once(tmp_path):
    lock_of(tmp_path, "mine", pid=2**22 + 1).renew(600)
    lock_of(tmp_path, "mine").renew(60)
    assert str(os.getpid()) in (tmp_path / "data/lock/owner").read_text()


def test_a_lock_cut_off_while_it_was_made_does_not_hold_for_ever(tmp_path):
    (tmp_path / "data/lock").mkdir(parents=True)
    with pytest.raises(LockBusy, match="somebody"):
        lock_of(tmp_path, "mine").renew(60)
    old = time.time() - 200
    os.utime(tmp_path / "data/lock", (old, old))
    lock_of(tmp_path, "mine").renew(60)


def test_a_file_in_the_place_of_the_lock_is_nobodys_lock(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/lock").write_text("garbage")
    lock_of(tmp_path, "mine").renew(60)
    assert "mine" in (tmp_path / "data/lock/owner").read_text()


def test_many_at_once_and_only_one_gets_the_lock(tmp_path):
    won, lost = [], []

    def take(number):
        try:
            lock_of(tmp_path, f"state{number}").renew(60)
            won.append(number)
        except LockBusy:
            lost.append(number)

    threads = [threading.Thread(target=take, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(won), len(lost)) == (1, 7)


def test_the_measured_speed_is_kept_as_the_survey_reads_it(tmp_path):
    (tmp_path / "data/servers/small").mkdir(parents=True)
    speed = {"prefill": 10.0, "decode": 2.5, "overhead": 0.001, "load": 1.0}
    line = json.dumps(speed).encode() + b"\n"
    on_host(LocalRemote("here"), "speed", str(tmp_path / "data"), "small", payload=line)
    (server,) = facts_of(tmp_path / "data").servers
    assert (server.speed.prefill, server.speed.decode) == (10.0, 2.5)


# --- systemd: without it as init its systemctl does not run, so one of a dozen lines stands in for it

SYSTEMCTL = """#!/bin/sh
# What host.sh needs of `systemctl --user`: enable --now runs ExecStart, disable --now ends it.
echo "$*" >>"$FAKE/calls"
unit=$HOME/.config/systemd/user/$4
case $2 in
    enable) start=$(sed -n 's/^ExecStart=//p' "$unit"); eval "setsid $start </dev/null >/dev/null 2>&1 &"
            echo $! >"$FAKE/pid" ;;
    disable) kill -TERM "$(cat "$FAKE/pid")"; sleep 1 ;;
esac
"""


@pytest.mark.runtime
def test_under_systemd_the_same_files_mean_the_same(swarm, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL)
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    look = swarm.look
    monkeypatch.setattr(swarm, "look", lambda: replace(look(), systemd_user=True))
    swarm.up()
    assert swarm.plan() == ()
    (server,) = swarm.look().servers
    assert server.mode == "systemd"
    units = list((tmp_path / ".config/systemd/user").iterdir())
    assert len(units) == 1
    assert str(swarm.data) in units[0].read_text()
    swarm.down()
    assert list((tmp_path / ".config/systemd/user").iterdir()) == []
    assert not lives(server.pid)
    said = (tmp_path / "calls").read_text().splitlines()
    assert said[1] == f"--user enable --now {units[0].name}"
    assert f"--user disable --now {units[0].name}" in said
