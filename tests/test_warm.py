"""Looking at a host over the master that its tunnels have up: no handshake, and never at another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmctl.errors import CommandFailed, CommandTimeout, HostKeyUnknown, HostUnreachable
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.remote import FabricRemote
from swarmctl.fleet.ssh_config import Destination, look_argv, parse_resolved, resolve
from swarmctl.fleet.survey import survey
from swarmctl.fleet.tunnels import close_tunnel, control_path, open_tunnel
from swarmctl.fleet.warm import WarmRemote, warm
from swarmctl.inventory import Host


class Counted(FabricRemote):
    """A connection of its own, which counts the commands that it is given."""

    ran = 0

    def execute(self, *args, **more):
        self.ran += 1
        return super().execute(*args, **more)


@pytest.fixture
def reach(lab_loopback):
    """How a host is reached: a function from (name, destination) to its remote, and the cold one below."""
    made = []

    def to(name: str, ssh: str | None = None, **how):
        host = Host(name, ssh or name)
        cold = Counted(host, lab_loopback.paths, str(lab_loopback.ssh_config))
        made.append(cold)
        return warm(cold, host, lab_loopback.paths, str(lab_loopback.ssh_config), **how), cold

    yield to
    for cold in made:
        cold.close()
    for host in lab_loopback.hosts:
        close_tunnel(lab_loopback.paths, host.name)


def opened(lab, name):
    open_tunnel(lab.paths, host_name=name, ssh=name, ports=[9], ssh_config=str(lab.ssh_config))


def test_with_a_tunnel_up_a_survey_makes_no_connection(lab_loopback, reach):
    opened(lab_loopback, "worlock")
    remote, cold = reach("worlock")
    facts = survey(remote, Host("worlock", "worlock"))
    assert cold.ran == 0
    assert facts.cpu.threads
    assert remote.run(("cat",), timeout=10, stdin=b"given").stdout == "given"


def test_without_one_it_makes_its_own(reach):
    remote, cold = reach("spinoza")
    assert remote.run(("echo", "in"), timeout=10).stdout == "in\n"
    assert cold.ran == 1


def test_a_tunnel_to_another_machine_than_the_inventory_now_means_is_not_used(lab_loopback, reach):
    opened(lab_loopback, "worlock")
    remote, cold = reach("worlock", ssh="calisota")
    home = remote.run(("sh", "-c", 'echo "$HOME"'), timeout=10).stdout
    assert "calisota" in home
    assert cold.ran == 1


def test_a_master_that_died_is_no_road(lab_loopback, reach):
    opened(lab_loopback, "worlock")
    close_tunnel(lab_loopback.paths, "worlock")
    control_path(lab_loopback.paths, "worlock").touch()
    remote, cold = reach("worlock")
    assert remote.run(("echo", "in"), timeout=10).stdout == "in\n"
    assert cold.ran == 1


def test_failures_and_timeouts_are_the_commands_own(lab_loopback, reach):
    opened(lab_loopback, "worlock")
    remote, cold = reach("worlock")
    with pytest.raises(CommandFailed) as failed:
        remote.run(("sh", "-c", "echo why >&2; exit 7"), timeout=10)
    assert (failed.value.host, failed.value.exit_status, failed.value.stderr) == ("worlock", 7, "why\n")
    assert remote.run(("false",), timeout=10, check=False).exit_status == 1
    with pytest.raises(CommandTimeout):
        remote.run(("sleep", "20"), timeout=0.5)
    assert cold.ran == 0


def test_this_machine_needs_no_road():
    cold = LocalRemote("here")
    assert warm(cold, Host("here", "local"), None, None) is cold
    assert not isinstance(cold, WarmRemote)


def test_who_looks_once_loads_no_ssh_library_and_leaves_nothing_behind(lab_loopback, reach):
    remote, cold = reach("spinoza", once=True)
    assert survey(remote, Host("spinoza", "spinoza")).cpu.threads
    assert remote.run(("cat",), timeout=10, stdin=b"given").stdout == "given"
    with pytest.raises(CommandFailed, match="status 7"):
        remote.run(("sh", "-c", "exit 7"), timeout=10)
    assert cold.ran == 0
    assert not control_path(lab_loopback.paths, "spinoza").exists()


def test_who_looks_once_waits_once_for_nobody(lab_loopback, reach):
    remote, cold = reach("gone", "127.0.0.1:1", once=True)
    with pytest.raises(HostUnreachable, match="no SSH connection"):
        remote.run(("true",), timeout=10)
    assert cold.ran == 0


def test_what_ssh_cannot_open_is_told_by_the_library(lab_loopback, reach, tmp_path):
    config = tmp_path / "config"
    port = resolve("worlock", str(lab_loopback.ssh_config)).port
    config.write_text(f"Include {lab_loopback.ssh_config}\nHost stranger\n  HostKeyAlias nobody-knows\n"
                      f"  HostName 127.0.0.1\n  Port {port}\n")
    host = Host("stranger", "stranger")
    cold = Counted(host, lab_loopback.paths, str(config))
    with pytest.raises(HostKeyUnknown):
        warm(cold, host, lab_loopback.paths, str(config), once=True).run(("true",), timeout=10)
    assert cold.ran == 1


def test_the_command_of_one_look_keeps_to_the_key_exchanges_that_the_user_allows():
    def exchanges(allowed: str) -> list[str]:
        said = f"hostname box\nport 22\nuser me\nkexalgorithms {allowed}\n"
        there = parse_resolved(Destination("box"), said)
        line = look_argv(there, "true", known_hosts=Path("/k"), ssh_config=None, connect_timeout=5)
        assert line[-3:] == ("--", "box", "true")
        return [word for word in line if word.startswith("KexAlgorithms=")]

    assert exchanges("slow,curve25519-sha256,other") == ["KexAlgorithms=curve25519-sha256,slow,other"]
    assert exchanges("slow,other") == []
