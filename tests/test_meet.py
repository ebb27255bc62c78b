"""Hosts that train together meet at one address of the first, and nobody finds the door at another."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
from stocked import free_ports
from waiting import until

from swarmctl.jobs.bond import ABOVE, Bond
from swarmctl.jobs.launch import argv
from swarmctl.jobs.meet import listen
from swarmctl.jobs.spec import Node

linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp here")
#: What torchrun starts: a sum over both hosts, and the addresses on which a port listens.
PART = """
import json, os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
found = torch.ones(1)
dist.all_reduce(found)
rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
heard = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{int(sys.argv[1]):04X}")]
dist.barrier()
with open(f"{sys.argv[2]}/{dist.get_rank()}.json", "w") as out:
    json.dump({"sum": found.item(), "heard": heard}, out)
dist.destroy_process_group()
"""


def heard(port):
    """The addresses on which somebody listens at the port, as the kernel writes them."""
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]


@linux
@pytest.mark.train
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_two_processes_of_torchrun_meet_at_that_address_alone(tmp_path):
    (port,) = free_ports(1)
    part = tmp_path / "part.py"
    part.write_text(PART)

    class Spec:
        processes, run = 1, "run"

    both, said = [], [tmp_path / "0.err", tmp_path / "1.err"]
    for rank in range(2):
        spec = Spec()
        spec.node = Node(rank, 2, "127.0.0.2", port)
        command = argv(spec, "sft")
        command = (*command[:command.index("-m", 2)], f"--log-dir={tmp_path}", str(part), str(port),
                   str(tmp_path))
        with said[rank].open("wb") as err:
            both.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=err,
                                         env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}))
    try:
        until(lambda: any(process.poll() for process in both) or both[0].poll() == both[1].poll() == 0, 240)
    finally:
        for process in both:
            process.kill()
            process.wait(30)
    assert [process.returncode for process in both] == [0, 0], [file.read_text() for file in said]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["sum"], found["heard"]) == (2.0, [f"0200007F:{port:04X}"])


@linux
def test_the_bond_listens_at_that_address_alone():
    (port,) = free_ports(1)
    first = Bond(Node(0, 2, "127.0.0.2", port - ABOVE), "run", lambda: None)
    until(lambda: heard(port))
    assert heard(port) == ["0200007F"]
    first.close(well=True)


@linux
@pytest.mark.parametrize("address", ["192.0.2.1", "a-name.invalid"])
def test_an_address_that_is_none_of_the_hosts_own_is_listened_for_on_all(address):
    (port,) = free_ports(1)
    with listen(address, port):
        assert heard(port) == ["00000000"]
