"""`swarmctl up` with nothing to do, beside an Ansible playbook and a pyinfra deploy of the same steps.

    python bench/up.py [ROUNDS [HOSTS...]]

Each host is an sshd of its own on a loopback port, with a data folder of its own, in which the first `up` has
installed llama.cpp, put the tiny model, and started a llama-server. What is timed finds all of that in place:
bench/peers/up.yml and bench/peers/up.py hold the same steps as people would write them. `first` is a run
with no connection open beforehand; `again` the median of rounds in which the tools take turns, when Ansible
has its ControlPersist masters and swarmctl the tunnels that `status` left open. Every run is checked to
have changed nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from sshd_farm import farm
from status import close_masters
from table import median, run, show

from swarmctl.fleet.ports import free_ports
from swarmctl.paths import Paths
from swarmctl.shipped import shipped_model

BIN = Path(sys.executable).parent
PEERS = Path(__file__).with_name("peers")
MODEL = "tiny-small"


def main(rounds=3, *counts):
    """Measure for each number of hosts, print a table for each."""
    for count in counts or (10, 50):
        with tempfile.TemporaryDirectory(prefix="swarm-", dir="/tmp") as name:
            folder = Path(name)
            with farm(folder, count) as (config, cpu_there):
                environ = at_home(folder)
                inventory, folders = write_inventory(folder, config, count)
                ours = [BIN / "swarmctl", "-i", inventory]
                try:
                    run([*ours, "up"], environ=environ, timeout=1800)
                    found = measure(tools(folder, config, folders, ours, environ), folder, rounds, cpu_there)
                finally:
                    close_masters(folder)
                    run([*ours, "down"], environ=environ, check=False)
        report(found, count, rounds)


def at_home(folder):
    """An environment with a home of its own, and the builds of this machine's cache."""
    cache = Paths.from_environ(os.environ).cache
    (folder / "swarm").mkdir()
    (folder / "swarm" / "cache").symlink_to(cache, target_is_directory=True)
    return {**os.environ, "HOME": str(folder), "SWARMCTL_HOME": str(folder / "swarm")}


def write_inventory(folder, config, count):
    """swarmctl's inventory, and each host's data folder by name."""
    folders = {f"h{number:03d}": folder / "data" / f"h{number:03d}" for number in range(1, count + 1)}
    hosts = [f"  {name}: {{ssh: {name}, data_dir: {where}, llamacpp: {{port: {port}}}, "
             f"models: [{{model: {MODEL}, context: 256}}], limits: {{threads: 1, parallel: 1}}}}\n"
             for (name, where), port in zip(folders.items(), free_ports(count), strict=True)]
    inventory = folder / "inventory.yaml"
    inventory.write_text(f"version: 1\nssh_config: {config}\nmodels: {{{MODEL}: {{source: shipped:small}}}}\n"
                         f"hosts:\n{''.join(hosts)}")
    return inventory, folders


def tools(folder, config, folders, ours, environ):
    """Label, argv, environment, and what shows that a run changed nothing; swarmctl first."""
    yield "swarmctl up", [*ours, "up", "--json"], environ, unchanged

    data = {name: steps(where) for name, where in folders.items()}
    hosts = folder / "hosts.json"
    shared = {"ansible_python_interpreter": "/usr/bin/python3", "ansible_ssh_common_args": f"-F {config}"}
    hosts.write_text(json.dumps({"all": {"hosts": data, "vars": shared}}))
    playbook = [BIN / "ansible-playbook", "-i", hosts, PEERS / "up.yml"]
    apart = {**environ, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp0"), "ANSIBLE_NOCOLOR": "1"}
    yield "Ansible, as installed (5 forks)", playbook, apart, all_ok
    tuned = {**apart, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp1"), "ANSIBLE_PIPELINING": "1",
             "ANSIBLE_FORKS": str(len(folders)), "ANSIBLE_STRATEGY": "free",
             "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=600s"}
    yield f"Ansible, tuned ({len(folders)} forks, pipelining, free strategy)", playbook, tuned, all_ok

    python = folder / "hosts.py"
    login = {"ssh_config_file": str(config), "ssh_known_hosts_file": str(folder / "known_hosts"),
             "ssh_strict_host_key_checking": "yes"}
    python.write_text(f"hosts = {[(name, {**login, **data[name]}) for name in folders]!r}\n")
    yield "pyinfra", [BIN / "pyinfra", "-y", python, PEERS / "up.py"], environ, no_changes


def steps(where):
    """What the peers need to know of a host, read from what `up` made there."""
    runtime = next(where.glob("runtimes/llamacpp/*/"))
    server = next(where.glob("servers/*/"))
    archive = Paths.from_environ(os.environ).cache / "store" / "runtimes" / f"{runtime.name}.tar.gz"
    return {"data_dir": str(where), "runtime_key": runtime.name, "runtime_archive": str(archive),
            "model_file": str(shipped_model("small") / "model.gguf"),
            "blob": next(where.glob("blobs/*")).name, "server_name": server.name,
            "run_script": (server / "run").read_text()}


def unchanged(spent):
    """Whether `up --json` planned nothing anywhere."""
    return {host["state"] for host in json.loads(spent.stdout)["hosts"]} == {"unchanged"}


def all_ok(spent):
    """Whether Ansible's recap counts nothing but ok tasks."""
    recap = re.findall(r": ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", spent.stdout)
    return bool(recap) and all(rest == ["0"] * 3 for _, *rest in recap)


def no_changes(spent):
    """Whether pyinfra's summary counts no change."""
    return re.search(r"Grand total +\d+ +- +- +\d+", f"{spent.stdout}{spent.stderr}") is not None


def measure(made, folder, rounds, cpu_there):
    """For each tool: label, a first run, the hosts' CPU for it, and the runs that take turns."""
    made, found = list(made), {}
    for label, argv, environ, proof in made:
        close_masters(folder)
        before = cpu_there()
        found[label] = [checked(label, argv, environ, proof)]
        close_masters(folder)  # a session's CPU is known when it has ended
        found[label].append(cpu_there() - before)
    run([*made[0][1][:3], "status"], environ=made[0][2])  # leaves tunnels open, as `ask` does
    for _ in range(rounds):
        for label, argv, environ, proof in made:
            found[label].append(checked(label, argv, environ, proof))
    return found


def checked(label, argv, environ, proof):
    """One run, which must have changed nothing."""
    spent = run(argv, environ=environ, timeout=1200)
    if not proof(spent):
        said = f"{spent.stdout}{spent.stderr}"
        raise SystemExit(f"{label} changed something, or did not say that it did not:\n{said}")
    sys.stderr.write(f"{label}: {spent.wall:.2f} s, {spent.cpu:.2f} s of CPU\n")
    return spent


def report(found, count, rounds):
    """Print the table."""
    rows = []
    for label, (first, there, *runs) in found.items():
        again, cpu = median([one.wall for one in runs]), median([one.cpu for one in runs])
        rows.append((label, first.wall, again, cpu, there))
    _, first, again, *_ = rows[0]
    show(f"`up` with nothing to do, {count} hosts", f"python bench/up.py {rounds} {count}",
         ("tool", "first", "ratio", "again", "ratio", "CPU here, again", "CPU on the hosts, first"),
         [(label, f"{one:.2f} s", f"{one / first:.1f}x", f"{more:.2f} s", f"{more / again:.1f}x",
           f"{cpu:.1f} s", f"{there:.1f} s") for label, one, more, cpu, there in rows],
         f"`again`: the median of {rounds} runs, the tools in turn. All hosts are this machine: their CPU "
         f"takes time here. ansible-core {version('ansible-core')}, pyinfra {version('pyinfra')}.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
