"""Two hosts train one model: torchrun meets over gloo, a host that dies ends the run, and it goes on.

So does a network that is cut: between this machine and both hosts, and between the hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import NETNS_REASON, can_make_namespaces
from stocked import free_ports
from test_train import Trainers, dataset, end, needs_trl, steps, until  # noqa: F401  a fixture

from swarmctl.jobs.bond import ABOVE, Bond
from swarmctl.jobs.control import family
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.spec import Node
from swarmctl.lab import network

RECIPE = """
trainer: dpo
use_peft: true
lora_r: 4
learning_rate: 4e-4
num_train_epochs: {epochs}
per_device_train_batch_size: 16
max_length: 128
gradient_checkpointing: false
bf16: false
logging_steps: 1
save_steps: 2
seed: 7
swarmctl: {{hosts: [worlock, calisota], model: small}}
"""


@contextlib.contextmanager
def two_of(lab, other):
    """The lab's first host and another, which both train; the other has a data folder of its own."""
    made = Trainers(lab, more=f"  {other.name}: {{roles: [train], limits: {{threads: 1}},\n"
                              f"    data_dir: {other.data_dir}, train: {{python: {sys.executable}}}}}\n")
    yield made, (made.host, other)
    for host in (made.host, other):
        for folder in (host.data_dir / "runs").glob("*"):
            end(Folder(folder))
    lab.stop()


@pytest.fixture(scope="module")
def team(make_lab):
    """Two hosts that train; the second has a data folder of its own."""
    lab = make_lab("loopback", hosts=2)
    with two_of(lab, lab.hosts[1]) as found:
        yield found


def recipe(folder, epochs, second):
    path = folder / "both.yaml"
    path.write_text(RECIPE.format(epochs=epochs).replace("calisota", second))
    return str(path)


def gone(folders):
    """Whether nothing of the run is left on any host."""
    return not any(folder.holder() or family(folder) for folder in folders)


@needs_trl
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_host_that_dies_ends_the_run_on_all_and_it_goes_on_from_there(team, dataset, tmp_path):  # noqa: F811
    trainers, hosts = team
    named = recipe(tmp_path, 4, hosts[1].name)
    done = trainers.train(named, "-d", str(dataset), "--detach")
    assert f"let in only {hosts[0].name}, {hosts[1].name}" in done.stderr
    run = done.stdout.strip()
    first, second = (Folder(host.data_dir / "runs" / run) for host in hosts)
    until(lambda: len(steps(first)[1]) > 1, what=(first.path / "log").read_text())
    assert family(second), "it trains on both"

    for pid in (second.holder(), *family(second)):  # as when its power goes
        os.kill(pid, signal.SIGKILL)
    done = trainers.job("follow", run, status=1)
    assert "a host that trains with this one is gone" in done.stderr, done.stderr
    assert f"swarmctl jobs resume {run}" in done.stderr
    until(lambda: gone((first, second)), 30, "something still trains")

    trainers.job("resume", run)
    assert trainers.job("follow", run).stdout.strip() == run
    result = json.loads((first.path / "result.json").read_text())
    assert (result["status"], result["stages"]["dpo"]["steps"]) == ("done", 20)
    assert result["stages"]["dpo"]["resumed"].startswith("checkpoint-")
    assert (first.path / "out" / "merged" / "model.safetensors").is_file()
    assert not (second.path / "out" / "merged").exists()  # only the first merges
    until(lambda: gone((first, second)), 30, "something still trains")
    trainers.job("remove", run)
    assert not first.path.exists()
    assert not second.path.exists()


@pytest.mark.parametrize(("well", "lost"), [(True, False), (False, True)])
def test_a_host_hears_whether_the_other_ended_well(well, lost):
    (port,) = free_ports(1)
    ended = [threading.Event() for _ in range(2)]
    first, second = (Bond(Node(rank, 2, "127.0.0.1", port - ABOVE), "run", ended[rank].set)
                     for rank in range(2))
    stranger = Bond(Node(1, 2, "127.0.0.1", port - ABOVE), "another run", ended[0].set)
    until(lambda: first._held and second._held)
    second.close(well=well)
    if lost:
        assert ended[0].wait(60)
    until(lambda: first._held[0].fileno() < 0)  # it has heard, and let go
    assert (first.lost, second.lost, stranger.lost) == (lost, False, False)
    for bond in (first, stranger):
        bond.close(well=True)


@pytest.fixture(scope="module")
def apart(make_lab):
    """Two hosts with addresses of their own."""
    lab = make_lab("netns", hosts=3)
    with two_of(lab, lab.host("calisota")) as found:
        yield found


@contextlib.contextmanager
def silence(host, *addresses):
    """What a host sends to those addresses is lost on the way: it goes to a network card that nobody has."""
    with contextlib.ExitStack() as undo:
        for address in addresses:
            entry = ("ip", "-n", host.space.name, "neigh")
            subprocess.run((*entry, "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud",
                            "permanent"), check=True)
            undo.callback(subprocess.run, (*entry, "del", address, "dev", "eth0"), check=True)
        yield


def connected(addresses):
    """Whether a TCP connection of this machine to one of them stands."""
    there = {"".join(f"{int(part):02X}" for part in reversed(one.split("."))) for one in addresses}
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[2].partition(":")[0] in there and row[3] == "01" for row in rows)


def send(number, folders):
    for pid in [pid for folder in folders for pid in family(folder)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def resumed(folder):
    """From which step the last resume went on, and how far it is since."""
    text = folder.progress.read_text() if folder.progress.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    at = max((n for n, line in enumerate(lines) if line.get("event") == "resumed"), default=None)
    if at is None:
        return None
    told = [line["step"] for line in lines[at:] if "loss" in line]
    return (int(lines[at]["checkpoint"].rpartition("-")[2]), told) if told else None


@needs_trl
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_make_namespaces(), reason=NETNS_REASON)
def test_networks_cut_between_this_machine_and_two_hosts_and_between_them(apart, dataset, tmp_path):  # noqa: F811
    trainers, hosts = apart
    run = trainers.train(recipe(tmp_path, 4000, "calisota"), "-d", str(dataset), "--detach").stdout.strip()
    both = first, second = [Folder(host.data_dir / "runs" / run) for host in hosts]
    addresses = [host.address for host in hosts]
    bridge = f"{addresses[0].rpartition('.')[0]}.1"
    follower = trainers.start("jobs", "follow", run, text=True)
    until(lambda: len(steps(first)[1]) > 1 or follower.poll() is not None)
    assert follower.poll() is None, follower.communicate()

    with silence(hosts[0], bridge), silence(hosts[1], bridge):
        known = steps(first)[0][-1]["step"]
        until(lambda: steps(first)[0][-1]["step"] > known + 4)
        pids = [folder.holder() for folder in both]
        send(signal.SIGSTOP, both)  # enough: it need not train while the connection dies
        until(lambda: not connected(addresses), 120)
        assert follower.poll() is None, "it tries again"
    send(signal.SIGCONT, both)
    assert trainers.shown(run)["state"] == "running"
    assert [folder.holder() for folder in both] == pids, "nothing began again"

    for host in hosts:  # Linux gives up in two minutes at the earliest; these do sooner
        subprocess.run((*network.inside(host.space, host.name), "sysctl", "-qw", "net.ipv4.tcp_retries2=3",
                        "net.ipv4.tcp_keepalive_probes=1"), check=True)
    with silence(hosts[0], addresses[1]), silence(hosts[1], addresses[0]):
        _, err = follower.communicate(timeout=240)
        assert "a host that trains with this one is gone, or reaches it no more" in err, err
        assert follower.returncode == 1
        until(lambda: gone(both), 120, "something still trains")
        result = json.loads((second.path / "result.json").read_text())
        assert result["status"] == "failed"
        assert "a host that trains with this one is gone" in result["error"]
    told = [line for line in err.splitlines() if "dpo: step" in line]
    assert len(told) == len(set(told)), "nothing is told twice"

    saved = steps(first)[1][-1]["step"]
    trainers.job("resume", run)
    begun, told = until(lambda: resumed(first), what=(first.path / "log").read_text())
    assert (begun, told[0]) in {(saved, saved + 1), (saved - 2, saved - 1)}, "from the newest both have"

    os.kill(second.holder(), signal.SIGKILL)  # the job alone: what trains for it ends by itself
    done = trainers.job("follow", run, status=1)
    assert "a host that trains with this one is gone" in done.stderr, done.stderr
    until(lambda: gone(both), 60, "something still trains")
    trainers.job("remove", run)
