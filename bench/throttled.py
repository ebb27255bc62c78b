"""Real model servers on loopback whose share of a CPU is set, so that one machine has unequal hosts.

The share is a control group's quota with a short period: work comes in pieces of a millisecond, as from a
slower machine, and not in bursts. Needs root and a cpu controller.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from stopping import stop

from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import HostEntry, Served
from swarmctl.lab.share import make_share, remove_share, within
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.shipped import shipped_model, shipped_quality

PERIOD = 10_000  # microseconds
PARAMETERS = {"small": 205_200, "large": 721_792}


class Server:
    """One tiny model on a host of its own. Throttled once it is ready."""

    def __init__(self, kind, model, share, watts):
        self.kind, self.model, self.watts = kind, model, watts
        self.folder = tempfile.mkdtemp(prefix="swarmctl-bench-")
        self.port = free_ports(1)[0]
        weights = shipped_model(model) / "model.gguf"
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        argv, environ = self._command(weights)
        self.group = make_share(f"swarmctl-bench-{self.port}", 1.0)
        if self.group is None:
            raise SystemExit("no cpu controller may be used here: hosts cannot be made unequal")
        self.process = subprocess.Popen([*within(self.group), *argv], env=environ, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            self._ready(weights)
        except BaseException:
            self.stop()
            raise
        self.throttle(share)

    def _command(self, weights):
        if self.kind == "ollama":
            environ = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_MODELS": self.folder,
                       "OLLAMA_NO_CLOUD": "1", "OLLAMA_KEEP_ALIVE": "1h", "HOME": self.folder}
            return [Path(os.environ["SWARMCTL_TEST_OLLAMA"], "bin", "ollama"), "serve"], environ
        binary = Path(os.environ["SWARMCTL_TEST_LLAMACPP"], "llama-server")
        return [binary, "--model", str(weights), "--alias", self.model, "--host", "127.0.0.1", "--port",
                str(self.port), "--ctx-size", "1024", "--parallel", "1", "--threads", "1", "--jinja",
                "--slots", "--no-ui", "--cache-ram", "0"], {**os.environ}

    def _ready(self, weights):
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self._call("/api/version" if self.kind == "ollama" else "/health")
                break
            except OSError:
                time.sleep(0.1)
        if self.kind == "ollama":
            self._call(f"/api/blobs/sha256:{self.digest}", weights.read_bytes())
            self._call("/api/create", {"model": self.tag, "files": {"m.gguf": f"sha256:{self.digest}"},
                                       "stream": False, "parameters": {"num_thread": 1}})
            self._call("/api/generate", {"model": self.tag, "prompt": "a", "stream": False,
                                         "options": {"num_predict": 1}})
        health = runtime(self.kind).health(Endpoint(port=self.port, model=self.tag), timeout=30)
        if health.state != "ready":
            raise SystemExit(f"{self.kind} with {self.model} is not ready: {health}")

    @property
    def tag(self):
        return f"tiny-{self.model}"

    def throttle(self, share):
        """Give it that share of one CPU."""
        quota = str(max(1000, round(share * PERIOD)))  # the kernel's least is a millisecond
        period = str(round(int(quota) / share))
        if (self.group / "cpu.max").exists():
            (self.group / "cpu.max").write_text(f"{quota} {period}", encoding="ascii")
        else:
            (self.group / "cpu.cfs_period_us").write_text(period, encoding="ascii")
            (self.group / "cpu.cfs_quota_us").write_text(quota, encoding="ascii")

    def _call(self, path, body=None):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=60) as reply:
            return reply.read()

    def entry(self, name, prefill, decode):
        """The snapshot's entry of its host, with measured speeds."""
        served = Served(self.kind, self.kind if self.kind == "ollama" else f"llamacpp-{self.model}", self.tag,
                        self.digest, "template", self.port, 1024, 1, PARAMETERS[self.model], 1_300_000, "F16",
                        prefill, decode, quality=shipped_quality(self.model), tag=self.tag)
        return HostEntry(name, "local", "/tmp", 5.0, 5.0, self.watts, 0.3, "EUR", ("inference",), (served,))

    def stop(self):
        stop(self.process, self.folder)
        for _ in range(50):
            remove_share(self.group.name)
            if not self.group.exists():
                break
            time.sleep(0.1)
