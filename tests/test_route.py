"""The router's quality model: what it believes, learns, keeps, explores, and shows."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import comparison, exchange, identity, paths_under, rating

from swarmctl.dispatch.question import Asked, as_question, as_request
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import LockBusy, SwarmError, UsageError
from swarmctl.evaluation.learned import Known, Vectors, learn
from swarmctl.evaluation.replay import replay
from swarmctl.exchange import CATEGORIES, Message
from swarmctl.fleet.locks import local_lock
from swarmctl.fleet.snapshot import Fleet, HostEntry, Served, write_fleet
from swarmctl.ledger import journal, routers
from swarmctl.ledger.topic_store import prompt_key
from swarmctl.routing.beliefs import Weights, believe, from_record, known_as, see, to_record
from swarmctl.routing.cost import Candidate, Habits, Question, Standing, Tariff, choose, price
from swarmctl.routing.explore import MOST_REGRET, decide, drawn
from swarmctl.routing.features import NAMES, read_features
from swarmctl.routing.fitting import Model, Rated, fit
from swarmctl.routing.quality import first_guess, quality
from swarmctl.verbs import compare
from swarmctl.verbs import route as verb

SMALL, LARGE = "s" * 64, "l" * 64
SERVED = (Known("small", SMALL, 10**9, {}), Known("large", LARGE, 3 * 10**10, {}))
MODELS = {"small": Model(10**9, {}), "large": Model(3 * 10**10, {})}
TARIFF = Tariff()
counts = st.floats(0, 1e4, allow_nan=False)


def quiet(*_):
    """Hear nothing."""


def prompt(number, hard):
    """Hard ones hold arithmetic and are long, easy ones are a few words."""
    draw = random.Random(number)
    if hard:
        sums = (f"{draw.randint(10, 999)} * {draw.randint(10, 999)} =" for _ in range(draw.randint(8, 14)))
        return " ".join(sums)
    return "what is the capital of " + "".join(draw.choices("abcdefghij", k=7)) + "?"


def ratings(count, seed=0):
    """Prompts, half of them hard, each answered by both; the small model fails the hard ones."""
    draw = random.Random(seed)
    texts = [prompt(seed * 10_000 + number, number % 2 == 1) for number in range(count)]
    rated = [Rated(place, name, "complex", float(draw.random() < good))
             for place in range(count)
             for name, good in (("small", 0.15 if place % 2 else 0.9), ("large", 0.9))]
    return [read_features(text) for text in texts], rated


def head_of(count=60):
    prompts, rated = ratings(count)
    return fit(rated, prompts, MODELS)


def weights_of(head):
    return Weights("20261123T170000000000Z", "2026-11-23T17:00:00.000Z", 120, "0", (head,))


def candidate(name, digest, parameters, **changes):
    made = Candidate(host=f"host-{name}", runtime="llamacpp", server=name, model=name, digest=digest,
                     template="t", port=1, context=4096, parallel=1, parameters=parameters,
                     habits=Habits(1000.0, 50.0))
    return replace(made, **changes)


# what is believed

@given(st.integers(0, 10**11), st.sampled_from(CATEGORIES), counts, counts)
def test_with_nothing_learned_the_belief_is_the_first_guess_and_the_counts(parameters, category, good, bad):
    found = believe("m@d", parameters, {}, good, bad, category)
    assert found.mean == quality(first_guess(parameters, category, {}), good, bad).mean
    assert 0 <= found.low <= found.mean <= found.high <= 1


@given(st.floats(0, 1), counts, counts, st.sampled_from(CATEGORIES))
def test_prices_without_weights_are_to_the_last_bit_those_of_the_heuristic(prior, good, bad, category):
    one = candidate("small", SMALL, 10**9, prior={category: prior}, good={category: good},
                    bad={category: bad})
    found = price(Question(category, 300), one, Standing(), TARIFF)
    known = quality(prior, good, bad)
    assert (found.good, found.ratings) == (known.mean, known.ratings)
    assert found.risk == max(0.0, 0.85 - known.mean) * TARIFF.bad_answer


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_with_a_few_ratings_a_belief_moves_no_further_than_they_could_carry_it(number, seed):
    draw = random.Random(seed)
    prompts = [read_features(prompt(seed + place, place % 2 == 0)) for place in range(number)]
    rated = [Rated(place, "small", "complex", float(draw.random() < 0.5)) for place in range(number)]
    head = fit(rated, prompts, MODELS)
    good = sum(one.score for one in rated)
    plain = quality(first_guess(10**9, "complex", {}), good, number - good).mean
    seen = see(weights_of(head), read_features(prompt(seed + 99, hard=False)))
    found = believe("small", 10**9, {}, good, number - good, "complex", seen)
    assert found.mean == pytest.approx(plain, abs=0.1)


def test_it_learns_which_prompts_the_small_model_fails():
    weights = weights_of(head_of())
    hard, easy = (see(weights, read_features(prompt(777_777, kind))) for kind in (True, False))
    small = [believe("small", 10**9, {}, 31, 29, "complex", one).mean for one in (hard, easy)]
    large = [believe("large", 3 * 10**10, {}, 54, 6, "complex", one).mean for one in (hard, easy)]
    assert small[0] < 0.4 < 0.7 < small[1]
    assert min(large) > 0.75


def test_a_models_ratings_tell_of_another_model_on_prompts_alike():
    prompts, rated = ratings(60)
    only_small = [one for one in rated if one.model == "small"] + [Rated(0, "large", "complex", 1.0)]
    weights = weights_of(fit(only_small, prompts, MODELS))
    hard, easy = (believe("large", 3 * 10**10, {}, 1, 0, "complex", see(weights, read_features(
        prompt(777_777, kind)))).mean for kind in (True, False))
    assert hard < easy


def test_ratings_after_the_fit_count_at_once():
    head = head_of()
    seen = see(weights_of(head), read_features(prompt(5, hard=False)))
    good, bad = head.models["small"].counted["complex"]
    before = believe("small", 10**9, {}, good, bad, "complex", seen).mean
    after = believe("small", 10**9, {}, good, bad + 20, "complex", seen).mean
    assert after < before - 0.1


def test_far_from_all_that_was_rated_it_is_less_sure():
    weights = weights_of(head_of())
    near = believe("small", 1, {}, 31, 29, "complex", see(weights, read_features(prompt(777_777, hard=True))))
    far = believe("small", 1, {}, 31, 29, "complex", see(weights, read_features("ÄÖÜ\n\n" * 300 + "```")))
    assert far.high - far.low > near.high - near.low


def test_a_model_or_category_that_nobody_rated_is_believed_as_before():
    seen = see(weights_of(head_of()), read_features("anything"))
    assert believe("other", 10**9, {}, 0, 0, "complex", seen) == believe("other", 10**9, {}, 0, 0, "complex")


def test_weights_survive_being_written_and_read():
    weights = weights_of(head_of())
    again = from_record(json.loads(json.dumps(to_record(weights))))
    features = read_features(prompt(42, hard=True))
    one, other = (believe("small", 1, {}, 9, 9, "complex", see(each, features)) for each in (weights, again))
    assert other.mean == pytest.approx(one.mean, abs=1e-4)


def test_a_head_with_vectors_is_used_only_for_vectors_of_its_own_model():
    vectors = [[1.0, 0.0], [0.0, 1.0]]
    prompts = [read_features("alike", vectors[place % 2], "minilm") for place in range(40)]
    rated = [Rated(place, "small", "complex", float(place % 2)) for place in range(40)]
    head = fit(rated, prompts, MODELS, vectors=True)
    assert head.embedder == "minilm"
    weights = replace(weights_of(fit(rated, prompts, MODELS)), heads=(fit(rated, prompts, MODELS), head))
    both = [see(weights, read_features("alike", vector, "minilm")) for vector in vectors]
    of = [believe("small", 1, {}, 20, 20, "complex", seen).mean for seen in both]
    assert of[0] < 0.4 < 0.6 < of[1]
    assert see(weights, read_features("alike", vectors[0], "another")).head.embedder == ""


@given(st.text(max_size=3000))
def test_any_text_has_features(text):
    assert len(read_features(text).surface) == len(NAMES)


# exploration

def rows(chosen_total=1.0, other_total=5.0, low=0.3, high=0.9, good=0.6, ratings=4.0):
    first = price(Question("complex", 100), candidate("small", SMALL, 10**9), Standing(), TARIFF)
    cheap = replace(first, queue=chosen_total - first.total, good=0.85, low=0.8, high=0.9, ratings=ratings)
    other = replace(first, candidate=candidate("large", LARGE, 3 * 10**10), risk=(0.85 - good) * 60,
                    good=good, low=low, high=high, ratings=ratings)
    return [cheap, replace(other, queue=other.queue + other_total - other.total)]


def test_exploring_is_bounded_and_follows_from_the_exchange_alone():
    prices = rows(chosen_total=8.0, other_total=12.0)
    drawn_of = [decide(prices, f"id{number}", 0.03, 60.0) for number in range(4000)]
    share = sum(one is not None for one in drawn_of) / 4000
    assert 0.02 < share < 0.04
    assert drawn_of[:50] == [decide(prices, f"id{number}", 0.03, 60.0) for number in range(50)]
    shadows = sum(one.shadow for one in drawn_of if one) / sum(one is not None for one in drawn_of)
    assert 0.1 < shadows < 0.45


@pytest.mark.parametrize(("changes", "why"), [
    ({"low": 0.58, "high": 0.62}, "it is known well"),
    ({"other_total": 8.0 + MOST_REGRET + 1}, "it would cost too much"),
    ({"high": 0.61, "low": 0.4}, "at its best it is no better"),
    ({"ratings": 0.0}, "nobody rates here"),
])
def test_nothing_is_tried_where(changes, why):
    prices = rows(**{"chosen_total": 8.0, "other_total": 12.0, **changes})
    assert all(decide(prices, f"id{number}", 1.0, 60.0) is None for number in range(20)), why


def test_a_share_of_nothing_explores_nothing():
    assert decide(rows(chosen_total=8.0, other_total=12.0), "any", 0.0, 60.0) is None
    assert not drawn("explore", "any", 0.0)


# from the journal

@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def snapshot(paths, **changes):
    served = [Served("llamacpp", one.model, one.model, one.digest, "t" * 64, 1, 4096, 1, one.parameters, 1,
                     "Q8_0", 1000.0, 50.0) for one in SERVED]
    hosts = tuple(HostEntry(f"host-{one.model}", "local", "/tmp", 5.0, 10.0, 50.0, 0.3, "EUR", ("inference",),
                            (replace(one, **changes),)) for one in served)
    fleet = Fleet(str(paths.inventory), "0" * 64, "2026-11-23", None, 30.0, 60.0, hosts)
    write_fleet(paths.fleet, fleet)
    return fleet


def asked_and_rated(paths, count=40, digest=None, moment=0):
    """Exchanges and ratings as `ratings` makes them, both models asked of each prompt."""
    draw = random.Random(1)
    for number in range(count):
        for one, good in ((SERVED[0], 0.1 if number % 2 else 0.95), (SERVED[1], 0.95)):
            moment += 2
            row = exchange(moment, prompt(number, number % 2 == 1), model=one.model, category="complex",
                           digest=digest or one.digest)
            at = f"2026-11-{18 + number // 24:02d}T{number % 24:02d}:00:00.000Z"
            said = rating(moment + 1, row, 1.0 if draw.random() < good else -1.0, at=at,
                          terminal=f"pts-{number % 7}")
            for each in (row, said):
                journal.append(paths.journal, each.to_record())


def clock():
    return 1_795_500_000.0


def test_fit_keeps_a_version_that_ask_reads_and_the_journal_remembers(paths):
    snapshot(paths)
    asked_and_rated(paths)
    found = verb.fit(paths, clock, quiet, wait=1.0)
    assert (found.weights.ratings, found.prompts, found.left_out) == (80, 40, 0)
    swarm = make_swarm(paths, snapshot(paths))
    assert swarm.weights is not None
    assert swarm.weights.version == found.weights.version
    line = json.loads((paths.journal / "routers.jsonl").read_text().strip())
    assert (line["kind"], line["version"], line["ratings"]) == ("router", found.weights.version, 80)
    assert not routers.due(paths)


def test_what_was_fitted_moves_prices_and_explain_says_why(paths):
    fleet = snapshot(paths)
    asked_and_rated(paths)
    verb.fit(paths, clock, quiet, wait=1.0)
    swarm = make_swarm(paths, fleet)
    weights = swarm.weights
    for text, hard in ((prompt(900_001, hard=True), True), (prompt(900_002, hard=False), False)):
        seen = see(weights, read_features(text))
        way = choose(Question("complex", len(text), None, seen),
                     [(one, Standing()) for one in swarm.candidates], TARIFF)
        small = next(one for one in way.prices if one.candidate.model == "small")
        assert (small.good < 0.5) == hard
        assert "this prompt" in small.why


def test_garbage_for_weights_is_the_heuristic_again(paths):
    snapshot(paths)
    asked_and_rated(paths, 12)
    version = verb.fit(paths, clock, quiet, wait=1.0).weights.version
    (paths.data / "routing" / f"{version}.json").write_text("{")
    assert routers.read_weights(paths) is None
    (paths.data / "routing" / "live.json").write_text("[]")
    assert routers.read_weights(paths) is None
    assert routers.due(paths)


def test_going_back_to_a_version_or_to_none(paths):
    snapshot(paths)
    asked_and_rated(paths, 12)
    moments = iter((1_795_500_000.0, 1_795_500_001.0, 1_795_500_060.0, 1_795_500_061.0))
    first = verb.fit(paths, lambda: next(moments), quiet, wait=1.0).weights.version
    second = verb.fit(paths, lambda: next(moments), quiet, wait=1.0).weights.version
    assert routers.versions(paths) == (first, second)
    routers.use(paths, first)
    assert routers.read_weights(paths).version == first
    routers.use(paths, "none")
    assert routers.read_weights(paths) is None
    with pytest.raises(UsageError, match="no weights 1999 are kept"):
        routers.use(paths, "1999")


def test_two_fits_never_run_at_once(paths):
    with local_lock(paths.state / "routing" / "fit.lock", "fitting", wait=0.0, on_wait=quiet), \
            pytest.raises(LockBusy):
        verb.fit(paths, clock, quiet, wait=0.0)


def test_too_few_ratings_are_refused(paths):
    snapshot(paths)
    asked_and_rated(paths, 3)
    with pytest.raises(SwarmError, match="6 ratings are too few"):
        verb.fit(paths, clock, quiet, wait=1.0)


def test_a_rolled_back_releases_ratings_count_in_part_for_the_weights_that_serve(paths):
    fleet = snapshot(paths)
    asked_and_rated(paths, 10, digest="0" * 64)
    small = next(one for one in make_swarm(paths, fleet).candidates if one.model == "small")
    assert sum(small.good.values()) + sum(small.bad.values()) == pytest.approx(10 * routers.OTHER_WEIGHTS)
    asked_and_rated(paths, 4, moment=500)
    again = next(one for one in make_swarm(paths, fleet).candidates if one.model == "small")
    assert sum(again.good.values()) + sum(again.bad.values()) == 2.5 + 4


def test_a_fit_is_due_after_enough_new_ratings(paths):
    snapshot(paths)
    assert not routers.due(paths)
    asked_and_rated(paths, 5)
    assert routers.due(paths)


def test_comparisons_teach_too_and_a_tie_says_nothing(paths):
    one, other = exchange(1, model="small", digest=SMALL), exchange(2, model="large", digest=LARGE)
    tie = exchange(3, model="small", digest=SMALL)
    for row in (one, other, tie, comparison(10, one, other, "b"), comparison(11, tie, other, "tie")):
        journal.append(paths.journal, row.to_record())
    found = {each.model: (each.good, each.weight) for each in routers.read_opinions(paths)}
    assert found == {"small": (0.0, 0.5), "large": (1.0, 0.5)}


def test_replay_judges_only_by_what_was_known_before(paths):
    snapshot(paths)
    asked_and_rated(paths, 60)
    opinions = routers.read_opinions(paths)
    steps = []
    found = replay(opinions, SERVED, Vectors(), lambda step, of: steps.append((step, of)))
    assert steps[-1] == (8, 8)
    assert found.gain.low > 0
    assert found.learned.brier.value < found.heuristic.brier.value
    assert found.pairs > 40
    assert found.better.value >= 0
    assert replay(opinions[:15], SERVED, Vectors(), quiet) is None


def test_replay_with_one_answer_a_prompt_says_that_choices_cannot_be_judged(paths):
    snapshot(paths)
    asked_and_rated(paths, 60)
    single = [one for one in routers.read_opinions(paths) if one.model == "small"]
    found = replay(single, SERVED, Vectors(), quiet)
    assert (found.pairs, found.better, found.regret) == (0, None, None)


def test_vectors_that_topics_made_are_learned_from(paths):
    asked_and_rated(paths, 40)
    opinions = routers.read_opinions(paths)
    by_key = {prompt_key(one.question): (1.0, 0.0) if "capital" in one.question else (0.0, 1.0)
              for one in opinions}
    weights = learn(opinions, SERVED, Vectors("minilm", by_key), version="1", at="now")
    assert [head.embedder for head in weights.heads] == ["", "minilm"]
    assert set(weights.heads[1].models) == {known_as(one.model, one.digest) for one in SERVED}


def test_a_model_that_serves_no_more_still_tells_which_prompts_are_hard(paths):
    asked_and_rated(paths, 40)
    opinions = [replace(one, model="gone") if one.model == "small" else one
                for one in routers.read_opinions(paths)]
    weights = learn(opinions, SERVED[1:], Vectors(), version="1", at="now")
    assert known_as("gone", "") in weights.heads[0].models


# asking

def test_a_question_with_weights_has_been_looked_at_and_without_has_not(paths):
    fleet = snapshot(paths)
    asked = Asked("why is 2 * 3 six?", history=(Message("user", "before"),))
    _, question = as_question(asked, as_request(asked), make_swarm(paths, fleet))
    assert question.seen is None
    asked_and_rated(paths, 12)
    verb.fit(paths, clock, quiet, wait=1.0)
    _, question = as_question(asked, as_request(asked), make_swarm(paths, fleet))
    assert question.seen.head.embedder == ""


def test_the_shadow_of_what_is_no_question_is_refused(paths):
    snapshot(paths)
    row = exchange(1, messages=())
    journal.append(paths.journal, row.to_record())
    with pytest.raises(UsageError, match="no question"):
        verb.shadow(make_swarm(paths, snapshot(paths)), identity(1), "large", None, None, clock=clock)


def test_an_answer_in_the_shadow_is_compared_with_the_usual_one_once(paths):
    usual = exchange(1, "hard?", "yes", model="small", digest=SMALL)
    shadow = exchange(2, "hard?", "no", model="large", digest=LARGE, via="shadow", parent=usual.id)
    failed = exchange(3, "hard?", "", model="large", digest=LARGE, via="shadow", parent=usual.id)
    for row in (usual, shadow, failed):
        journal.append(paths.journal, row.to_record())
    asked, blind = compare.shadowed(paths, lambda: False)
    assert (asked, blind.left.model, blind.right.model) == ("hard?", "small", "large")
    row = compare.decide(paths, blind, "right", comment=None, terminal="t", now=1_795_500_000.0)
    assert (row.choice, row.digest_a, row.digest_b) == ("b", SMALL, LARGE)
    with pytest.raises(UsageError, match="wait to be compared"):
        compare.shadowed(paths, lambda: False)
    assert {one.model: one.good for one in routers.read_opinions(paths)} == {"small": 0.0, "large": 1.0}


def test_a_model_that_is_good_at_one_category_and_bad_at_another_is_told_apart():
    prompts = [read_features("alike") for _ in range(120)]
    rated = [Rated(place, "small", "code" if place % 2 else "complex", float(place % 2))
             for place in range(120)]
    seen = see(weights_of(fit(rated, prompts, MODELS)), read_features("alike"))
    code, other = (believe("small", 10**9, {}, good, bad, category, seen).mean
                   for category, good, bad in (("code", 60, 0), ("complex", 0, 60)))
    assert other < 0.2 < 0.8 < code


def test_a_fit_of_the_most_ratings_there_can_be_takes_seconds():
    prompts, rated = ratings(3000)
    begun = time.process_time()
    head = fit(rated, prompts, MODELS)
    assert time.process_time() - begun < 30
    features, weights = read_features(prompt(1, hard=True)), weights_of(head)
    begun = time.process_time()
    for _ in range(100):
        believe("small", 1, {}, 0, 0, "complex", see(weights, features))
    assert (time.process_time() - begun) / 100 < 0.01
