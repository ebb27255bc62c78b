"""What exchanges teach, and what is remembered of hosts that did not answer."""

from __future__ import annotations

import gc
import json
import socket
import time
import weakref
from dataclasses import asdict, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_routing import SMALL
from waiting import until

from swarmctl.dispatch.habits import learn, read_habits
from swarmctl.dispatch.marks import FIRST_PAUSE, LONGEST_PAUSE, clear_mark, mark_down, read_mark
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.dispatch.verify import verification
from swarmctl.exchange import Timings
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
from swarmctl.paths import Paths
from swarmctl.routing.cost import Habits, Question, Standing, Tariff, price
from swarmctl.routing.latency import HALF_LIFE, fold, forecast

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


def after_lengths(*lengths: int, habits: Habits | None = None, age: float = 0.0) -> Habits:
    habits = habits or Habits(100.0, 10.0)
    for length in lengths:
        habits = fold(habits, category="routine", characters=300, finish="stop",
                      timings=replace(EXCHANGE, completion_tokens=length), age=age)
    return habits


def test_the_first_answers_teach_their_length_soon_and_one_of_many_moves_it_little():
    assert after_lengths(90).answer_tokens["routine"] == pytest.approx(40 + (90 - 40) / 5)
    settled = after_lengths(*[100] * 400)
    assert settled.answer_tokens["routine"] == pytest.approx(100, rel=0.01)
    long_one = after_lengths(1100, habits=settled)
    assert long_one.answer_tokens["routine"] == pytest.approx(120, rel=0.01)


def test_lengths_that_change_for_good_are_learned_anew():
    settled = after_lengths(*[100] * 400)
    assert after_lengths(*[300] * 150, habits=settled).answer_tokens["routine"] > 280
    assert after_lengths(300, habits=settled, age=10 * HALF_LIFE).answer_tokens["routine"] > 130


def test_cached_tokens_are_not_counted_as_read():
    cached = Timings(prompt_tokens=100, cached_tokens=95, prompt_seconds=0.001)
    assert fold(Habits(100.0, 10.0), category="code", characters=300, finish="stop",
                timings=cached).prefill_speed == 100


def priced(habits: Habits, busy: int = 0, **more):
    candidate = replace(SMALL, host="worlock", server="m", digest="d1", habits=habits, **more)
    return price(Question("routine", 300), candidate, Standing(busy=busy, slots=4), Tariff())


def test_habits_survive_on_disk_and_belong_to_one_model_file(paths):
    at = priced(read_habits(paths, "worlock", SERVED))
    learn(paths, at, category="routine", characters=300, finish="stop", timings=EXCHANGE)
    after = read_habits(paths, "worlock", SERVED)
    assert after.decode_speed == pytest.approx(12)
    assert after.answers_seen == {"routine": 1.0}
    assert set(after.errors) == {"prefill", "decode"}, "nothing was loaded, and no first token was timed"
    assert read_habits(paths, "worlock", replace(SERVED, digest="d2")).decode_speed == 10.0


def test_what_another_terminal_taught_meanwhile_is_not_forgotten(paths):
    at = priced(read_habits(paths, "worlock", SERVED))
    for _ in range(2):
        learn(paths, at, category="routine", characters=300, finish="stop", timings=EXCHANGE)
    assert read_habits(paths, "worlock", SERVED).decode_speed == pytest.approx(13.6, rel=1e-3)


def test_habits_written_by_an_earlier_version_are_read(paths):
    path = paths.state / "habits" / "worlock@m.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"digest": "d1", "prefill_speed": 5, "decode_speed": 6, "overhead": 0, '
                    '"characters_per_token": 3, "answer_tokens": {}}')
    assert read_habits(paths, "worlock", SERVED) == Habits(5.0, 6.0)


def test_what_is_old_counts_less_and_after_long_hardly():
    def speed(age: float) -> float:
        return fold(Habits(100.0, 10.0), category="routine", characters=300, finish="stop", timings=EXCHANGE,
                    age=age).decode_speed

    assert speed(0) == pytest.approx(12)
    assert speed(HALF_LIFE) == pytest.approx(16)
    assert speed(30 * HALF_LIFE) == pytest.approx(20)


def test_a_speed_in_company_teaches_what_company_costs_and_not_the_speed():
    slow = replace(EXCHANGE, decode_seconds=8.0)  # half as fast as alone, with two beside it
    habits = Habits(100.0, 10.0)
    for _ in range(30):
        habits = fold(habits, category="routine", characters=300, finish="stop", timings=slow, company=2)
    assert habits.decode_speed == 10.0
    assert habits.crowding == pytest.approx(0.5, rel=0.01)
    alone, beside = priced(habits), priced(habits, busy=2)
    assert beside.decode - habits.overhead == pytest.approx(2 * (alone.decode - habits.overhead), rel=0.01)


def test_a_server_known_for_its_tail_is_late_later():
    def late_after(firsts: list[float]) -> float:
        habits = Habits(100.0, 10.0)
        for first in firsts:
            timings = Timings(first_token_seconds=first, completion_tokens=40, decode_seconds=4.0,
                              prompt_tokens=100, prompt_seconds=1.0, total_seconds=5.0)
            habits = fold(habits, category="routine", characters=300, finish="stop", timings=timings,
                          expected=priced(habits))
        return forecast(priced(habits)).first.p95

    assert late_after([1.1] * 40) < 1.5 < late_after([]) < 5
    assert late_after([0.6, 0.6, 0.6, 4.0] * 10) > 3


@given(st.lists(st.floats(-1.5, 1.5), min_size=60, max_size=120), st.floats(0.1, 100))
def test_the_percentile_lies_above_most_of_what_was_seen(errors, expected):
    from math import exp, sqrt

    from swarmctl.routing.latency import UNSEEN, Z95, _error

    mean, variance = UNSEEN
    for one in errors:
        mean, variance = _error((mean, variance), one, 0.1)
    recent = errors[-30:]
    bound = expected * exp(mean + Z95 * sqrt(variance))
    assert sum(expected * exp(one) > bound for one in recent) <= 0.4 * len(recent)


def test_a_cache_that_others_overwrite_is_counted_on_less():
    habits = Habits(100.0, 10.0)
    held = Standing(slots=2, cached_characters=240)

    def at() -> object:
        return price(Question("routine", 300), replace(SMALL, habits=habits), held, Tariff())

    assert (at().cached_tokens, at().prefill) == (80, pytest.approx(0.2))
    for _ in range(30):
        habits = fold(habits, category="routine", characters=300, finish="stop", timings=EXCHANGE,
                      expected=at())
    assert habits.cache_share < 0.01
    assert at().prefill * habits.prefill_speed == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("cached", [0, 600, 3000])
def test_a_cache_on_a_full_server_is_waited_for_as_long_as_it_saves_and_no_longer(cached):
    asked = Question("routine", 3000)
    full = price(asked, SMALL, Standing(busy=1, slots=1, cached_characters=cached), Tariff())
    idle = price(asked, replace(SMALL, host="worlock"), Standing(slots=1), Tariff())
    saved = idle.prefill - full.prefill
    assert (saved > 0) == (cached > 0)
    assert full.total - idle.total == pytest.approx(full.queue - saved, abs=0.05)


def test_a_load_that_was_seen_replaces_what_up_measured():
    habits = fold(Habits(100.0, 10.0), category="routine", characters=300, finish="stop",
                  timings=replace(EXCHANGE, load_seconds=9.0))
    assert habits.load_seconds == 9.0
    cold = price(Question("routine", 300), replace(SMALL, habits=habits, load_seconds=2.0),
                 Standing(loaded=False), Tariff())
    assert cold.load == 9.0


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"digest": "d1"}', '{"digest": "d1", "nonsense": 1}',
                                     '{"digest": "d1", "answer_tokens": {}, "prefill_speed": "x"}',
                                     '{"digest": "d1", "answer_tokens": {}, "prefill_speed": 1, '
                                     '"decode_speed": 1, "answers_seen": {"routine": "x"}}',
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


def test_a_mark_that_cannot_be_written_keeps_no_question_from_the_next_host(paths):
    paths.state.mkdir(parents=True, exist_ok=True)
    (paths.state / "down").touch()  # as good as a full disk, also for root
    assert mark_down(paths, "worlock", "no route", 1000.0).until == 1000.0 + FIRST_PAUSE
    clear_mark(paths, "worlock")
    assert read_mark(paths, "worlock") is None


WILD = st.none() | st.floats() | st.integers(-10, 10**20) | st.just(10**400)


@given(st.builds(Timings, *[WILD] * 9), st.sampled_from(["stop", "length", "error"]), st.integers(0, 3),
       st.floats(-1e6, 1e9))
@example(Timings(prompt_tokens=5e-324, completion_tokens=8, decode_seconds=5e-324), "stop", 0, 0.0)
@example(Timings(prompt_tokens=99, prompt_seconds=5e-324, load_seconds=5e-324, first_token_seconds=5e-324),
         "stop", 0, 0.0)
def test_whatever_a_server_says_of_its_times_what_is_known_stays_sound(timings, finish, company, age):
    question = Question("routine", 300)
    sent = price(question, SMALL, Standing(), Tariff())
    after = fold(SMALL.habits, category="routine", characters=300, finish=finish, timings=timings,
                 expected=sent, company=company, age=age)
    json.dumps(asdict(after), allow_nan=False)
    again = price(question, replace(SMALL, habits=after), Standing(), Tariff())
    assert 0 <= again.total < 1e12
    assert 0 <= forecast(again).first.p95 < 1e12


def test_many_questions_verify_a_host_once_and_nothing_stays_behind(paths):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        served = replace(SERVED, port=silent.getsockname()[1])
        entry = HostEntry("box", "local", "/d", 1.0, 0.0, 1.0, 0.3, "EUR", ("inference",), (served,))
        swarm = make_swarm(paths, Fleet("i", "", "", None, 30.0, 60.0, (entry,)))
        asked = [verification(swarm, swarm.candidates, time.time()) for _ in range(20)]
        assert len(set(map(id, asked))) == 1
    until(lambda: asked[0].ended)
    assert asked[0].why
    assert verification(swarm, swarm.candidates, time.time()) is not asked[0]
    first = weakref.ref(asked[0])
    asked.clear()
    gc.collect()
    assert first() is None, "a gateway would keep every swarm that it ever saw"


@pytest.mark.parametrize("garbage", ["", "{}", "[1]", '{"host": 1}'])
def test_garbage_in_a_mark_is_no_mark(paths, garbage):
    path = paths.state / "down" / "worlock.json"
    path.parent.mkdir(parents=True)
    path.write_text(garbage)
    assert read_mark(paths, "worlock") is None
