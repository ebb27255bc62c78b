"""What a model's own probabilities are worth: signals, curves fitted on ratings, models that say nothing."""

import json
import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import exchange, paths_under, rating

from swarmctl.ledger.heard import EARLIER, heard, heard_record, read_curves, refit
from swarmctl.ledger.journal import append
from swarmctl.routing.calibration import FEWEST, Heard, fit
from swarmctl.routing.confidence import (
    ASKED,
    OF_QUESTION,
    SIGNALS,
    STAGES,
    WHOLE,
    Curve,
    Curves,
    Trail,
    believe,
    follow,
    probability,
    stage_of,
)
from swarmctl.routing.features import read_features
from swarmctl.routing.signs import SIGNS, signs

NO_SIGNS = (0.0,) * len(SIGNS)
logprobs = st.lists(st.floats(-1e6, 0.0, allow_nan=False), max_size=200)


def answers(count, seed, *, speaks=True, digest="small", before=0.5):
    """Rated answers of a model whose least likely token tells right from wrong, or does not."""
    rng = random.Random(seed)
    for _ in range(count):
        good = rng.random() < before
        sure = -rng.expovariate(8.0 if (good if speaks else rng.random() < before) else 0.7)
        calm = [-rng.expovariate(20.0) for _ in range(rng.randint(2, 9))]
        trail = follow([-rng.expovariate(2.0), *calm, sure])
        yield Heard(digest, "routine", before, trail, NO_SIGNS, float(good))


@given(logprobs)
def test_signals_are_finite_and_a_trail_needs_no_list(values):
    found = follow(values).signals(0.5)
    assert len(found) == len(SIGNALS)
    assert all(math.isfinite(one) for one in found)
    assert len(follow(values).beginning) <= STAGES[-1]


def test_less_likely_tokens_are_less_sure():
    sure, unsure = follow([-0.1, -0.01, -0.01]).signals(0.5), follow([-0.1, -0.01, -3.0]).signals(0.5)
    at = {name: place for place, name in enumerate(SIGNALS)}
    assert unsure[at["least"]] < sure[at["least"]]
    assert unsure[at["whole"]] < sure[at["whole"]]
    assert unsure[at["first"]] == sure[at["first"]]


def test_each_length_has_its_stage_and_the_whole_its_own():
    assert [stage_of(tokens) for tokens in (1, 2, 3, 4, 63, 64, 1000)] == [0, 1, 1, 2, 5, 6, 6]
    assert stage_of(0) == ASKED
    assert stage_of(3, whole=True) == WHOLE


def test_a_model_that_knows_when_it_is_wrong_gets_a_curve_that_says_so():
    curve = fit(list(answers(150, 1))).of("small", "routine")
    assert curve is not None
    assert curve.speaks
    assert curve.gain > 0.05
    assert list(curve.information) == sorted(curve.information)
    right, wrong = follow([-0.5, -0.01, -0.02, -0.05]), follow([-0.5, -0.01, -0.02, -4.0])
    assert believe(curve, 0.5, wrong, NO_SIGNS) < 0.3 < 0.6 < believe(curve, 0.5, right, NO_SIGNS)


def test_what_the_curve_says_is_calibrated_on_answers_that_it_never_saw():
    curve = fit(list(answers(400, 2))).of("small", "routine")
    said = sorted((believe(curve, 0.5, one.trail, NO_SIGNS), one.good) for one in answers(2000, 3))
    tenths = [said[place:place + 200] for place in range(0, 2000, 200)]
    off = [abs(sum(p for p, _ in some) - sum(good for _, good in some)) / 200 for some in tenths]
    assert sum(off) / 10 < 0.07


def test_a_model_whose_confidence_says_nothing_is_seldom_taken_for_one_that_speaks():
    verdicts = [fit(list(answers(80, seed, speaks=False))).of("small", "routine") for seed in range(40)]
    assert sum(curve.speaks for curve in verdicts) <= 4


def test_a_handful_of_ratings_is_no_curve():
    assert fit(list(answers(FEWEST - 1, 4))) == Curves()


def test_a_new_model_starts_with_the_curve_of_all_and_leaves_it_as_it_is_rated():
    known = list(answers(200, 5))
    assert fit(known).of("new", "routine") == fit(known).pooled
    few = fit([*known, *answers(FEWEST, 6, speaks=False, digest="new")])
    many = fit([*known, *answers(300, 6, speaks=False, digest="new")])
    wrong = follow([-0.5, -0.01, -4.0])

    def told(curves):
        return believe(curves.of("new", "routine"), 0.5, wrong, NO_SIGNS)

    assert believe(fit(known).pooled, 0.5, wrong, NO_SIGNS) < told(few) < told(many)
    assert not many.of("new", "routine").speaks
    assert many.of("small", "routine").speaks


def test_ratings_choose_between_probabilities_and_text():
    rng = random.Random(7)
    rows = []
    for _ in range(200):
        good = rng.random() < 0.5
        slips = 0.0 if good or rng.random() < 0.2 else 1.0
        trail = follow([-rng.expovariate(2.0) for _ in range(5)])
        rows.append(Heard("small", "routine", 0.5, trail, (slips, *NO_SIGNS[1:]), float(good)))
    curve = fit(rows).of("small", "routine")
    assert curve.by == "text"
    assert curve.weights[WHOLE][OF_QUESTION:len(SIGNALS)] == (0.0,) * (len(SIGNALS) - OF_QUESTION)
    assert fit(list(answers(200, 8))).of("small", "routine").by != "text"


@pytest.mark.parametrize(("answer", "sign", "value"), [
    ("He has 3 + 4 = 7 apples and 7 * 2 = 14 pears.", "slips", 0.0),
    ("He has 3 + 4 = 8 apples and $7 x 2 = $14.", "slips", 1.0),
    ("That is <<60*0.7=42>>42 and 1,200 / 4 = 300.", "slips", 0.0),
    ("2 + 3 * 4 = 14", "slips", 0.0),
    ("1 / 3 = 0.33", "slips", 0.0),
    ("20% * 50 = 10", "slips", 0.0),
    ("The fee is 125 + 6*(41-20) = $<<125+6*(41-20)=313>>313.", "slips", 1.0),
    ("5 * ($5.00 * 5 + $6.00 * 1) = $155", "slips", 0.0),
    ("(All of them: 3 + 4 = 7.)", "slips", 0.0),
    ("108*2+5=216+5=221", "slips", 0.0),
    ("108*2+5=216+5=222", "slips", 1.0),
    ("24 \\* 2 = 48, $24 \\times 2 = 48$, 24 × 2 = 48, **24 ÷ 2 = 12**", "slips", 0.0),  # noqa: RUF001
    ("24 \\* 2 = 47, $24 \\times 2 = 46$, 24 × 2 = 45", "slips", 3.0),  # noqa: RUF001
    ("50 / 200 = 25%", "slips", 0.0),
    ("50 / 200 * 100 = 25%", "slips", 0.0),
    ("50 / 200 = 20%", "slips", 1.0),
    (".5 * 8 = 4", "slips", 0.0),
    ("3 - 5 = -2", "slips", 0.0),
    ("60 + 180 + 126 = 367", "slips", 1.0),
    ("10 / 3 = 3.33", "slips", 0.0),
    ("3x + 8 = 38 and 4 * = 7", "sums", 0.0),
    ("2 * 3 + 1 = 6 + 1 = 7", "sums", math.log1p(2)),
    ("5 / 0 = 7", "sums", 0.0),
    ("3 + 4 = 7\n#### 7", "last sum", 1.0),
    ("3 + 4 = 7\n#### 9", "last sum", 0.0),
    ("3 + 4 = 7\n#### 9", "no end", 0.0),
    ("3 - 5 = -2\n#### -2", "last sum", 1.0),
    ("It is 7.5", "whole number", 0.0),
    ("It is 7", "whole number", 1.0),
    ("It is -$7", "whole number", 0.0),
    ("Pages 3-7", "whole number", 1.0),
    ("I believe that it may be 7, perhaps.", "doubts", 1.0),
    ("Apples and pears", "own words", 1 / 3),
    ("4", "own words", 0.0),
    ("A p p l e s!", "quoted", 1.0),
    ("A p p l s", "quoted", 0.0),
    ("", "quoted", 0.0),
    ("It is 4.", "how many passed over", math.log1p(1) / 2),
    ("It is 3 and 4.", "how many passed over", 0.0),
    ("3 + 4 = 7, 7 * 2 = 14\n#### 14", "loose result", 0.0),
    ("3 + 4 = 7, 3 * 2 = 6\n#### 6", "loose result", 1.0),
    ("3 + 4 = 7\n#### 9", "loose result", 1.0),
    ("3 * 4 + 1 = 12 + 1 = 13, so 13.", "loose result", 0.0),
    ("3 apples.", "loose result", 0.0),
    ("He has 3 + 4 = <<3+", "cut off", 1.0),
    ("He has 3 apples and", "cut off", 1.0),
    ("He has 3 apples.\n", "cut off", 0.0),
    ("3 + 4 = 7\n#### 7", "cut off", 0.0),
])
def test_the_text_shows(answer, sign, value):
    assert signs("What are 3 apples and 4?", answer)[SIGNS.index(sign)] == pytest.approx(value)


@given(st.text(max_size=300), st.text(alphabet="0123456789+-*/=.,$% x#()", max_size=300))
def test_no_text_is_too_odd_for_signs(question, answer):
    assert all(math.isfinite(one) for one in signs(question, answer))


@pytest.mark.parametrize("text", ["1" * 20_000, "1+" * 10_000, "9," * 10_000, "1.1" * 7_000, " " * 20_000,
                                  "(1+" * 7_000, "((1)+" * 4_000, "$1%)+" * 4_000, "1+1=" * 5_000,
                                  "(" * 20_000])
def test_signs_of_a_long_text_take_no_time(text):
    began = time.process_time()
    signs(text, text)
    assert time.process_time() - began < 1.0


def rated(paths, count, *, recorded=True):
    for number, one in enumerate(answers(count, 9, digest="d" * 64)):
        route = {"cascade": {"heard": heard_record(0.5, one.trail, one.signs)}} if recorded else {}
        row = exchange(2 * number, route=route)
        append(paths.journal, row.to_record())
        append(paths.journal, rating(2 * number + 1, row, 2 * one.good - 1).to_record())


def test_curves_are_fitted_on_the_journal_and_read_back(tmp_path):
    paths = paths_under(tmp_path)
    assert read_curves(paths) == Curves()
    rated(paths, 60)
    made = refit(paths)
    assert made.of("d" * 64, "routine").ratings == 60
    assert read_curves(paths) == made


def answered_with(paths, found):
    """One rated answer that was recorded with these signs."""
    row = exchange(0, route={"cascade": {"heard": heard_record(0.5, follow([-0.1]), found)}})
    append(paths.journal, row.to_record())
    append(paths.journal, rating(1, row, 1.0).to_record())


@pytest.mark.parametrize("count", EARLIER)
def test_answers_that_were_recorded_with_fewer_signs_still_count(tmp_path, count):
    paths = paths_under(tmp_path)
    answered_with(paths, (0.5,) * count)
    assert [one.signs for one in heard(paths, {})] == [(0.5,) * count + (0.0,) * (len(SIGNS) - count)]


@pytest.mark.parametrize("count", [0, 12, len(SIGNS) + 1])
def test_answers_with_as_many_signs_as_never_were_do_not_count(tmp_path, count):
    paths = paths_under(tmp_path)
    answered_with(paths, (0.5,) * count)
    assert not list(heard(paths, {}))


def test_curves_of_fewer_signs_are_none_until_they_are_fitted_again(tmp_path):
    paths = paths_under(tmp_path)
    rated(paths, 60)
    made = refit(paths)
    file = paths.data / "routing" / "confidence.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | {"names": [*SIGNALS, *SIGNS[:EARLIER[-1]]]}))
    assert read_curves(paths) == Curves()
    assert refit(paths) == made


def test_more_ratings_tell_more_sorts_of_question_apart():
    told = [replace(one, features=read_features("word " * (i % 50) + "?" * (i % 7) + "1" * (i % 11)))
            for i, one in enumerate(answers(1600, 10))]
    few, many = fit(told[:200]).sorts, fit(told).sorts
    assert len(few.landmarks) == 8 < len(many.landmarks) == 16


def test_the_latest_rating_that_was_not_taken_back_counts(tmp_path):
    paths = paths_under(tmp_path)
    row = exchange(0, route={"cascade": {"heard": heard_record(0.5, follow([-0.1, -0.2]), NO_SIGNS)}})
    append(paths.journal, row.to_record())
    first, second = rating(1, row, -1.0), rating(2, row, 1.0)
    append(paths.journal, first.to_record())
    append(paths.journal, second.to_record())
    assert [one.good for one in heard(paths, {})] == [1.0]
    append(paths.journal, rating(3, row, 1.0, undoes=second.id).to_record())
    assert [one.good for one in heard(paths, {})] == [0.0]


def test_answers_without_probabilities_teach_nothing(tmp_path):
    paths = paths_under(tmp_path)
    rated(paths, 30, recorded=False)
    assert refit(paths) == Curves()


@pytest.mark.parametrize("garbage", [
    "", "{", "[]", '{"names": [], "stages": []}', "null",
    json.dumps({"names": [*SIGNALS, *SIGNS], "stages": STAGES, "pooled": {"weights": [[1]]}, "models": {}}),
])
def test_a_file_of_garbage_is_no_curve(tmp_path, garbage):
    paths = paths_under(tmp_path)
    (paths.data / "routing").mkdir(parents=True)
    (paths.data / "routing" / "confidence.json").write_text(garbage)
    assert read_curves(paths) == Curves()


def test_belief_is_never_certain():
    curve = Curve(((99.0,) * len(SIGNALS),) * WHOLE, (0.0,) * (WHOLE + 1))
    assert probability(-99) <= believe(curve, 1.0, Trail(1, -0.1, -0.1, 0.0, [-0.1])) <= probability(99) < 1


def test_a_model_may_know_when_it_is_wrong_in_one_category_and_not_in_another():
    rows = [*answers(200, 10), *(replace(one, category="code") for one in answers(150, 11, speaks=False))]
    curves = fit(rows)
    assert curves.of("small", "routine").speaks
    assert not curves.of("small", "code").speaks


def asked(rows, form):
    """The same answers, each to a question of its own of that form."""
    return [replace(one, features=read_features(form.format(number))) for number, one in enumerate(rows)]


SPELL = "Spell word{}."
NOTES = "Notes:\nAnna has room {}.\nBen lives in Rome (2 rooms).\n\nWhere does Ben live?"


def test_a_model_may_know_when_it_is_wrong_of_one_sort_of_question_and_not_of_another():
    curves = fit([*asked(answers(150, 20), SPELL), *asked(answers(150, 21, speaks=False), NOTES)])
    right, wrong = follow([-0.5, -0.01, -0.02]), follow([-0.5, -0.01, -4.0])

    def apart(form):
        curve = curves.of("small", "routine", read_features(form.format(7)))
        return believe(curve, 0.5, right, NO_SIGNS) - believe(curve, 0.5, wrong, NO_SIGNS)

    assert apart(SPELL) > 0.4 + apart(NOTES)


def test_a_belief_that_was_too_timid_is_put_right_before_a_token_is_heard():
    rows = [replace(one, good=1.0) for one in answers(100, 22, speaks=False)]
    rows = [*asked(rows, SPELL), *asked([replace(one, good=0.0) for one in rows], NOTES)]
    curves = fit([replace(one, before=0.6 if place < 100 else 0.4) for place, one in enumerate(rows)])
    spell, notes = (curves.of("small", "routine", read_features(form.format(7))) for form in (SPELL, NOTES))
    assert believe(spell, 0.6, Trail()) > 0.9
    assert believe(notes, 0.4, Trail()) < 0.1


def test_what_the_question_tells_is_no_merit_of_the_confidence():
    rows = [replace(one, good=1.0) for one in answers(100, 23, speaks=False)]
    rows = [*asked(rows, SPELL), *asked([replace(one, good=0.0) for one in answers(100, 24)], NOTES)]
    curves = fit(rows)
    assert not curves.models["small"][""].gain > 0.05
    assert curves.models["small"][""].information[0] < 1.0


def test_a_question_without_features_has_the_plain_curve():
    curves = fit(asked(answers(150, 25), SPELL))
    assert curves.of("small", "routine").sorted
    assert not curves.of("small", "routine", read_features("Spell this.")).sorted


def test_a_category_with_few_ratings_takes_the_models_word():
    rows = [*answers(200, 12), *(replace(one, category="code") for one in answers(12, 13))]
    assert fit(rows).of("small", "code").speaks
