"""`swarmctl dataset` on a real journal: what becomes a row, what does not and why, and that TRL takes it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import exchange, paths_under, rating

from swarmctl.errors import SwarmError
from swarmctl.ledger import journal, snapshots
from swarmctl.ledger.parquet import read_json_rows
from swarmctl.verbs.dataset import Wanted, build

NOW = 1_795_300_000.0
WORDS = ("river", "lamp", "stone", "cloud", "violin", "harbour", "pepper", "window", "ladder", "comet")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def write(paths, *rows):
    for row in rows:
        journal.append(paths.journal, row.to_record())


def questions(count):
    """Questions that are no duplicates of each other."""
    return [f"tell me about the {WORDS[n % 10]} of {WORDS[n // 10 % 10]} {WORDS[n // 100]}"
            for n in range(count)]


def asked_twice(paths, count, start=0):
    """Each question asked twice: one answer liked, the other disliked."""
    for place, question in enumerate(questions(count), start):
        good = exchange(4 * place, question, f"it is {question.split()[4]}")
        bad = exchange(4 * place + 1, question, f"well, let me think, {question} is hard to say",
                       model="tiny-large")
        write(paths, good, bad, rating(50_000 + 10 * place, good, 1.0, at=minute(place)),
              rating(50_001 + 10 * place, bad, -1.0, at=minute(place)))


def minute(place):
    return f"2026-11-18T{place // 60 % 24:02d}:{place % 60:02d}:00Z"


def rows_of(built, split="train"):
    return read_json_rows(built.snapshot.folder / f"{split}.parquet")


def every_row(built):
    return rows_of(built) + rows_of(built, "heldout")


def trains(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_an_empty_ledger_makes_no_dataset_and_says_what_would(paths):
    with pytest.raises(SwarmError, match="nothing of what is recorded makes a dpo row") as caught:
        build(paths, Wanted(), NOW)
    assert "compare" in caught.value.hint
    assert not paths.datasets.exists()


def test_the_same_question_liked_and_disliked_makes_a_pair(paths):
    asked_twice(paths, 40)
    built = build(paths, Wanted(), NOW)
    rows = every_row(built)
    assert len(rows) == 40
    assert built.card["rows"] == {"train": len(rows_of(built)), "heldout": len(rows_of(built, "heldout"))}
    assert built.card["sources"] == {"regenerated": 40}
    first = rows_of(built)[0]
    assert [turn["role"] for turn in first["prompt"]] == ["system", "user"]
    assert first["chosen"][0]["content"].startswith("it is")
    assert first["rejected"][0]["content"].startswith("well, let me think")
    assert set(first) == {"prompt", "chosen", "rejected"}
    held = rows_of(built, "heldout")[0]
    assert held["reference"] == held["chosen"][0]["content"]
    assert built.snapshot.name == f"dpo-20261121-{built.card['sha256'][:8]}"


def test_datasets_loads_the_folder_and_trl_trains_on_it(paths, tmp_path):
    trains("datasets", "trl", "peft")
    asked_twice(paths, 60)
    for kind in ("dpo", "kto", "sft"):
        build(paths, Wanted(kind=kind, liked=True), NOW)
    script = Path(__file__).with_name("trained_on.py")
    done = subprocess.run([sys.executable, script, paths.datasets, tmp_path], capture_output=True, text=True,
                          timeout=280, env={**os.environ, "HF_HUB_OFFLINE": "1",
                                            "HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 0, done.stderr[-4000:]
    trained = json.loads(done.stdout.splitlines()[-1])
    assert {kind: one["steps"] for kind, one in trained.items()} == {"dpo": 2, "kto": 2, "sft": 2}
    for kind, one in trained.items():
        card = snapshots.find(paths, f"latest:{kind}").card
        assert (one["train"], one["test"]) == (card["rows"]["train"], card["rows"]["heldout"])
        assert one["kept"] == card["rows"]["train"]
