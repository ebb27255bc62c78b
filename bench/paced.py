"""Real llama-servers that are as slow as the hosts of a simulation, while the CPU idles.

A tiny model answers; paced.c lets each pass of it last as long as on the machine that is to be stood for,
asleep (see there). So many unequal servers fit on one machine without being in each other's way, which a
share of a CPU cannot do: it slows HTTP, text and looks at the server as well, and stops all of it in pulses.
Needs a C compiler.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from simulated.ours import PARAMETERS
from stopping import stop

from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import HostEntry, Served
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.shipped import shipped_model

MODEL = "large"
#: What the model was trained for; llama-server gives a slot no more.
CONTEXT = 1024
#: llama-server's threads for HTTP: who waits for a slot holds one.
CONNECTIONS = 1024
READY = 60.0


def build(folder):
    """Compile the pace into `folder`."""
    library = Path(folder, "paced.so")
    argv = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", library,
            Path(__file__).with_suffix(".c"), "-ldl"]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as exc:
        raise SystemExit("no C compiler here: servers cannot be paced") from exc
    except subprocess.CalledProcessError as exc:
        raise SystemExit(f"paced.c does not compile:\n{exc.stderr}") from exc
    return library


class Paced:
    """One llama-server with the slots and speeds of a simulated Machine."""

    kind = "llamacpp"

    def __init__(self, machine, library):
        self.machine = machine
        self.folder = tempfile.mkdtemp(prefix="swarmctl-bench-")
        self.port = free_ports(1)[0]
        self.weights = shipped_model(MODEL) / "model.gguf"
        self.digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        self.process = subprocess.Popen(self._argv(), env={**os.environ, **_pace(machine),
                                                           "LD_PRELOAD": str(library)},
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)
        try:
            self._ready()
        except BaseException:
            self.stop()
            raise

    @property
    def endpoint(self):
        """Where it listens."""
        return Endpoint(port=self.port, model=MODEL)

    def entry(self, measured):
        """The snapshot's entry of its host, with measured speeds, and as large a model as the simulator's."""
        served = Served(self.kind, "llamacpp", MODEL, self.digest, "template", self.port, CONTEXT,
                        measured.slots, PARAMETERS, PARAMETERS, "Q8_0", measured.prefill, measured.decode,
                        measured.overhead)
        return HostEntry(measured.name, "local", "/tmp", 5.0, measured.idle_watts, measured.load_watts, 0.3,
                         "EUR", ("inference",), (served,))

    def stop(self):
        """End it, and remove its folder."""
        stop(self.process, self.folder)

    def _argv(self):
        return [Path(os.environ["SWARMCTL_TEST_LLAMACPP"], "llama-server"), "--model", self.weights,
                "--alias", MODEL, "--host", "127.0.0.1", "--port", str(self.port), "--ctx-size",
                str(CONTEXT * self.machine.slots), "--parallel", str(self.machine.slots), "--threads", "1",
                "--threads-http", str(CONNECTIONS), "--jinja", "--slots", "--no-ui"]

    def _ready(self):
        until = time.monotonic() + READY
        while time.monotonic() < until and self.process.poll() is None:
            health = runtime(self.kind).health(self.endpoint, timeout=10)
            if health.state == "ready":
                return
            time.sleep(0.1)
        raise SystemExit(f"the server that stands for {self.machine.name} is not ready")


def _pace(machine):
    """The settings of paced.c for a machine."""
    return {"PACE_STEP": f"{1 / machine.decode:.6f}",
            "PACE_BESIDE": f"{machine.crowding / machine.decode:.6f}",
            "PACE_PROMPT": f"{1 / machine.prefill:.9f}"}
