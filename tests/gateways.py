"""A swarm of real servers behind a real `swarmctl serve`, for the clients that people use.

spinoza is a llama-server whose model, tooly, can be driven to call tools; worlock makes vectors. With
SWARMCTL_TEST_OLLAMA, ada is an Ollama with the small tiny model and one that knows tools, llama.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from running import Cli

from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.paths import Paths
from swarmctl.shipped import shipped_model, shipped_quality

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTEXT = 1024


@dataclass
class Serving:
    """A gateway that runs, and the home of its swarm."""

    url: str
    cli: Cli
    process: subprocess.Popen
    said: list[str] = field(default_factory=list)
    key: str = ""

    def newest(self) -> dict:
        """The exchange recorded last."""
        return [row for row in self.cli.rows() if row["kind"] == "exchange"][-1]


@contextlib.contextmanager
def swarm_of(folder: Path, *hosts: HostEntry) -> Iterator[Cli]:
    """A home whose swarm is these hosts."""
    cli = Cli(Paths.from_environ({"SWARMCTL_HOME": str(folder), "HOME": str(folder)}), folder)
    cli.paths.inventory.parent.mkdir(parents=True)
    cli.paths.inventory.write_text("version: 1\n")
    digest = hashlib.sha256(cli.paths.inventory.read_bytes()).hexdigest()
    write_fleet(cli.paths.fleet, Fleet(str(cli.paths.inventory), digest, "2026-01-01T00:00:00Z", None, 30.0,
                                       60.0, hosts))
    yield cli


@contextlib.contextmanager
def serving(cli: Cli, *flags: str, within: float = 60.0) -> Iterator[Serving]:
    """`swarmctl serve` on a free port that listens `within` seconds, ended as a service manager ends it."""
    argv = (sys.executable, "-m", "swarmctl", "serve", "--port", "0", *flags)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               stdin=subprocess.DEVNULL, env=cli.environ)
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
    try:
        yield Serving(_address(process, said, within), cli, process, said)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stderr.close()


def _address(process: subprocess.Popen, said: list[str], within: float) -> str:
    deadline = time.monotonic() + within
    while True:
        found = re.search(r"listening on (http://\S+)", "".join(said))
        if found:
            return found[1]
        assert process.poll() is None, "".join(said)
        assert time.monotonic() < deadline, "".join(said)
        time.sleep(0.02)


@contextlib.contextmanager
def llama_server(folder: Path, binaries: Path, model: str, *flags: object) -> Iterator[int]:
    """A llama-server with a tiny model; its port once it is ready."""
    from swarmctl.runtimes.base import Endpoint
    from swarmctl.runtimes.llamacpp import LlamaCpp

    (port,) = free_ports(1)
    argv = (binaries / "llama-server", "-m", shipped_model(model) / "model.gguf", "--host", "127.0.0.1",
            "--port", str(port), "-t", "1", "--jinja", "--no-ui", *map(str, flags))
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not _up(LlamaCpp(), Endpoint(port=port)):
            assert time.monotonic() < deadline, (folder / f"{port}.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _up(runtime: object, endpoint: object) -> bool:
    from swarmctl.errors import ServerUnavailable

    try:
        return runtime.ping(endpoint, timeout=5)
    except ServerUnavailable:
        return False


def host(name: str, *served: Served) -> HostEntry:
    return HostEntry(name, "local", "/tmp", 2.0, 10.0, 45.0, 0.3, "EUR", ("inference",), served)


def served(runtime: str, model: str, port: int, **more: object) -> Served:
    digest = hashlib.sha256(model.encode()).hexdigest()
    return Served(runtime, f"{runtime}-{model}", model, digest, "template", port, CONTEXT, 1, 721_792,
                  1_462_309, "F16", 3000.0, 300.0, **more)


@contextlib.contextmanager
def real_swarm(folder: Path, binaries: Path, ollama: str = "") -> Iterator[Serving]:
    """All of it, behind one gateway."""
    from test_tools import GO, JINJA

    (folder / "tools.jinja").write_text(JINJA)
    quality = shipped_quality("large")
    with contextlib.ExitStack() as stack:
        tooly = stack.enter_context(llama_server(folder, binaries, "large", "-c", CONTEXT, "-np", 1,
                                                 "--chat-template-file", folder / "tools.jinja"))
        vectors = stack.enter_context(llama_server(folder, binaries, "small", "-c", CONTEXT, "--embedding",
                                                   "--pooling", "mean"))
        hosts = [host("spinoza", served("llamacpp", "tooly", tooly, quality=quality)),
                 host("worlock", served("llamacpp", "vectors", vectors, embedding=True))]
        if ollama:
            from test_ollama import Server

            server = Server(folder / "ollama")
            stack.callback(_end_group, server.process)
            server.create("small")
            server.call("/api/create", {"model": "llama", "files": {"model.gguf": server.create("large")},
                                        "template": GO, "stream": False, "parameters": {"num_thread": 1}})
            hosts.append(host("ada", served("ollama", "tiny-small", server.port),
                              served("ollama", "llama", server.port)))
        home = folder / "home"
        home.mkdir()
        cli = stack.enter_context(swarm_of(home, *hosts))
        key = cli.run("serve", "key", "add", "tester").stdout.strip()
        found = stack.enter_context(serving(cli))
        found.key = key
        yield found


def _end_group(process: subprocess.Popen) -> None:
    import os

    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)
