"""Trained weights to a served release and back, for real: converted, quantised, verified, served, promoted.

On a llama.cpp host over SSH and, where SWARMCTL_TEST_OLLAMA names one, a real Ollama beside it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from running import Cli, ask_json
from stocked import stock
from test_ollama import FOLDER, Server

from swarmctl.dispatch.record import fresh_id, timestamp
from swarmctl.exchange import Comparison, Exchange, Message
from swarmctl.fleet.runs import Run, keep_run
from swarmctl.ledger.journal import append
from swarmctl.shipped import shipped_model

pytestmark = [
    pytest.mark.runtime, pytest.mark.train, pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is missing")]

QUESTION = "What is the capital of France?"
NUMBERS = itertools.count(1000)


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
                 f"    llamacpp: {{port: {first.llamacpp_port}}}, limits: {{threads: 1}},",
                 f"    roles: [train, inference], train: {{python: {json.dumps(sys.executable)}}}}}"]
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

    prune = ("models", "prune", "--dry-run", "--json")
    assert json.loads(swarm.run(*prune).stdout)["removed"] == []  # the one before stays on the hosts

    before = time.monotonic()
    back = json.loads(swarm.run("rollback", "small", "--reason", "a test", "--json").stdout)
    assert back["before"] == release
    assert time.monotonic() - before < 60
    assert [list(one) for one in swarm.served().values()] == [[""]] * len(swarm.hosts)
    left = json.loads(swarm.run(*prune).stdout)["removed"]
    assert {one["host"] for one in left} == set(swarm.hosts)  # no Ollama holds it in memory any more
    assert {one["tag"] or one["digest"] for one in left} <= {done["sha256"], f"small:{release}"}
    actions = [(one["action"], one["release"]) for one in swarm.history()]
    assert actions == [("deploy", release), ("share", release), ("promote", release), ("rollback", release)]
    assert all("@" in one["by"] for one in swarm.history())


def test_a_run_is_finished_on_the_host_where_it_lies(swarm, weights):
    run = Run("tiny-dpo-20261123-abc123", "worlock", str(swarm.data_dir["worlock"]), "tiny-dpo", "dpo",
              "small", str(weights), "", "2026-11-23T00:00:00.000Z", "somebody@somewhere")
    keep_run(swarm.paths, run)
    merged = swarm.data_dir["worlock"] / "runs" / run.id / "out" / "merged"
    early = swarm.run("deploy", run.id, status=1)
    assert f"run {run.id} has left no merged weights there" in early.stderr
    assert not list(swarm.data_dir["worlock"].glob("runs/*"))  # no job was begun for it
    shutil.copytree(changed(weights, 11), merged)
    done = json.loads(swarm.run("deploy", run.id, "--imatrix", "make", "--share", "0", "--json").stdout)
    assert done["stages"]["imatrix"]["tokens"] > 1000
    assert done["stages"]["imatrix"]["from"] == "text"  # this run has no data beside it
    kept = swarm.paths.releases / "small" / done["release"]
    assert (kept / "merged" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert json.loads((kept / "run.json").read_text())["run"] == run.id
    assert swarm.history()[-1]["run"] == run.id
    assert swarm.served()["worlock"][done["release"]]["share"] == 0.0
    assert [path.name for path in merged.parents[2].iterdir()] == [run.id]  # 16 bits are not left behind
    swarm.run("rollback", "small")
    unknown = swarm.run("deploy", "tiny-kto", "-m", "small", status=2)
    assert "no run is called 'tiny-kto'" in unknown.stderr
    assert run.id in unknown.stderr


def refused(swarm, source: Path, *more: str) -> str:
    """What a deploy that is refused says; nothing of it is served, and the reason is recorded."""
    before, served = swarm.history(), swarm.served()
    done = swarm.deploy(source, "--quantize", "F16", *more, status=1)
    assert swarm.served() == served
    new = swarm.history()[len(before):]
    assert [one["action"] for one in new] == ["refuse"]
    assert new[0]["reason"][:60] in done.stderr
    return new[0]["reason"]


def test_a_truncated_gguf_is_refused_with_the_numbers(swarm, tmp_path):
    whole = (shipped_model("small") / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:len(whole) - 50_000])
    reason = refused(swarm, tmp_path / "cut.gguf")
    assert f"20 tensors take {len(whole):,} bytes, and it has {len(whole) - 50_000:,}" in reason
    (tmp_path / "head.gguf").write_bytes(whole[:3000])
    assert "is not a whole GGUF file" in refused(swarm, tmp_path / "head.gguf")


def test_another_template_than_training_saw_is_refused(swarm, weights):
    from swarmctl.jobs.verify import CONVERSATIONS, render

    (weights / "rendered.json").write_text(json.dumps(render(weights, CONVERSATIONS)))
    file = weights / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["chat_template"] = config["chat_template"].replace("<|user|>", "### User: ")
    file.write_text(json.dumps(config))
    reason = refused(swarm, weights)
    assert "its chat template is not the one it was trained with" in reason
    assert "<|user|>" in reason
    assert "### User: " in reason


def test_a_template_that_the_server_reads_otherwise_is_refused(swarm, weights):
    file = weights / "tokenizer_config.json"
    config = json.loads(file.read_text())
    # transformers takes the file beside it, llama.cpp's converter and Ollama take the one in the config
    (weights / "chat_template.jinja").write_text(config["chat_template"])
    config["chat_template"] = config["chat_template"].replace("<|assistant|>", "<|user|>")
    file.write_text(json.dumps(config))
    reason = refused(swarm, weights)
    assert "differ from what its tokenizer makes of them" in reason
    assert "<|assistant|>' in training and " in reason
    assert "<|user|>' when served (they part at position 17)" in reason


def test_a_tokenizer_that_lost_its_end_is_refused(swarm, weights):
    file = weights / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["eos_token"] = None
    file.write_text(json.dumps(config))
    assert "has lost its end-of-sequence token" in refused(swarm, weights)


def test_a_quantisation_that_changes_the_model_is_refused_with_its_divergence(swarm, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(shipped_model("large"), folder)
    before = swarm.history()
    done = swarm.deploy(folder, "--quantize", "Q4_0", "--max-kl", "0.0001", status=1)
    assert "Q4_0 changes it too much: a mean divergence of 0." in done.stderr
    (record,) = swarm.history()[len(before):]
    assert record["evidence"]["perplexity"]["kl_mean"] > 0.001
    assert 0.5 < record["evidence"]["perplexity"]["perplexity_ratio"] < 2.0


def test_answers_that_never_end_are_refused(swarm, weights):
    file = weights / "config.json"
    config = json.loads(file.read_text())
    config["eos_token_id"] = 7
    file.write_text(json.dumps(config))
    for name in ("tokenizer_config.json",):
        config = json.loads((weights / name).read_text())
        config["eos_token"] = "<pad>"
        (weights / name).write_text(json.dumps(config))
    reason = refused(swarm, weights)
    assert "did not end by themselves" in reason or "ends with" in reason


@pytest.fixture
def canary(swarm, weights):
    """A release beside the champion, with half of the conversations, of which nobody has said anything
    yet."""
    made = json.loads(swarm.deploy(changed(weights, next(NUMBERS)), "--quantize", "F16", "--share",
                                   "0.5").stdout)
    yield made
    while (rolled := swarm.run("rollback", "small", status=None)).returncode == 0:
        pass
    assert "no release to take back" in rolled.stderr


def test_a_share_of_the_conversations_goes_to_the_canary_and_stays_there(swarm, canary):
    from swarmctl.dispatch.canary import chosen_by

    digests = {}
    for number in range(12):
        row = ask_json(swarm, "-m", "small", "-H", "worlock", f"{QUESTION} {number}")
        digests[row["conversation"]] = row["digest"]
        assert (row["digest"] == canary["sha256"]) == chosen_by(row["conversation"], 0.5)
    assert len(set(digests.values())) == 2
    row = ask_json(swarm, "-m", f"small:{canary['release']}", "-H", "worlock", QUESTION)
    assert (row["model"], row["digest"]) == ("small", canary["sha256"])
    swarm.run("canary", "small", "--share", "0")
    assert canary["sha256"] not in {ask_json(swarm, "-m", "small", QUESTION)["digest"] for _ in range(6)}
    shown = swarm.run("status").stdout
    assert canary["release"] in shown.replace("\n", "")


def test_a_canary_that_is_down_leaves_its_conversations_to_the_champion(swarm, canary):
    swarm.run("canary", "small", "--share", "1")
    entry = swarm.served()["worlock"][canary["release"]]
    pid = int((swarm.data_dir["worlock"] / "servers" / entry["server"] / "server.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        row = ask_json(swarm, "-m", "small", "-H", "worlock", QUESTION)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert row["digest"] != canary["sha256"]
    assert row["answer"]


def vote(swarm, canary: dict, champion: str, choices: str) -> None:
    """Blind comparisons, one for each letter: w the canary won, l it lost."""
    now = time.time()
    for number, choice in enumerate(choices):
        ids = [fresh_id(now + number + part) for part in (0.1, 0.2, 0.3)]
        for identity, digest in ((ids[0], canary["sha256"]), (ids[1], champion)):
            exchange = Exchange(
                id=identity, at=timestamp(now), messages=(Message("user", QUESTION),), answer="Paris",
                finish="stop", category="routine", host="worlock", runtime="llamacpp", model="small",
                digest=digest, template="", conversation=identity, via="compare")
            append(swarm.paths.journal, exchange.to_record())
        append(swarm.paths.journal, Comparison(
            id=ids[2], at=timestamp(now), a=ids[0], b=ids[1], model_a="small", model_b="small",
            category="routine", left=ids[0], choice="a" if choice == "w" else "b").to_record())


def test_clear_votes_roll_a_canary_back_and_say_so(swarm, canary):
    champion = swarm.served()["worlock"][""]["digest"]
    assert "nobody has said anything" in swarm.run("canary", "small", "--act").stdout
    vote(swarm, canary, champion, "lwl")
    assert swarm.run("canary", "small", "--act").stdout.startswith("keep: blind comparisons: 1 for")
    vote(swarm, canary, champion, "llllllllll")
    done = swarm.run("canary", "small", "--act")
    assert "11" not in done.stdout
    assert "blind comparisons: 1 for the canary, 12 against it" in done.stderr
    record = swarm.history()[-1]
    assert (record["action"], record["release"]) == ("rollback", canary["release"])
    assert "12 against it" in record["reason"]
    assert record["evidence"]["decision"] == "rollback"
    assert canary["release"] not in swarm.served()["worlock"]


def test_clear_votes_promote_a_canary(swarm, canary):
    swarm.run("compare", "--choice", "1", QUESTION)
    said = json.loads(swarm.run("canary", "small", "--json").stdout)
    assert said["decision"] == "keep"
    assert "evidence 1" in said["reasons"][0]
    vote(swarm, canary, swarm.served()["worlock"][""]["digest"], "wwwwwwwwwwww")
    swarm.run("canary", "small", "--act")
    assert list(swarm.served()["worlock"]) == [canary["release"]]
    assert swarm.history()[-1]["evidence"]["decision"] == "promote"


def test_rolling_back_while_people_ask_loses_no_question(swarm, canary):
    import threading

    swarm.run("promote", "small", "--yes")
    answers, over = [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(swarm.run("ask", "--json", "-m", "small", "-H", "worlock", QUESTION, status=None))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    swarm.run("rollback", "small")
    time.sleep(3)
    over.set()
    for thread in threads:
        thread.join(60)
    assert len(answers) > 4
    assert [one.stderr for one in answers if one.returncode] == []
    digests = [json.loads(one.stdout)["digest"] for one in answers]
    assert digests[0] == canary["sha256"]
    assert digests[-1] != canary["sha256"]


def until(process, text: str) -> None:
    """Wait for a line of a command's progress."""
    for line in process.stderr:
        if text.encode() in line:
            return
    raise AssertionError(f"it never said {text}")


#: lines of its progress
KILLED_AT = ("finish small", "put model", "measure the speed")


@pytest.mark.parametrize("mark", KILLED_AT)
def test_a_deploy_killed_anywhere_goes_on_and_does_nothing_twice(swarm, weights, mark):
    changed(weights, 100 + KILLED_AT.index(mark))
    with swarm.start("deploy", str(weights), "-m", "small", "-q", "F16", "--share", "0.25") as process:
        until(process, mark)
        if mark == "finish small":
            time.sleep(1)  # in the middle of it
        process.kill()
    done = json.loads(swarm.deploy(weights, "-q", "F16", "--share", "0.25").stdout)
    mine = [one["action"] for one in swarm.history() if one["release"] == done["release"]]
    assert mine == ["deploy", "share"]
    kept = [one.name for one in (swarm.paths.releases / "small").iterdir() if done["sha256"][:8] in one.name]
    assert kept == [done["release"]]
    assert swarm.served()["worlock"][done["release"]]["share"] == 0.25
    again = json.loads(swarm.deploy(weights, "-q", "F16", "--share", "0.25").stdout)
    assert again["already"]
    swarm.run("rollback", "small")


def test_two_terminals_deploy_at_once_and_each_gets_its_turn(swarm, weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    both = [swarm.start("deploy", str(folder), "-m", "small", "-q", "F16", "--json")
            for folder in (changed(weights, 201), changed(other, 202))]
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    releases = [json.loads(out)["release"] for out, _ in said]
    numbers = [int(release[1:].partition("-")[0]) for release in releases]
    assert abs(numbers[0] - numbers[1]) == 1
    later = releases[numbers.index(max(numbers))]
    assert set(swarm.served()["worlock"]) == {"", later}
    swarm.run("rollback", "small")


def test_a_host_that_is_off_gets_the_release_from_up_later(swarm, weights):
    if not swarm.ollama:
        pytest.skip("a second host needs SWARMCTL_TEST_OLLAMA")
    host = next(one for one in swarm.lab.hosts if one.name == "spinoza")
    host.stop()
    try:
        done = swarm.deploy(changed(weights, 301), "-q", "F16", status=3)
        assert "not yet on spinoza" in done.stderr
        release = json.loads(done.stdout)["release"]
        assert release in swarm.served()["worlock"]
    finally:
        host.start()
    swarm.run("up")
    assert swarm.served()["spinoza"][release]["tag"] == f"small:{release}"
    swarm.run("rollback", "small")
