"""What a gateway costs: time added to the first token, requests a second, CPU and memory.

    python bench/gateway.py [ROUNDS]

One llama-server with the small tiny model is asked directly, through nginx, through LiteLLM's proxy and
through `swarmctl serve`, all on loopback, by the same client of raw sockets. First tokens are taken one
client at a time, the ways in turn, so that all see the same load; requests a second with CLIENTS at once.
swarmctl routes and records every one of them; the others hand them on. nginx is taken where it is installed.
LiteLLM gets an environment of its own in the cache (uv makes it the first time).

ollama-herd, which knows only Ollama, is compared with `swarmctl serve` before one Ollama, in a second table:
where SWARMCTL_TEST_OLLAMA names the folder of one. It announces itself by multicast and counts its users, so
all of that runs in a network of its own that has nothing but loopback (unshare).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from table import median, show

from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths
from swarmctl.shipped import shipped_model, shipped_quality

CLIENTS = 16
SECONDS = 5.0
PAUSE = 0.15
SWARMCTL = Path(sys.executable).with_name("swarmctl")
LITELLM, HERD = "litellm[proxy]", "ollama-herd==0.11.4"
NAMES = {"nginx": "nginx", "litellm": "LiteLLM proxy", "swarmctl": "swarmctl serve", "herd": "ollama-herd",
         "swarmctl_before_ollama": "swarmctl serve"}
BODY = {"model": "tiny-small", "stream": True, "temperature": 0, "max_tokens": 2,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;
events {{ worker_connections 512; }}
http {{ access_log off; proxy_temp_path {folder}/p; client_body_temp_path {folder}/b;
  fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_buffering off; }} }} }}
"""


def main(rounds=60):
    """Measure all ways, print the tables."""
    with tempfile.TemporaryDirectory(prefix="swarm-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        upstream = running.enter_context(llama_server(folder))
        compare(running, folder, upstream, (nginx, litellm, swarmctl), rounds)
    if not os.environ.get("SWARMCTL_TEST_OLLAMA"):
        print("\nollama-herd is left out: SWARMCTL_TEST_OLLAMA names no Ollama", file=sys.stderr)
    elif environment("herd", HERD) is not None:
        subprocess.run(("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable,
                        __file__, "--before-ollama", str(rounds)), check=True, timeout=1800)


def before_ollama(rounds):
    """The same before an Ollama, within a network of its own."""
    with tempfile.TemporaryDirectory(prefix="swarm-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        upstream = running.enter_context(ollama(folder))
        compare(running, folder, upstream, (herd, swarmctl_before_ollama), rounds)


def compare(running, folder, upstream, starts, rounds):
    """Start every way to the server at that port, measure them, print the table."""
    ways = {"direct": (upstream, None)}
    for start in starts:
        found = start(running, folder, upstream)
        if found is not None:
            ways[NAMES[start.__name__]] = found
    for port, _ in ways.values():
        for _ in range(10):
            ask(Line(port))
    firsts = first_tokens(ways, rounds)
    rates = {way: best(throughput(port, process) for _ in range(2)) for way, (port, process) in ways.items()}
    report(ways, firsts, rates, rounds)


def first_tokens(ways, rounds):
    """Seconds to the first token of each way, one request at a time, in turn; what one still does after its
    answer is not in the next one's way."""
    lines = {way: Line(port) for way, (port, _) in ways.items()}
    found = {way: [] for way in ways}
    for _ in range(rounds):
        for way, line in lines.items():
            time.sleep(PAUSE)
            found[way].append(ask(line))
    return found


def throughput(port, process):
    """Requests a second with CLIENTS at once, and CPU seconds of the way's processes for each."""
    until, done = time.monotonic() + SECONDS, [0] * CLIENTS

    def client(number):
        line = Line(port)
        while time.monotonic() < until:
            ask(line)
            done[number] += 1

    before, began = cpu(process), time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(done)
    return total / (time.monotonic() - began), (cpu(process) - before) / max(1, total)


def best(runs):
    """The run with the most requests: on a shared machine the others were disturbed."""
    return max(runs)


class Line:
    """A connection that is kept, and made anew where the server hung up."""

    def __init__(self, port):
        raw = json.dumps(BODY).encode()
        self.port = port
        self.sock = None
        self.request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                        b"Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n" % len(raw)) + raw

    def send(self):
        """Send the request; a fresh connection where the old one is gone."""
        if self.sock is None:
            self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(self.request)

    def drop(self):
        """The server hung up."""
        self.sock.close()
        self.sock = None


def ask(line):
    """Ask, read to the end; seconds to the first piece of text."""
    for _ in range(3):
        began = time.perf_counter()
        with contextlib.suppress(OSError):
            line.send()
            if (first := read(line, began)) is not None:
                return first
        line.drop()
    raise SystemExit(f"port {line.port} does not answer")


def read(line, began):
    """Seconds to the first text; None where the connection ended before an answer."""
    data, first = b"", None
    while not data.endswith(b"\r\n0\r\n\r\n"):
        piece = line.sock.recv(65536)
        if not piece:
            return None
        data += piece
        if first is None and b'"content":"P' in data.replace(b": ", b":"):
            first = time.perf_counter() - began
    if not data.startswith(b"HTTP/1.1 200") or first is None:
        raise SystemExit(data[:2000].decode(errors="replace"))
    return first


def cpu(process):
    """CPU seconds of a process and its children so far; 0 for none."""
    total = 0.0
    for pid in family(process):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory(process):
    """Resident MiB of a process and its children."""
    pages = 0
    for pid in family(process):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(process):
    """A process's id and those of its children."""
    if process is None:
        return []
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def report(ways, firsts, rates, rounds):
    """Print the table."""
    before = "Ollama" if "ollama-herd" in ways else "llama-server"
    base = median(firsts["direct"])
    rows = []
    for way, (_, process) in ways.items():
        rate, used = rates[way]
        added = [one - other for one, other in zip(firsts[way], firsts["direct"], strict=True)]
        rows.append((way, f"{median(firsts[way]) * 1000:.2f} ms",
                     "" if way == "direct" else f"{median(added) * 1000:.2f} ms", f"{rate:,.0f}",
                     f"{used * 1000:.2f} ms" if process else "",
                     f"{memory(process):,.0f} MiB" if process else ""))
    show(f"A gateway's cost, before {before}", "python bench/gateway.py",
         ("way", "first token, median", "added, median", f"requests/s, {CLIENTS} clients", "CPU a request",
          "resident"), rows,
         f"The server alone: {base * 1000:.2f} ms to the first token, {rates['direct'][0]:,.0f} requests/s; "
         f"it, the client and the gateway share this machine's cores. {rounds} rounds, the ways in turn. "
         "swarmctl routes each request and has it on the disk (fsync) before its last byte goes out.")


@contextlib.contextmanager
def llama_server(folder):
    """The server that is asked; its port."""
    binaries = Path(os.environ["SWARMCTL_TEST_LLAMACPP"])
    (port,) = free_ports(1)
    argv = (binaries / "llama-server", "-m", shipped_model("small") / "model.gguf", "--host", "127.0.0.1",
            "--port", str(port), "-t", "1", "--jinja", "--no-ui", "-c", str(256 * CLIENTS),
            "-np", str(CLIENTS), "--threads-http", "96")
    process = start(argv, folder / "llama.log", port)
    try:
        yield port
    finally:
        end(process)


def nginx(running, folder, upstream):
    """nginx as a proxy without buffers; None where it is not installed."""
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        print("nginx is not installed", file=sys.stderr)
        return None
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    process = start((binary, "-c", config, "-p", folder), folder / "nginx.out", port)
    running.callback(end, process)
    return port, process


def litellm(running, folder, upstream):
    """LiteLLM's proxy with one worker, as its documentation starts it."""
    home = environment("litellm", LITELLM)
    if home is None:
        return None
    (port,) = free_ports(1)
    params = {"model": "openai/tiny-small", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    (folder / "litellm.yaml").write_text(json.dumps({
        "model_list": [{"model_name": "tiny-small", "litellm_params": params}],
        "litellm_settings": {"telemetry": False}}))
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR",
               "DO_NOT_TRACK": "1", "NO_PROXY": "127.0.0.1",
               "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    argv = (home / "bin" / "litellm", "--config", folder / "litellm.yaml", "--host", "127.0.0.1",
            "--port", port, "--num_workers", "1", "--telemetry", "False")
    process = start(argv, folder / "litellm.log", port, environ=environ, patience=180)
    running.callback(end, process)
    return port, process


def environment(name, package):
    """The environment of a peer in the cache, made the first time; None where uv is not here to make it."""
    home = Paths.from_environ(os.environ).cache / "bench" / name
    if (home / ".whole").exists():
        return home
    if shutil.which("uv") is None:
        print(f"uv, which installs {package}, is not here", file=sys.stderr)
        return None
    subprocess.run(("uv", "venv", "-q", "--clear", "--python", "3.11", str(home)), check=True, timeout=120)
    subprocess.run(("uv", "pip", "install", "-q", "--python", str(home / "bin" / "python"), package),
                   check=True, timeout=900)
    (home / ".whole").touch()
    return home


def swarmctl(running, folder, upstream):
    """`swarmctl serve` over a swarm of that one server."""
    return serve(running, folder, Served(
        "llamacpp", "llamacpp-small", "tiny-small", "digest", "template", upstream, 256, CLIENTS, 721_792,
        1_462_309, "F16", 3000.0, 300.0, quality=shipped_quality("small")))


def swarmctl_before_ollama(running, folder, upstream):
    """`swarmctl serve` over a swarm of that one Ollama."""
    return serve(running, folder, Served(
        "ollama", "ollama-small", "tiny-small", "digest", "template", upstream, 256, CLIENTS, 721_792,
        1_462_309, "F16", 3000.0, 300.0, quality=shipped_quality("small")))


def serve(running, folder, one):
    """`swarmctl serve` over a swarm of one server."""
    paths = Paths.from_environ({"SWARMCTL_HOME": str(folder / "home"), "HOME": str(folder)})
    paths.inventory.parent.mkdir(parents=True)
    paths.inventory.write_text("version: 1\n")
    entry = HostEntry("spinoza", "local", str(folder), 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), (one,))
    digest = hashlib.sha256(paths.inventory.read_bytes()).hexdigest()
    write_fleet(paths.fleet, Fleet(str(paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0, 60.0,
                                   (entry,)))
    (port,) = free_ports(1)
    environ = {**os.environ, "SWARMCTL_HOME": str(folder / "home")}
    argv = (SWARMCTL, "serve", "--port", port, "--log", folder / "access.log")
    process = start(argv, folder / "serve.log", port, environ=environ)
    running.callback(end, process)
    return port, process


@contextlib.contextmanager
def ollama(folder):
    """An Ollama with the small tiny model in its memory; its port."""
    (port,) = free_ports(1)
    environ = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(folder / "models"),
               "OLLAMA_NO_CLOUD": "1", "OLLAMA_NUM_PARALLEL": str(CLIENTS), "OLLAMA_CONTEXT_LENGTH": "256",
               "OLLAMA_KEEP_ALIVE": "-1", "HOME": str(folder)}
    process = start((Path(os.environ["SWARMCTL_TEST_OLLAMA"]) / "bin" / "ollama", "serve"),
                    folder / "ollama.log", port, environ=environ)
    try:
        weights = (shipped_model("small") / "model.gguf").read_bytes()
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        post(port, f"/api/blobs/{digest}", weights)
        post(port, "/api/create", json.dumps({"model": "tiny-small", "files": {"model.gguf": digest},
                                              "stream": False, "parameters": {"num_thread": 1}}).encode())
        yield port
    finally:
        end(process)


def herd(running, folder, upstream):
    """ollama-herd's router with one node beside that Ollama, telling nobody of it."""
    home = environment("herd", HERD)
    (port,) = free_ports(1)
    environ = {**os.environ, "HOME": str(folder), "FLEET_DATA_DIR": str(folder / "herd"),
               "FLEET_NODE_DATA_DIR": str(folder / "herd"), "FLEET_TELEMETRY": "false",
               "FLEET_NODE_TELEMETRY": "false", "FLEET_AUTO_PULL": "false", "DO_NOT_TRACK": "1"}
    router = start((home / "bin" / "herd", "--host", "127.0.0.1", "--port", port, "--log-level", "WARNING"),
                   folder / "herd.log", port, environ=environ)
    running.callback(end, router)
    with (folder / "node.log").open("wb") as out:
        node = subprocess.Popen(
            (str(home / "bin" / "herd-node"), "--node-id", "spinoza", "--ollama-host",
             f"http://127.0.0.1:{upstream}", "--router-url", f"http://127.0.0.1:{port}"),
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ, start_new_session=True)
    running.callback(end, node)
    deadline = time.monotonic() + 60
    while b"tiny-small" not in get(port, "/api/tags"):
        if time.monotonic() > deadline:
            raise SystemExit(f"the herd knows no model:\n{(folder / 'node.log').read_text()[-2000:]}")
        time.sleep(0.5)
    return port, router


def get(port, path):
    """What a server on loopback says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
        return reply.read()


def post(port, path, body):
    """Send a server on loopback what it asks for."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body, timeout=120) as reply:
        return reply.read()


def start(argv, log, port, *, environ=None, patience=60):
    """Start a server and wait until it listens."""
    with log.open("wb") as out:
        process = subprocess.Popen([str(part) for part in argv], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, env=environ, start_new_session=True)
    deadline = time.monotonic() + patience
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{argv[0]} does not start:\n{log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(1.0)  # a model loads
            return process
        time.sleep(0.2)


def end(process):
    """End a server and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--before-ollama"]:
        before_ollama(int(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:]))
