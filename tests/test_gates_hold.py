"""What demo/gates.py shows on a lab, as far as it needs none: poisoned ratings meet the build.

Broken releases are in test_deploy.py, votes against a canary too; what a diverged run leads to is in
test_improve.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from recorded import exchange, paths_under, rating

from demo.gates import CASES, dislike_everything, runaway
from swarmctl.cli.improve import Steps
from swarmctl.fleet.recipes import read_recipe
from swarmctl.inventory import ImproveWish
from swarmctl.ledger import rounds
from swarmctl.ledger.journal import append
from swarmctl.verbs.dataset import Wanted, build
from swarmctl.verbs.improve import improve

NOW = 1_795_300_000.0
COUNTRIES = ("France", "Spain", "Italy", "Japan", "Peru", "Chile", "Kenya", "Norway", "Cuba", "India")


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def rated(paths, opinion):
    """Each country's capital asked twice; `opinion` says what is thought of the n-th answer."""
    for place, country in enumerate(COUNTRIES):
        for offset, text in enumerate((f"{country} City", f"Well, let me think. It is {country} City.")):
            row = exchange(4 * place + offset, f"What is the capital of {country}?", text, model="small")
            append(paths.journal, row.to_record())
            append(paths.journal, rating(50_000 + 10 * place + offset, row, opinion(offset),
                                         at=f"2026-11-18T10:{place:02d}:{30 * offset:02d}Z").to_record())


def test_a_bot_that_dislikes_everything_changes_nothing_and_is_named(paths):
    rated(paths, lambda offset: 1.0 - 2 * offset)
    before = build(paths, Wanted(), NOW).card
    assert dislike_everything(paths) == 2 * len(COUNTRIES)
    after = build(paths, Wanted(), NOW).card
    assert after["sha256"] == before["sha256"]
    assert after["raters"] == ["left out: bot: 20 answers disliked in 2 s, none read for more than 2 s"]
    assert after["dropped"]["part of a flood of ratings"] == 20


def test_a_round_of_one_sided_ratings_ends_at_its_build(paths):
    rated(paths, lambda _: 1.0)
    steps = Steps(SimpleNamespace(paths=paths, clock=lambda: NOW))
    said = []
    found = improve(paths, "small", ImproveWish(recipe="tiny-kto", labels=5, cooldown_hours=0), steps,
                    drift=None, clock=lambda: NOW, say=said.append)
    assert (found.round.stage, found.round.status) == ("build", "refused")
    assert found.round.reasons == ("20 answers are liked and 0 disliked: too one-sided for KTO",)
    assert [event.status for event in rounds.read(paths)[0].events] == ["open", "refused"]
    assert not paths.datasets.exists()


def test_the_runaway_recipe_is_one_that_anybody_could_write(tmp_path):
    (given,) = (case.policy["recipe"] for case in CASES if case.name == "diverged")
    assert given is runaway
    recipe = read_recipe(str(runaway(tmp_path)))
    assert recipe.keys["learning_rate"] > read_recipe("tiny-dpo").keys["learning_rate"]
    assert "loss_type" not in recipe.keys
