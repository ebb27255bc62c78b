"""The price of an answer and the choice among prices, as data."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.errors import NoCandidate
from swarmctl.routing.category import categorise
from swarmctl.routing.cost import (
    GOOD_ENOUGH,
    Candidate,
    Habits,
    Question,
    Standing,
    Tariff,
    choose,
    price,
)
from swarmctl.routing.quality import PRIOR_WEIGHT, first_guess, quality
from swarmctl.routing.waiting import best_place

TARIFF = Tariff(value_of_time=30.0, bad_answer=60.0)
SMALL = Candidate(
    host="spinoza", runtime="llamacpp", server="s", model="small", digest="d", template="t", port=1,
    context=4096,
    parallel=1, parameters=500_000_000, habits=Habits(prefill_speed=200.0, decode_speed=20.0), load_watts=45,
    energy_price=0.3, prior={"routine": 0.9, "complex": 0.3, "code": 0.2})
LARGE = replace(SMALL, host="worlock", model="large", habits=Habits(2000.0, 60.0), load_watts=640,
                prior={"routine": 0.95, "complex": 0.9, "code": 0.9})
FREE = Standing()


def test_a_routine_question_goes_to_the_small_model_when_the_wait_is_alike():
    quick = replace(SMALL, habits=LARGE.habits)
    assert choose(Question("routine", 60), [(quick, FREE), (LARGE, FREE)], TARIFF).chosen.candidate is quick


def test_a_complex_question_goes_where_it_is_likely_to_be_answered_well():
    route = choose(Question("complex", 60), [(SMALL, FREE), (LARGE, FREE)], TARIFF)
    assert route.chosen.candidate is LARGE
    assert route.prices[1].risk == pytest.approx((GOOD_ENOUGH - 0.3) * 60)


def test_being_better_than_good_enough_is_worth_no_wait():
    assert price(Question("routine", 60), LARGE, FREE, TARIFF).risk == 0
    assert price(Question("routine", 60), SMALL, FREE, TARIFF).risk == 0


def test_the_price_is_the_sum_of_its_columns():
    row = price(Question("complex", 3000), LARGE, Standing(warm=False, loaded=False, busy=3, slots=2), TARIFF)
    assert row.total == pytest.approx(
        row.queue + row.connect + row.load + row.prefill + row.decode + row.energy + row.risk)


def test_prefill_and_decode_follow_from_the_hosts_own_speeds():
    row = price(Question("complex", 3000, max_tokens=50), LARGE, FREE, TARIFF)
    assert (row.prompt_tokens, row.answer_tokens) == (1000, 50)
    assert row.prefill == pytest.approx(1000 / 2000)
    assert row.decode == pytest.approx(50 / 60)


def test_energy_is_watts_times_time_priced_and_turned_into_seconds():
    row = price(Question("complex", 3000, max_tokens=60), LARGE, FREE, TARIFF)
    assert row.watt_hours == pytest.approx(640 * 1.5 / 3600)
    assert row.energy == pytest.approx(row.watt_hours / 1000 * 0.3 / 30.0 * 3600)


def test_a_full_server_costs_the_wait_for_a_slot():
    idle = price(Question("routine", 60), LARGE, Standing(busy=1, slots=2), TARIFF)
    full = price(Question("routine", 60), LARGE, Standing(busy=2, slots=2), TARIFF)
    assert idle.queue == 0
    assert full.queue == pytest.approx((full.prefill + full.decode) / 2)


def test_among_equals_to_a_persons_eye_the_frugal_one_answers():
    twin = replace(LARGE, host="calisota", load_watts=380, habits=Habits(1900.0, 58.0))
    route = choose(Question("code", 60, max_tokens=20), [(LARGE, FREE), (twin, FREE)], TARIFF)
    assert route.chosen.candidate is twin
    assert "less energy" in route.reason


def test_nobody_waits_in_line_to_save_energy():
    twin = replace(LARGE, host="calisota", load_watts=380, habits=Habits(1900.0, 58.0))
    question, full = Question("code", 60, max_tokens=2), Standing(busy=1, slots=1)
    taken = choose(question, [(LARGE, FREE), (twin, full)], TARIFF)
    assert taken.prices[1].total - taken.prices[0].total < 0.25
    assert taken.chosen.candidate is LARGE


def test_a_prompt_that_does_not_fit_the_context_is_out_and_says_so():
    short = replace(LARGE, context=256)
    route = choose(Question("complex", 3000), [(short, FREE), (replace(LARGE, host="b"), FREE)], TARIFF)
    assert route.chosen.candidate.host == "b"
    assert route.excluded[0].reason == "about 1,032 tokens do not fit its context of 256"


def test_what_is_already_in_the_cache_need_not_be_read_again():
    cold = price(Question("routine", 3000), LARGE, FREE, TARIFF)
    warm = price(Question("routine", 3000), LARGE, Standing(cached_characters=2700), TARIFF)
    assert warm.prefill == pytest.approx(cold.prefill / 10)


def test_ratings_outweigh_the_first_guess():
    disliked = replace(LARGE, bad={"complex": 40.0})
    route = choose(Question("complex", 60), [(disliked, FREE), (replace(LARGE, host="b", model="other"),
                                                                FREE)], TARIFF)
    assert route.chosen.candidate.model == "other"


def test_with_nobody_left_the_reasons_are_listed():
    with pytest.raises(NoCandidate) as caught:
        choose(Question("routine", 10), [(SMALL, Standing(out="it is off"))], TARIFF)
    assert caught.value.hint == "small on spinoza: it is off"


def test_who_waits_takes_the_slow_host_only_where_waiting_for_the_quick_one_is_dearer():
    quick = price(Question("code", 60, max_tokens=60), LARGE, FREE, TARIFF)
    slow = price(Question("code", 60, max_tokens=60),
                 replace(LARGE, host="calisota", habits=Habits(2000.0, 12.0)), FREE, TARIFF)
    one_ahead = best_place([quick, slow], [(1, 0), (0, 0)])
    assert one_ahead.best.candidate.host == "worlock"
    assert one_ahead.best.queue > 0
    assert [price.candidate.host for price in one_ahead.wanted] == ["worlock"]
    many_ahead = best_place([quick, slow], [(1, 6), (0, 0)])
    assert (many_ahead.best.candidate.host, many_ahead.best.queue) == ("calisota", 0)
    assert {price.candidate.host for price in many_ahead.wanted} == {"worlock", "calisota"}


def test_who_would_hold_up_many_takes_the_slow_host_sooner():
    quick = price(Question("code", 60, max_tokens=60), LARGE, FREE, TARIFF)
    slow = price(Question("code", 60, max_tokens=60),
                 replace(LARGE, host="calisota", habits=Habits(2000.0, 12.0)), FREE, TARIFF)
    for behind, host in ((0, "worlock"), (40, "calisota")):
        place = best_place([quick, slow], [(1, 0), (0, 0)], behind)
        assert place.best.candidate.host == host
        own_wait = [price.queue for price in place.prices]
        assert own_wait == [quick.prefill + quick.decode, 0.0]


speeds = st.floats(0, 1e5, allow_nan=False)


@given(st.lists(st.tuples(speeds, speeds, st.integers(0, 9), st.booleans(), st.floats(0, 1)), min_size=1,
                max_size=8),
       st.integers(0, 100_000), st.sampled_from(["routine", "complex", "code"]))
def test_the_choice_is_never_dearer_than_what_a_person_would_notice(hosts, characters, category):
    swarm = [(replace(LARGE, host=f"h{i}", context=0, habits=Habits(p, d), prior={category: good}),
              Standing(busy=busy, warm=warm)) for i, (p, d, busy, warm, good) in enumerate(hosts)]
    route = choose(Question(category, characters), swarm, TARIFF)
    cheapest = min(row.total for row in route.prices)
    assert route.chosen.total <= cheapest + max(0.25, cheapest * 0.1)
    assert len(route.prices) == len(hosts)


def test_a_guess_is_worth_eight_ratings():
    assert quality(0.9, 0, 0).mean == pytest.approx(0.9)
    assert quality(0.9, 0, PRIOR_WEIGHT).mean == pytest.approx(0.45)


@given(st.integers(1, 10**12), st.sampled_from(["routine", "complex", "code"]))
def test_a_first_guess_is_a_share_and_grows_with_size(parameters, category):
    guess = first_guess(parameters, category, {})
    assert 0 < guess < 1
    assert guess <= first_guess(parameters * 2, category, {})


@pytest.mark.parametrize(("prompt", "attachments", "category"), [
    ("What is the capital of France?", [], "routine"),
    ("Spell cat.", [], "routine"),
    ("hello", [], "routine"),
    ("Translate good morning to French", [], "routine"),
    ("What is 23 + 45?", [], "complex"),
    ("How many letters r are in strawberry?", [], "complex"),
    ("Explain why the sky is blue", [], "complex"),
    ("word " * 90, [], "complex"),
    ("What colour is the box?", ["notes.txt"], "complex"),
    ("Write Python to add 3 to x.", [], "code"),
    ("Why does `foo()` fail?", [], "code"),
    ("What does this do?", ["main.rs"], "code"),
    ("Fix this:\n```\nx = 1\n```", [], "code"),
    ("Traceback (most recent call last):\n  File", [], "code"),
])
def test_a_question_is_categorised_by_its_words_and_files(prompt, attachments, category):
    assert categorise(prompt, attachments).category == category


def test_a_megabyte_of_empty_lines_is_categorised_at_once():
    """It took more than an hour, in which nothing else of its process got a turn."""
    assert categorise("a" + "\n" * 1_000_000 + "b").category == "routine"
    assert categorise(" \n" * 500_000 + "def f(x):").category == "code"


@given(st.text())
def test_categorising_never_fails_and_gives_a_reason(prompt):
    assert categorise(prompt).reason
