"""Scores: counted from the journal's tail, always equal to what DuckDB counts from the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import comparison, exchange, paths_under, rating

from swarmctl.ledger import journal, store
from swarmctl.ledger import scores as module
from swarmctl.ledger.scores import scores

MODELS = ("tiny-small", "tiny-large")
CATEGORIES = ("routine", "complex", "code")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def write(paths, *rows):
    for row in rows:
        journal.append(paths.journal, row.to_record())


def cache(paths):
    return paths.state / "scores.json"


def test_with_no_journal_there_are_no_scores(paths):
    assert scores(paths) == {}


def test_stars_count_in_parts_and_the_latest_rating_stands(paths):
    first, second = exchange(1), exchange(2, category="code")
    write(paths, first, second, rating(10, first, score=1.0), rating(11, first, score=-0.5, stars=2))
    assert scores(paths) == {("tiny-small", "routine"): (0.25, 0.75)}
    write(paths, rating(12, second, score=0.0, stars=3))
    assert scores(paths) == {("tiny-small", "routine"): (0.25, 0.75), ("tiny-small", "code"): (0.5, 0.5)}


def test_taking_a_rating_back_brings_back_the_one_before(paths):
    row = exchange(1)
    good, bad = rating(10, row, score=1.0), rating(11, row, score=-1.0)
    write(paths, row, good, bad)
    assert scores(paths) == {("tiny-small", "routine"): (0.0, 1.0)}
    write(paths, rating(12, row, undoes=bad.id))
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}
    write(paths, rating(13, row, undoes=good.id))
    assert scores(paths) == {}


def test_a_comparison_counts_half(paths):
    small, large = exchange(1), exchange(2, model="tiny-large")
    write(paths, comparison(10, small, large, "b"), comparison(11, small, large, "tie"),
          comparison(12, small, large, "both-bad"))
    assert scores(paths) == {("tiny-small", "routine"): (0.0, 1.0), ("tiny-large", "routine"): (0.5, 0.5)}


def test_a_rating_without_a_score_says_nothing_of_quality(paths):
    row = exchange(1)
    write(paths, row, rating(10, row, score=None, comment="hm"))
    assert scores(paths) == {}


def test_when_nothing_is_new_the_cache_is_read_and_not_written(paths):
    write(paths, row := exchange(1), rating(10, row))
    scores(paths)
    os.utime(cache(paths), (1, 1))
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}
    write(paths, exchange(2))
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}
    assert cache(paths).stat().st_mtime == 1


def test_much_journal_without_ratings_is_not_read_again_every_time(paths):
    write(paths, row := exchange(1), rating(10, row))
    scores(paths)
    write(paths, exchange(2, answer="x" * (module.SLACK + 1)))
    os.utime(cache(paths), (1, 1))
    before = scores(paths)
    assert cache(paths).stat().st_mtime != 1
    os.utime(cache(paths), (1, 1))
    assert scores(paths) == before == {("tiny-small", "routine"): (1.0, 0.0)}
    assert cache(paths).stat().st_mtime == 1
    write(paths, rating(11, row, score=-1.0))
    assert scores(paths) == {("tiny-small", "routine"): (0.0, 1.0)}


def test_a_new_month_is_counted_with_the_old_one(paths):
    old, new = exchange(1), exchange(2)
    write(paths, old, rating(10, old))
    scores(paths)
    write(paths, rating(11, new, at="2026-12-01T00:00:00Z"))
    assert scores(paths) == {("tiny-small", "routine"): (2.0, 0.0)}
    write(paths, rating(12, old, score=-1.0, at="2026-12-02T00:00:00Z"))
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 1.0)}


def test_a_torn_tail_is_counted_when_it_is_whole(paths):
    row = exchange(1)
    write(paths, row)
    whole = b"\n" + journal.encode(rating(10, row).to_record()) + b"\n"
    with (paths.journal / "2026-11.jsonl").open("ab", buffering=0) as file:
        file.write(whole[:-1])
        assert scores(paths) == {}
        file.write(whole[-1:])
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}


@pytest.mark.parametrize("change", ["shorter", "gone", "rewritten"])
def test_a_journal_that_was_cut_is_counted_anew(paths, change):
    rows = [exchange(moment) for moment in range(6)]
    write(paths, *rows, *(rating(10 + place, row) for place, row in enumerate(rows)))
    assert scores(paths) == {("tiny-small", "routine"): (6.0, 0.0)}
    file = paths.journal / "2026-11.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    left = {"shorter": b"".join(lines[:-4]), "gone": b"", "rewritten": b"x" * 60_000}
    file.write_bytes(left[change])
    if change == "gone":
        file.unlink()
    assert scores(paths) == ({("tiny-small", "routine"): (4.0, 0.0)} if change == "shorter" else {})


def test_a_state_folder_that_cannot_be_written_costs_time_and_nothing_else(paths):
    paths.state.parent.mkdir(parents=True, exist_ok=True)
    paths.state.write_text("a file where the folder should be")
    write(paths, row := exchange(1), rating(10, row))
    assert scores(paths) == scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}


CACHES = st.one_of(
    st.binary(max_size=200), st.just(b"null\nnull"), st.just(b"[]"), st.just(b'{"version": 1}'),
    st.just(b'{"version": 1, "marks": {"2026-11.jsonl": -5}, "totals": []}\n[{}, [], {}]'),
    st.just(b'{"version": 1, "marks": {"2026-11.jsonl": 1e99}, "totals": []}\n'),
    st.just(b'{"version": 1, "marks": {"2026-11.jsonl": 999999}, "totals": []}\n[{}, [], {}]'),
    st.just(b'{"version": 1, "marks": {"../../etc/passwd": 1}, "totals": []}\n[{}, [], {}]'),
    st.just(b'{"version": 1, "marks": {}, "totals": []}\n[{"e": {"r": [1]}}, 5, {}]'),
    st.just(b"[" * 5000),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=CACHES)
def test_a_cache_of_any_bytes_is_thrown_away(paths, left):
    if not paths.journal.exists():
        write(paths, row := exchange(1), rating(10, row))
    cache(paths).parent.mkdir(parents=True, exist_ok=True)
    cache(paths).write_bytes(left)
    assert scores(paths) == {("tiny-small", "routine"): (1.0, 0.0)}


def test_votes_that_are_garbage_under_a_good_head_are_counted_anew(paths):
    write(paths, row := exchange(1), rating(10, row))
    scores(paths)
    head = cache(paths).read_bytes().partition(b"\n")[0]
    cache(paths).write_bytes(head + b"\n{{{")
    write(paths, other := exchange(2), rating(11, other))
    assert scores(paths) == {("tiny-small", "routine"): (2.0, 0.0)}


GRADES = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, None])
CHOICES = st.sampled_from(["a", "b", "tie", "both-bad"])
STEPS = st.lists(st.one_of(
    st.tuples(st.just("rate"), st.integers(0, 4), GRADES, st.booleans()),
    st.tuples(st.just("undo"), st.integers(0, 30), st.none(), st.booleans()),
    st.tuples(st.just("compare"), st.integers(0, 4), CHOICES, st.booleans()),
    st.tuples(st.just("tear"), st.integers(1, 40), st.none(), st.booleans()),
    st.tuples(st.just("forget"), st.none(), st.none(), st.booleans()),
    st.tuples(st.just("again"), st.integers(0, 30), st.none(), st.booleans()),
), max_size=25)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_scores_agree_with_duckdb_whatever_happened(tmp_path_factory, steps):
    paths = paths_under(tmp_path_factory.mktemp("history"))
    rows = [exchange(place, model=MODELS[place % 2], category=CATEGORIES[place % 3]) for place in range(5)]
    write(paths, *rows)
    made = []
    for moment, (what, which, value, count_now) in enumerate(steps):
        month = f"2026-{10 + moment % 3}-05T00:00:00Z"
        if what == "rate":
            made.append(rating(100 + moment, rows[which], score=value, at=month))
        elif what == "undo" and made:
            of = made[which % len(made)]
            made.append(rating(100 + moment, rows[0], undoes=of.id, at=month))
        elif what == "compare":
            made.append(comparison(100 + moment, rows[which], rows[which - 1], value))
        elif what == "tear":
            with (paths.journal / "2026-11.jsonl").open("ab") as file:
                file.write(b"\n" + journal.encode(rating(900, rows[0]).to_record())[:which])
            continue
        elif what == "forget":
            cache(paths).unlink(missing_ok=True)
            continue
        elif what == "again" and made:
            made.append(made[which % len(made)])
        if made:
            write(paths, made[-1])
        if count_now:
            scores(paths)
    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        counted = connection.execute("SELECT model, category, good, bad FROM scores").fetchall()
    assert scores(paths) == {(model, category): (good, bad) for model, category, good, bad in counted}


def test_processes_that_count_while_others_rate_end_with_the_same_scores(paths, tmp_path):
    code = ("import sys; from swarmctl.ledger import scores, journal; from swarmctl.paths import Paths\n"
            "paths = Paths.from_environ({'SWARMCTL_HOME': sys.argv[1], 'HOME': '/'})\n"
            "for n in range(40):\n"
            "    key = sys.argv[2] + str(n)\n"
            "    journal.append(paths.journal, {'kind': 'rating', 'id': key, 'at': '2026-11-23T10:00:00Z',\n"
            "        'exchange': key, 'model': 'm', 'category': 'code', 'score': 1.0})\n"
            "    assert scores.scores(paths)['m', 'code'][0] >= n + 1\n")
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abcdef"]
    assert [one.wait(60) for one in several] == [0] * 6
    assert scores(paths) == {("m", "code"): (240.0, 0.0)}
    cache(paths).unlink()
    assert scores(paths) == {("m", "code"): (240.0, 0.0)}
    assert list(paths.state.iterdir()) == [cache(paths)]
