"""The command as a person runs it: a process with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

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
