"""What exchanges teach, and what is remembered of hosts that did not answer."""

from __future__ import annotations

import pytest

from swarmctl.dispatch.habits import fold, learn, read_habits
from swarmctl.dispatch.marks import FIRST_PAUSE, LONGEST_PAUSE, clear_mark, mark_down, read_mark
from swarmctl.exchange import Timings
from swarmctl.fleet.snapshot import Served
from swarmctl.paths import Paths
from swarmctl.routing.cost import Habits

SERVED = Served(runtime="llamacpp", server="m", model="m", digest="d1", template="t", port=1, context=1,
                parallel=1,
                parameters=1, size=1, quantisation="F16", prefill_speed=100.0, decode_speed=10.0)
EXCHANGE = Timings(prompt_tokens=100, cached_tokens=0, prompt_seconds=0.5, completion_tokens=40,
                   decode_seconds=2.0,
                   total_seconds=2.6)


@pytest.fixture
def paths(tmp_path):
    return Paths.from_environ({"SWARMCTL_HOME": str(tmp_path), "HOME": str(tmp_path)})


def test_every_exchange_moves_the_speeds_towards_what_was_seen():
    after = fold(Habits(100.0, 10.0), category="routine", characters=300, finish="stop", timings=EXCHANGE)
    assert after.prefill_speed == pytest.approx(0.8 * 100 + 0.2 * 200)
    assert after.decode_speed == pytest.approx(0.8 * 10 + 0.2 * 20)
    assert after.answer_tokens["routine"] == pytest.approx(40)


def test_a_short_sample_says_nothing_about_speed_and_a_cut_answer_nothing_about_length():
    short = Timings(prompt_tokens=5, cached_tokens=0, prompt_seconds=1, completion_tokens=2, decode_seconds=1)
    after = fold(Habits(100.0, 10.0), category="routine", characters=15, finish="length", timings=short)
    assert (after.prefill_speed, after.decode_speed, after.answer_tokens) == (100.0, 10.0, {})


def test_cached_tokens_are_not_counted_as_read():
    cached = Timings(prompt_tokens=100, cached_tokens=95, prompt_seconds=0.001)
    assert fold(Habits(100.0, 10.0), category="code", characters=300, finish="stop",
                timings=cached).prefill_speed == 100


def test_habits_survive_on_disk_and_belong_to_one_model_file(paths):
    learn(paths, "worlock", "m", "d1", read_habits(paths, "worlock", SERVED), category="routine",
          characters=300,
          finish="stop", timings=EXCHANGE)
    assert read_habits(paths, "worlock", SERVED).decode_speed == pytest.approx(12)
    from dataclasses import replace

    assert read_habits(paths, "worlock", replace(SERVED, digest="d2")).decode_speed == 10.0


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"digest": "d1"}', '{"digest": "d1", "nonsense": 1}',
                                     '{"digest": "d1", "answer_tokens": {}, "prefill_speed": "x"}',
                                     "\0\0"])
def test_garbage_in_a_habits_file_falls_back_to_what_up_measured(paths, garbage):
    path = paths.state / "habits" / "worlock@m.json"
    path.parent.mkdir(parents=True)
    path.write_text(garbage)
    assert read_habits(paths, "worlock", SERVED) == Habits(100.0, 10.0)


def test_a_host_is_left_alone_longer_with_each_failure_in_a_row(paths):
    pauses = [mark_down(paths, "worlock", "no route", 1000.0).until - 1000.0 for _ in range(8)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    clear_mark(paths, "worlock")
    assert read_mark(paths, "worlock") is None


@pytest.mark.parametrize("garbage", ["", "{}", "[1]", '{"host": 1}'])
def test_garbage_in_a_mark_is_no_mark(paths, garbage):
    path = paths.state / "down" / "worlock.json"
    path.parent.mkdir(parents=True)
    path.write_text(garbage)
    assert read_mark(paths, "worlock") is None
