"""supervise.sh for real: it restarts, backs off, rotates, stops, and is alone in its folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
from waiting import until

from swarmctl.fleet.host_shell import script
from swarmctl.runtimes.supervision import archive, run_script, server_files, unit_name, unit_text
from swarmctl.steps import ServerSpec

SPEC = ServerSpec(name="small", model="small", sha256="ab", argv=("/opt/a b/llama-server", "--alias", "it's"),
                  env={"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, port=8090, context=512, parallel=2,
                  mode="systemd", digest="d" * 64)
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


class Folder:
    """A server's folder with a supervisor over some command."""

    def __init__(self, path, command, shell="sh", **environ):
        path.mkdir(exist_ok=True)
        self.path = path
        (path / "supervise.sh").write_text(script("supervise.sh"))
        run = path / "run"
        run.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        run.chmod(0o700)
        words = ["busybox", "sh"] if shell == "busybox" else [shell]
        self.process = subprocess.Popen([*words, str(path / "supervise.sh"), str(path)],
                                        start_new_session=True, env={**os.environ, **environ})

    def log(self):
        path = self.path / "log"
        return path.read_text() if path.exists() else ""

    def pid(self, name):
        try:
            return int((self.path / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def stop(self, seconds=60):
        self.process.terminate()
        return self.process.wait(seconds)


@pytest.fixture
def supervised(tmp_path):
    made = []

    def make(command, **kwargs):
        made.append(Folder(tmp_path / "small", command, **kwargs))
        return made[-1]

    yield make
    for folder in made:
        if folder.process.poll() is None:
            os.killpg(folder.process.pid, signal.SIGKILL)
            folder.process.wait(60)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_killed_server_is_started_again_and_counted(supervised, shell):
    folder = supervised(("sleep", "600"), shell=shell)
    first = until(lambda: folder.pid("server"))
    os.kill(first, signal.SIGKILL)
    second = until(lambda: folder.pid("server") not in (None, first) and folder.pid("server"))
    assert alive(second)
    assert (folder.path / "restarts").read_text().strip() == "1"
    assert "ended with status 137; restart 1 in 1 s" in folder.log()
    assert folder.stop() == 0
    assert not alive(second)


@pytest.mark.parametrize("shell", SHELLS)
def test_stopping_leaves_no_process_and_no_pid_file(supervised, shell):
    folder = supervised(("sleep", "600"), shell=shell)
    server = until(lambda: folder.pid("server"))
    assert folder.stop() == 0
    assert not alive(server)
    assert sorted(path.name for path in folder.path.iterdir()) == ["log", "restarts", "run", "supervise.sh"]
    until(lambda: not members(folder.process.pid))


def members(group):
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in found.splitlines()]
    return [line for line in lines if line[0] == str(group) and "Z" not in line[1]]


def test_a_server_that_keeps_failing_is_restarted_ever_more_slowly(supervised):
    folder = supervised(("false",))
    until(lambda: "restart 3 in 4 s" in folder.log())
    said = folder.log()
    assert "restart 1 in 1 s" in said
    assert "restart 2 in 2 s" in said
    began = time.monotonic()
    assert folder.stop() == 0
    assert time.monotonic() - began < 3, "stopping does not wait for the back-off"


def test_a_server_that_ignores_TERM_is_killed_after_its_grace(supervised):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    folder = supervised((sys.executable, "-c", deaf))
    until(lambda: "deaf" in folder.log())
    server = folder.pid("server")
    began = time.monotonic()
    assert folder.stop() == 0
    assert time.monotonic() - began > 9
    assert not alive(server)


def test_a_second_supervisor_leaves_the_first_alone(supervised, tmp_path):
    folder = supervised(("sleep", "600"))
    server = until(lambda: folder.pid("server"))
    second = subprocess.run(["sh", str(folder.path / "supervise.sh"), str(folder.path)], timeout=20,
                            check=False)
    assert second.returncode == 3
    assert alive(server)
    assert folder.pid("server") == server


def test_the_lock_of_a_dead_supervisor_is_taken_over(supervised):
    folder = supervised(("sleep", "600"))
    server = until(lambda: folder.pid("server"))
    os.killpg(folder.process.pid, signal.SIGKILL)
    folder.process.wait(60)
    until(lambda: not alive(server))
    again = supervised(("sleep", "600"))
    until(lambda: again.pid("supervisor") == again.process.pid)
    assert again.stop() == 0


def test_a_supervisor_whose_folder_was_removed_leaves_by_itself(supervised):
    folder = supervised(("sleep", "600"))
    server = until(lambda: folder.pid("server"))
    shutil.rmtree(folder.path)
    os.kill(server, signal.SIGKILL)
    assert folder.process.wait(20) == 0


def test_the_log_is_rotated_while_the_server_writes(supervised):
    writer = "import time\nwhile True:\n print('x' * 200, flush=True); time.sleep(0.002)"
    folder = supervised((sys.executable, "-u", "-c", writer),
                        SWARMCTL_LOG_LIMIT="20000", SWARMCTL_LOG_CHECK="0.2")
    until(lambda: (folder.path / "log.3").exists())
    folder.stop()
    assert (folder.path / "log").stat().st_size < 200_000
    names = sorted(path.name for path in folder.path.glob("log*"))
    assert names == ["log", "log.1", "log.2", "log.3"]
    assert not (folder.path / "log.1").read_bytes().startswith(b"\0"), "copy and truncate leaves no hole"


def test_the_run_script_quotes_whatever_is_in_argv_and_environment():
    assert run_script(SPEC) == ("#!/bin/sh\nexport CUDA_VISIBLE_DEVICES=GPU-1,GPU-2\n"
                                "exec '/opt/a b/llama-server' --alias 'it'\"'\"'s'\n")


def test_the_digest_is_unpacked_last():
    with tarfile.open(fileobj=BytesIO(archive(server_files(SPEC, "/data", "#!/bin/sh\n")))) as tar:
        assert tar.getnames() == ["run", "supervise.sh", "mode", "unit", "digest"]
        assert tar.getmember("run").mode == 0o700


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path):
    data = tmp_path / "da ta%"
    folder = data / "servers" / "small"
    folder.mkdir(parents=True)
    (folder / "supervise.sh").write_text("#!/bin/sh\n")
    unit = tmp_path / unit_name("small", str(data))
    unit.write_text(unit_text(SPEC, str(data), 2 << 30))
    found = subprocess.run(["systemd-analyze", "--user", "verify", "--recursive-errors=no", str(unit)],
                           capture_output=True, text=True, timeout=60, check=False,
                           env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert (found.returncode, unit.name in found.stderr) == (0, False), found.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
@pytest.mark.parametrize("name", ["supervise.sh", "host.sh", "build.sh"])
def test_the_shell_scripts_are_clean(name):
    found = subprocess.run(["shellcheck", "-s", "sh", "-S", "warning", "-e", "SC2034,SC2154", "-"],
                           input=script(name), capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
