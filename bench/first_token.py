"""Time to the first token: `swarmctl ask` over SSH, process start included, against a direct HTTP call.

    python bench/first_token.py [ROUNDS]

The server is a llama-server of the loopback lab, so that the very same one can also be called directly. All
calls ask the same question of the same server, one after the other; the prompt is in its cache for all alike.
`warm` finds the tunnel open, `cold` has to open it: that is one SSH handshake.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import median, milliseconds, run, show

from swarmctl.fleet.snapshot import read_fleet
from swarmctl.fleet.tunnels import close_all
from swarmctl.paths import Paths

SWARMCTL = Path(sys.executable).with_name("swarmctl")
QUESTION = "What is 47 + 38?"
HOST = "calisota"


def main(rounds=15):
    """Measure all, print the table."""
    with tempfile.TemporaryDirectory(prefix="swarm-", dir="/tmp") as name:
        environ = {**os.environ, "SWARMCTL_LAB": f"{name}/lab"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        run([SWARMCTL, "lab", "up", "--mode", "loopback"], environ=environ)
        environ["SWARMCTL_HOME"] = f"{name}/lab/home"
        try:
            run([SWARMCTL, "up"], environ=environ, timeout=1200)
            report(measure(environ, rounds), rounds)
        finally:
            run([SWARMCTL, "lab", "down", "--wipe"], environ=environ)


def measure(environ, rounds):
    """Seconds to the first token by way of asking, interleaved so that all see the same load."""
    paths = Paths.from_environ(environ)
    port = next(host for host in read_fleet(paths.fleet).hosts if host.name == HOST).served[0].port
    pinned = ("-H", HOST, "--temperature", "0", "--max-tokens", "8")
    found = {"direct": [], "warm": [], "free": [], "cold": []}
    for _ in range(rounds):
        ask(environ, *pinned)
        found["direct"].append(direct(port))
        found["warm"].append(ask(environ, *pinned))
        found["free"].append(ask(environ, "--temperature", "0", "--max-tokens", "8"))
        close_all(paths)
        found["cold"].append(ask(environ, *pinned))
    return {way: median(seconds) for way, seconds in found.items()}


def report(found, rounds):
    """Print the table."""
    labels = {"direct": "HTTP call to the server, no process started",
              "warm": f"swarmctl ask -H {HOST}, warm tunnel",
              "free": "swarmctl ask, free to choose, warm tunnels",
              "cold": f"swarmctl ask -H {HOST}, cold tunnel"}
    rows = [(labels[way], milliseconds(seconds), f"+{milliseconds(seconds - found['direct'])}")
            for way, seconds in found.items()]
    show("Time to the first token", f"python bench/first_token.py {rounds}",
         ("way", "first token", "added"), rows, f"Medians of {rounds} rounds.")


def ask(environ, *options):
    """Seconds from starting the process to the first byte of the answer."""
    start = time.perf_counter()
    with subprocess.Popen([SWARMCTL, "ask", *options, QUESTION], env=environ, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        said = process.stderr.read().decode()
    if not first or process.returncode:
        raise SystemExit(f"ask ended with {process.returncode}: {said}")
    return seconds


def direct(port):
    """Seconds from connecting to the first piece of text."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True, "temperature": 0,
            "max_tokens": 8, "cache_prompt": True}
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    seconds = None
    for line in iter(reply.readline, b""):
        event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
        if seconds is None and (event.get("choices") or [{}])[0].get("delta", {}).get("content"):
            seconds = time.perf_counter() - start
    connection.close()
    return seconds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
