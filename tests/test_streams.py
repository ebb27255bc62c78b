"""The program where its streams are not a terminal: closed, full, or with nobody behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INVENTORY = "version: 1\nhosts: {here: {ssh: local}}\n"


@pytest.fixture
def shell(tmp_path):
    """Runs a shell line in which $S is swarmctl, with a home of its own."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "inventory.yaml").write_text(INVENTORY)
    environ = {**os.environ, "SWARMCTL_HOME": str(tmp_path), "S": f"{sys.executable} -m swarmctl"}

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(("sh", "-c", line), env=environ, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60, check=False)

    return shell


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["--help", "log sql 'select 1'", "inventory schema"])
def test_output_that_cannot_be_written_is_named_and_no_defect(shell, command):
    done = shell(f"$S {command} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "swarmctl: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_empty_ones(shell, closed):
    assert shell(f"$S log list --json {closed}").returncode == 0
    assert shell(f"$S ask {closed}").returncode == 2


def test_a_reader_that_has_enough_gets_no_word_of_it(shell):
    done = shell("$S log sql --csv 'select * from range(200000)' | head -1")
    assert (done.stdout, done.stderr) == ("range\n", "")


def test_a_removal_with_nobody_to_ask_names_its_flags(shell):
    done = shell("$S jobs prune")
    assert done.returncode == 2
    assert "nobody to ask" in done.stderr
    assert "--yes" in done.stderr
    assert "--dry-run" in done.stderr
