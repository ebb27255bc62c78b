"""`swarmctl dataset` on a real journal: what becomes a row, what does not and why, and that TRL takes it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import comparison, exchange, paths_under, rating
from running import Cli

from swarmctl.errors import DiskFull, LedgerError, SwarmError, UsageError
from swarmctl.exchange import Message
from swarmctl.learning.labels import new_since, standing
from swarmctl.ledger import journal, snapshots, store
from swarmctl.ledger.labels import read_labels
from swarmctl.ledger.parquet import read_json_rows
from swarmctl.verbs.dataset import Wanted, build, check

NOW = 1_795_300_000.0
WORDS = ("river", "lamp", "stone", "cloud", "violin", "harbour", "pepper", "window", "ladder", "comet")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def write(paths, *rows):
    """Into the journal, as `journal.append` would, but for an fsync a row."""
    journal.make_private_folder(paths.journal)
    for row in rows:
        with (paths.journal / f"{row.at[:7]}.jsonl").open("ab") as file:
            file.write(b"\n" + journal.encode(row.to_record()) + b"\n")


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


@pytest.mark.slow
@pytest.mark.train
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


def test_the_better_of_a_blind_comparison_is_chosen_and_the_last_one_counts(paths):
    one, other = exchange(1, answer="four"), exchange(2, answer="22", model="tiny-large")
    write(paths, one, other, comparison(10, one, other, "b"), comparison(11, one, other, "a"))
    row = every_row(build(paths, Wanted(), NOW))[0]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("four", "22")


def test_a_correction_is_chosen_over_the_original(paths):
    write(paths, one := exchange(1, answer="5"), rating(10, one, -1.0, correction="four"))
    built = build(paths, Wanted(), NOW)
    row = every_row(built)[0]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("four", "5")
    assert built.card["sources"] == {"correction": 1}


@pytest.mark.parametrize(("better", "worse", "pairs"), [(5, 3, 1), (4, 2, 1), (3, 1, 1), (5, 4, 0),
                                                        (3, 2, 0)])
def test_two_stars_between_two_answers_make_a_pair_and_one_does_not(paths, better, worse, pairs):
    one, other = exchange(1, answer="four"), exchange(2, answer="22")
    write(paths, one, other, rating(10, one, (better - 3) / 2, stars=better),
          rating(11, other, (worse - 3) / 2, stars=worse))
    if pairs:
        assert every_row(build(paths, Wanted(), NOW))[0]["chosen"][0]["content"] == "four"
    else:
        with pytest.raises(SwarmError, match="nothing of what is recorded"):
            build(paths, Wanted(), NOW)


@pytest.mark.parametrize("changes", [
    {"messages": (Message("system", "be long"), Message("user", "what is two and two?"))},
    {"messages": (Message("user", "what is two and two?"),)},
    {"params": {"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]}},
    {"params": {"schema": {"type": "integer"}}},
])
def test_answers_to_another_prompt_system_or_tools_are_never_paired(paths, changes):
    one, other = exchange(1, answer="four"), exchange(2, answer="22", **changes)
    write(paths, one, other, rating(10, one, 1.0), rating(11, other, -1.0), comparison(12, one, other, "a"))
    with pytest.raises(SwarmError, match="nothing of what is recorded") as caught:
        build(paths, Wanted(), NOW)
    assert "not the same prompt, system and tools" in caught.value.hint


@pytest.mark.parametrize(("changes", "reason"), [
    ({"finish": "length"}, "cut off at the limit"), ({"finish": "cancelled"}, "stopped by its reader"),
    ({"finish": "error", "error": "refused"}, "failed"), ({"answer": " "}, "empty answer"),
    ({"answer": "four "}, "both answers are the same"),
])
def test_what_failed_was_cut_or_says_the_same_is_left_out_with_the_reason(paths, changes, reason):
    one, other = exchange(1, answer="four"), exchange(2, **{"answer": "22", **changes})
    write(paths, one, other, comparison(12, one, other, "a"))
    with pytest.raises(SwarmError) as caught:
        build(paths, Wanted(), NOW)
    assert f"1 left out: {reason}" in caught.value.hint


@pytest.mark.parametrize("choice", ["tie", "both-bad"])
def test_a_tie_is_no_pair(paths, choice):
    one, other = exchange(1, answer="four"), exchange(2, answer="22")
    write(paths, one, other, comparison(12, one, other, choice))
    with pytest.raises(SwarmError) as caught:
        build(paths, Wanted(), NOW)
    assert f"1 left out: {choice}" in caught.value.hint


def test_a_vote_that_was_taken_back_makes_no_row(paths):
    asked_twice(paths, 1)
    bad = rating(50_001, exchange(1), -1.0)
    write(paths, rating(60_000, exchange(1), undoes=bad.id))
    with pytest.raises(SwarmError, match="nothing of what is recorded"):
        build(paths, Wanted(), NOW)


VOTES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, -1.0, 0.5]), st.booleans()), max_size=12)


@settings(max_examples=20, deadline=None)
@given(votes=VOTES)
def test_what_stands_is_what_the_ledgers_view_says(tmp_path_factory, votes):
    paths = paths_under(tmp_path_factory.mktemp("votes"))
    rows = [exchange(place) for place in range(4)]
    write(paths, *rows)
    made = []
    for moment, (which, score, undo) in enumerate(votes):
        changes = {"undoes": made[which % len(made)].id} if undo and made else {}
        made.append(rating(100 + moment, rows[which], score, **changes))
        write(paths, made[-1])
    labels = read_labels(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        view = dict(connection.execute("SELECT exchange, id FROM current_ratings").fetchall())
    assert {key: vote.id for key, vote in standing(labels.votes).items()} == view
    assert new_since(labels, "") == len(view)


def test_a_choice_outweighs_ratings_that_contradict_it(paths):
    one, other = exchange(1, answer="four"), exchange(2, answer="22")
    write(paths, one, other, rating(10, one, -1.0), rating(11, other, 1.0), comparison(12, one, other, "a"))
    built = build(paths, Wanted(), NOW)
    assert [row["chosen"][0]["content"] for row in every_row(built)] == ["four"]
    assert built.card["dropped"] == {"contradicted by another vote": 1}


def test_votes_as_strong_on_both_sides_cancel(paths):
    rows = [exchange(place, answer=answer) for place, answer in enumerate(("four", "22", "four", "22"))]
    write(paths, *rows, *(rating(10 + place, row, score) for (place, row), score
                          in zip(enumerate(rows), (1.0, -1.0, -1.0, 1.0), strict=True)))
    with pytest.raises(SwarmError) as caught:
        build(paths, Wanted(), NOW)
    assert "contradicted by another vote" in caught.value.hint


def test_one_prompt_gives_no_more_rows_than_the_cap(paths):
    answers = [f"{WORDS[n]} {WORDS[n + 1]} and {WORDS[n + 2]} {n}" for n in range(8)]
    rows = [exchange(place, answer=answer) for place, answer in enumerate(answers)]
    write(paths, *rows, *(rating(10 + place, row, 1.0 if place % 2 else -1.0, at=minute(place))
                          for place, row in enumerate(rows)))
    built = build(paths, Wanted(cap=3), NOW)
    assert sum(built.card["rows"].values()) == 3
    assert built.card["dropped"] == {"more than 3 of one prompt": 13}


def test_only_the_wanted_models_answers_and_days_are_taken(paths):
    asked_twice(paths, 30)
    assert sum(build(paths, Wanted(model="tiny-large"), NOW).card["rows"].values()) == 30
    with pytest.raises(SwarmError) as caught:
        build(paths, Wanted(model="huge"), NOW)
    assert "30 left out: no answer of huge" in caught.value.hint
    with pytest.raises(SwarmError, match="nothing of what is recorded"):
        build(paths, Wanted(since="2026-11-19"), NOW)
    with pytest.raises(UsageError, match="no such time"):
        build(paths, Wanted(since="soon"), NOW)


def test_kto_takes_single_ratings_and_refuses_a_one_sided_set(paths):
    asked_twice(paths, 30)
    built = build(paths, Wanted(kind="kto"), NOW)
    labels = [row["label"] for row in every_row(built)]
    assert (labels.count(True), labels.count(False)) == (30, 30)
    assert all(row["reference"] == row["completion"][0]["content"] for row in rows_of(built, "heldout")
               if row["label"])
    other = paths_under(paths.data / "other")
    rows = [exchange(place, question) for place, question in enumerate(questions(30))]
    write(other, *rows, *(rating(100 + place, row, at=minute(place)) for place, row in enumerate(rows)))
    with pytest.raises(SwarmError, match="30 answers are liked and 0 disliked") as caught:
        build(other, Wanted(kind="kto"), NOW)
    assert "--kind dpo or sft" in caught.value.hint


def test_sft_takes_corrections_and_liked_answers_where_asked_for(paths):
    first, second = exchange(1, "name a river"), exchange(2, "name a planet")
    write(paths, first, second, rating(10, first, -1.0, correction="the Nile"), rating(11, second, 1.0))
    assert [row["completion"][0]["content"] for row in every_row(build(paths, Wanted(kind="sft"),
                                                                       NOW))] == ["the Nile"]
    both = every_row(build(paths, Wanted(kind="sft", liked=True), NOW))
    assert {row["completion"][0]["content"] for row in both} == {"the Nile", "four"}


def test_tools_that_were_offered_go_into_a_column_that_trl_reads(paths):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    one = exchange(1, answer="four", params={"tools": tools})
    other = exchange(2, answer="22", params={"tools": tools})
    write(paths, one, other, comparison(12, one, other, "a"))
    assert json.loads(every_row(build(paths, Wanted(), NOW))[0]["tools"]) == tools


def test_building_again_gives_the_dataset_that_is_there(paths):
    asked_twice(paths, 30)
    first, again = build(paths, Wanted(), NOW), build(paths, Wanted(), NOW + 90_000)
    assert (first.new, again.new) == (True, False)
    assert first.snapshot == again.snapshot
    assert [path.name for path in paths.datasets.iterdir()] == [first.snapshot.name]


def test_every_row_can_be_traced_to_its_exchanges_and_ratings(paths):
    asked_twice(paths, 30)
    built = build(paths, Wanted(), NOW)
    lineage = read_json_rows(built.snapshot.folder / "lineage.parquet")
    assert len(lineage) == 30
    known = {row["id"] for row in journal.read(paths.journal)}
    for line in lineage:
        assert {*line["exchanges"], *line["ratings"]} <= known
        assert len(line["exchanges"]) == len(line["ratings"]) == 2
    assert built.card["until"] == max(row["id"] for row in journal.read(paths.journal)
                                      if row["kind"] == "rating")
    assert new_since(read_labels(paths), built.card["until"]) == 0


@pytest.mark.parametrize("hurt", ["train.parquet", "lineage.parquet", "README.md", "card.json"])
def test_a_dataset_that_was_changed_is_found_out(paths, hurt):
    asked_twice(paths, 30)
    built = build(paths, Wanted(), NOW)
    assert check(paths, built.snapshot.name) == (built.snapshot, ())
    file = built.snapshot.folder / hurt
    file.chmod(0o600)
    if hurt == "card.json":
        card = json.loads(file.read_text())
        file.write_text(json.dumps({**card, "sha256": "0" * 64}))
    else:
        file.write_bytes(file.read_bytes() + b" ")
    _, wrong = check(paths, built.snapshot.name)
    assert wrong
    file.unlink()
    if hurt != "card.json":
        assert check(paths, built.snapshot.name)[1] == (f"{hurt} is missing",)


def test_what_a_killed_build_left_is_cleared_and_never_listed(paths):
    asked_twice(paths, 30)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    left = paths.datasets / f".dpo-20261121-00000000.{ended.pid}.part"
    left.mkdir(parents=True)
    assert snapshots.snapshots(paths) == ()
    build(paths, Wanted(), NOW)
    assert not left.exists()


def test_a_folder_that_cannot_be_written_leaves_nothing(paths):
    asked_twice(paths, 30)
    paths.datasets.write_text("a file where the folder should be")
    with pytest.raises(LedgerError, match="cannot"):
        build(paths, Wanted(), NOW)
    assert paths.datasets.read_text().startswith("a file")


def test_a_full_disk_leaves_nothing_and_says_so(paths):
    asked_twice(paths, 200)
    paths.datasets.mkdir(parents=True)
    if os.geteuid():
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(paths.datasets)],
                             capture_output=True, text=True, timeout=10)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(DiskFull, match="the disk is full"):
            build(paths, Wanted(), NOW)
        assert list(paths.datasets.iterdir()) == []
    finally:
        subprocess.run(["umount", str(paths.datasets)], check=True, timeout=10)
    assert build(paths, Wanted(), NOW).new


def test_a_secret_or_an_address_keeps_its_row_out_unless_it_is_wanted(paths):
    secret = "AKIA" + "QWERTYUIOPASDFGH"
    one, two = exchange(1, f"is {secret} a good key?"), exchange(2, "who is anna.smith@firma.de?")
    fine = exchange(3, "name a river")
    write(paths, one, two, fine, *(rating(10 + n, row, -1.0, correction="no") for n,
                                   row in enumerate((one, two, fine))))
    built = build(paths, Wanted(), NOW)
    assert len(every_row(built)) == 1
    assert built.card["flags"] == {"AWS key": 1, "e-mail address": 1}
    assert built.card["dropped"] == {"flagged: a secret or personal data": 2}
    assert secret not in (built.snapshot.folder / "README.md").read_text()
    assert len(every_row(build(paths, Wanted(keep_flagged=True), NOW))) == 3


def test_a_flood_of_ratings_is_left_out_and_what_it_covered_stands_again(paths):
    asked_twice(paths, 30)
    bot = [rating(90_000 + place, exchange(4 * place + 1), 1.0, terminal="bot",
                  at=f"2026-11-20T10:00:{place:02d}Z")
           for place in range(30)]
    write(paths, *bot)
    built = build(paths, Wanted(), NOW)
    assert len(every_row(built)) == 30
    assert built.card["dropped"] == {"part of a flood of ratings": 30}
    assert built.card["raters"] == [
        "left out: bot: 30 answers liked in 29 s, none read for more than 2 s"]


def test_a_rater_who_contradicts_everybody_is_named_and_can_be_left_out(paths):
    asked_twice(paths, 30)
    for place in range(12):
        for offset, score in ((0, -1.0), (1, 1.0)):
            write(paths, rating(90_000 + 10 * place + offset, exchange(4 * place + offset,
                                                                       questions(30)[place]), score,
                                terminal="mallory", at=f"2026-11-20T{place:02d}:{offset}0:00Z"))
    built = build(paths, Wanted(), NOW)
    assert built.card["raters"] == ["mallory and pts-1 say the opposite of 24 of 24 answers that both rated"]
    for place in range(12):
        for offset, score in ((0, 1.0), (1, -1.0)):
            write(paths, rating(95_000 + 10 * place + offset, exchange(4 * place + offset), score,
                                terminal="carol", at=f"2026-11-20T{place:02d}:{offset}5:00Z"))
    raters = build(paths, Wanted(), NOW).card["raters"]
    assert raters == ["mallory agrees with the others on 0 of 24 answers that they rated too"]
    fair = build(paths, Wanted(without=("mallory",)), NOW)
    assert fair.card["raters"] == []
    assert fair.card["dropped"] == {"of a rater who was left out": 24}
    assert all(row["chosen"][0]["content"].startswith("it is") for row in every_row(fair))


def test_a_training_row_that_is_nearly_a_held_out_prompt_goes(paths):
    from swarmctl.learning.split import group_of, held_out

    long = "please explain to me in a few words how the great river of the north was crossed by ferry " * 3
    variants = [f"{long} {word}" for word in (*WORDS, *(f"{word}s" for word in WORDS))]
    system = Message("system", "be brief")
    held = [text for text in variants if held_out(group_of((system, Message("user", text))))]
    free = [text for text in variants if text not in held]
    assert held
    assert free
    for place, text in enumerate((held[0], free[0])):
        write(paths, one := exchange(place, text), rating(100 + place, one, -1.0,
                                                          correction=f"by night {place}"))
    write(paths, one := exchange(5, "name a river"), rating(105, one, -1.0, correction="the Nile"))
    built = build(paths, Wanted(), NOW)
    assert built.card["dropped"] == {"nearly a held-out prompt": 1}
    assert built.card["rows"]["heldout"] == 1


def test_the_length_gap_is_told_and_warned_of(paths):
    asked_twice(paths, 40)
    card = build(paths, Wanted(), NOW).card
    assert card["length_gap"]["chosen_longer"] == 0
    assert card["length_gap"]["rejected_mean"] > card["length_gap"]["chosen_mean"]
    assert any("shorter in 100% of pairs" in line for line in card["warnings"])


def test_a_person_builds_lists_shows_and_checks(paths, tmp_path):
    asked_twice(paths, 30)
    cli = Cli(paths, tmp_path)
    first = cli.run("dataset", "build")
    assert "nothing is new" not in first.stderr
    name = first.stdout.partition(":")[0]
    assert "nothing is new" in cli.run("dataset", "build").stderr
    assert "would be: sft" in cli.run("dataset", "build", "--kind", "sft", "--liked", "--dry-run").stdout
    listed = json.loads(cli.run("dataset", "list", "--json").stdout)
    assert [one["name"] for one in listed] == [name]
    assert "rejected" in cli.run("dataset", "show", name[:8], "-n", "1").stdout
    assert f"{name} is as it was written" in cli.run("dataset", "check", "latest:dpo").stdout
    shutil.rmtree(paths.datasets / name)
    assert "there are" not in cli.run("dataset", "show", name, status=2).stderr
    cli.run("dataset", "build", "--kind", "ppo", status=2)


def test_two_builds_at_once_make_one_dataset(paths, tmp_path):
    asked_twice(paths, 30)
    cli = Cli(paths, tmp_path)
    several = [cli.start("dataset", "build", "--json") for _ in range(3)]
    ended = [one.communicate(timeout=120) for one in several]
    assert [one.returncode for one in several] == [0, 0, 0], ended
    assert len(list(paths.datasets.iterdir())) == 1
