"""Two hundred hosts: `up --dry-run`, `status` and `doctor`, with all of them well and with one in ten dead.

    python bench/scale.py [HOSTS]

Each host is an sshd of its own on a loopback port. The dead ones fail in turn: nobody listens, something
accepts and says nothing, the host key is another, every key is refused, the survey hangs for ever. Shown are
the controller's wall clock, CPU, peak memory, and the most threads and open files it had, under a limit of
1024 files. Every run is checked: the exit status, and that each failed host is named.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sshd_farm import farm
from table import show
from up import at_home, write_inventory

BIN = Path(sys.executable).parent
FILES = 1024
PATIENCE = 20
KINDS = ("nobody listens", "accepts and says nothing", "another host key", "every key refused",
         "survey hangs")
#: with the exit statuses where some hosts are dead: to the doctor, another host key is an error
COMMANDS = {("up", "--dry-run"): (3,), ("status",): (3,), ("doctor",): (1, 3), ("doctor", "--json"): (1, 3)}


def main(count=200):
    """Measure both, print a table."""
    dead = [f"h{number:03d}" for number in range(5, count + 1, 10)]
    with tempfile.TemporaryDirectory(prefix="swarm-", dir="/tmp") as name:
        folder = Path(name)
        sick = {dead[index]: _directives(folder, KINDS[index % len(KINDS)]) for index in range(len(dead))}
        with farm(folder, count, sick) as (config, _), socket.create_server(("127.0.0.1", 0)) as silent:
            environ = at_home(folder)
            inventory, _ = write_inventory(folder, config, count)
            # this machine is also all the hosts: a handshake among 32 may take it longer than 5 s
            wishes = inventory.read_text().replace("limits:", f"connect_timeout: {PATIENCE}, limits:")
            inventory.write_text(wishes)
            well = "\n".join(line for line in wishes.splitlines()
                             if line.strip().partition(":")[0] not in dead)
            (folder / "well.yaml").write_text(well)
            spoil(folder, config, dead, silent.getsockname()[1])
            rows = [row for path, lost in ((folder / "well.yaml", ()), (inventory, dead))
                    for row in measure(path, lost, environ, count)]
    show(f"{count} hosts", f"python bench/scale.py {count}",
         ("command", "hosts", "of them dead", "wall", "CPU", "peak memory", "threads", "files"), rows,
         f"Dead: {', '.join(KINDS)}, in turn. A connection is given up after {PATIENCE} s, a survey that "
         "hangs after 30 s.")


def _directives(folder, kind):
    """What sshd_config says on a host that fails in that way."""
    return {"every key refused": f"AuthorizedKeysFile {folder}/nobody\n",
            "survey hangs": "ForceCommand sleep 600\n"}.get(kind, "")


def spoil(folder, config, dead, silent):
    """Make the client meet the other three ways to fail."""
    text, known = config.read_text(), (folder / "known_hosts").read_text()
    for index, name in enumerate(dead):
        kind = KINDS[index % len(KINDS)]
        port = text.partition(f"Host {name}\n")[2].split()[3]
        if kind == "another host key":
            known = known.replace(next(line for line in known.splitlines() if f":{port} " in line),
                                  f"[127.0.0.1]:{port} " + " ".join(known.split()[1:3]))
        elif kind == "nobody listens":
            text = text.replace(f"Port {port}\n", "Port 1\n")
        elif kind == "accepts and says nothing":
            text = text.replace(f"Port {port}\n", f"Port {silent}\n")
    config.write_text(text)
    (folder / "known_hosts").write_text(known)


def measure(inventory, dead, environ, count):
    """A row for each command."""
    alive = count if dead else count - len(range(5, count + 1, 10))
    for command, bad in COMMANDS.items():
        status, said, row = watched([str(BIN / "swarmctl"), "-i", str(inventory), *command], environ)
        missing = [name for name in dead if name not in said]
        if missing or status not in (bad if dead else (0,)):
            raise SystemExit(f"{' '.join(command)}: status {status}, not named: {missing}\n{said}")
        sys.stderr.write(f"{' '.join(command)}, {len(dead)} dead: status {status}, {row}\n")
        yield (f"`{' '.join(command)}`", alive, len(dead), *row)


def watched(argv, environ):
    """Run a command under the limit of files; its status, all it said, and what it took."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)))
        threads = files = 0
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            threads, files = max(threads, seen(process.pid, "task")), max(files, seen(process.pid, "fd"))
            time.sleep(0.05)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        return process.returncode, said.read(), (f"{wall:.1f} s", f"{cpu:.1f} s", f"{memory:.0f} MB", threads,
                                                 files)


def seen(pid, kind):
    """How many threads or open files a process has now."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/{kind}").iterdir())
    except OSError:
        return 0


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
