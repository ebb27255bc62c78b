"""What hosts say of this moment, by whichever tools they have, and who looks at them how often."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import paths_under
from running import Cli
from waiting import until

from swarmctl.errors import HostUnreachable, SwarmError
from swarmctl.facts.pulse import Pulse, busy_share, parse_pulse
from swarmctl.fleet.asleep import fell_asleep
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, read_fleet, write_fleet
from swarmctl.fleet.survey import _probe
from swarmctl.monitor.host_gauges import host_gauges
from swarmctl.monitor.hosts import HostPoller
from swarmctl.paths import Paths

START = "\nswarmctl-probe 1 7-7\n"
LINUX = ("\n@@7-7 cpu\nthreads 16\n\n@@7-7 pulse\ncpu  100 0 50 800 50 0 0 0 9 9\n"
         "load 1.78 4.84 4.45 4/386 9\n"
         "\n@@7-7 cgroup\n\n@@7-7 memory\nMemTotal: 1000\nMemAvailable: 400\nSwapTotal: 10\nSwapFree: 4\n"
         "\n@@7-7 data_disk\nFilesystem 1024-blocks Used Available Capacity Mounted on\n"
         "/dev/nvme0n1 1000 600 400 60% /data\n")
NVIDIA = ("\n@@7-7 nvidia-pulse\n0, GPU-1, NVIDIA GeForce RTX 3080, 10240, 9216, 88, 74, 220.51, 320.00\n"
          "1, GPU-2, NVIDIA GeForce RTX 3060, 12288, 0, [N/A], [N/A], [N/A], [Not Supported]\nstatus 0\n")
AMD = ("\n@@7-7 amd-pulse\ncard /sys/class/drm/card1\nmem_info_vram_total 17163091968\n"
       "mem_info_vram_used 1073741824\ngpu_busy_percent 37\ntemp1_input 51000\ntemp2_input 68000\n"
       "temp3_input 60000\npower1_average 145000000\npower1_cap 263000000\n")
MAC = ("\n@@7-7 cpu\nthreads 8\n\n@@7-7 pulse\nload  1,21 1,50 1,60 \n\n@@7-7 memory\n"
       "hw.memsize: 17179869184\n"
       "hw.pagesize: 16384\nPages free: 100000.\nPages inactive: 50000.\n")
END = "\n@@7-7 end\n"
MIB = 2**20


def test_a_linux_host_with_two_nvidia_cards():
    seen = parse_pulse(f"banner{START}{LINUX}{NVIDIA}{END}", "/data")
    assert (seen.threads, seen.load, seen.ticks) == (16, 1.78, (150, 1000))
    assert (seen.memory, seen.memory_available, seen.swap_used) == (1000 * 1024, 400 * 1024, 6 * 1024)
    assert (seen.disk, seen.disk_free) == (1000 * 1024, 400 * 1024)
    first, second = seen.gpus
    assert first.name == "NVIDIA GeForce RTX 3080"
    assert (first.memory, first.memory_used) == (10240 * MIB, 9216 * MIB)
    assert (first.busy, first.temperature, first.power, first.power_limit) == (0.88, 74, 220.51, 320)
    assert (second.memory_used, second.busy, second.temperature, second.power) == (0, None, None, None)
    assert seen.problem == ""


def test_an_amd_card_by_the_kernels_files_beside_an_nvidia_card():
    seen = parse_pulse(f"{START}{LINUX}{NVIDIA}{AMD}{END}", "/data")
    card = seen.gpus[2]
    assert (card.index, card.name, card.busy, card.temperature) == (2, "AMD GPU", 0.37, 68)
    assert (card.memory, card.memory_used) == (17163091968, 2**30)
    assert (card.power, card.power_limit) == (145, 263)


def test_a_mac_says_less_and_that_is_right():
    seen = parse_pulse(f"{START}{MAC}{END}", "/data")
    assert (seen.threads, seen.load, seen.ticks, seen.gpus) == (8, 1.21, None, ())
    assert seen.memory == 16 * 2**30


def test_a_driver_that_is_gone_is_a_problem_and_no_card():
    said = ("\n@@7-7 nvidia-pulse\nNVIDIA-SMI has failed because it couldn't communicate with the driver\n"
            "status 9\n")
    seen = parse_pulse(f"{START}{LINUX}{said}{END}", "/data")
    assert seen.gpus == ()
    assert "couldn't communicate" in seen.problem


@pytest.mark.parametrize("text", ["", "hello", START, START + LINUX, "x" * 5000])
def test_half_an_answer_is_an_error(text):
    with pytest.raises(SwarmError, match="cut off"):
        parse_pulse(text, "/data")


def test_processors_at_work_are_counted_between_two_looks():
    def seen(*ticks):
        return Pulse(8, 1.0, ticks or None, 1, 1, 0, 1, 1)

    assert busy_share(None, seen(10, 100)) is None
    assert busy_share(seen(10, 100), seen(40, 200)) == 0.3
    assert busy_share(seen(10, 100), seen(10, 100)) is None
    assert busy_share(seen(90, 900), seen(1, 10)) is None, "it has restarted"
    assert busy_share(seen(), seen(10, 100)) is None


SHELLS = [shell for shell in (("sh",), ("bash",), ("busybox", "sh")) if shutil.which(shell[0])]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_the_probe_itself_in_every_shell_there_is(shell, tmp_path):
    script = b"SWARMCTL_GLANCE=pulse\n" + _probe()
    done = subprocess.run((*shell, "-s", "--", str(tmp_path / "not" / "yet")), input=script,
                          capture_output=True, timeout=60, check=True)
    seen = parse_pulse(done.stdout.decode(), str(tmp_path))
    assert seen.threads >= 1
    assert seen.load is not None
    assert seen.ticks is not None
    assert 0 < seen.memory_available <= seen.memory
    assert 0 < seen.disk_free <= seen.disk


def test_nvidia_smi_is_asked_once_in_the_words_it_knows(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\necho "$@" >>"$0.asked"\necho "0, GPU-1, A, 10, 5, 50, 60, 70.5, 100"\n')
    fake.chmod(0o755)
    done = subprocess.run(("sh", "-s", "--", "/"), input=b"SWARMCTL_GLANCE=pulse\n" + _probe(),
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
                          capture_output=True, timeout=60, check=True)
    assert parse_pulse(done.stdout.decode(), "/").gpus[0].power == 70.5
    (asked,) = (tmp_path / "nvidia-smi.asked").read_text().splitlines()
    assert asked == ("--query-gpu=index,uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,"
                     "power.draw,power.limit --format=csv,noheader,nounits")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def here(name="here", ssh="local", served=(), **changes):
    return HostEntry(name, ssh, "/tmp", 1.0, 10, 100, 0.3, "EUR", (), served, **changes)


def written(paths, *entries):
    write_fleet(paths.fleet, Fleet("i", "s", "2026-11-23T00:00:00Z", None, 30.0, 60.0, entries))
    return HostPoller(paths, every=0.1, tokens_every=0)


def test_this_machine_is_looked_at_again_and_again_until_the_poller_stops(paths):
    poller = written(paths, here())
    poller.start()
    first = until(lambda: next((host for host in poller.hosts() if host.up), None))
    later = until(lambda: next((host for host in poller.hosts()
                                   if host.at > first.at and host.busy is not None), None))
    poller.stop()
    assert later.pulse.memory > 0
    stopped = poller.hosts()
    time.sleep(0.4)
    assert poller.hosts() == stopped


def test_a_host_that_is_off_is_tried_less_and_less_often(paths, monkeypatch):
    tried = []

    def refuse(*_, **__):
        tried.append(time.monotonic())
        raise HostUnreachable("no route", host="gone")

    monkeypatch.setattr("swarmctl.monitor.hosts.pulse", refuse)
    poller = written(paths, here("gone"))
    poller.start()
    until(lambda: tried)
    time.sleep(1)
    poller.stop()
    (seen,) = poller.hosts()
    assert len(tried) == 1, "the first pause is 15 s"
    assert (seen.up, seen.why, seen.failures) == (False, "no route", 1)
    pauses = [poller._pause(replace(seen, failures=failures)) for failures in range(1, 9)]
    assert pauses == [15, 30, 60, 120, 240, 300, 300, 300]
    fell_asleep(paths, "gone", "poweroff", time.time())
    assert poller._pause(seen) == 600
    gauges = host_gauges([seen])
    assert gauges["swarmctl_host_up"] == {("gone",): 0}
    assert "swarmctl_host_memory_bytes" not in gauges


def test_a_host_is_looked_at_by_one_at_a_time_and_a_slow_one_keeps_nobody_waiting(paths, monkeypatch):
    at_work, most = [], []

    def slow(remote, *_, **__):
        if remote.host == "slow":
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.7)
            at_work.pop()
        return Pulse(1, 1.0, None, 2, 1, 0, 2, 1)

    monkeypatch.setattr("swarmctl.monitor.hosts.pulse", slow)
    poller = written(paths, here("slow"), here("quick"))
    poller.start()
    time.sleep(1.6)
    poller.stop()
    assert max(most) == 1
    quick = next(host for host in poller.hosts() if host.entry.name == "quick")
    assert quick.up
    assert 1 <= len(most) <= 3


def test_a_new_snapshot_brings_new_hosts_and_drops_old_ones(paths):
    poller = written(paths, here("one"))
    poller.start()
    until(lambda: [host.up for host in poller.hosts()] == [True])
    written(paths, here("two"), here("three"))
    until(lambda: {host.entry.name: host.up for host in poller.hosts()} == {"two": True, "three": True})
    poller.stop()


def test_a_host_that_each_up_describes_anew_is_not_looked_at_more_often_for_it(paths):
    poller = written(paths, here())
    poller.start()
    for number in range(5):
        until(lambda: any(host.up for host in poller.hosts()))
        written(paths, here(gpus=number))
        assert len(poller.hosts()) == 1
    until(lambda: any(host.up for host in poller.hosts()))
    with poller._wake:
        assert len(poller._due) <= 1, "a turn that is left from before comes again and again"
    poller.stop()


def test_without_a_snapshot_there_is_nobody_to_look_at(paths):
    poller = HostPoller(paths)
    poller.start()
    assert poller.hosts() == ()
    assert poller.once() == ()
    poller.stop()


def test_a_server_that_is_not_there_is_down_and_its_host_is_up(paths):
    served = Served("llamacpp", "big", "big", "d", "t", 1, 512, 1, 10, 10, "F16", 9.0, 8.0)
    poller = written(paths, here(served=(served,)))
    (seen,) = poller.once()
    poller.stop()
    assert seen.up
    assert [server.up for server in seen.servers] == [False]
    gauges = host_gauges([seen])
    assert gauges["swarmctl_server_up"] == {("here", "big", "big"): 0}
    assert gauges["swarmctl_host_up"] == {("here",): 1}


@pytest.mark.runtime
@pytest.mark.timeout(200)
def test_the_lab_over_ssh_its_servers_and_one_that_is_frozen(make_lab, llamacpp_bin):
    lab = make_lab("loopback", hosts=2, cache=Paths.from_environ(os.environ).cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    cli.run("up", limit=150)
    assert len(read_fleet(lab.paths.fleet).hosts) == 2
    poller = HostPoller(lab.paths, every=0.5, tokens_every=60)
    try:
        for seen in poller.once():
            assert seen.up, seen.why
            (server,) = seen.servers
            assert (server.up, server.loaded, server.generates, server.slots) == (True, True, True, 1)
            assert server.token_seconds > 0
        lab.host("spinoza").cut()
        began = time.monotonic()
        worlock, spinoza = poller.once()
        assert time.monotonic() - began < 25
        assert (worlock.up, spinoza.up) == (True, False)
        assert spinoza.pulse is not None, "what was known of it stays known"
        done = cli.run("metrics", limit=90)
        assert 'swarmctl_host_up{host="spinoza"} 0.0' in done.stdout
        label = 'host="worlock",model="tiny-large",server="tiny-large"'
        assert f"swarmctl_server_generates{{{label}}} 1.0" in done.stdout
    finally:
        lab.host("spinoza").mend()
        poller.stop()
        lab.stop()


@pytest.mark.parametrize(("runtime", "age", "asked"), [
    ("llamacpp", None, True), ("llamacpp", 500.0, True), ("llamacpp", 1.0, False), ("ollama", 500.0, None)])
def test_a_token_is_asked_for_only_where_nothing_else_tells_and_it_keeps_nothing_in_memory(
        paths, runtime, age, asked):
    served = Served(runtime, "big", "big", "d", "t", 1, 512, 1, 10, 10, "F16", 9.0, 8.0)
    entry = here(served=(served,))
    written(paths, entry)
    poller = HostPoller(paths, tokens_every=60)
    now = time.time()
    if age is not None:
        habits = paths.state / "habits" / "here@big.json"
        habits.parent.mkdir(parents=True)
        habits.touch()
        os.utime(habits, (now - age, now - age))
    assert poller._worth_asking(entry, served, now) is asked


def test_three_hundred_hosts_are_looked_at_ten_a_second_at_most(paths):
    poller = written(paths, *(here(f"host{number}") for number in range(300)))
    poller._refresh()
    assert poller._pause(replace(poller.hosts()[0], up=True)) == 30
