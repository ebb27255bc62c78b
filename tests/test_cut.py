"""A round of improve, hurt at every stage: the controller killed, the job, sshd, and the network cut.

Whatever it was, the same command goes on: each stage is recorded once, one run trains, one release comes of
it, and nothing is left working. docs/improve.md has the table of stages and failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import can_make_namespaces
from recorded import exchange, rating
from running import Cli
from stocked import stock
from test_deploy import link_converters
from test_train import needs_trl

from swarmctl.exchange import Message
from swarmctl.fleet.releases import read, standing
from swarmctl.jobs.control import family
from swarmctl.jobs.folder import Folder
from swarmctl.ledger import rounds
from swarmctl.ledger.journal import append
from swarmctl.ledger.snapshots import snapshots

pytestmark = [pytest.mark.runtime, pytest.mark.train, pytest.mark.slow, needs_trl, pytest.mark.timeout(900)]
RECIPE = """
trainer: dpo
use_peft: true
lora_r: 4
lora_target_modules: all-linear
learning_rate: 1e-4
num_train_epochs: 1
per_device_train_batch_size: 8
max_length: 128
gradient_checkpointing: false
bf16: false
logging_steps: 1
save_steps: 1
seed: 7
"""
#: the stages of a round, each with how it is known to have begun: a line of improve's own, a job's stage, a
#: file that comes, or the release in the snapshot
SAID = {"build": "building the data set", "push": "put model small:v", "serve": "serve small:v",
        "measure": "measure the speed", "evaluate": "evaluating v"}
WORKED = ("dpo", "merge", "gguf", "quantise", "perplexity", "verify")
STAGES = ("build", *WORKED, "fetch", "push", "serve", "measure", "smoke", "evaluate")
PAIRS = 24
TOGETHER = 2.0


class Hurt(Cli):
    """A lab of one host that trains and serves, and this machine's journal with ratings of its model."""

    def __init__(self, lab) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.host, self.rated = lab.hosts[0], 0
        recipe = self.paths.inventory.parent / "quick.yaml"
        recipe.write_text(RECIPE)
        improve = {"recipe": str(recipe), "labels": 5, "cooldown_hours": 0, "quantize": "Q8_0",
                   "max_tokens": 64}
        self.paths.inventory.write_text("\n".join((
            f"version: 1\nssh_config: {json.dumps(str(lab.ssh_config))}\nmodels:",
            "  small: {source: 'shipped:small', context: 512, parallel: 1,",
            f"    improve: {json.dumps(improve)}}}",
            f"hosts:\n  {self.host.name}:\n    data_dir: {self.host.data_dir}\n    models: [small]",
            f"    llamacpp: {{port: {self.host.llamacpp_port}}}\n    limits: {{threads: 1}}",
            f"    roles: [train, inference]\n    train: {{python: {json.dumps(sys.executable)}}}", "")))

    def rate(self) -> None:
        """Pairs of answers that nobody has rated before: a terse one, and a ramble."""
        for number in range(self.rated, self.rated + PAIRS):
            for offset, text in enumerate((f"Paris {number}", f"Well, I think that it is Paris {number}.")):
                turns = (Message("user", f"What is the capital of land {number}?"),)
                row = exchange(4 * number + offset, "", text, model="small", messages=turns)
                append(self.paths.journal, row.to_record())
                moment = 50_000 + 100 * number + 40 * offset
                append(self.paths.journal, rating(moment, row, 1.0 - 2 * offset, at=row.at).to_record())
        self.rated += PAIRS

    @property
    def folders(self) -> list[Folder]:
        return [Folder(path) for path in (self.host.data_dir / "runs").glob("*")]

    def begun(self, stage: str, told: str, past: set[str]) -> bool:
        """Whether a stage of the round has begun. `past` are the runs and files of rounds before."""
        if stage in SAID:
            return SAID[stage] in told
        if stage == "fetch":
            there = {str(path) for path in self.paths.cache.glob("finished/*/rendered.json")}
        elif stage == "smoke":
            fleet = json.loads(self.paths.fleet.read_text())  # `up` has ended, and the release is looked at
            there = {one["release"] for host in fleet["hosts"] for one in host["served"]} - {""}
        else:
            mark = f'"stage": "{stage}", "event": "begun"'
            there = {f"{one.path}:{stage}" for one in self.folders
                     if one.progress.exists() and mark in one.progress.read_text()}
        return bool(there - past)


@pytest.fixture(scope="module")
def hurt(make_lab, llamacpp_bin, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    store, source = stock(cache, llamacpp_bin), os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC")
    kept = Path.home() / ".cache/swarmctl/store/sources"
    if source:
        link_converters(store.root, Path(source))
    elif kept.is_dir():
        shutil.copytree(kept, store.root / "sources", dirs_exist_ok=True)
    lab = make_lab("netns" if can_make_namespaces() else "loopback", hosts=1, cache=cache)
    made = Hurt(lab)
    made.run("up")
    yield made
    made.run("down")
    lab.stop()


def kill_controller(_hurt: Hurt, process) -> None:
    process.kill()


def kill_job(hurt: Hurt, _process) -> None:
    """The one that works for this round; none where the stage has none."""
    for pid in [one.holder() for one in hurt.folders]:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_sshd(hurt: Hurt, _process) -> None:
    hurt.host.kill_sshd()
    hurt.host.start()


def cut_network(hurt: Hurt, _process) -> None:
    hurt.host.cut()
    time.sleep(TOGETHER)
    hurt.host.mend()


@pytest.mark.parametrize("failure", [kill_controller, kill_job, kill_sshd, cut_network],
                         ids=lambda one: one.__name__)
def test_a_round_that_is_hurt_at_every_stage_goes_on_and_does_nothing_twice(hurt, failure, tmp_path):
    hurt.rate()
    before, sets = len(rounds.read(hurt.paths)), len(snapshots(hurt.paths))
    releases, runs = len(read(hurt.paths)), {one.path.name for one in hurt.folders}
    past = {f"{one.path}:{stage}" for one in hurt.folders for stage in STAGES}
    past |= {str(path) for path in hurt.paths.cache.glob("finished/*/rendered.json")}
    left, tries, told = list(STAGES), 0, tmp_path / "told"
    while tries == 0 or not rounds.read(hurt.paths)[before:] or not rounds.read(hurt.paths)[-1].over:
        tries += 1
        assert tries < 3 * len(STAGES), told.read_text()
        argv = (sys.executable, "-m", "swarmctl", "improve", "small", "--once")
        with told.open("a") as out, subprocess.Popen(argv, env=hurt.environ, stdin=subprocess.DEVNULL,
                                                     stdout=out, stderr=out) as process:
            while process.poll() is None:
                if left and hurt.begun(left[0], told.read_text(), past):
                    left.pop(0)
                    failure(hurt, process)
                time.sleep(0.01)

    text = told.read_text()
    assert left == [], text
    one, = rounds.read(hurt.paths)[before:]
    assert [event.stage for event in one.events] == ["begin", "build", "build", "train", "deploy",
                                                     "evaluate"], text
    assert one.status in ("kept", "refused"), text
    assert len(snapshots(hurt.paths)) == sets + 1
    new = read(hurt.paths)[releases:]
    assert [record.action for record in new] == ["deploy", "rollback"]
    release = one.details["release"]
    assert {record.release for record in new} == {release}
    assert (hurt.paths.releases / "small" / release / "merged" / "model.safetensors").is_file()
    assert standing(read(hurt.paths), "small").canary is None
    assert {one.path.name for one in hurt.folders} - runs == {one.details["run"]}
    result = json.loads((hurt.host.data_dir / "runs" / one.details["run"] / "result.json").read_text())
    assert (result["status"], result["stages"]["dpo"]["steps"]) == ("done", steps_of(hurt, one))
    assert not any(each.holder() or family(each) for each in hurt.folders)
    assert json.loads(hurt.run("up", "--dry-run", "--json").stdout)["hosts"][0]["state"] == "unchanged"
    assert tries >= (len(STAGES) if failure is kill_controller else 1)
    assert ("was cut off" in text) is (failure is kill_job), text


def steps_of(hurt: Hurt, one: rounds.Round) -> int:
    """Batches of eight in the round's data set."""
    card = next(each.card for each in snapshots(hurt.paths) if each.name == one.details["dataset"])
    return -(-card["rows"]["train"] // 8)
