"""A real Prometheus on loopback, for tests: what it scrapes, what it says, and its promtool."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swarmctl.fleet.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def find_tool(name: str) -> str:
    """prometheus or promtool: of SWARMCTL_TEST_PROMETHEUS, the cache (demo/prometheus.sh) or PATH. Skips."""
    named = os.environ.get("SWARMCTL_TEST_PROMETHEUS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swarmctl" / "tools"
    folders = [Path(named)] if named else [*sorted(cache.glob("prometheus-*/usr/bin"))]
    found = next((folder / name for folder in folders if (folder / name).is_file()), shutil.which(name))
    if not found:
        pytest.skip(f"there is no {name}: demo/prometheus.sh fetches it, or set SWARMCTL_TEST_PROMETHEUS")
    return str(found)


def promtool(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run((find_tool("promtool"), *args), input=stdin, capture_output=True, text=True,
                          timeout=60, check=False)


@contextlib.contextmanager
def exposed(exposition: Callable[[], bytes]) -> Iterator[int]:
    """Serve an exposition on a loopback port, as the gateway does."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(60)


class Prometheus:
    """One that scrapes loopback ports every second."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **params: str) -> dict:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(params)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=10) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as exc:
            with exc:
                return json.loads(exc.read())

    def query(self, expression: str) -> list[dict]:
        """An instant query's result. Fails where Prometheus says that it is none."""
        said = self.get("/api/v1/query", query=expression)
        assert said["status"] == "success", f"{expression}: {said}"
        result = said["data"]["result"]
        return result if isinstance(result, list) else [result]

    def value(self, expression: str) -> float:
        (only,) = self.query(expression)
        return float(only["value"][1])

    def until(self, expression: str, seconds: float = 30.0) -> list[dict]:
        """Wait until a query gives something."""
        limit = time.monotonic() + seconds
        while not (found := self.query(expression)):
            assert time.monotonic() < limit, f"nothing of {expression} within {seconds} s"
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def prometheus(folder: Path, config: str, rules: tuple[Path, ...] = ()) -> Iterator[Prometheus]:
    """Run one on a configuration, with its data in the folder."""
    (port,) = free_ports(1)
    file = folder / "prometheus.yml"
    listed = "".join(f"\n  - {rule}" for rule in rules)
    file.write_text(config + (f"rule_files:{listed}\n" if rules else ""), encoding="utf-8")
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen((find_tool("prometheus"), f"--config.file={file}",
                                    f"--storage.tsdb.path={folder / 'data'}",
                                    f"--web.listen-address=127.0.0.1:{port}"), stdout=log, stderr=log)
    try:
        made = Prometheus(port)
        limit = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, ValueError):  # not listening, or not ready
                made.get("/api/v1/status/buildinfo")
                break
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < limit, "Prometheus did not begin to listen"
            time.sleep(0.2)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def scraping(port: int, every: str = "1s") -> str:
    return (f"global: {{scrape_interval: {every}, evaluation_interval: {every}}}\n"
            "scrape_configs:\n  - job_name: swarmctl\n    static_configs:\n"
            f"      - targets: ['127.0.0.1:{port}']\n")
