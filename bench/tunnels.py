"""How to reach a server on a host's loopback: fabric's forwards in this process, or OpenSSH onto a unix
socket?

Measures both against one lab host (a real sshd on loopback) and Python's own HTTP server behind it, and the
direct road beside them; and how files travel: SFTP against an exec channel. Prints the Markdown tables of
docs/hosts.md.

    python bench/tunnels.py
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import platform
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from swarmctl.fleet.remote import FabricRemote
from swarmctl.fleet.transfer import CHUNK, sha256_of
from swarmctl.fleet.tunnels import close_tunnel, open_tunnel
from swarmctl.inventory import Host
from swarmctl.lab.lab import Lab

CONNECTS = 7
REQUESTS = 300
SMALL = b"x" * 200
BIG = os.urandom(1 << 20) * 48


class Handler(http.server.BaseHTTPRequestHandler):
    """200 bytes at /small, 48 MB at /big."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self):
        body = BIG if self.path == "/big" else SMALL
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab.create(Path(folder) / "lab", hosts=1)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            lab.start()
            show(lab, server.server_address[1])
        finally:
            lab.wipe()
            server.shutdown()
            server.server_close()


def show(lab: Lab, port: int) -> None:
    roads = {"direct TCP": direct, "fabric forward": fabric_forward, "OpenSSH, unix socket": openssh}
    version = subprocess.run(("ssh", "-V"), capture_output=True, text=True, check=True).stderr.split(",")[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {version}\n")
    print("| road | cold: first answer (ms) | warm, kept connection (ms) | warm, new connection (ms) "
          "| throughput (MB/s) |")
    print("|---|---|---|---|---|")
    for name, road in roads.items():
        cold = statistics.median(cold_time(lab, port, road) for _ in range(CONNECTS))
        with road(lab, port) as dial:
            kept, fresh, speed = warm_kept(dial), warm_fresh(dial), throughput(dial)
        print(f"| {name} | {cold * 1e3:.1f} | {kept * 1e3:.2f} | {fresh * 1e3:.2f} | {speed:.0f} |")
    print("\n| file of 48 MB to the host | MB/s |\n|---|---|")
    for name, speed in transfers(lab).items():
        print(f"| {name} | {speed:.0f} |")


@contextlib.contextmanager
def direct(_: Lab, port: int):
    yield lambda: socket.create_connection(("127.0.0.1", port), 10)


@contextlib.contextmanager
def fabric_forward(lab: Lab, port: int):
    remote = FabricRemote(Host("worlock", "worlock"), lab.paths, str(lab.ssh_config))
    remote.run(("true",), timeout=10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        near = free.getsockname()[1]
    with remote._session._connection.forward_local(near, remote_port=port, remote_host="127.0.0.1"):
        yield lambda: dial_tcp(near)
    remote.close()


@contextlib.contextmanager
def openssh(lab: Lab, port: int):
    path = open_tunnel(lab.paths, host_name="worlock", ssh="worlock", ports=(port,),
                       ssh_config=str(lab.ssh_config))[port]
    try:
        yield lambda: dial_unix(path)
    finally:
        close_tunnel(lab.paths, "worlock")


def dial_tcp(port: int) -> socket.socket:
    """fabric's listener may start a moment after its manager has returned."""
    limit = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 10)
        except ConnectionRefusedError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.001)


def dial_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


def cold_time(lab: Lab, port: int, road) -> float:
    started = time.perf_counter()
    with road(lab, port) as dial:
        ask(connection(dial), "/small")
        return time.perf_counter() - started


def warm_kept(dial) -> float:
    kept = connection(dial)
    ask(kept, "/small")
    return statistics.median(timed(lambda: ask(kept, "/small")) for _ in range(REQUESTS))


def warm_fresh(dial) -> float:
    return statistics.median(timed(lambda: ask(connection(dial), "/small", close=True))
                             for _ in range(REQUESTS))


def throughput(dial) -> float:
    return len(BIG) / statistics.median(timed(lambda: ask(connection(dial), "/big", close=True))
                                        for _ in range(5)) / 1e6


def transfers(lab: Lab) -> dict[str, float]:
    source = lab.folder / "source"
    source.write_bytes(BIG)
    digest = sha256_of(source)
    remote = FabricRemote(Host("worlock", "worlock"), lab.paths, str(lab.ssh_config))
    remote.run(("true",), timeout=10)
    targets = iter(str(lab.folder / f"target{number}") for number in range(999))
    sftp = remote._session._connection.sftp()
    roads = {
        "paramiko SFTP": lambda: sftp.put(str(source), next(targets)),
        "exec channel and cat": lambda: remote.execute(
            ("sh", "-c", 'cat > "$1"', "sh", next(targets)), timeout=60, source=_pieces(source)),
        "exec channel and cat, with resume, SHA-256 and sync": lambda: remote.put(
            source, next(targets), sha256=digest, timeout=60),
        "OpenSSH scp, a connection of its own": lambda: subprocess.run(
            ("scp", "-q", "-F", str(lab.ssh_config), "-o", f"UserKnownHostsFile={lab.paths.known_hosts}",
             str(source),
             f"worlock:{next(targets)}"), check=True),
    }
    found = {name: len(BIG) / statistics.median(timed(road) for _ in range(7)) / 1e6 for name,
             road in roads.items()}
    remote.close()
    return found


def _pieces(source: Path):
    with source.open("rb") as file:
        while data := file.read(CHUNK):
            yield data


def connection(dial) -> http.client.HTTPConnection:
    made = http.client.HTTPConnection("localhost", timeout=10)
    made.sock = dial()
    return made


def ask(made: http.client.HTTPConnection, path: str, *, close: bool = False) -> None:
    made.request("GET", path)
    answer = made.getresponse()
    assert answer.status == 200
    answer.read()
    if close:
        made.close()


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
