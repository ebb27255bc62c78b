"""The command as a person runs it: a process with a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.paths import Paths


class Cli:
    """The command as a person runs it."""

    def __init__(self, paths: Paths, home: Path) -> None:
        self.paths = paths
        self.environ = {**os.environ, "SWARMCTL_HOME": str(home), "SWARMCTL_TERMINAL": "test",
                        "HOME": str(home)}

    def start(self, *args: str, **more) -> subprocess.Popen:
        more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([sys.executable, "-m", "swarmctl", *args], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=self.environ, **more)

    def run(self, *args: str, stdin: str | None = None, status: int | None = 0,
            limit: float = 240.0) -> subprocess.CompletedProcess:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run([sys.executable, "-m", "swarmctl", *args], capture_output=True, text=True,
                              timeout=limit, env=self.environ, **given)
        assert status in (None, done.returncode), done.stdout + done.stderr
        return done

    def rows(self) -> list[dict]:
        files = sorted(self.paths.journal.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]


def ask_json(cli: Cli, *args: str, **more) -> dict:
    return json.loads(cli.run("ask", "--json", *args, **more).stdout)


@contextlib.contextmanager
def slowed(pid: int, share: float = 0.01) -> Iterator[None]:
    """Let a process run only a small share of the time: a tiny model is otherwise done before it can be
    hurt."""
    over = threading.Event()
    for thread in Path(f"/proc/{pid}/task").iterdir():  # a busy machine must not give it more than we do
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)

    def pulse() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.05 * (1 - share))
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.05 * share)

    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
