"""The gates: numbers that are known, and error rates over many simulated runs."""

from __future__ import annotations

import random
from math import comb, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.learning.gates import ENOUGH, Interval, decide, evidence, paired, side_by_side, votes

RUNS = 1000


def by_hand(wins: int, losses: int) -> float:
    """The mixture's integral by the midpoint rule."""
    steps = 20_000
    points = (0.5 + (i + 0.5) / (2 * steps) for i in range(steps))
    return sum(p**wins * (1 - p) ** losses for p in points) / steps * 2 ** (wins + losses)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 1), (7, 3), (20, 10), (3, 12)])
def test_evidence_is_the_mixtures_integral(wins: int, losses: int) -> None:
    assert isclose(evidence(wins, losses), by_hand(wins, losses), rel_tol=1e-4)


@given(st.integers(0, 400), st.integers(0, 400))
def test_evidence_is_finite_and_positive_for_any_count(wins: int, losses: int) -> None:
    assert 0 < evidence(wins, losses) < float("inf")


@pytest.mark.parametrize("n", [1, 5, 12])
def test_evidence_averages_to_one_under_no_difference(n: int) -> None:
    assert isclose(sum(comb(n, w) * evidence(w, n - w) for w in range(n + 1)) / 2**n, 1.0, rel_tol=1e-9)


def test_no_difference_is_promoted_in_at_most_one_run_of_twenty_however_often_one_looks() -> None:
    promoted = sum(votes(coin(seed, 0.5, 200)).verdict == "promote" for seed in range(RUNS))
    assert promoted / RUNS <= 0.05


def test_a_release_that_wins_seven_of_ten_is_promoted_within_sixty_votes_mostly() -> None:
    promoted = sum(votes(coin(seed, 0.7, 60)).verdict == "promote" for seed in range(RUNS))
    assert promoted / RUNS > 0.65


def test_a_release_that_loses_seven_of_ten_is_rolled_back_and_never_promoted_in_the_main() -> None:
    verdicts = [votes(coin(seed, 0.3, 60)).verdict for seed in range(RUNS)]
    assert verdicts.count("rollback") / RUNS > 0.65
    assert verdicts.count("promote") / RUNS <= 0.01


def test_what_comes_after_a_decision_does_not_unmake_it() -> None:
    decided = votes([True] * 10 + [False] * 200)
    assert (decided.verdict, decided.wins, decided.losses) == ("promote", 10, 200)
    assert decided.at is not None
    assert decided.at <= 10


def test_ties_and_few_votes_keep_the_champion() -> None:
    assert votes([None] * 50).verdict == "keep"
    assert votes([True, True, True]).verdict == "keep"
    assert votes([True] * 3).better < ENOUGH


def test_separate_ratings_are_paired_in_their_order_and_the_rest_waits() -> None:
    assert side_by_side([1, 0, -1, 1], [0, 0, 1]) == (True, None, False)


def test_no_difference_is_called_a_gain_in_at_most_one_run_of_twenty_even_in_few_groups() -> None:
    gains = sum(paired(*clustered(seed, groups=12), resamples=400, seed=seed).low > 0 for seed in range(RUNS))
    assert gains / RUNS <= 0.05


def test_prompts_of_one_group_count_as_one_piece_of_evidence() -> None:
    differences = [1.0] * 10 + [0.0] * 10 + [1.0] * 10
    apart = paired(differences, [str(i) for i in range(30)])
    together = paired(differences, [str(i // 10) for i in range(30)])
    assert together.high - together.low > apart.high - apart.low


def test_one_group_alone_says_nothing() -> None:
    assert paired([1.0, 1.0], ["a", "a"]) == Interval(1.0, -1.0, 1.0, 2, 1)


def test_the_same_numbers_give_the_same_interval() -> None:
    assert paired([0.5, -0.1, 0.3], ["a", "b", "c"]) == paired([0.5, -0.1, 0.3], ["a", "b", "c"])


def test_an_empty_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="no differences"):
        paired([], [])


GAIN, LOSS, UNCLEAR = (Interval(m, m - 0.05, m + 0.05, 100, 100) for m in (0.2, -0.2, 0.0))
SAME, WIDE = Interval(0.0, -0.02, 0.02, 100, 100), Interval(0.0, -0.2, 0.2, 10, 10)


@pytest.mark.parametrize(("quality", "capability", "decision"), [
    (GAIN, SAME, "promote"), (GAIN, LOSS, "rollback"), (LOSS, SAME, "rollback"), (UNCLEAR, SAME, "keep"),
    (GAIN, WIDE, "keep"), (GAIN, None, "keep"), (None, SAME, "keep"), (votes([True] * 12), SAME, "promote"),
    (votes([False] * 12), SAME, "rollback"), (votes([True] * 2), SAME, "keep"),
])
def test_a_gain_without_a_loss_promotes_a_loss_rolls_back_and_all_else_keeps(
        quality: Interval | None, capability: Interval | None, decision: str) -> None:
    judgement = decide(quality, capability)
    assert judgement.decision == decision
    assert len(judgement.reasons) == 2


def coin(seed: int, chance: float, flips: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < chance for _ in range(flips)]


def clustered(seed: int, groups: int) -> tuple[list[float], list[str]]:
    """Differences of two equal models whose chance of being right depends on the group."""
    rng = random.Random(seed)
    rows = [((rng.random() < p) - (rng.random() < p), str(group))
            for group in range(groups) for p in [rng.random()] for _ in range(rng.randint(1, 5))]
    return [float(difference) for difference, _ in rows], [group for _, group in rows]
