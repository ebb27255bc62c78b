"""Trained weights to a served release and back, for real: converted, quantised, verified, served, promoted.

On a llama.cpp host over SSH and, where SWARMCTL_TEST_OLLAMA names one, a real Ollama beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from running import Cli, ask_json
from stocked import stock
from test_ollama import FOLDER, Server

from swarmctl.shipped import shipped_model

pytestmark = [
    pytest.mark.runtime, pytest.mark.train, pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is missing")]

QUESTION = "What is the capital of France?"


class Swarm(Cli):
    """Two hosts of a lab: worlock runs llama.cpp, spinoza an Ollama that somebody started."""

    def __init__(self, lab, ollama) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.lab, self.ollama = lab, ollama
        self.hosts = ("worlock", "spinoza") if ollama else ("worlock",)
        first, second = (next(host for host in lab.hosts if host.name == name)
                         for name in ("worlock", "spinoza"))
        self.data_dir = {"worlock": first.data_dir, "spinoza": second.data_dir}
        lines = [f"version: 1\nssh_config: {json.dumps(str(lab.ssh_config))}",
                 "models: {small: {source: 'shipped:small', context: 512, parallel: 1}}", "hosts:",
                 f"  worlock: {{ssh: worlock, data_dir: {first.data_dir}, models: [small],",
                 f"    llamacpp: {{port: {first.llamacpp_port}}}, limits: {{threads: 1}}}}"]
        if ollama:
            lines += [f"  spinoza: {{ssh: spinoza, data_dir: {second.data_dir}, models: [small],",
                      f"    ollama: {{port: {ollama.port}, manage: adopt}}, limits: {{threads: 1}}}}"]
        self.paths.inventory.write_text("\n".join((*lines, "")))

    def served(self) -> dict[str, dict[str, dict]]:
        """host → release → the snapshot's entry."""
        fleet = json.loads(self.paths.fleet.read_text())
        return {host["name"]: {one["release"]: one for one in host["served"]} for host in fleet["hosts"]}

    def history(self) -> list[dict]:
        return json.loads(self.run("models", "history", "small", "--json").stdout)

    def deploy(self, source: Path, *more: str, status: int | None = 0):
        return self.run("deploy", str(source), "-m", "small", *more, "--json", status=status)


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    if not FOLDER:
        yield None
        return
    made = Server(tmp_path_factory.mktemp("ollama"))
    yield made
    os.killpg(made.process.pid, signal.SIGTERM)
    made.process.wait(30)


@pytest.fixture(scope="module")
def swarm(make_lab, ollama, llamacpp_bin, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    store = stock(cache, llamacpp_bin)
    kept = Path.home() / ".cache/swarmctl/store/sources"
    source = os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC")
    if source:
        link_converters(store.root, Path(source))
    elif kept.is_dir():
        shutil.copytree(kept, store.root / "sources", dirs_exist_ok=True)
    made = Swarm(make_lab("loopback", hosts=2, cache=cache), ollama)
    made.run("up")
    yield made
    made.run("down")


def link_converters(store: Path, source: Path) -> None:
    """Put the converters into a store, from a source tree."""
    from swarmctl.jobs.gguf import PARTS
    from swarmctl.runtimes.llamacpp_build import LLAMACPP

    to = store / "sources" / f"converters-{LLAMACPP}"
    for part in PARTS:
        (to / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / part, to / part)


@pytest.fixture
def weights(tmp_path) -> Path:
    """What a training left: a folder of its own, to be spoilt at will."""
    folder = tmp_path / "weights"
    shutil.copytree(shipped_model("small"), folder)
    (folder / "model.gguf").unlink()
    return folder


def changed(weights: Path, number: int) -> Path:
    """Other weights that answer alike: each training gives another file."""
    config = json.loads((weights / "config.json").read_text())
    config["rms_norm_eps"] = 1e-6 + number * 1e-9
    (weights / "config.json").write_text(json.dumps(config))
    return weights


def test_a_folder_becomes_a_canary_on_both_runtimes_is_promoted_and_rolled_back(swarm, weights):
    done = json.loads(swarm.deploy(changed(weights, 1), "--quantize", "Q8_0", "--share", "0.5").stdout)
    release = done["release"]
    assert release == f"v1-{done['sha256'][:8]}"
    assert done["failed"] == {}
    assert done["stages"]["verify"]["differ"] == []
    for host in swarm.hosts:
        served = swarm.served()[host]
        assert not served[""]["canary"]
        assert (served[release]["canary"], served[release]["share"]) == (True, 0.5)
        assert {served[release]["model"], served[""]["model"]} == {"small"}
    if swarm.ollama:
        assert swarm.served()["spinoza"][release]["tag"] == f"small:{release}"
    assert json.loads(swarm.run("up", "--dry-run", "--json").stdout)["hosts"][0]["state"] == "unchanged"

    assert json.loads(swarm.run("promote", "small", "--yes", "--json").stdout)["serves"] == release
    assert [list(one) for one in swarm.served().values()] == [[release]] * len(swarm.hosts)
    row = ask_json(swarm, "-m", "small", "-H", "worlock", QUESTION)
    assert (row["model"], row["digest"]) == ("small", done["sha256"])

    before = time.monotonic()
    back = json.loads(swarm.run("rollback", "small", "--reason", "a test", "--json").stdout)
    assert back["before"] == release
    assert time.monotonic() - before < 60
    assert [list(one) for one in swarm.served().values()] == [[""]] * len(swarm.hosts)
    actions = [(one["action"], one["release"]) for one in swarm.history()]
    assert actions == [("deploy", release), ("share", release), ("promote", release), ("rollback", release)]
    assert {one["by"] for one in swarm.history()} == {actions and swarm.history()[0]["by"]}
