"""The probe, run for real by every sh there is here; and a survey of what swarmctl itself started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import until

from swarmctl.errors import CommandTimeout, SwarmError
from swarmctl.facts import Facts, RuntimeSeen, parse_facts
from swarmctl.fleet.remote import connect
from swarmctl.fleet.shell import Completed
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host, LlamaCppWish, Placement
from swarmctl.paths import Paths

PROBE = Path(__file__).parent.parent / "swarmctl" / "fleet" / "probe.sh"
SUPERVISE = PROBE.parent.parent / "runtimes" / "supervise.sh"
SHELLS = (("dash",), ("bash",), ("bash", "--posix"), ("busybox", "sh"), ("mksh",), ("zsh", "--emulate", "sh"),
          ("sh",))


def probe(shell: tuple[str, ...], *words: str, **options) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} here")
    return subprocess.run((*shell, "-s", "--", *words), input=PROBE.read_bytes(), capture_output=True,
                          timeout=60, check=False, **options)


def here(tmp_path: Path, **wishes) -> Facts:
    host = Host(name="here", ssh="local", data_dir=str(tmp_path), **wishes)
    return survey(connect(host, Paths.from_environ({"SWARMCTL_HOME": str(tmp_path / "home")})), host)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_runs_the_probe_and_agrees_on_this_machine(shell, tmp_path):
    done = probe(shell, str(tmp_path), "8090")
    assert (done.returncode, done.stderr) == (0, b"")
    found = parse_facts(done.stdout.decode(errors="replace"))
    assert found.uid == os.getuid()
    assert found.data_dir == str(tmp_path)
    assert found.cpu.threads <= len(os.sched_getaffinity(0))
    assert found.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usage = shutil.disk_usage(tmp_path)
    assert abs(found.disk.size - usage.total) < 4096
    assert abs(found.disk.free - usage.free) < 2**28
    assert "python3" in found.tools


def test_a_host_without_any_tool_still_answers(tmp_path):
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell
    empty = tmp_path / "empty"
    empty.mkdir()
    script = PROBE.read_text(encoding="utf-8").replace("PATH=$PATH:", "OLD_PATH=")
    done = subprocess.run((shell, "-s", "--", "/"), input=script.encode(), capture_output=True, timeout=60,
                          check=False, env={"PATH": str(empty), "HOME": "/"})
    assert done.returncode == 0
    assert done.stdout.decode().rstrip().endswith(" end")


def test_a_host_without_awk_says_that_its_memory_is_unknown(tmp_path):
    script = PROBE.read_text(encoding="utf-8").replace("have awk", "have no-awk")
    done = subprocess.run(("sh", "-s", "--", str(tmp_path)), input=script.encode(), capture_output=True,
                          timeout=60, check=False)
    found = parse_facts(done.stdout.decode(errors="replace"))
    assert (found.uid, found.memory) == (os.getuid(), 0)
    assert any("awk" in problem for problem in found.problems)


def test_affinity_bounds_the_threads(tmp_path):
    one = {min(os.sched_getaffinity(0))}
    done = probe(("sh",), str(tmp_path), preexec_fn=lambda: os.sched_setaffinity(0, one))
    assert parse_facts(done.stdout.decode(errors="replace")).cpu.threads == 1


def test_the_disk_is_that_of_the_folder_a_link_leads_to(tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    (tmp_path / "link").symlink_to(elsewhere, target_is_directory=True)
    found = here_with_data(f"{tmp_path}/link/deep/er")
    assert found.disk.path == str(elsewhere)
    assert abs(found.disk.size - shutil.disk_usage(elsewhere).total) < 4096


def test_a_cut_off_script_runs_nothing(tmp_path):
    script = PROBE.read_bytes()
    done = subprocess.run(("sh", "-s", "--", "/"), input=script[:len(script) * 2 // 3], capture_output=True,
                          timeout=60, check=False)
    assert done.stdout == b""


def test_the_probe_writes_nothing(tmp_path):
    probe(("sh",), f"{tmp_path}/deep/er", env={**os.environ, "HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_the_probe_costs_little(tmp_path):
    started = time.process_time()
    before = sum(os.times()[2:4])
    probe(("sh",), str(tmp_path))
    assert time.process_time() - started < 1
    assert sum(os.times()[2:4]) - before < 1.0, "about 0.12 s on an idle machine"


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck here")
    done = subprocess.run(("shellcheck", str(PROBE)), capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


def test_a_tilde_is_expanded_on_the_host():
    assert here_with_data("~/some where").data_dir == f"{os.environ['HOME']}/some where"


def here_with_data(data_dir: str) -> Facts:
    return parse_facts(probe(("sh",), data_dir).stdout.decode(errors="replace"))


def test_odd_data_dirs_are_only_names(tmp_path):
    for name in ("a b", "quote'd", 'double"d', "$(touch x)", "-n", "line\nbreak", "*", "ünï"):
        folder = tmp_path / name
        (folder / "runtimes" / "llamacpp" / "k").mkdir(parents=True)
        (folder / "runtimes" / "llamacpp" / "k" / ".complete").touch()
        found = here_with_data(str(folder))
        if "\n" not in name:
            assert found.runtimes == (RuntimeSeen("llamacpp", "k", f"{folder}/runtimes/llamacpp/k"),)


def test_a_listener_is_seen_with_its_holder(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = here(tmp_path, llamacpp=LlamaCppWish(port=port), models=(Placement("m"),))
    mine = next(listener for listener in found.listeners if listener.port == port)
    assert (mine.address, mine.exposed) == ("127.0.0.1", False)
    if shutil.which("ss"):
        assert mine.pid == os.getpid()
        assert "python" in (mine.command or "")


def test_only_whole_runtimes_and_verified_blobs_are_seen(tmp_path):
    for key in ("whole", "part"):
        (tmp_path / "runtimes" / "llamacpp" / key).mkdir(parents=True)
    (tmp_path / "runtimes" / "llamacpp" / "whole" / ".complete").touch()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{'a' * 64}").write_bytes(b"x" * 1234)
    (tmp_path / "blobs" / f"sha256-{'b' * 64}.part").write_bytes(b"x")
    found = here(tmp_path)
    assert [(runtime.key, runtime.path) for runtime in found.runtimes] == [
        ("whole", f"{tmp_path}/runtimes/llamacpp/whole")]
    assert [(blob.sha256, blob.size) for blob in found.blobs] == [("a" * 64, 1234)]


def make_server(data_dir: Path, name: str) -> Path:
    folder = data_dir / "servers" / name
    folder.mkdir(parents=True)
    run = folder / "run"
    run.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'import time; time.sleep(60)'\n", encoding="utf-8")
    run.chmod(0o700)
    (folder / "digest").write_text("d1g35t\n", encoding="utf-8")
    (folder / "mode").write_text("own\n", encoding="utf-8")
    (folder / "speed.json").write_text('{"prefill": 10.0, "decode": 5.0}\n', encoding="utf-8")
    return folder


def test_a_supervised_server_is_seen_alive_then_restarted_then_gone(tmp_path):
    folder = make_server(tmp_path, "m")
    shutil.copy(SUPERVISE, folder / "supervise.sh")
    argv = ("sh", str(folder / "supervise.sh"), str(folder))
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as supervisor:
        try:
            until((folder / "server.pid").exists)
            seen, = here(tmp_path).servers
            assert (seen.name, seen.spec, seen.mode, seen.restarts) == ("m", "d1g35t", "own", 0)
            assert seen.supervisor == supervisor.pid
            assert seen.pid == int((folder / "server.pid").read_text(encoding="utf-8"))
            assert seen.speed is not None
            assert seen.speed.decode == 5.0
            os.kill(seen.pid, signal.SIGKILL)
            until(lambda: (folder / "restarts").read_text(encoding="utf-8").strip() == "1")
            assert here(tmp_path).servers[0].restarts == 1
        finally:
            supervisor.terminate()
            supervisor.wait(timeout=20)
    gone, = here(tmp_path).servers
    assert (gone.supervisor, gone.pid, gone.spec) == (None, None, "d1g35t")


def test_a_recycled_pid_is_not_our_server(tmp_path):
    folder = make_server(tmp_path, "m")
    for name in ("supervisor", "server"):
        (folder / f"{name}.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
    seen, = here(tmp_path).servers
    assert (seen.supervisor, seen.pid) == (None, None)


class OneAnswer:
    """A remote that says one thing."""

    host = "worlock"

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.calls: list[tuple[str, ...]] = []

    def run(self, argv, **_options):
        self.calls.append(tuple(argv))
        if isinstance(self.answer, Exception):
            raise self.answer
        return Completed(tuple(argv), 0, self.answer, "", 0.0)


def test_a_survey_is_one_command_with_the_hosts_folder_and_ports():
    text = (Path(__file__).parent / "facts" / "mac-m2.txt").read_text(encoding="utf-8")
    remote = OneAnswer(text)
    host = Host("worlock", "worlock", data_dir="/d", models=(Placement("a"), Placement("b", port=9000)))
    assert survey(remote, host).system == "Darwin"
    assert remote.calls == [("sh", "-s", "--", "/d", "8090", "9000")]


def test_a_glance_sees_all_that_status_shows_and_asks_for_no_tool(tmp_path):
    host = Host(name="here", ssh="local", data_dir=str(tmp_path))
    remote = connect(host, Paths.from_environ({"SWARMCTL_HOME": str(tmp_path / "home")}))
    whole, glance = survey(remote, host), survey(remote, host, glance=True)
    assert (glance.cpu, glance.memory, glance.gpus) == (whole.cpu, whole.memory, whole.gpus)
    assert glance.disk.size == whole.disk.size
    assert glance.problems == whole.problems
    assert whole.tools
    assert not glance.tools
    assert not glance.listeners


def test_a_survey_that_fails_names_the_host():
    host = Host("worlock", "worlock")
    with pytest.raises(SwarmError, match="worlock: its answer to the survey is none"):
        survey(OneAnswer("hello"), host)
    with pytest.raises(CommandTimeout):
        survey(OneAnswer(CommandTimeout("too slow", host="worlock")), host)


def test_a_survey_over_ssh_sees_the_hosts_own_user_and_folder(make_lab):
    lab = make_lab(mode="loopback", hosts=1)
    from swarmctl.fleet.inventory_file import read_inventory

    paths = Paths.from_environ({"SWARMCTL_HOME": str(lab.folder / "home")})
    inventory = read_inventory(paths.inventory)
    host = inventory.hosts[0]
    remote = connect(host, paths, inventory.ssh_config)
    try:
        found = survey(remote, host)
    finally:
        remote.close()
    assert found.data_dir == host.data_dir
    assert found.uid == os.getuid()
