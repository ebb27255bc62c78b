"""Many hosts cost a bounded number of threads and files while they are looked at, and nothing afterwards."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from swarmctl.errors import HostUnreachable
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.remote import connect
from swarmctl.paths import Paths
from swarmctl.verbs.doctor import doctor
from swarmctl.verbs.status import status
from swarmctl.verbs.up import up

HOSTS = 40
DEAD = tuple(f"h{number}" for number in range(0, HOSTS, 8))
WORKERS = 32
#: of each worker: itself, its connection's thread, the one that feeds a command
THREADS = 3 * WORKERS + 4
#: of each worker: its connection and the wake-up pipe of a channel (2), an `ssh -G` with its pipes (6)
FILES = 9 * WORKERS + 10


class Quiet:
    """A watcher that hears nothing."""

    def note(self, text):
        """Nothing."""

    def plan(self, plans):
        """Nothing."""

    def event(self, event):
        """Nothing."""


class Use:
    """The most threads and files that this process had beyond those of the beginning."""

    def __init__(self):
        self.first = self.now()
        self.most = self.first
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(60)

    @staticmethod
    def now():
        return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    @property
    def peak(self):
        return self.most[0] - self.first[0] - 1, self.most[1] - self.first[1]

    def settled(self, limit=15.0):
        """Whether threads and files come back to what they were."""
        until = time.monotonic() + limit
        while any(now > before for now, before in zip(self.now(), self.first, strict=True)):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _watch(self):
        while not self._over.wait(0.01):
            self.most = tuple(map(max, self.most, self.now()))


@pytest.fixture
def swarm(lab_loopback, tmp_path):
    """Paths and an inventory of many hosts behind three sshds; behind some of them is nothing."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    paths = Paths(*(tmp_path / name for name in ("config", "data", "state", "cache", "run")))
    paths.state.mkdir()
    shutil.copy(lab_loopback.paths.known_hosts, paths.known_hosts)
    ways = dict.fromkeys(DEAD, "127.0.0.1:1")
    lines = [f"  h{number}: {{ssh: '{ways.get(f'h{number}', lab_loopback.hosts[number % 3].name)}', "
             f"data_dir: {tmp_path}/data/h{number}, connect_timeout: 60}}\n" for number in range(HOSTS)]
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(f"version: 1\nssh_config: {lab_loopback.ssh_config}\nhosts:\n{''.join(lines)}")
    return paths, inventory


def planned(paths, inventory):
    """Hosts that a dry run finds no way to."""
    return [report.host for report in up(paths, inventory, Quiet(), dry_run=True)
            if isinstance(report.error, HostUnreachable)]


def looked_at(paths, inventory):
    """Hosts that status finds no way to."""
    read = read_inventory(inventory)
    rows = status(paths, read, None, lambda host: connect(host, paths, read.ssh_config), time.time())
    return [row.host for row in rows if row.state == "unreachable"]


def examined(paths, inventory):
    """Hosts that the doctor finds no way to."""
    read = read_inventory(inventory)
    return list(doctor(paths, read, None, lambda host: connect(host, paths, read.ssh_config)).unreachable)


@pytest.mark.parametrize("look", [planned, looked_at, examined])
def test_many_hosts_are_looked_at_within_bounds_and_leave_nothing_behind(swarm, look):
    with Use() as use:
        assert sorted(look(*swarm)) == sorted(DEAD)
    assert use.peak[0] <= THREADS
    assert use.peak[1] <= FILES
    assert use.settled(), f"{use.first} before, {use.now()} now"
