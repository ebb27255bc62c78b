"""What `status` says of a server on its way: starting, loading and how far, down, and no runtime. All real: a
model of some hundred megabytes of zeros, servers that get little of the processor, on both runtimes.

Needs an Ollama: SWARMCTL_TEST_OLLAMA names the folder that holds its bin/ and lib/. Skipped without.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import Cli, ask_json, slowed
from stocked import free_ports, stock
from test_ollama import FOLDER
from test_ollama_up import airgap, release  # noqa: F401  fixtures
from waiting import until

from swarmctl.dispatch.marks import read_mark
from swarmctl.facts import parse_facts
from swarmctl.facts.runners import share_read
from swarmctl.facts.seen import RunnerSeen
from swarmctl.paths import Paths
from swarmctl.shipped import shipped_model

gguf = pytest.importorskip("gguf")
pytestmark = [pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama"),
              pytest.mark.runtime, pytest.mark.timeout(400)]

WIDTH, LAYERS = 1024, 12


def zeros(path: Path) -> None:
    """A Llama of a quarter of a gigabyte: the tiny model's tokenizer, and nothing but zeros for weights."""
    import numpy as np

    changed = {"embedding_length": WIDTH, "feed_forward_length": 2 * WIDTH, "block_count": LAYERS,
               "rope.dimension_count": WIDTH // 4, "attention.key_length": WIDTH // 4,
               "attention.value_length": WIDTH // 4}
    reader, writer = gguf.GGUFReader(shipped_model("large") / "model.gguf"), gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = changed.get(field.name.removeprefix("llama."), field.contents())
        of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], of)
    vocabulary = int(next(one for one in reader.tensors if one.name == "token_embd.weight").shape[1])
    shapes = {"token_embd": (WIDTH, vocabulary), "output_norm": (WIDTH,)}
    square, wide = (WIDTH, WIDTH), (WIDTH, 2 * WIDTH)
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": square, "attn_k": square, "attn_v": square,
            "attn_output": square, "ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}.items()}
    size = 0
    for name, shape in shapes.items():
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        count = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(f"{name}.weight", shape[::-1], kind, count)
        size += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + size)


class Here(Cli):
    """This machine as a swarm of one host with the big model on both runtimes."""

    def __init__(self, home: Path, archives: Path, version: str) -> None:
        super().__init__(Paths.from_environ({"SWARMCTL_HOME": str(home), "HOME": str(home)}), home)
        first, self.port = free_ports(2)
        self.data = home / "data"
        self.paths.inventory.parent.mkdir(parents=True)
        self.paths.inventory.write_text(f"""\
version: 1
airgap: {archives}
models:
  big: {{source: "{home}/big.gguf", context: 256, parallel: 1}}
  big-too: {{source: "{home}/big.gguf", context: 256, parallel: 1}}
hosts:
  here:
    ssh: local
    data_dir: {self.data}
    llamacpp: {{port: {first}}}
    ollama: {{port: {self.port}, manage: own, version: "{version}"}}
    models: [{{model: big, runtime: llamacpp}}, {{model: big-too, runtime: ollama}}]
""")

    def look(self) -> dict:
        (row,) = json.loads(self.run("status", "--json", status=None).stdout)
        return row

    def server(self, model: str) -> dict:
        return next(one for one in self.look()["servers"] if one["model"] == model)

    def pid(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.data / "servers" / name / "server.pid").read_text())
        return None


@pytest.fixture(scope="module")
def here(tmp_path_factory, airgap, release, llamacpp_bin):  # noqa: F811
    home = tmp_path_factory.mktemp("states")
    zeros(home / "big.gguf")
    made = Here(home, airgap, release)
    stock(made.paths.cache, llamacpp_bin)
    before = made.look()
    assert (before["state"], before["hint"]) == ("no runtime", "swarmctl up")
    made.run("up", limit=360)
    yield made
    made.run("down")
    shutil.rmtree(home, ignore_errors=True)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def loading(here, stack):
    """The row of a server that was killed and loads again, slowly; None where it was quicker than we."""
    before = here.pid("big")
    os.kill(before, signal.SIGKILL)
    pid = until(lambda: (found := here.pid("big")) not in (None, before) and found)
    stack.enter_context(slowed(pid, 0.05))
    row = until(lambda: (seen := here.server("big"))["state"] in ("loading", "ready") and seen)
    return row if row["progress"] else stack.close()


def test_a_llama_server_that_loads_says_how_far_it_is(here):
    with contextlib.ExitStack() as stack:
        row = next(row for _ in range(5) if (row := loading(here, stack)))
        host = here.look()
        assert row["state"] == "loading"
        assert 0 < row["progress"] < 1
        assert "% of 0.3 GB read" in row["detail"]
        assert host["state"] in ("loading", "ready")
        later = here.server("big")
        assert later["state"] == "ready" or later["progress"] >= row["progress"]
    assert until(lambda: here.server("big")["state"] == "ready")
    assert here.server("big")["progress"] is None


def test_an_ollama_that_loads_says_how_far_it_is_and_is_not_taken_for_dead(here):
    tag = next(one for one in json.loads(here.paths.fleet.read_text())["hosts"][0]["served"]
               if one["runtime"] == "ollama")["tag"]
    from urllib.request import urlopen

    body = json.dumps({"model": tag, "keep_alive": 0}).encode()
    urlopen(f"http://127.0.0.1:{here.port}/api/generate", body, timeout=60).close()
    until(lambda: here.server("big-too")["state"] == "idle")
    serve = here.pid("ollama")
    asking = here.start("ask", "-m", "big-too", "--max-tokens", "2", "hello")
    (runner,) = until(lambda: children(serve))
    with slowed(runner, 0.05):
        row = until(lambda: (seen := here.server("big-too"))["state"] != "idle" and seen)
        assert row["state"] == "loading", row
        assert 0 < row["progress"] < 1
        assert here.look()["state"] == "loading"
        other = here.start("ask", "-m", "big-too", "--max-tokens", "2", "hello again", "--explain")
        time.sleep(5)
        assert read_mark(here.paths, "here") is None, "a host that loads is not one that is off"
    for process in (asking, other):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert here.server("big-too")["state"] == "ready"


def test_a_server_that_its_supervisor_is_about_to_start_again_is_starting(here):
    folder = here.data / "servers" / "big"
    supervisor = int((folder / "supervisor.pid").read_text())
    os.kill(supervisor, signal.SIGSTOP)  # so that it is not started before we look
    try:
        os.kill(here.pid("big"), signal.SIGKILL)
        row = until(lambda: (seen := here.server("big"))["state"] not in ("ready", "degraded") and seen)
        assert (row["state"], row["detail"][:14]) == ("starting", "its supervisor")
        assert here.look()["state"] == "starting"
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert until(lambda: here.server("big")["state"] == "ready")


def test_a_server_that_nothing_runs_is_down_and_one_without_a_runtime_says_so(here):
    folder = here.data / "servers" / "big"
    supervisor, server = int((folder / "supervisor.pid").read_text()), here.pid("big")
    os.kill(supervisor, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
    assert until(lambda: here.server("big")["state"] == "down")
    row = here.look()
    assert (row["state"], row["hint"]) == ("degraded", "swarmctl up")
    runtimes = here.data / "runtimes" / "llamacpp"
    aside = runtimes.rename(here.data / "aside")
    try:
        assert here.server("big")["state"] == "no runtime"
    finally:
        aside.rename(runtimes)
    here.run("up", limit=300)
    assert here.look()["state"] == "ready"
    assert ask_json(here, "hello", "-m", "big", "--max-tokens", "2")["host"] == "here"


def test_drain_waits_for_what_an_ollama_answers_whoever_asked(here):
    """The question comes past swarmctl; a runner tells neither us nor Ollama that it is busy."""
    served = next(one for one in json.loads(here.paths.fleet.read_text())["hosts"][0]["served"]
                  if one["runtime"] == "ollama")
    schema = {"type": "array", "items": {"enum": [7]}, "minItems": 40, "maxItems": 40}
    body = json.dumps({"model": served["tag"], "stream": True, "format": schema,
                       "messages": [{"role": "user", "content": "count"}]})
    argv = ("curl", "-sN", "-d", body, f"http://127.0.0.1:{here.port}/api/chat")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as asking:
        assert asking.stdout.read(10)
        (runner,) = children(here.pid("ollama"))
        with slowed(runner, 0.2):
            late = here.run("drain", "here", "--timeout", "1", status=1)
            assert "1 answer still under way after 1 s" in late.stderr
            assert asking.poll() is None
        done = json.loads(here.run("drain", "here", "--json").stdout)
        assert done["busy"] == 0
        rest = asking.stdout.read()
        assert b'"done":true' in rest, "the answer ended as it would have"
    here.run("uncordon", "here")


PROBED = """
swarmctl-probe 1 7
@@7 host
system Linux
machine x86_64
user u
uid 1
home /home/u
data_dir /d
@@7 runners
runner 41 7 1500 2 {"status":"ok"} /opt/ollama/lib/ollama/llama-server --model /m/blobs/sha256-aa --port 4001
runner 42 7 200 - {"error":{"message":"Loadingmodel"}} /x/llama-server -m /m/b.gguf --port 4002
runner 43 - 900 - - -
runner 44 nonsense
@@7 end
"""


def test_runners_are_read_from_what_the_probe_quotes():
    found = parse_facts(PROBED).runners
    assert found == (RunnerSeen(41, 7, "/m/blobs/sha256-aa", 1500, 2, "ready"),
                     RunnerSeen(42, 7, "/m/b.gguf", 200, None, "loading"),
                     RunnerSeen(43, None, "", 900))
    assert share_read(found[1], 400) == 0.5
    assert share_read(found[0], 1000) == 0.99
    assert share_read(found[0], 0) is None
