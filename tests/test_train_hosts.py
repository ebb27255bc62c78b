"""Two hosts train one model: torchrun meets over gloo, a host that dies ends the run, and it goes on."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from test_train import Trainers, dataset, end, needs_trl, steps, until  # noqa: F401  a fixture

from swarmctl.jobs.control import family
from swarmctl.jobs.folder import Folder

RECIPE = """
trainer: dpo
use_peft: true
lora_r: 4
learning_rate: 4e-4
num_train_epochs: {epochs}
per_device_train_batch_size: 16
max_length: 128
gradient_checkpointing: false
bf16: false
logging_steps: 1
save_steps: 2
seed: 7
swarmctl: {{hosts: [worlock, calisota], model: small}}
"""


@pytest.fixture(scope="module")
def team(make_lab):
    """Two hosts that train; the second has a data folder of its own."""
    lab = make_lab("loopback", hosts=2)
    other = lab.hosts[1]
    made = Trainers(lab, more=f"  {other.name}: {{roles: [train], limits: {{threads: 1}},\n"
                              f"    data_dir: {other.data_dir}, train: {{python: {sys.executable}}}}}\n")
    yield made, (made.host, other)
    for host in (made.host, other):
        for folder in (host.data_dir / "runs").glob("*"):
            end(Folder(folder))
    lab.stop()


def recipe(folder, epochs, second):
    path = folder / "both.yaml"
    path.write_text(RECIPE.format(epochs=epochs).replace("calisota", second))
    return str(path)


def gone(folders):
    """Whether nothing of the run is left on any host."""
    return not any(folder.holder() or family(folder) for folder in folders)


@needs_trl
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_host_that_dies_ends_the_run_on_all_and_it_goes_on_from_there(team, dataset, tmp_path):  # noqa: F811
    trainers, hosts = team
    named = recipe(tmp_path, 4, hosts[1].name)
    run = trainers.train(named, "-d", str(dataset), "--detach").stdout.strip()
    first, second = (Folder(host.data_dir / "runs" / run) for host in hosts)
    until(lambda: len(steps(first)[1]) > 1, what=(first.path / "log").read_text())
    assert family(second), "it trains on both"

    for pid in (second.holder(), *family(second)):  # as when its power goes
        os.kill(pid, signal.SIGKILL)
    done = trainers.job("follow", run, status=1)
    assert "a host that trains with this one is gone" in done.stderr, done.stderr
    assert f"swarmctl jobs resume {run}" in done.stderr
    until(lambda: gone((first, second)), 30, "something still trains")

    trainers.job("resume", run)
    assert trainers.job("follow", run).stdout.strip() == run
    result = json.loads((first.path / "result.json").read_text())
    assert (result["status"], result["stages"]["dpo"]["steps"]) == ("done", 20)
    assert result["stages"]["dpo"]["resumed"].startswith("checkpoint-")
    assert (first.path / "out" / "merged" / "model.safetensors").is_file()
    assert not (second.path / "out" / "merged").exists()  # only the first merges
    until(lambda: gone((first, second)), 30, "something still trains")
    trainers.job("remove", run)
    assert not first.path.exists()
    assert not second.path.exists()
