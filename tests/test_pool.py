"""Many hosts at once: bounded, in the order they are done, and nobody waits for a dead one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from swarmctl.errors import CommandTimeout, HostUnreachable
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.remote import FabricRemote
from swarmctl.inventory import Host


def test_every_item_comes_back_with_its_result_first_done_first():
    def work(delay: float) -> float:
        time.sleep(delay)
        return delay * 10

    assert list(over_hosts((0.3, 0.01, 0.15), work)) == [(0.01, 0.1), (0.15, 1.5), (0.3, 3.0)]


def test_no_items_give_no_results():
    assert list(over_hosts((), str)) == []


def test_an_error_of_ours_is_a_result():
    def work(name: str) -> str:
        if name == "off":
            raise HostUnreachable("gone", host=name)
        return name

    found = dict(over_hosts(("on", "off"), work))
    assert found["on"] == "on"
    assert isinstance(found["off"], HostUnreachable)


def test_any_other_error_is_a_defect_and_raised():
    with pytest.raises(ZeroDivisionError):
        list(over_hosts((1, 0), lambda n: 1 // n))


def test_no_more_than_the_limit_run_at_once():
    lock, now, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    assert len(list(over_hosts(range(60), work, limit=7))) == 60
    assert most == 7


def test_hanging_items_are_reported_late_and_hold_up_nobody():
    stuck = threading.Event()

    def work(number: int) -> int:
        if number in {0, 1}:
            stuck.wait(90)
        return number

    started = time.monotonic()
    found = list(over_hosts(range(10), work, limit=2, timeout=2))
    assert time.monotonic() - started < 30
    assert sorted(item for item, _ in found) == list(range(10))
    assert all(isinstance(result, CommandTimeout) == (item in {0, 1}) for item, result in found)
    stuck.set()


def test_leaving_early_starts_nothing_more():
    done: list[int] = []
    results = over_hosts(range(1000), lambda n: (time.sleep(0.01), done.append(n)), limit=2)
    next(results)
    results.close()
    time.sleep(0.1)
    assert len(done) < 20


def test_ctrl_c_leaves_at_once():
    script = ("import time\nfrom swarmctl.fleet.pool import over_hosts\nprint('ready', flush=True)\n"
              "list(over_hosts(range(5), lambda n: time.sleep(60)))\n")
    process = subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        time.sleep(0.3)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    assert time.monotonic() - started < 30, "not the hosts' minute"


def test_a_dead_host_does_not_delay_the_others(lab):
    lab.host("worlock").cut()

    def work(host: Host) -> str:
        remote = FabricRemote(host, lab.paths, str(lab.ssh_config))
        try:
            return remote.run(("echo", "in"), timeout=10).stdout
        finally:
            remote.close()

    started = time.monotonic()
    hosts = [Host(name, name, connect_timeout=2.0) for name in ("worlock", "spinoza", "calisota")]
    arrived = [(host.name, result, time.monotonic() - started) for host, result in over_hosts(hosts, work)]
    assert {name for name, result, when in arrived[:2] if result == "in\n" and when < 1.8} == {"spinoza",
                                                                                               "calisota"}
    assert arrived[2][0] == "worlock"
    assert isinstance(arrived[2][1], HostUnreachable)


@pytest.mark.slow
def test_two_hundred_hosts_are_reached_in_bounded_time_and_memory(lab_loopback):
    """200 real connections: two in three to sshd, the others to ports where nobody listens."""
    def target(number: int) -> Host:
        if number % 3 == 2:
            return Host(f"h{number}", f"127.0.0.1:{number % 7 + 1}")
        return Host(f"h{number}", lab_loopback.hosts[number % 3].name)

    def work(host: Host) -> str:
        remote = FabricRemote(host, lab_loopback.paths, str(lab_loopback.ssh_config))
        try:
            return remote.run(("echo", host.name), timeout=30).stdout.strip()
        finally:
            remote.close()

    next(iter(over_hosts((target(0),), work)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    found = {host.name: result for host, result in over_hosts([target(n) for n in range(200)], work)}
    assert time.monotonic() - started < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100  # MB
    assert len(found) == 200
    assert [isinstance(found[f"h{n}"], HostUnreachable) for n in range(200)] == [n % 3 == 2
                                                                                 for n in range(200)]
    assert all(found[f"h{n}"] == f"h{n}" for n in range(200) if n % 3 != 2)
