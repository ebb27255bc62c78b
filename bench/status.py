"""`swarmctl status` over many SSH hosts, beside Ansible's ping and pyinfra's exec over the same hosts.

    python bench/status.py [HOSTS [ROUNDS]]

Each host is its own sshd process on its own loopback port. `first` is a run with no connection open
beforehand, `again` the median of the following runs, when Ansible has its ControlPersist masters.
status does more than a ping: it surveys hardware, disks, servers and ports of each host.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sshd_farm import farm
from table import median, run, show

BIN = Path(sys.executable).parent


def main(count=50, rounds=3):
    """Measure all, print the table."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as name:
        folder = Path(name)
        with farm(folder, count) as (config, cpu_there):
            rows = [measure(*tool, cpu_there, rounds) for tool in tools(folder, config, count)]
            close_masters(folder)
    (_, ours, ours_again, _), *_ = rows
    show(f"Status of {count} hosts", f"python bench/status.py {count} {rounds}",
         ("tool", "first", "ratio", "again", "ratio", "CPU here, first", "CPU on the hosts, first"),
         [(label, f"{first.wall:.2f} s", f"{first.wall / ours.wall:.1f}x", f"{again:.2f} s",
           f"{again / ours_again:.1f}x", f"{first.cpu:.1f} s", f"{there:.1f} s")
          for label, first, again, there in rows],
         f"`again`: the median of {rounds} runs. All hosts are this machine: their CPU takes time here.")


def tools(folder, config, count):
    """Label, argv and environment of each; swarmctl first."""
    names = [f"h{number:03d}" for number in range(1, count + 1)]
    environ = {**os.environ, "HOME": str(folder), "SWARMCTL_HOME": str(folder / "swarm")}
    inventory = folder / "inventory.yaml"
    hosts = "".join(f"  {name}: {{ssh: {name}}}\n" for name in names)
    inventory.write_text(f"version: 1\nssh_config: {config}\nhosts:\n{hosts}")
    yield "swarmctl status", [BIN / "swarmctl", "-i", inventory, "status"], environ

    hosts = folder / "hosts.ini"
    hosts.write_text("\n".join(names) + "\n\n[all:vars]\nansible_python_interpreter=/usr/bin/python3\n"
                     f"ansible_ssh_common_args=-F {config}\n")
    ansible = [BIN / "ansible", "all", "-i", hosts, "-m", "ping", "-o"]
    for forks in (5, count):
        apart = {**environ, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / f"cp{forks}")}
        yield f"ansible -m ping, {forks} forks", [*ansible, "-f", str(forks)], apart

    python = folder / "hosts.py"
    data = {"ssh_config_file": str(config), "ssh_known_hosts_file": str(folder / "known_hosts"),
            "ssh_strict_host_key_checking": "yes"}
    python.write_text(f"hosts = {[(name, data) for name in names]!r}\n")
    yield "pyinfra exec true", [BIN / "pyinfra", "-y", python, "exec", "--", "true"], environ


def measure(label, argv, environ, cpu_there, rounds):
    """One first run, then `rounds` more; and the CPU seconds that the hosts spent on the first."""
    before = cpu_there()
    first = run(argv, environ=environ)
    there = cpu_there() - before
    again = median([run(argv, environ=environ).wall for _ in range(rounds)])
    sys.stderr.write(f"{label}: {first.wall:.2f} s, {again:.2f} s\n")
    return label, first, again, there


def close_masters(folder):
    """End the connections that Ansible and swarmctl keep open."""
    for socket in [*folder.glob("cp*/*"), *folder.glob("swarm/run/*.ctl")]:
        if socket.is_socket():
            argv = ("ssh", "-S", str(socket), "-O", "exit", "x")
            subprocess.run(argv, check=False, capture_output=True, timeout=10)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
