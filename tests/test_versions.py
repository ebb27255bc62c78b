"""Which version stays, which is wanted, which is held; and what makes one worse. As data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_plan import FACTS
from waiting import until

from swarmctl.facts import RuntimeSeen, ServerSeen, Speed, VersionChange
from swarmctl.facts.own import versions_seen
from swarmctl.fleet.standing import read_aside, set_aside, upgrading
from swarmctl.inventory import Host, LlamaCppWish, OllamaWish, Placement
from swarmctl.paths import Paths
from swarmctl.runtimes.base import Want
from swarmctl.runtimes.llamacpp_build import LLAMACPP
from swarmctl.runtimes.ollama_serve import OLLAMA
from swarmctl.runtimes.regression import Answer, Sample, better_of, drift, garbled, slower
from swarmctl.runtimes.versions import (
    archive_hash,
    arrival,
    held,
    in_force,
    installed,
    version_notes,
    version_to_run,
    wanted_version,
)

SPEED = Speed(1000.0, 50.0)


def builds(*versions, runtime="llamacpp"):
    keys = [f"{one}-linux-x86_64-cpu-1" if runtime == "llamacpp" else one for one in versions]
    return tuple(RuntimeSeen(runtime, key, f"/d/runtimes/{runtime}/{key}") for key in keys)


def host(*changes, runtimes=(), servers=()):
    return replace(FACTS, runtimes=runtimes, servers=servers,
                   versions=tuple(VersionChange("llamacpp", *change) for change in changes))


def want(version=None, **more):
    return Want(Host("a", "a", llamacpp=LlamaCppWish(version=version, **more), models=(Placement("m"),)))


@pytest.mark.parametrize(("seen", "version"), [
    (host(), None),
    (host(runtimes=builds("0.3.35", "0.3.9")), "0.3.35"),
    (host(runtimes=builds("0.3.35", "0.3.36"),
          servers=(ServerSeen("m", "", 1, 2, build="0.3.35-linux-x86_64-cpu-1"),)), "0.3.35"),
    (host(("begun", "0.3.35", "0.3.36"), runtimes=builds("0.3.35", "0.3.36")), "0.3.35"),
    (host(("begun", "0.3.35", "0.3.36"), ("kept", "0.3.36", "0.3.35")), "0.3.36"),
    (host(("kept", "0.3.36", "0.3.35"), ("rolled-back", "0.3.35", "0.3.36")), "0.3.35"),
])
def test_the_history_says_what_is_in_force_else_what_serves_else_the_newest(seen, version):
    assert in_force("llamacpp", seen) == version


def test_only_a_host_without_a_version_gets_the_wanted_one_at_once():
    assert version_to_run("llamacpp", want("0.3.40"), host()) == "0.3.40"
    assert version_to_run("llamacpp", want("0.3.40"), host(runtimes=builds("0.3.36"))) == "0.3.36"
    told = replace(want("0.3.40"), versions={"llamacpp": "0.3.50"})
    assert version_to_run("llamacpp", told, host(runtimes=builds("0.3.36"))) == "0.3.50"


def test_nothing_is_downgraded_where_the_inventory_names_no_version():
    newer = host(runtimes=builds("0.3.99"))
    assert wanted_version("llamacpp", want(), newer) == "0.3.99"
    assert wanted_version("llamacpp", want("0.3.30"), newer) == "0.3.30"
    assert wanted_version("llamacpp", want(), host(runtimes=builds("0.3.30"))) == LLAMACPP
    ollama = Want(Host("a", "a", ollama=OllamaWish()))
    assert wanted_version("ollama", ollama, host()) == OLLAMA


def test_a_version_that_was_left_is_held_until_it_is_kept():
    left = ("returned", "0.3.35", "0.3.36", "2026-11-02T10:00:00+00:00", "me", ("m: slower",))
    assert set(held("llamacpp", host(left))) == {"0.3.36"}
    assert set(held("llamacpp", host(left, ("begun", "0.3.35", "0.3.36")))) == {"0.3.36"}
    assert not held("llamacpp", host(left, ("kept", "0.3.36", "0.3.35")))
    assert not held("llamacpp", host(("undecided", "0.3.35", "0.3.36")))
    assert list(version_notes(want("0.3.36"), host(left), ("llamacpp",))) == [
        "llama.cpp 0.3.35 stays: 0.3.36 was left on 2026-11-02 (m: slower); "
        "`swarmctl upgrade a --to 0.3.36` tries it again"]
    assert list(version_notes(want("0.3.37"), host(left), ("llamacpp",))) == [
        "llama.cpp 0.3.35 runs, 0.3.37 is wanted: `swarmctl upgrade` moves it"]
    assert list(version_notes(want("0.3.35"), host(left), ("llamacpp",))) == []


def test_each_rollback_goes_one_version_further_back():
    first, second = ("kept", "0.3.35", "0.3.34"), ("kept", "0.3.36", "0.3.35")
    assert arrival("llamacpp", host(first, second)).other == "0.3.35"
    back = ("rolled-back", "0.3.35", "0.3.36")
    assert arrival("llamacpp", host(first, second, back)).other == "0.3.34"
    assert arrival("llamacpp", host(runtimes=builds("0.3.36"))) is None
    assert arrival("llamacpp", host(("returned", "0.3.36", "0.3.37"))) is None


def test_the_hash_of_an_archive_is_that_of_the_version_it_was_named_for():
    named = want("0.3.40", sha256="e" * 64)
    assert archive_hash("llamacpp", named, "0.3.40") == "e" * 64
    assert archive_hash("llamacpp", named, "0.3.41") is None
    assert installed("llamacpp", host(runtimes=builds("0.3.9", "0.3.35"))) == ("0.3.9", "0.3.35")


def test_torn_and_foreign_lines_of_a_history_are_passed_over():
    good = VersionChange("ollama", "kept", "0.34.0", "0.33.0", "2026", "me", ("w",), {"m": SPEED},
                         {"m": SPEED})
    lines = (json.dumps(asdict(good)), json.dumps(asdict(good))[:40], "", "[]", '{"event": "kept"}', "null",
             json.dumps({**asdict(good), "event": "burnt"}),
             json.dumps({**asdict(good), "before": {"m": {"decode": "fast"}}}))
    found = versions_seen({"versions": lines})
    assert found == (good, replace(good, before={}))


def test_slower_than_asked_is_said_with_the_numbers():
    assert slower("m", SPEED, replace(SPEED, decode=40.0)) == ()
    assert slower("m", SPEED, replace(SPEED, decode=39.0)) == (
        "m: decode 50 → 39 tokens/s (0.78 of before, 0.80 is asked)",)
    assert slower("m", SPEED, replace(SPEED, prefill=1.0), 0.0) == ()
    assert slower("vectors", Speed(10.0, 0.0), Speed(10.0, 0.0)) == (), "an embedding model decodes nothing"
    assert better_of(SPEED, Speed(1.0, 60.0)) == Speed(1000.0, 60.0)


def answers(*texts, finish="stop"):
    return Sample(SPEED, tuple(Answer(text, finish) for text in texts))


OLD = answers("Paris", "The sum is 42.", "Hello there!", "Yes, it is.", "def add(a, b):", "One, two")


@pytest.mark.parametrize("new", [
    OLD,
    answers("Paris", "The sum is 41.", "Hello you!", "Yes.", "def sum(x, y):", "One and two"),
    answers("Rome", "A sum", "Hello", "Yes", "def f():", "One, two"),
    replace(OLD, answers=(*OLD.answers[:5], Answer("the server dropped it", "error"))),
])
def test_answers_that_drift_are_no_regression(new):
    assert garbled("m", OLD, new) == ()
    assert "greedy answers are the same" in drift("m", OLD, new)


@pytest.mark.parametrize(("new", "said"), [
    (answers(*[""] * 6), r"6 of 6 answers are none any more \(''\)"),
    (answers(*["\ufffd\ufffd a"] * 6), "6 of 6 answers are none"),
    (answers(*["GG " * 40] * 6), "6 of 6 answers are none"),
    (replace(OLD, answers=(*OLD.answers[:4], *[Answer("no answer within 60 s", "error")] * 2)),
     r"2 of 6 answers are none any more \(no answer within 60 s\)"),
    (answers(*[answer.text for answer in OLD.answers], finish="length"), "which does not end"),
    (answers(*[f"qua {n}" for n in range(6)]), "6 of 6 greedy answers begin with another word"),
])
def test_garbage_is_a_regression(new, said):
    (line,) = garbled("m", OLD, new)
    assert line.startswith("m: ")
    assert re.search(said, line), line


def test_what_was_garbage_before_is_not_asked_to_be_better():
    assert garbled("m", answers("", ""), answers("", "")) == ()


def test_vectors_may_round_but_not_turn():
    def vectors(*rows):
        return Sample(SPEED, vectors=rows)

    was = vectors((1.0, 0.0), (0.0, 1.0))
    assert garbled("m", was, vectors((0.999, 0.01), (0.0, 1.0))) == ()
    assert "cosine 1.0000" in drift("m", was, was)
    for turned in (vectors((0.0, 1.0), (0.0, 1.0)), vectors((1.0, 0.0)), vectors((1.0,), (0.0,))):
        assert "its vectors changed" in garbled("m", was, turned)[0]


UPGRADER = """
import sys, time
from swarmctl.fleet.standing import upgrading
from swarmctl.paths import Paths
with upgrading(Paths.from_environ({"SWARMCTL_HOME": sys.argv[1], "HOME": sys.argv[1]}), "a", 5.0):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_host_is_set_aside_for_as_long_as_its_upgrader_lives(tmp_path):
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})
    process = subprocess.Popen((sys.executable, "-c", UPGRADER, str(tmp_path)), stdout=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert process.stdout.readline() == "in\n"
    aside = read_aside(paths, "a")
    assert aside.state == "upgrading"
    assert "comes back by itself" in aside.why
    process.kill()
    process.communicate(timeout=60)
    until(lambda: read_aside(paths, "a") is None)


def test_a_persons_word_outlives_an_upgrade(tmp_path):
    paths = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})
    set_aside(paths, "a", "cordoned", 1.0)
    with upgrading(paths, "a", 5.0):
        assert read_aside(paths, "a").state == "cordoned"
    assert read_aside(paths, "a").state == "cordoned"
    with upgrading(paths, "b", 5.0):
        set_aside(paths, "b", "cordoned", 6.0)
    assert read_aside(paths, "b").state == "cordoned"
    with upgrading(paths, "c", 5.0):
        assert read_aside(paths, "c").state == "upgrading"
    assert read_aside(paths, "c") is None
