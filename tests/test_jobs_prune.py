"""What old trainings left goes from hosts; what a release, a round or the next training needs never does."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

import pytest
from test_train import Trainers

from swarmctl.cli.jobs import _table
from swarmctl.fleet import jobs
from swarmctl.fleet.litter import Found, Left, unneeded
from swarmctl.fleet.releases import append
from swarmctl.fleet.runs import Run, keep_run
from swarmctl.fleet.weights import describe
from swarmctl.jobs.spec import Spec
from swarmctl.shipped import shipped_model
from swarmctl.verbs.jobs import Row

OLD = "2026-01-05T00:00:00.000Z"


def test_what_a_run_that_stays_names_stays():
    left = tuple(Left(path, 1, old) for path, old in (
        ("runs/a", True), ("runs/b", True), ("weights/1", True), ("weights/2", True), ("weights/3", True),
        ("weights/4", False), ("envs/1", True), ("envs/2", True)))
    found = Found(left, {"a": frozenset({"weights/1", "weights/2", "envs/1"}),
                         "b": frozenset({"weights/2", "envs/1"})})
    assert [one.path for one in unneeded(found, {"a"}, {"envs/2"})] == ["runs/a", "weights/1", "weights/3"]
    assert list(unneeded(found, set(), {"envs/2", "weights/3"})) == []


def test_a_runs_name_stands_whole_in_the_narrowest_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "prune-20261124-ktz3jy"
    run = Run(name, "worlock", "/data", "prune", "sft", "tiny-small", "/base", "sft-1",
              "2026-11-24T12:46:30.453Z", "root@vm")
    _table([Row("worlock", jobs.JobState(name, "failed", last={"stage": "job"}), run)])
    assert name in capsys.readouterr().out


@pytest.fixture
def trainers(make_lab):
    lab = make_lab("loopback", hosts=1)
    yield Trainers(lab)
    lab.stop()


def test_old_runs_go_with_what_only_they_needed(trainers):
    paths, data_dir = trainers.paths, trainers.host.data_dir

    def ended(name: str, weights: str, at: str = OLD) -> None:
        """A run that has failed, of base weights that lie on the host."""
        keep_run(paths, Run(name, "worlock", str(data_dir), "tiny-sft", "sft", "small", "", "", at, "me"))
        base = data_dir / "weights" / weights
        base.mkdir(parents=True, exist_ok=True)
        (base / "model.safetensors").write_bytes(b"w" * 50_000)
        os.utime(base, (0, 0))
        with trainers.remote() as remote:
            code = jobs.put_code(remote, str(data_dir))
            jobs.start(remote, str(data_dir), Spec(name, ("no-such",), str(base), "", {}), {},
                       python=sys.executable, code=code)

    young = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    needed = describe(shipped_model("small")).digest[:12]
    ended("old-20260105-aaaaaa", "a" * 12)
    ended("served-20260105-bbbbbb", "b" * 12)
    ended("young-20261123-cccccc", "c" * 12, young)
    shutil.copytree(data_dir / "weights" / ("a" * 12), data_dir / "weights" / needed)
    os.utime(data_dir / "weights" / needed, (0, 0))  # what the next training starts from
    append(paths, time.time(), action="deploy", model="small", release="v1-11111111", sha256="1" * 64,
           run="served-20260105-bbbbbb")

    said = json.loads(trainers.job("prune", "--dry-run", "--json").stdout)
    assert {one["path"] for one in said[0]["removed"]} == {"runs/old-20260105-aaaaaa", f"weights/{'a' * 12}"}
    assert said[0]["size"] > 50_000
    assert (data_dir / "runs" / "old-20260105-aaaaaa").is_dir()  # nothing went yet
    assert "2 folders" in trainers.job("prune", "--yes").stderr
    assert {one.name for one in (data_dir / "weights").iterdir()} == {"b" * 12, "c" * 12, needed}
    assert {one.name for one in (data_dir / "runs").iterdir()} == {"served-20260105-bbbbbb",
                                                                  "young-20261123-cccccc"}
    assert trainers.acts()[-1] == "remove"
    assert "0 folders" in trainers.job("prune", "--yes").stderr
    assert "no host pelle" in trainers.job("prune", "--yes", "--host", "pelle", status=2).stderr
