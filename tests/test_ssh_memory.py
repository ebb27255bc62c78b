"""`ssh -G` is not asked twice what it would answer the same, and always what it might not; ssh is real."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from swarmctl.errors import SwarmError
from swarmctl.fleet import ssh_memory
from swarmctl.fleet.ssh_config import resolve

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh here")


class Asked:
    """The real `ssh`, and how often it was started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log = folder / "log"
        (folder / "bin").mkdir()
        program = folder / "bin" / "ssh"
        program.write_text(f"#!/bin/sh\necho x >>'{self._log}'\nexec '{shutil.which('ssh')}' \"$@\"\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self._memory = folder / "memory"

    def __call__(self, config: Path, name: str = "box") -> str:
        return resolve(name, str(config), self._memory).hostname

    @property
    def times(self) -> int:
        return len(self._log.read_text().split()) if self._log.exists() else 0


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_memory, "SETTLED", 0.0)
    return Asked(tmp_path, monkeypatch)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config"
    path.write_text("Host box\n  HostName one.example\n")
    time.sleep(0.02)
    return path


def test_a_second_look_asks_nothing_and_says_the_same(asked, config):
    assert (asked(config), asked(config), asked.times) == ("one.example", "one.example", 1)
    plain = resolve("box", str(config)).options
    kept = resolve("box", str(config), config.parent / "memory").options
    assert {**kept, "loglevel": plain["loglevel"]} == plain


def test_other_destinations_and_configs_are_others(asked, config):
    other = config.with_name("other")
    other.write_text("Host box\n  HostName two.example\n")
    time.sleep(0.02)
    assert (asked(config), asked(other), asked(config, "box:23"), asked(config, "me@box")) == (
        "one.example", "two.example", "one.example", "one.example")
    assert asked.times == 4


def test_a_changed_config_is_read_anew_even_with_its_old_time_and_size(asked, config):
    asked(config)
    was = config.stat()
    config.write_text("Host box\n  HostName two.example\n")
    os.utime(config, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert asked(config) == "two.example"


def test_a_file_that_an_include_finds_later_counts(asked, config, tmp_path):
    (tmp_path / "parts").mkdir()
    config.write_text(f"Include {tmp_path}/parts/*.conf\nHost box\n  HostName one.example\n")
    time.sleep(0.02)
    assert (asked(config), asked(config), asked.times) == ("one.example", "one.example", 1)
    part = tmp_path / "parts" / "a.conf"
    part.write_text("Host box\n  HostName two.example\n")
    time.sleep(0.02)
    assert (asked(config), asked(config), asked.times) == ("two.example", "two.example", 2)
    part.write_text("Host box\n  HostName three.example\n")
    assert asked(config) == "three.example"
    part.unlink()
    assert asked(config) == "one.example"


@pytest.mark.parametrize("line", [
    "Match host box exec true\n  HostName one.example", "Match originalhost box exec \"true\"",
    "IdentityFile ${HOME}/key", "Include ${HOME}/nothing",
    "CanonicalizeHostname yes\nCanonicalDomains invalid"])
def test_what_no_file_decides_is_always_asked(asked, config, line):
    config.write_text(f"{line}\nHost box\n  HostName one.example\n")
    time.sleep(0.02)
    for _ in range(2):
        try:
            asked(config)
        except SwarmError:
            pytest.skip("this ssh does not know that line")
    assert asked.times == 2


@pytest.mark.parametrize("line", ["Match originalhost box user nobody", "Match final all", "match !host x"])
def test_a_match_by_names_is_remembered(asked, config, line):
    config.write_text(f"Host box\n  HostName one.example\n{line}\n  Port 2200\n")
    time.sleep(0.02)
    assert (asked(config), asked(config), asked.times) == ("one.example", "one.example", 1)


def test_a_file_written_this_moment_is_not_trusted_to_stay(asked, config, monkeypatch):
    monkeypatch.setattr(ssh_memory, "SETTLED", 3600.0)
    asked(config)
    asked(config)
    assert asked.times == 2


def test_a_note_that_is_garbage_or_cannot_be_written_is_none(asked, config, tmp_path):
    asked(config)
    for note in (tmp_path / "memory").iterdir():
        note.write_text("{garbage")
    assert (asked(config), asked.times) == ("one.example", 2)
    shutil.rmtree(tmp_path / "memory")
    (tmp_path / "memory").write_text("a file in its way")
    assert (asked(config), asked(config)) == ("one.example", "one.example")


def test_a_config_that_ssh_cannot_read_is_told_and_not_remembered(asked, config):
    config.write_text("Host box\n  Nonsense yes\n")
    time.sleep(0.02)
    for _ in range(2):
        with pytest.raises(SwarmError, match=r"cannot read its config for this host: .*nonsense") as told:
            asked(config)
        assert "debug1" not in str(told.value)
    assert asked.times == 2


def test_the_users_own_config_appearing_later_is_seen(asked, monkeypatch, tmp_path):
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setattr(ssh_memory, "_home", lambda: str(home))
    argv, answers = ("ssh", "-G", "box"), iter([("hostname a\n", ""), ("hostname b\n", "")])
    for wanted in ("a", "a"):
        assert ssh_memory.remembered(tmp_path / "m", argv, lambda: next(answers)) == f"hostname {wanted}\n"
    (home / ".ssh" / "config").write_text("")
    assert ssh_memory.remembered(tmp_path / "m", argv, lambda: next(answers)) == "hostname b\n"
