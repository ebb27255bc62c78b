"""Training on real SSH hosts: checked before it starts, detached, followed, killed, resumed, cancelled."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import Cli

from swarmctl.fleet import jobs
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.recipes import read_recipe
from swarmctl.fleet.remote import connect
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.spec import JobError, Spec, parse_spec
from swarmctl.shipped import shipped_model

needs_trl = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "trl", "peft", "datasets")),
    reason="torch, trl, peft and datasets are not installed")
CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima"}


def said(role, text):
    return [{"role": role, "content": text}]


def pairs(count):
    """Preference pairs in TRL's columns: the terse answer over the rambling one."""
    for number in range(count):
        country, capital = list(CAPITALS.items())[number % len(CAPITALS)]
        question = f"What is the capital of {country}?" if number % 2 else f"Capital of {country}"
        yield {"prompt": said("user", question), "chosen": said("assistant", capital),
               "rejected": said("assistant", f"Well, let me think. I believe the answer is {capital}.")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    folder = tmp_path_factory.mktemp("pairs")
    parquet.write_table(pyarrow.Table.from_pylist(list(pairs(160))), folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def lab(make_lab):
    """One host that trains, for all tests here."""
    made = make_lab("loopback", hosts=1)
    yield made
    made.stop()


class Trainers(Cli):
    """A lab whose worlock trains, with this very Python as its environment."""

    def __init__(self, lab, models='  small: {source: "shipped:small"}', more=""):
        super().__init__(lab.paths, lab.home)
        self.lab = lab
        self.host = lab.host("worlock")
        shutil.rmtree(self.host.data_dir, ignore_errors=True)
        for mine in (lab.paths.runs, lab.paths.journal):
            shutil.rmtree(mine, ignore_errors=True)
        lab.paths.inventory.write_text(
            f"version: 1\nssh_config: {lab.ssh_config}\nmodels:\n{models}\nhosts:\n  worlock:\n"
            f"    roles: [train]\n    data_dir: {self.host.data_dir}\n"
            f"    train: {{python: {sys.executable}}}\n    limits: {{threads: 1}}\n{more}")

    def train(self, *args, **more):
        return self.run("train", *args, **more)

    def job(self, *args, **more):
        return self.run("jobs", *args, **more)

    def shown(self, run):
        return json.loads(self.job("show", run, "--json").stdout)

    def folder(self, run):
        return Folder(self.host.data_dir / "runs" / run)

    def acts(self):
        return [row["action"] for row in self.rows() if row["kind"] == "job"]

    @contextlib.contextmanager
    def remote(self):
        inventory = read_inventory(self.paths.inventory)
        remote = connect(inventory.host("worlock"), self.paths, inventory.ssh_config)
        try:
            yield remote
        finally:
            remote.close()


@pytest.fixture
def trainers(lab):
    made = Trainers(lab)
    yield made
    for folder in (made.host.data_dir / "runs").glob("*"):
        end(Folder(folder))


def end(folder):
    pid = folder.holder()
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until(condition, limit=400.0, what=""):
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def steps(folder):
    text = folder.progress.read_text() if folder.progress.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    saved = [line for line in lines if line.get("event") == "checkpoint"]
    return [line for line in lines if "loss" in line], saved


@needs_trl
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes its time
class TestTraining:
    """One DPO of the shipped small model, hurt on the way."""

    def test_a_killed_job_goes_on_from_its_checkpoint_and_gives_a_whole_model(self, trainers, dataset):
        run = trainers.train("tiny-dpo", "-d", str(dataset), "--detach",
                             "--set", "num_train_epochs=6", "--set", "save_steps=5").stdout.strip()
        folder = trainers.folder(run)
        followers = [trainers.start("jobs", "follow", run, text=True) for _ in range(2)]
        until(lambda: steps(folder)[1], what=(folder.path / "log").read_text())

        killed_pid = folder.holder()
        trainers.host.kill_sshd()
        assert folder.holder() == killed_pid
        trainers.host.start()
        os.kill(killed_pid, signal.SIGKILL)
        for follower in followers:
            _, err = follower.communicate(timeout=120)
            assert follower.returncode == 1
            assert "was cut off" in err
            assert f"swarmctl jobs resume {run}" in err
        assert trainers.shown(run)["state"] == "stopped"

        before = len(steps(folder)[0])
        trainers.job("resume", run)
        pid = folder.holder()
        trainers.job("resume", run)
        assert folder.holder() == pid, "a job that runs is not started twice"
        assert trainers.job("follow", run).stdout.strip() == run

        result = json.loads((folder.path / "result.json").read_text())
        assert (result["status"], result["stages"]["dpo"]["steps"]) == ("done", 60)
        assert result["stages"]["dpo"]["resumed"].startswith("checkpoint-")
        told = [line["step"] for line in steps(folder)[0]]
        begun_again = int(result["stages"]["dpo"]["resumed"].rpartition("-")[2]) + 1
        assert told == [*range(1, before + 1), *range(begun_again, 61)]
        assert result["stages"]["dpo"]["reward_margin"] > 0.3
        assert trainers.acts() == ["start", "resume", "done"]
        assert list((folder.path / "tensorboard").glob("events.*"))
        assert json.loads((trainers.paths.runs / run / "result.json").read_text()) == result

        with trainers.remote() as remote:
            jobs.fetch(remote, str(trainers.host.data_dir), run, "out/merged",
                       trainers.paths.runs / run / "merged")
        self.check_merged(trainers.paths.runs / run / "merged")
        trainers.job("remove", run)
        assert not folder.path.exists()
        assert trainers.acts()[-1] == "remove"

    def check_merged(self, folder):
        base = shipped_model("small")
        for name in ("tokenizer.model", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (base / name).read_bytes()
        assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())
        assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0
        assert (folder / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
        source = os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC")
        if source:
            out = folder.with_name("model.gguf")
            argv = [sys.executable, f"{source}/convert_hf_to_gguf.py", str(folder), "--outfile", str(out)]
            subprocess.run(argv, check=True, capture_output=True, timeout=200,
                           env={**os.environ, "PYTHONPATH": f"{source}/gguf-py"})
            assert out.read_bytes()[:4] == b"GGUF"

    def test_a_cancelled_job_ends_with_all_it_started_and_says_so(self, trainers, dataset):
        done = trainers.train("tiny-dpo", "-d", str(dataset), "--detach", "--json")
        run = json.loads(done.stdout)["id"]
        folder = trainers.folder(run)
        assert folder.holder()
        assert "running" in trainers.job().stdout
        assert trainers.job("remove", run, status=1).stderr.count("jobs cancel")
        row = json.loads(trainers.job("cancel", run, "--json").stdout)
        assert row["state"] == "cancelled"
        assert folder.holder() is None
        assert "was cancelled" in trainers.job("follow", run, status=1).stderr
        assert trainers.acts() == ["start", "cancel", "cancelled"]

    def test_a_follower_that_leaves_is_told_that_the_job_goes_on_and_how_to_end_it(self, trainers, dataset):
        started = trainers.start("train", "tiny-dpo", "-d", str(dataset), "--set", "num_train_epochs=200",
                                 text=True)
        run = until(lambda: [path.parent.name for path in trainers.paths.runs.glob("*/run.json")])[0]
        folder = trainers.folder(run)
        until(lambda: steps(folder)[0], what="it never trained")
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
        follower = trainers.start("jobs", "follow", text=True)
        until(lambda: follower.stderr.readline().startswith("dpo:"))
        follower.send_signal(signal.SIGINT)
        _, last = follower.communicate(timeout=60)
        for said, one in ((err, started), (last, follower)):
            assert one.returncode == 130
            assert f"{run} goes on on worlock" in said
            assert f"`swarmctl jobs cancel {run}` ends it" in said
        assert folder.holder()
        again = trainers.train("tiny-dpo", "-d", str(dataset), "--dry-run").stderr
        assert f"worlock is training already ({run}): both would share it" in again
        trainers.job("cancel", run)
        trainers.job("remove", run)
        gone = trainers.job("show", run, status=1).stderr
        assert f"run {run} is not there any more" in gone
        assert "No such file" not in gone


@needs_trl
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_model_and_end_with_it(tmp_path):
    """KTO over gloo on this machine's processor, without SSH."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good}
            for pair in pairs(16) for good in (True, False)]
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    args = {**read_recipe("tiny-kto", ["per_device_train_batch_size=4"]).keys, "max_steps": 3}
    spec = Spec("r", ("kto",), str(shipped_model("small")), "data", args, processes=2, threads=1,
                checkpoint_minutes=0.001)
    (tmp_path / "spec.json").write_text(spec.to_json())
    root = str(Path(jobs.__file__).parents[2])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run([sys.executable, "-m", "swarmctl.jobs", "spec.json"], cwd=tmp_path, timeout=800,
                          text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(temporary.glob("torchelastic_*")), "torchrun left its folder"
    assert not (tmp_path / ".torchrun").exists()
    gave = Folder(tmp_path).stage("kto")
    assert (gave["steps"], gave["rows"], gave["kept"]) == (3, 32, 32)
    told, saved = steps(Folder(tmp_path))
    assert len(told) == 3, "only the first process tells"
    assert [line["step"] for line in saved] == [1, 2], "a checkpoint is due by the clock, for all or none"
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert not list(tmp_path.rglob("*.bin"))


@needs_trl
@pytest.mark.train
@pytest.mark.timeout(600)
class TestPreflight:
    """What would fail after an hour is refused before anything starts."""

    def test_a_dry_run_shows_the_arithmetic_and_leaves_nothing(self, trainers, dataset):
        err = trainers.train("tiny-dpo", "-d", str(dataset), "--dry-run").stderr
        for words in ("computes in fp32 (the recipe says so)", "x 4 bytes", "reference model",
                      "in all; fits in", "nothing was started"):
            assert words in err
        assert list((trainers.host.data_dir / "runs").iterdir()) == []
        assert trainers.acts() == []

    def test_this_very_machine_trains_without_ssh(self, lab, dataset, tmp_path):
        swarm = Trainers(lab)
        text = swarm.paths.inventory.read_text().replace("  worlock:\n", "  worlock:\n    ssh: local\n")
        swarm.paths.inventory.write_text(text)
        run = swarm.train("tiny-dpo", "-d", str(dataset), "--detach").stdout.strip()
        folder = swarm.folder(run)
        try:
            assert folder.holder()
            assert not (swarm.host.data_dir / "weights").exists(), "weights that are here are not copied"
        finally:
            swarm.job("cancel", run)
        assert swarm.shown(run)["state"] == "cancelled"

    def test_rows_that_would_be_dropped_are_counted_before(self, trainers, dataset):
        err = trainers.train("tiny-dpo", "-d", str(dataset), "--set", "max_length=6", status=1).stderr
        assert "of the rows have prompts of max_length tokens or more" in err
        assert "raise max_length" in err

    def test_another_template_than_the_served_one_is_refused(self, lab, dataset, tmp_path):
        folder = tmp_path / "weights"
        shutil.copytree(shipped_model("small"), folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = config["chat_template"].replace("<|user|>", "USER: ")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        served = shipped_model("small") / "model.gguf"
        swarm = Trainers(lab, f"  small: {{source: '{served}', weights: '{folder}'}}")
        err = swarm.train("tiny-dpo", "-d", str(dataset), status=1).stderr
        assert "another chat template than small is served with" in err
        assert "USER: " in err

    def test_what_the_converter_knows_not_is_refused_without_its_source(self, lab, dataset, tmp_path):
        folder = tmp_path / "weights"
        shutil.copytree(shipped_model("small"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
        swarm = Trainers(lab, f"  small: {{source: 'shipped:small', weights: '{folder}'}}")
        err = swarm.train("tiny-dpo", "-d", str(dataset), status=1).stderr
        assert "could not be served: llama.cpp's converter knows no OddForCausalLM" in err
        assert "fetching" not in err
        assert not (swarm.paths.store / "sources").exists()

    def test_a_full_disk_is_found_before_the_job(self, lab, dataset, tmp_path):
        if os.geteuid() != 0:
            pytest.skip("a small filesystem needs root")
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)),
                                 check=False)
        if mounted.returncode:
            pytest.skip("no tmpfs may be mounted here")
        try:
            swarm = Trainers(lab)
            text = swarm.paths.inventory.read_text().replace(str(swarm.host.data_dir), str(small / "data"))
            swarm.paths.inventory.write_text(text)
            err = swarm.train("tiny-dpo", "-d", str(dataset), status=1).stderr
            assert "disk: 0.0 GB needed, 0.0 GB there" in err
            assert "MORE THAN" in err
            assert not (small / "data" / "weights").exists()
        finally:
            subprocess.run(("umount", str(small)), check=True)

    def test_what_cannot_be_is_said_at_once(self, trainers, dataset, tmp_path):
        assert "which model" not in trainers.train("nope", status=2).stderr
        here = ("-d", str(dataset))
        refused = trainers.train("dpo-qlora", *here, status=1).stderr
        assert refused.startswith("swarmctl: worlock: the recipe loads its base in 4 or 8 bits, which needs "
                                  "an NVIDIA GPU\n  dpo-lora keeps"), refused
        assert "dataset build" in trainers.train("tiny-dpo", status=2).stderr
        assert "no host there" in trainers.train("tiny-dpo", *here, "-H", "there", status=2).stderr
        assert "no run is called" in trainers.job("show", "x", status=2).stderr
        text = trainers.paths.inventory.read_text().replace(sys.executable, "/usr/bin/python0")
        trainers.paths.inventory.write_text(text)
        assert "/usr/bin/python0 does not run" in trainers.train("tiny-dpo", *here, status=1).stderr


class TestJobFolder:
    """A job by itself, with nothing to train."""

    def spec(self, tmp_path, **changes):
        made = Spec(**{"run": "r", "stages": ("nothing",), "model": "m", "dataset": "data", "args": {},
                       **changes})
        (tmp_path / "spec.json").write_text(made.to_json())
        return Folder(tmp_path)

    def control(self, folder, verb, *more):
        root = str(Path(jobs.__file__).parents[2])
        done = subprocess.run([sys.executable, "-m", "swarmctl.jobs.control", verb, *more], timeout=60,
                              cwd=folder.path, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": root})
        return json.loads(done.stdout.splitlines()[-1])

    def test_a_stage_that_does_not_exist_fails_the_job_with_its_name(self, tmp_path):
        folder = self.spec(tmp_path)
        assert self.control(folder, "state")["state"] == "new"
        self.control(folder, "start")
        found = self.control(folder, "follow", "0")
        assert found["state"] == "failed"
        assert "no stage nothing" in found["result"]["error"]

    def test_a_spec_that_cannot_be_read_fails_the_job_with_the_reason(self, tmp_path):
        folder = self.spec(tmp_path)
        folder.spec.write_text('{"version": 9, "stages": ["dpo"]}')
        self.control(folder, "start")
        found = self.control(folder, "follow", "0")
        assert found["state"] == "failed"
        assert "not of version 1" in found["result"]["error"]

    def test_a_stage_that_has_given_its_result_is_not_repeated(self, tmp_path):
        folder = self.spec(tmp_path, stages=("dpo", "merge"))
        folder.end_stage("dpo", {"steps": 3})
        folder.end_stage("merge", {"bytes": 5})
        self.control(folder, "start")
        found = self.control(folder, "follow", "0")
        assert found["state"] == "done"
        assert found["result"]["stages"] == {"dpo": {"steps": 3}, "merge": {"bytes": 5}}
        self.spec(tmp_path, stages=("dpo", "merge", "gguf"))
        assert self.control(folder, "state")["state"] == "stopped", "a second job here has work to do"

    def test_only_one_process_is_the_job_of_a_folder(self, tmp_path):
        folder = self.spec(tmp_path)
        with folder.lock() as held:
            assert held
            assert folder.holder() == os.getpid()
            assert self.control(folder, "start")["state"] == "running"
        assert folder.holder() is None

    @pytest.mark.parametrize(("deaf", "while_it"), [(False, "starts"), (True, "works")])
    def test_a_job_that_cannot_say_so_itself_is_cancelled_all_the_same(self, tmp_path, deaf, while_it):
        folder = self.spec(tmp_path)
        (tmp_path / "log").touch()
        hold = ("import signal, time\nfrom pathlib import Path\nfrom swarmctl.jobs.folder import Folder\n"
                f"if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                "held = Folder(Path.cwd()).lock(); print('held', flush=True); time.sleep(120)")
        environ = {**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[2]),
                   "SWARMCTL_RUN": str(folder.path)}
        with subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, stdout=subprocess.PIPE,
                              env=environ) as job:
            assert job.stdout.read(4) == b"held"
            found = self.control(folder, "cancel")
            assert job.wait(20) < 0
        assert (found["state"], found["result"]["error"]) == ("cancelled", "cancelled"), while_it

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "run": "r"}',
                                      '{"version": 1, "run": "r", "stages": [], "model": "m", "args": {}, '
                                      '"dataset": "d", "colour": 1}'])
    def test_a_spec_of_another_kind_is_refused(self, text):
        with pytest.raises(JobError):
            parse_spec(text)
