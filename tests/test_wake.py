"""Waking a host: the packet's bytes, the packet on a real network between namespaces, and a host that comes
back when its cable does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import Cli

from swarmctl.errors import UsageError
from swarmctl.fleet.wake import magic_packet

pytestmark = pytest.mark.timeout(200)

MAC = "a4:bb:6d:01:02:03"
LISTENER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(20)
sock.bind(("", 9))
print("ready", flush=True)
while True:
    data, sender = sock.recvfrom(2048)
    if data.hex() == sys.argv[1]:
        print(sender[0], flush=True)
        break
"""


def test_a_magic_packet_is_six_times_ff_and_sixteen_times_the_address():
    packet = magic_packet(MAC)
    assert len(packet) == 102
    assert packet[:6] == b"\xff" * 6
    assert packet[6:] == bytes.fromhex("a4bb6d010203") * 16
    assert magic_packet("A4-BB-6D-01-02-03") == packet == magic_packet("a4bb.6d01.0203")


@pytest.mark.parametrize("mac", ["", "a4:bb:6d:01:02", "a4:bb:6d:01:02:zz", "a4:bb:6d:01:02:03:04"])
def test_what_is_no_address_is_refused(mac):
    with pytest.raises(UsageError, match="is no MAC address"):
        magic_packet(mac)


class Cables(Cli):
    """The lab of namespaces, with an inventory of ours."""

    def __init__(self, lab, folder: Path) -> None:
        super().__init__(lab.paths, lab.home)
        self.lab = lab
        self.inventory = folder / "inventory.yaml"
        self.environ["SWARMCTL_INVENTORY"] = str(self.inventory)
        self.write(self.mac(lab.host(0)))

    def write(self, mac: str, more: str = "") -> None:
        first, second = self.lab.host(0), self.lab.host(1)
        self.inventory.write_text(
            f"version: 1\nssh_config: {self.lab.ssh_config}\nhosts:\n"
            f"  {first.name}: {{data_dir: {first.data_dir}, intermittent: true, mac: '{mac}', "
            f"connect_timeout: 1}}\n  {second.name}: {{data_dir: {second.data_dir}}}\n{more}")

    def mac(self, host) -> str:
        return self.inside(host, "cat", "/sys/class/net/eth0/address").communicate(timeout=20)[0].strip()

    def inside(self, host, *argv: str) -> subprocess.Popen:
        return subprocess.Popen(("ip", "netns", "exec", host.space.name, *argv), stdout=subprocess.PIPE,
                                text=True)


@pytest.fixture
def cables(cable_lab, tmp_path):
    return Cables(cable_lab, tmp_path)


def heard(cables: Cables, host, *command: str) -> str:
    """Who sent the packet that a socket on the host's own network heard while the command ran."""
    packet = magic_packet(cables.mac(host)).hex()
    with cables.inside(host, sys.executable, "-c", LISTENER, packet) as listener:
        assert listener.stdout.readline() == "ready\n"
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=cables.environ)
        sender = listener.stdout.readline().strip()
        listener.wait(20)
    return sender


@pytest.mark.netns
def test_the_packet_reaches_the_hosts_network_from_here_and_through_another_host(cables):
    """Nothing is broadcast on this machine's own networks: the controller of the first is a namespace too."""
    asleep, other, third = (cables.lab.host(number) for number in range(3))
    wake = (sys.executable, "-m", "swarmctl", "wake", asleep.name)
    assert heard(cables, asleep, "ip", "netns", "exec", third.space.name, *wake) == third.address
    assert heard(cables, asleep, *wake, "--via", other.name) == other.address


@pytest.mark.netns
def test_wake_waits_for_a_host_that_comes_back(cables):
    host = cables.lab.host(0)
    host.cut()
    row = json.loads(cables.run("status", "--json").stdout)[0]
    assert (row["state"], row["hint"]) == ("off", f"swarmctl wake {host.name}")
    threading.Timer(2.0, host.mend).start()
    via = ("--via", cables.lab.host(1).name)
    found = json.loads(cables.run("wake", host.name, *via, "--wait", "--timeout", "60", "--json").stdout)
    assert 1 < found["seconds"] < 60
    assert found["why"] == ""
    assert json.loads(cables.run("status", "--json").stdout)[0]["state"] == "idle"


@pytest.mark.netns
def test_a_host_that_does_not_wake_says_what_to_check(cables):
    host = cables.lab.host(0)
    host.cut()
    began = time.monotonic()
    done = cables.run("wake", host.name, "--via", cables.lab.host(1).name, "--wait", "--timeout", "2",
                      status=1)
    assert time.monotonic() - began < 30
    assert "did not wake within 2 s" in done.stderr
    assert "ethtool" in done.stderr


@pytest.mark.netns
def test_a_host_without_an_address_is_a_mistake(cables):
    other = cables.lab.host(1).name
    assert f"hosts.{other}.mac" in cables.run("wake", other, status=2).stderr
    assert "the inventory has no host nobody" in cables.run("wake", "nobody", status=2).stderr
