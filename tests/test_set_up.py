"""The parts that set everything up from a fresh clone: the Makefile, the installer, the shell scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTALLER = ROOT / "requirements" / "install.py"
SCRIPTS = sorted([ROOT / ".ci" / "run", *(path for folder in ("swarmctl", "demo", "requirements", "tests")
                                         for path in (ROOT / folder).rglob("*.sh"))])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shell_script_parses(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    shell = shutil.which("bash" if first == "#!/usr/bin/env bash" else "sh")
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_make_without_a_target_lists_the_targets():
    done = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, timeout=30, check=True)
    for target in ("install", "dev", "runtime", "demo", "test", "check", "lock", "docs", "bench", "clean"):
        assert re.search(rf"(?m)^  make {target} +\S", done.stdout)


def test_the_installer_refuses_a_lock_that_is_not_there():
    argv = [sys.executable, INSTALLER, "everything"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "control, runtime, dev, train, bench" in done.stderr


def test_the_ci_entry_runs_what_make_test_runs():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert re.search(r"(?m)^make test$", text)
