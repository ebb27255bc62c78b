"""Rounds of improvement: when one begins, what each verdict leads to, that a cut round goes on where it was.

The steps are recorded here, not run: the real ones are put together in test_loop.py.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from swarmctl.errors import LockBusy, SwarmError, UsageError
from swarmctl.fleet.locks import local_lock
from swarmctl.inventory import ImproveWish, parse_inventory
from swarmctl.learning.approval import wilson
from swarmctl.learning.gates import Judgement
from swarmctl.learning.policy import Seen, due
from swarmctl.ledger import rounds
from swarmctl.ledger.journal import append
from swarmctl.paths import Paths
from swarmctl.verbs.improve import Refused, improve, policies, sign

POLICY = ImproveWish(labels=10, cooldown_hours=1.0, budget_hours=2.0, budget_kwh=1.0, share=0.5)
UNSIGNED = replace(POLICY, sign=False)


@pytest.mark.parametrize(("seen", "go", "said"), [
    (Seen(10), True, "10 new ratings"),
    (Seen(9), False, "9 new ratings, 10 are needed"),
    (Seen(0, wilson(95, 100), wilson(25, 50)), True, "approval fell from 95%"),
    (Seen(0, wilson(95, 100), wilson(44, 50)), False, "no significant drop"),
    (Seen(0, drift="a third of last week's questions are new"), True, "the topics drifted"),
    (Seen(50, hours_since=0.5), False, "the cooldown is 1 h"),
    (Seen(50, hours_since=1.5), True, "50 new ratings"),
    (Seen(50, hours=2.0), False, "2 h are allowed"),
    (Seen(50, kwh=1.2), False, "1.20 kWh"),
])
def test_a_round_begins_for_a_reason_and_within_its_bounds(seen: Seen, go: bool, said: str) -> None:
    found = due(seen, POLICY)
    assert found.go is go
    assert any(said in reason for reason in found.reasons)


class Recorded:
    """Steps that note what was asked of them and answer as they are told. `fail` names steps that raise."""

    def __init__(self, decision: str = "promote", votes: str = "promote") -> None:
        self.calls: list[tuple] = []
        self.decision, self.verdict = decision, votes
        self.fail: dict[str, BaseException] = {}

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if call[0] in self.fail:
            raise self.fail[str(call[0])]

    def build(self, model, policy):
        self._note("build", model)
        return {"dataset": "d1", "until": f"r{11:0>15}"}

    def train(self, model, policy, dataset, started, run):
        self._note("train", dataset, run)
        if run is None:
            started("run-1")
        self._note("trained")
        return {"run": "run-1", "hours": 0.5, "kwh": 0.1}

    def deploy(self, model, policy, run):
        self._note("deploy", run)
        return {"release": "v1-aaaaaaaa"}

    def evaluate(self, model, policy, release, dataset):
        self._note("evaluate", release, dataset)
        return {"decision": self.decision, "reasons": ["as told"], "report": "folder"}

    def share(self, model, release, share, details):
        self._note("share", release, share)

    def votes(self, model, release):
        self._note("votes", release)
        return Judgement(self.verdict, ("votes said so",))

    def promote(self, model, release, details):
        self._note("promote", release)

    def retire(self, model, release, details):
        self._note("retire", release)

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def paths(tmp_path) -> Paths:
    """A home whose model m has twelve ratings."""
    made = Paths.from_environ({"SWARMCTL_HOME": str(tmp_path)})
    rate(made, 12)
    return made


def rate(paths: Paths, count: int, start: int = 0, terminal: str | None = None) -> None:
    for number in range(start, start + count):
        exchange = f"{number:0>16}"
        append(paths.journal, {
            "v": 1, "kind": "exchange", "id": exchange, "at": "2026-11-20T10:00:00Z", "model": "m",
            "digest": "d",
            "messages": [{"role": "user", "content": f"q{number}"}], "answer": "a", "finish": "stop"})
        append(paths.journal, {
            "v": 1, "kind": "rating", "id": f"r{number:0>15}", "at": "2026-11-20T10:01:00Z", "model": "m",
            "digest": "d", "exchange": exchange, "category": "routine", "score": 1.0,
            "terminal": terminal or f"t{number}"})


NOW = 1_795_500_000.0


def go(paths: Paths, steps: Recorded, policy: ImproveWish = UNSIGNED, now: float = NOW, **more):
    return improve(paths, "m", policy, steps, drift=None, clock=lambda: now, say=lambda _: None, **more)


def test_a_round_runs_to_its_canary_and_then_waits_for_votes(paths) -> None:
    steps = Recorded()
    found = go(paths, steps).round
    assert steps.names == ["build", "train", "trained", "deploy", "evaluate", "share"]
    assert ("share", "v1-aaaaaaaa", 0.5) in steps.calls
    assert (found.stage, found.status) == ("canary", "waiting")


@pytest.mark.parametrize(("votes", "status", "last"), [
    ("promote", "promoted", "promote"), ("rollback", "rolled back", "retire"), ("keep", "waiting", "votes")])
def test_the_canarys_votes_end_the_round_or_let_it_wait(paths, votes, status, last) -> None:
    steps = Recorded(votes=votes)
    go(paths, steps)
    found = go(paths, steps).round
    assert (found.status, steps.names[-1]) == (status, last)


@pytest.mark.parametrize(("decision", "status"), [("keep", "kept"), ("rollback", "refused")])
def test_what_is_not_better_is_taken_away_and_nobody_was_answered_by_it(paths, decision, status) -> None:
    steps = Recorded(decision)
    found = go(paths, steps).round
    assert found.status == status
    assert steps.names[-1] == "retire"
    assert "share" not in steps.names
    assert found.reasons == ("as told",)


def test_nobody_is_answered_before_a_human_has_signed(paths) -> None:
    steps = Recorded()
    waiting = go(paths, steps, POLICY).round
    assert waiting.unsigned
    assert "share" not in steps.names
    assert go(paths, steps, POLICY).round.unsigned
    sign(paths, waiting.id, approve=True, by="ada@worlock", comment="looks right", now=NOW)
    assert go(paths, steps, POLICY).round.status == "waiting"
    assert steps.names[-1] == "share"
    events = [json.loads(line) for line in (paths.journal / "rounds.jsonl").read_text().splitlines() if line]
    assert [event["by"] for event in events if event["stage"] == "sign"] == ["ada@worlock"]


def test_a_rejected_round_takes_its_release_away_and_ends(paths) -> None:
    steps = Recorded()
    waiting = go(paths, steps, POLICY).round
    sign(paths, waiting.id, approve=False, by="ada", comment="it rambles", now=NOW)
    found = go(paths, steps, POLICY).round
    assert (found.status, steps.names[-1]) == ("rejected", "retire")


@pytest.mark.parametrize("word", ["m-1", "m-9", ""])
def test_only_a_round_that_waits_for_a_signature_can_be_signed(paths, word) -> None:
    go(paths, Recorded())
    with pytest.raises(UsageError, match="waits for a signature"):
        sign(paths, word, approve=True, by="ada", comment="", now=NOW)


@pytest.mark.parametrize("stage", ["build", "train", "trained", "deploy", "evaluate", "share", "votes",
                                   "promote"])
def test_a_round_that_was_cut_goes_on_where_it_was_and_does_nothing_twice(paths, stage) -> None:
    steps = Recorded()
    steps.fail[stage] = KeyboardInterrupt()
    for _ in range(2):
        try:
            go(paths, steps)
        except KeyboardInterrupt:
            break
    done = steps.names[:-1]
    steps.fail.clear()
    while not (found := go(paths, steps).round).over:
        pass
    assert found.status == "promoted"
    again = steps.names[len(done) + 1:]
    assert again[0] == {"trained": "train", "promote": "votes"}.get(stage, stage)
    assert not set(again) & (set(done) - {"train", "votes"})
    assert len(rounds.read(paths)) == 1
    if stage == "trained":
        assert ("train", "d1", "run-1") in steps.calls


def test_a_step_that_may_be_tried_again_leaves_the_round_open(paths) -> None:
    steps = Recorded()
    steps.fail["train"] = SwarmError("worlock is off", host="worlock")
    with pytest.raises(SwarmError):
        go(paths, steps)
    assert not rounds.read(paths)[0].over
    steps.fail.clear()
    assert go(paths, steps).round.stage == "canary"


@pytest.mark.parametrize(("stage", "retired"), [("build", False), ("trained", False), ("evaluate", True)])
def test_a_refused_step_ends_the_round_with_its_reason(paths, stage, retired) -> None:
    steps = Recorded()
    steps.fail[stage] = Refused("the run diverged: its loss is not a number")
    found = go(paths, steps).round
    assert found.status == "refused"
    assert found.reasons == ("the run diverged: its loss is not a number",)
    assert ("retire" in steps.names) is retired


def test_the_next_round_needs_new_ratings_and_the_cooldown(paths) -> None:
    steps = Recorded()
    go(paths, steps)
    go(paths, steps)
    soon = go(paths, steps, now=NOW + 60)
    assert not soon.due.go
    assert any("cooldown" in reason for reason in soon.due.reasons)
    later = replace(UNSIGNED, budget_hours=9.0)
    assert not go(paths, steps, later, now=NOW + 7200).due.go
    rate(paths, 12, start=100)
    assert go(paths, steps, later, now=NOW + 7200).round.id == "m-2"


def test_a_weeks_hours_are_a_budget(paths) -> None:
    steps = Recorded()
    go(paths, steps)
    go(paths, steps)
    rate(paths, 12, start=100)
    tight = replace(UNSIGNED, budget_hours=0.4)
    found = go(paths, steps, tight, now=NOW + 7200).due
    assert found.reasons[-1] == "0.5 h of training in seven days, 0.4 h are allowed"


def test_a_dry_run_decides_and_does_nothing(paths) -> None:
    steps = Recorded()
    assert go(paths, steps, dry_run=True).due.go
    assert not steps.calls
    assert not rounds.read(paths)


def test_two_at_once_are_one_too_many(paths) -> None:
    with (local_lock(paths.state / "improve.lock", "x", wait=1, on_wait=lambda _: None),
          pytest.raises(LockBusy)):
        go(paths, Recorded())


def test_a_torn_line_of_the_record_is_passed_over(paths) -> None:
    steps = Recorded()
    go(paths, steps)
    file = paths.journal / "rounds.jsonl"
    file.write_text('garbage\n{"kind": "round"}\n' + file.read_text() + '\n{"kind": "rou')
    assert go(paths, steps).round.status == "promoted"


def test_a_flood_of_votes_begins_no_round(paths) -> None:
    more = replace(UNSIGNED, labels=20)
    rate(paths, 30, start=100, terminal="a bot")
    assert not go(paths, Recorded(), more, dry_run=True).due.go
    rate(paths, 30, start=200)
    assert go(paths, Recorded(), more, dry_run=True).due.go


def test_only_models_with_a_policy_are_improved() -> None:
    text = ("version: 1\nmodels:\n  a: {source: shipped:small, improve: {labels: 7}}\n"
            "  b: {source: shipped:small}\nhosts: {h: {models: [a, b]}}\n")
    inventory = parse_inventory(text, "inventory.yaml")
    assert policies(inventory, ()) == {"a": ImproveWish(labels=7)}
    with pytest.raises(UsageError, match="improving b"):
        policies(inventory, ("b",))
