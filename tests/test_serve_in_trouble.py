"""What `swarmctl serve` says and does for a person in trouble: nothing is lost, and the fix is named."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading

import httpx
import pytest
from gateways import host, llama_server, served, serving, swarm_of
from running import slowed
from test_serve import FRANCE, LONG, _pid_of
from waiting import until

from swarmctl.gateway.keys import keys_file

#: keeps the model talking
QUESTION = {"json": {"messages": FRANCE, "response_format": LONG, "stream": True}, "timeout": 120}


@pytest.fixture
def cli(tmp_path):
    """A home whose swarm is one server that is not there."""
    (tmp_path / "home").mkdir()
    with swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", 9))) as made:
        yield made


@pytest.mark.runtime
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_it_like_ctrl_c_unless_nohup_said_otherwise(llamacpp_bin, tmp_path, ignored):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli, \
            _in_a_terminal(cli, "--drain", "0", ignored=ignored) as (process, screen), \
            slowed(_pid_of(port)), \
            httpx.stream("POST", f"{screen.address()}/v1/chat/completions", **QUESTION) as reply:
        lines = reply.iter_lines()
        next(lines)
        screen.close()
        if ignored:
            assert httpx.get(f"{screen.address()}/api/version", timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
        assert any("error" in line for line in lines)
        assert process.wait(60) == 0
        assert cli.rows()[-1]["finish"] == "cancelled"


def test_a_second_gateway_is_told_of_the_first(cli):
    with serving(cli) as first:
        port = first.url.rpartition(":")[2]
        said = cli.run("serve", "--port", port, status=1).stderr
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
        assert "is a gateway running already? --port chooses another" in said
        assert httpx.get(f"{first.url}/api/version", timeout=60).status_code == 200


def test_it_refuses_to_start_with_keys_that_it_cannot_read(cli):
    keys_file(cli.paths).write_text('{"version": 1, "keys": [{"name": "ann"}]}')
    said = cli.run("serve", "--port", "0", status=1).stderr
    assert f"{keys_file(cli.paths)} cannot be read as API keys: keys.0 lacks sha256, made" in said
    assert "nobody is let in meanwhile" in said


def test_it_refuses_keys_that_others_may_change(cli):
    cli.run("serve", "key", "add", "ann")
    keys_file(cli.paths).chmod(0o666)
    said = cli.run("serve", "--port", "0", status=1).stderr
    assert f"{keys_file(cli.paths)} may be changed by others" in said
    assert "chmod 600" in said


@pytest.mark.runtime
def test_on_a_full_disk_no_older_answer_is_rated_instead_and_errors_are_told(llamacpp_bin, tmp_path):
    (tmp_path / "home").mkdir()
    with llama_server(tmp_path, llamacpp_bin, "small", "-c", 1024) as port, \
            swarm_of(tmp_path / "home", host("spinoza", served("llamacpp", "tiny-small", port))) as cli:
        cli.run("ask", "hello")
        done = _on_a_full_disk(cli, "ask", "What is the capital of France?")
        assert (done.returncode, "cannot record in" in done.stderr) == (1, True)
        assert "asked nothing yet" in cli.run("rate", "up", status=2).stderr
        for command in (("serve", "key", "add", "ann"), ("route", "fit"), ("route", "use", "none"), ("up",)):
            done = _on_a_full_disk(cli, *command)
            assert "unexpected" not in done.stderr, done.stderr


def _on_a_full_disk(cli, *args: str) -> subprocess.CompletedProcess:
    """The command where no file can grow."""
    argv = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "swarmctl", *args)
    return subprocess.run(argv, env=cli.environ, capture_output=True, text=True, timeout=240,
                          stdin=subprocess.DEVNULL)


class _Screen:
    """The other end of a terminal, and what it shows."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._shown = bytearray()
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def address(self) -> str:
        return until(lambda: re.search(rb"listening on (\S+)\r", self._shown))[1].decode()

    def close(self) -> None:
        """Hang up: not while the descriptor is being read, for then it would stay open."""
        if not self._over.is_set():
            self._over.set()
            self._reader.join(60)
            os.close(self._master)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                if select.select([self._master], [], [], 0.05)[0]:
                    self._shown += os.read(self._master, 4096)


@contextlib.contextmanager
def _in_a_terminal(cli, *flags: str, ignored: bool):
    master, slave = pty.openpty()

    def prepare() -> None:
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    argv = (sys.executable, "-m", "swarmctl", "serve", "--port", "0", *flags)
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=cli.environ,
                               start_new_session=True, preexec_fn=prepare)
    os.close(slave)
    screen = _Screen(master)
    try:
        yield process, screen
    finally:
        screen.close()
        process.kill()
        process.wait(60)
