"""How soon the command line is at work: `--help`, and `ask` up to the moment its request leaves.

    python bench/start.py [ROUNDS]

The request goes to a server of this bench's own, which notes when it arrives; the fleet snapshot names it as
a server on this machine, so no SSH is in the way. bench/first_token.py measures the whole way to an answer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from table import median, milliseconds, run, show

from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths

SWARMCTL = Path(sys.executable).with_name("swarmctl")


def main(rounds=20):
    """Measure all, print the table."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as name:
        environ = {**os.environ, "SWARMCTL_HOME": name}
        rows = [row("swarmctl --help", [SWARMCTL, "--help"], environ, rounds),
                row("swarmctl ask --help", [SWARMCTL, "ask", "--help"], environ, rounds)]
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        prepare(Path(name), server.server_port)
        rows.append(row_ask(environ, rounds))
        server.shutdown()
    show("Start", f"python bench/start.py {rounds}", ("command", "CPU", "on the clock"), rows,
         f"Medians of {rounds} runs. `python -c pass` alone: {bare_python(rounds)} of CPU.")


def row(label, argv, environ, rounds):
    """CPU and wall time of one command."""
    runs = [run(argv, environ=environ) for _ in range(rounds)]
    cpu, wall = median([each.cpu for each in runs]), median([each.wall for each in runs])
    return label, milliseconds(cpu), milliseconds(wall)


def row_ask(environ, rounds):
    """The same for `ask`; on the clock up to the request's arrival at the server."""
    cpu, clock = [], []
    for _ in range(rounds):
        start = time.monotonic()
        cpu.append(run([SWARMCTL, "ask", "What is the capital of Peru?"], environ=environ).cpu)
        clock.append(Answering.arrived - start)
    return "swarmctl ask, until its request arrives", milliseconds(median(cpu)), milliseconds(median(clock))


def bare_python(rounds):
    """What the interpreter itself takes."""
    return milliseconds(median([run([sys.executable, "-c", "pass"]).cpu for _ in range(rounds)]))


class Answering(BaseHTTPRequestHandler):
    """Speaks as much of llama-server's HTTP as one question needs."""

    arrived = 0.0

    def do_GET(self):
        """Health, and one free slot."""
        slots = b'[{"is_processing": false}]'
        self._send("application/json", slots if "slots" in self.path else b'{"status": "ok"}')

    def do_POST(self):
        """One token, and the closing record."""
        Answering.arrived = time.monotonic()
        self.rfile.read(int(self.headers["Content-Length"]))
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}],
                "timings": {"cache_n": 0, "prompt_n": 9, "prompt_ms": 9, "predicted_n": 1, "predicted_ms": 1}}
        events = [{"choices": [{"delta": {"content": "Lima"}, "finish_reason": None}]}, last]
        self._send("text/event-stream",
                   "".join(f"data: {json.dumps(each)}\n\n" for each in events).encode() + b"data: [DONE]\n\n")

    def _send(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def prepare(home, port):
    """Write the snapshot of a swarm of one local server, as `up` would have."""
    paths = Paths.from_environ({"SWARMCTL_HOME": str(home)})
    paths.inventory.parent.mkdir(parents=True)
    paths.inventory.write_text("hosts: {here: {ssh: local}}\n")
    served = Served("llamacpp", "tiny", "tiny", "sha256", "sha256", port, 4096, 1, 10**6, 10**6, "F16", 1e3,
                    1e2)
    host = HostEntry("here", "local", str(home), 5.0, 10.0, 50.0, 0.3, "EUR", ("inference",), (served,))
    digest = sha256(paths.inventory.read_bytes()).hexdigest()
    write_fleet(paths.fleet, Fleet(str(paths.inventory), digest, "", None, 30.0, 60.0, (host,)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
