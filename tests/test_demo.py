"""The demo runs from nothing to rated answers, and leaves nothing behind, wherever it is cut."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from waiting import until

from swarmctl.lab.sshd import find_sshd

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "demo" / "run.sh"
PATIENCE = 240

pytestmark = [pytest.mark.runtime, pytest.mark.slow]


@pytest.fixture
def environ(tmp_path_factory, llamacpp_bin):
    """An environment whose temporary folders are all under one name that can be looked for."""
    find_sshd()
    folder = tmp_path_factory.mktemp("d")
    yield {**os.environ, "TMPDIR": str(folder), "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    shutil.rmtree(folder)


def start(environ) -> subprocess.Popen:
    """The demo in a process group of its own, as a terminal would have it."""
    return subprocess.Popen([DEMO], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, process_group=0)


def processes_of(folder: str) -> list[str]:
    """Processes that name the folder in their command line or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in text and int(entry.name) != os.getpid():
            found.append(f"{entry.name}: {text[:200]!r}")
    return found


def assert_nothing_is_left(folder: str) -> None:
    until(lambda: processes_of(folder) == [])
    assert list(Path(folder).iterdir()) == []


def test_the_demo_shows_the_whole_loop_and_leaves_nothing(environ):
    process = start(environ)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, shown
    assert_nothing_is_left(environ["TMPDIR"])
    for host in ("spinoza", "calisota", "worlock"):
        assert re.search(rf"(?m)^.*{host}", shown)
    said = [answering_host(part) for part in asks(shown)[:3]]
    assert len(set(said)) >= 2, shown  # on a busy machine the two with the large model may measure otherwise


def asks(shown: str) -> list[str]:
    """What each `swarmctl ask` of the demo printed."""
    return [part for part in re.split(r"(?m)^\$ ", shown) if part.startswith("swarmctl ask")]


def answering_host(part: str) -> str:
    """The host that --explain says was chosen."""
    return re.search(r"(?m)^→ \S+ on (\w+)", part)[1]


@pytest.mark.parametrize("heading", ["lab: three SSH hosts", "Do it", "Health means", "routine question"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_the_demo_leaves_nothing_when_it_is_cut(environ, heading, number):
    process = start(environ)
    for line in process.stdout:
        if heading in line:
            break
    time.sleep(0.7)  # into the command under the heading
    os.killpg(process.pid, number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert_nothing_is_left(environ["TMPDIR"])


def test_the_readme_shows_the_demo_that_there_is():
    spec = importlib.util.spec_from_file_location("record_demo", ROOT / "docs" / "record_demo.py")
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    record = (ROOT / "docs" / "demo.txt").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == recorder.splice(readme, recorder.excerpt(record)), "run `make record`"
    headings = re.findall(r'^title "(.+)"', DEMO.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"(?m)^━━ \d+  (.+?) ━+$", record) == headings, "run `make record`"
