"""`status --watch`: what it draws on every size of terminal, and what happens when hosts and terminals go."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from dataclasses import replace

import pytest
from recorded import exchange, paths_under, rating
from rich.cells import cell_len
from running import Cli

from swarmctl.cli.watch_view import Room, lines
from swarmctl.facts.pulse import GpuPulse, Pulse
from swarmctl.fleet.snapshot import HostEntry, Served
from swarmctl.learning.approval import wilson
from swarmctl.ledger import journal
from swarmctl.monitor.hosts import HostSeen, ServerSeen
from swarmctl.monitor.recent import Recent, Tail
from swarmctl.paths import Paths
from swarmctl.verbs.watch import HostView, Picture, Watching

GIB = 2**30
SERVED = Served("llamacpp", "qwen", "qwen", "d" * 64, "t", 8090, 8192, 4, 10**9, GIB, "Q4_K_M", 900.0, 52.0)
PULSE = Pulse(16, 2.0, (10, 100), 64 * GIB, 40 * GIB, 0, 1000 * GIB, 600 * GIB,
              (GpuPulse(0, "RTX 3080", 10 * GIB, 9 * GIB, 0.88, 74.0, 220.0, 320.0),))
NOW = 1_795_000_000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def host(name="worlock", state="ready", up=True, **changes):
    entry = HostEntry(name, name, "/data", 5.0, 90, 640, 0.3, "EUR", (), (SERVED,))
    server = ServerSeen(SERVED, up=True, loaded=True, busy=3, slots=4, generates=True, token_seconds=0.021)
    seen = HostSeen(entry, at=NOW, up=up, pulse=PULSE, busy=0.42, servers=(server,))
    return HostView(replace(seen, **changes), state, "no SSH connection within 10 s" if not up else "")


def asked(number=0, **changes):
    row = Recent(f"{number:016d}", NOW - 7 - number, "Why is the sky blue?", "qwen", "worlock", "ask", "stop",
                 0.12, 2.4, 120, 52.0, 0, False)
    return replace(row, **changes)


def picture(hosts=None, recent=(), **changes):
    made = Picture(NOW, tuple(hosts or (host(), host("spinoza", "unreachable", up=False))), 2, tuple(recent),
                   {}, (("qwen", "code", wilson(9, 12)),), (("spinoza", "no SSH connection within 10 s"),))
    return replace(made, **changes)


def shown(made, width=80, height=24):
    return "\n".join(line.plain.rstrip() for line in lines(made, Room(width, height)))


def test_a_picture_at_80_columns():
    made = picture(recent=(asked(1), asked(2, finish="error", first=None, total=None, tries=2),
                           asked(3, escalated=True)), scores={asked(1).id: 1.0, asked(3).id: -1.0})
    assert shown(made) == PICTURE


PICTURE = """\
swarmctl  1/2 hosts   3 questions/min   6 tokens/s   2 waiting      ▄█  11:06:40
 ▲ spinoza  no SSH connection within 10 s
────────────────────────────────────────────────────────────────────────────────
● worlock       ready  cpu  ━━━━━━  42%   mem  ━━━━━━  38%   disk ━━━━━━  40%
  RTX 3080             gpu  ━━━━━━  88%   mem  ━━━━━━  90%   74 °C  220 W
  qwen                 ■■■□ 3/4 busy      52 tokens/s        token 21 ms
● spinoza              unreachable  no SSH connection within 10 s

good answers, with their 95 % interval
qwen code ━━━━━━━━━━━━━━━━━━━━━━━━  75%  47% to 91%, 12 votes
────────────────────────────────────────────────────────────────────────────────
time     question                      answered by           first   whole tok/s
11:06:32 Why is the sky blue?        ▲ qwen worlock         120 ms   2.4 s    52
11:06:31 Why is the sky blue?          qwen worlock ↻2                     error
11:06:30 Why is the sky blue?        ▼ qwen worlock ↑       120 ms   2.4 s    52"""


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 131, 132, 200, 320])
@pytest.mark.parametrize("height", [5, 12, 24, 60])
def test_nothing_is_wider_or_taller_than_the_terminal(width, height):
    many = [host(f"host{n:03d}", "unreachable" if n % 50 == 7 else "ready", up=n % 50 != 7)
            for n in range(300)]
    alerts = tuple((f"host{n:03d}", "it does not answer " * 9) for n in range(40))
    rows = [asked(n, question="漢字の質問は二倍の幅です " * 9) for n in range(90)]
    for made in (picture(recent=rows), picture(many, rows, alerts=alerts),
                 picture(recent=(), approval=(), alerts=())):
        found = lines(made, Room(width, height))
        assert len(found) <= height
        assert max(cell_len(line.plain) for line in found) <= width


def test_where_not_all_hosts_fit_the_troubled_ones_are_shown_and_the_rest_counted():
    many = [host(f"host{n:03d}") for n in range(50)]
    many[40] = host("host040", "unreachable", up=False)
    text = shown(picture(many), height=24)
    assert "host040" in text
    assert re.search(r"and 4\d more hosts: 4\d ready", text)


def test_a_question_that_holds_escapes_and_line_breaks_is_shown_as_plain_text():
    text = shown(picture(recent=(asked(question="one\n\x1b[31mtwo\x07 \u202ethree\u2069"),)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "one [31mtwo three" in text


def test_hosts_that_were_not_looked_at_yet_are_shown_so():
    made = HostView(HostSeen(host().seen.entry), "looking")
    assert "● worlock              looking" in shown(picture([made]))


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def write(paths, *rows):
    for row in rows:
        journal.append(paths.journal, row.to_record())


def test_the_tail_has_what_was_asked_before_and_what_is_asked_since(paths):
    answers = [exchange(n) for n in range(1, 4)]
    write(paths, *answers[:2], rating(10, answers[0], -1.0))
    tail = Tail(paths)
    assert [row.id for row in tail.read_on(NOW)] == [answers[1].id, answers[0].id]
    assert tail.score(answers[0].id) == -1
    write(paths, answers[2], rating(11, answers[2]))
    (newest, *_) = tail.read_on(NOW)
    assert (newest.id, newest.model, newest.question) == (answers[2].id, "tiny-small", "what is two and two?")
    assert (newest.tries, newest.speed) == (1, 40.0)
    assert tail.score(answers[2].id) == 1


def test_the_tail_reads_no_more_of_a_long_journal_than_it_shows(paths):
    write(paths, exchange(0))
    (file,) = paths.journal.glob("*.jsonl")
    line = file.read_text()
    with file.open("a") as out:
        for number in range(5000):
            record = {**json.loads(line), "id": f"{number:016d}"}
            out.write(json.dumps(record) + "\n")
    began = time.process_time()
    found = Tail(paths).read_on(NOW + 1e9)
    assert 60 <= len(found) < 600
    assert time.process_time() - began < 1


def test_the_tail_passes_over_what_is_no_exchange(paths):
    write(paths, exchange(1))
    (file,) = paths.journal.glob("*.jsonl")
    with file.open("a") as out:
        out.write('{"kind": "exchange", "id": "a", "at": "b"}\n{"kind": "exchange"\nnonsense "exchange"\n'
                  '{"kind": "exchange", "id": "a", "at": "b", "messages": [7], "timings": {"x": []}, '
                  '"attempts": 3, "route": 5}\n')
    assert exchange(1).id in [row.id for row in Tail(paths).read_on(NOW)]


def test_without_a_terminal_it_refuses_and_says_what_is_for_programs(paths, tmp_path):
    done = Cli(paths, tmp_path).run("status", "--watch", status=2)
    assert "needs a terminal" in done.stderr
    assert "swarmctl status --json" in done.stderr


def test_before_up_it_says_what_to_do(paths, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "inventory.yaml").write_text("version: 1\nhosts:\n  here: {ssh: local}\n")
    with Terminal(Cli(paths, tmp_path)) as terminal:
        assert terminal.wait(60) == 1
        assert b"swarmctl up" in terminal.said
        assert b"?1049h" not in terminal.said


class Terminal:
    """`swarmctl status --watch` in a terminal of its own."""

    def __init__(self, cli: Cli, *args: str) -> None:
        self.said = b""
        environ = {key: value for key, value in cli.environ.items() if key not in ("COLUMNS", "LINES")}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "swarmctl", "status", "--watch", *args],
                      {**environ, "TERM": "xterm-256color"})
        self.resize(30, 100)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float = 0.2) -> bytes:
        """What came within that time."""
        before, until = len(self.said), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.said += os.read(self.fd, 65536)
                except OSError:
                    break
        return self.said[before:]

    def until(self, pattern: bytes, seconds: float) -> None:
        began, limit = len(self.said), time.monotonic() + seconds
        while not re.search(pattern, self.said[began:]):
            assert time.monotonic() < limit, f"no {pattern!r} in {self.said[-3000:].decode()}"
            self.read()

    def wait(self, seconds: float) -> int:
        limit = time.monotonic() + seconds
        while True:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < limit


@pytest.fixture(scope="module")
def swarm(make_lab, llamacpp_bin):
    lab = make_lab("loopback", hosts=2, cache=Paths.from_environ(os.environ).cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    cli.lab = lab
    cli.run("up", limit=200)
    yield cli
    lab.host("spinoza").mend()
    cli.run("down")
    lab.stop()


@pytest.mark.runtime
@pytest.mark.timeout(200)
def test_it_draws_follows_the_size_and_leaves_the_terminal_as_it_was(swarm):
    with Terminal(swarm, "--interval", "0.5") as terminal:
        terminal.until(rb"(?s)worlock.*ready.*tiny-large.*token", 30)
        assert b"\x1b[?1049h" in terminal.said
        swarm.run("ask", "What is 23 + 45?")
        terminal.until(rb"What is 23 \+ 45\?", 60)
        terminal.resize(40, 160)
        terminal.until(("─" * 160).encode(), 60)
        os.write(terminal.fd, b"\x03")
        assert terminal.wait(60) == 130
    assert terminal.said.rstrip().endswith(b"\x1b[?1049l")
    assert terminal.said.rindex(b"\x1b[?25h") > terminal.said.rindex(b"\x1b[?25l")
    assert b"Traceback" not in terminal.said


@pytest.mark.runtime
@pytest.mark.timeout(200)
def test_a_host_that_hangs_delays_no_picture(swarm):
    watching = Watching(swarm.paths, swarm.lab.paths.inventory, 0.5)
    box = swarm.lab.host("spinoza")

    def states(wanted, seconds):
        limit = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            found = watching.picture()
            assert time.monotonic() - began < 1.5
            if {view.seen.entry.name: view.state for view in found.hosts} == wanted:
                return found
            assert time.monotonic() < limit, found.hosts
            time.sleep(0.1)

    try:
        assert states({"worlock": "ready", "spinoza": "ready"}, 30).alerts == ()
        box.cut()
        found = states({"worlock": "ready", "spinoza": "unreachable"}, 60)
        assert [name for name, _ in found.alerts] == ["spinoza"]
        assert time.time() - found.hosts[0].seen.at < 5, "the others are looked at as ever"
        box.mend()
        states({"worlock": "ready", "spinoza": "ready"}, 90)
    finally:
        box.mend()
        watching.close()


@pytest.mark.runtime
@pytest.mark.netns
@pytest.mark.timeout(250)
def test_an_intermittent_host_whose_cable_is_pulled_is_off_and_comes_back(cable_lab, llamacpp_bin):
    lab = cable_lab
    lab.paths.cache.parent.mkdir(parents=True, exist_ok=True)
    if not lab.paths.cache.exists():
        lab.paths.cache.symlink_to(Paths.from_environ(os.environ).cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    text = lab.paths.inventory.read_text().replace("  calisota:\n", "  calisota:\n    intermittent: true\n")
    lab.paths.inventory.write_text(text)
    cli.run("up", limit=150)
    with Terminal(cli, "--interval", "0.5") as terminal:
        terminal.until(rb"(?s)worlock.*ready.*calisota.*ready", 40)
        lab.host("calisota").cut()
        terminal.until(rb"calisota[^\n]*moff\x1b", 60)
        assert "▲".encode() not in terminal.said, "off is no fault of it"
        lab.host("calisota").mend()
        terminal.until(rb"calisota[^\n]*mready\x1b", 60)
        os.write(terminal.fd, b"\x03")
        assert terminal.wait(60) == 130
    cli.run("down")
