"""What doctor finds in a real Ollama: adopted by `up`, then made ill. Needs SWARMCTL_TEST_OLLAMA."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from recorded import paths_under
from running import Cli
from test_ollama import FOLDER, Server

from swarmctl.facts import parse_facts

pytestmark = [pytest.mark.skipif(not FOLDER, reason="SWARMCTL_TEST_OLLAMA names no Ollama"),
              pytest.mark.timeout(250)]

INVENTORY = """
version: 1
models: {{tiny: {{source: "shipped:small", context: 256}}}}
hosts:
  here: {{ssh: local, data_dir: "{data}", ollama: {{port: {port}, manage: adopt}}, models: [tiny]}}
"""


class Ward(Cli):
    """This machine with an adopted Ollama."""

    def __init__(self, home, server: Server) -> None:
        super().__init__(paths_under(home), home)
        self.server = server
        self.paths.inventory.parent.mkdir(parents=True)
        self.paths.inventory.write_text(INVENTORY.format(data=home / "hostdata", port=server.port))

    def findings(self) -> dict[str, dict]:
        done = self.run("doctor", "--json", status=None)
        found = {one["rule"]: one for one in json.loads(done.stdout)["findings"]}
        return {rule: one for rule, one in found.items() if rule not in ("disk", "swap", "exposed")
                and (rule != "blob" or str(self.server.folder) in one["seen"])}


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("models"))
    made = Ward(tmp_path_factory.mktemp("ward"), server)
    made.run("up", limit=200)
    yield made
    os.killpg(server.process.pid, signal.SIGTERM)
    server.process.wait(30)


def tag(ward: Ward) -> str:
    names = [model["name"] for model in json.loads(ward.server.call("/api/tags"))["models"]]
    return next(name for name in names if name.startswith("tiny:"))


def test_an_adopted_ollama_is_well(ward):
    assert ward.findings() == {}


def test_a_template_that_somebody_replaced_is_found(ward):
    name = tag(ward)
    ward.server.call("/api/create", {"model": "kept", "from": name, "stream": False})
    ward.server.call("/api/create", {"model": name, "from": "kept", "template": "{{ .Prompt }}",
                                     "stream": False})
    found = ward.findings()
    ward.server.call("/api/create", {"model": name, "from": "kept", "stream": False})
    forget = f"http://127.0.0.1:{ward.server.port}/api/delete"
    subprocess.run(["curl", "-sf", "-X", "DELETE", forget, "-d", '{"model":"kept"}'], check=True, timeout=30)
    assert set(found) == {"template"}, json.dumps(found)


def test_a_blob_deleted_behind_its_back_is_found_though_ollama_lists_the_model(ward):
    name = tag(ward)
    (manifest,) = ward.server.folder.glob(f"manifests/*/*/{name.replace(':', '/')}")
    layers = json.loads(manifest.read_text())["layers"]
    (layer,) = [one for one in layers if one["mediaType"].endswith(".model")]
    weights = ward.server.folder / "blobs" / layer["digest"].replace(":", "-")
    weights.unlink()
    found = ward.findings()
    assert name in [model["name"] for model in json.loads(ward.server.call("/api/tags"))["models"]]
    assert "blob" in found
    assert weights.name.removeprefix("sha256-")[:12] in found["blob"]["seen"]
    forget, _, again = found["blob"]["mend"].partition(" && ")
    subprocess.run(shlex.split(forget), check=True, capture_output=True, timeout=60)
    ward.run(*shlex.split(again)[1:], limit=200)
    assert "blob" not in (now := ward.findings()), json.dumps(now)


def test_a_host_that_speaks_no_http_is_understood_by_its_clients_tables(ward, tmp_path):
    """The survey's real script, with a PATH that has no curl, wget and python3, beside the real client."""
    for folder in ("/bin", "/usr/bin"):
        for tool in Path(folder).iterdir():
            link = tmp_path / tool.name
            if not re.match(r"curl|wget|python", tool.name) and not link.is_symlink():
                link.symlink_to(tool)
    (tmp_path / "ollama").symlink_to(Path(FOLDER, "bin", "ollama"))
    elsewhere = "/usr/local/bin:/usr/sbin:/sbin"
    if any(shutil.which(tool, path=elsewhere) for tool in ("curl", "wget", "python3")):
        pytest.skip(f"this machine has them in {elsewhere}, where the script looks as well")
    ward.server.call("/api/generate", {"model": tag(ward), "prompt": "2 + 2", "stream": False,
                                       "options": {"num_predict": 2, "num_thread": 1}})
    script = (Path(__file__).parent.parent / "swarmctl" / "fleet" / "probe.sh").read_bytes()
    done = subprocess.run(("sh", "-s", "--", str(tmp_path), f"ollama={ward.server.port}"), input=script,
                          capture_output=True, timeout=60, check=True,
                          env={"PATH": str(tmp_path), "HOME": str(tmp_path)})
    (seen,) = [one for one in parse_facts(done.stdout.decode()).ollamas if one.port == ward.server.port]
    assert seen.version == json.loads(ward.server.call("/api/version"))["version"]
    assert tag(ward) in [model.name for model in seen.models]
    (loaded,) = seen.loaded
    assert (loaded.name, loaded.size_vram) == (tag(ward), 0), "100% CPU, as there is no GPU here"
    assert loaded.size > 1_000_000
