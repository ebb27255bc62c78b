"""Breakers: as a state machine that hypothesis drives, and as files that processes share."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from recorded import paths_under
from test_routing import SMALL

from swarmctl.dispatch.breakers import leave, note_failure, note_first_word, note_success, read_breaker
from swarmctl.errors import ContextExceeded, RequestRejected, ServerFull, ServerUnavailable, StreamBroken
from swarmctl.routing.breaker import CLOSED, COST, FIRST, JITTER, LONGEST, LONGEST_AT_ONCE, failed, spoke

REFUSED, BROKEN, FULL = ServerUnavailable("HTTP 503"), StreamBroken("it broke"), ServerFull("full")


class Life(RuleBasedStateMachine):
    """Whatever happens to a server, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now = CLOSED, 1_000_000.0
        self.in_a_row = 0.0

    @rule(seconds=st.floats(0, 200))
    def time_goes_by(self, seconds):
        self.now += seconds

    @rule(seconds=st.floats(0, 1e6))
    def the_clock_is_put_back(self, seconds):
        self.now = max(0.0, self.now - seconds)

    @rule(kind=st.sampled_from(["refused", "broken"]), cost=st.floats(0, 1000), luck=st.floats(0, 1))
    def it_fails(self, kind, cost, luck):
        before = self.breaker
        self.breaker = failed(before, kind, "why", self.now, cost=cost, luck=luck)
        if self.in_a_row >= 1 and self.now - cost < before.last <= self.now:
            assert self.breaker == before, "it fell with the one before"
            return
        self.in_a_row += {"refused": 1.0, "broken": 0.5}[kind]
        if self.in_a_row >= 1:
            assert self.breaker.state(self.now) == "open"
            pause, lost = self.breaker.until - self.now, cost if kind == "refused" else 0.0
            assert pause >= min(LONGEST, max(FIRST, COST * lost)) * (1 - JITTER) - 1e-6

    @rule()
    def it_says_its_first_word(self):
        self.breaker = spoke(self.breaker)
        self.in_a_row = min(self.in_a_row, 0.5)
        assert self.breaker.state(self.now) == "closed"

    @rule(luck=st.floats(0, 1))
    def its_queue_is_full(self, luck):
        self.breaker = failed(self.breaker, "full", "why", self.now, luck=luck)
        assert self.breaker.failures == self.in_a_row, "a full queue is no fault"

    @rule()
    def it_answers(self):
        self.breaker, self.in_a_row = CLOSED, 0.0

    @invariant()
    def it_is_never_left_alone_for_longer_than_the_longest_pause(self):
        left = "half-open" if self.in_a_row >= 1 else "closed"
        until, longest = self.breaker.until, LONGEST * (1 + JITTER)
        assert self.breaker.state(until + 1e-3) == left
        assert self.breaker.state(until - longest - 1e-3) == left, "nor for a clock that was put back"

    @invariant()
    def who_did_not_fail_is_asked(self):
        if self.breaker == CLOSED:
            assert self.breaker.state(self.now) == "closed"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def pauses(cost: float) -> list[float]:
    breaker, now, found = CLOSED, 1000.0, []
    for _ in range(7):
        breaker = failed(breaker, "refused", "no", now + cost, cost=cost)
        found.append(breaker.until - now - cost)
        now = breaker.until
    assert breaker.since == 1000.0 + cost
    return found


def test_each_failure_in_a_row_doubles_the_pause():
    assert pauses(1.0)[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert pauses(2.0)[-1] == LONGEST


def test_who_refuses_at_once_is_tried_every_few_seconds():
    assert pauses(0.0) == [FIRST, *[LONGEST_AT_ONCE] * 6]


def test_what_falls_with_a_host_is_one_failure():
    first = failed(CLOSED, "refused", "down", 1000.0, cost=3.0)
    for sent in (0.1, 7.0):
        assert failed(first, "broken", "down", 1000.01, cost=sent) == first
    later = failed(first, "refused", "down", 1003.0, cost=0.01)
    assert (later.failures, later.last) == (2.0, 1003.0)


def test_two_answers_that_break_off_together_open_it():
    once = failed(CLOSED, "broken", "it broke", 1000.0, cost=9.0)
    assert failed(once, "broken", "it broke", 1000.0, cost=8.0).state(1000.0) == "open"


def test_its_first_word_lets_all_come_back_and_its_next_failure_opens_it_again():
    speaking = spoke(failed(CLOSED, "refused", "no", 1000.0))
    assert speaking.state(1000.0) == "closed"
    assert failed(speaking, "broken", "it broke", 1009.0, cost=5.0).state(1009.0) == "open"


def test_what_cost_much_is_not_risked_again_soon():
    assert failed(CLOSED, "refused", "no answer within 20 s", 1000.0, cost=20.0).until == 1000.0 + 40.0


def test_one_answer_that_breaks_off_opens_nothing_and_two_do():
    once = failed(CLOSED, "broken", "it broke", 1000.0)
    assert once.state(1000.0) == "closed"
    assert failed(once, "broken", "it broke", 1001.0).state(1001.0) == "open"


@pytest.fixture
def paths(tmp_path):
    return paths_under(tmp_path)


def state(paths, now: float) -> str:
    return read_breaker(paths, SMALL.host, SMALL.server).state(now)


def test_a_refusal_opens_and_an_answer_closes(paths):
    assert leave(paths, SMALL, 1000.0) is not None
    note_failure(paths, SMALL, REFUSED, 1000.0, 0.0)
    assert leave(paths, SMALL, 1000.5) is None
    assert state(paths, 1010.0) == "half-open"
    note_success(paths, SMALL)
    assert state(paths, 1000.5) == "closed"
    assert list((paths.state / "breakers").glob("*.json")) == []


def test_a_question_that_is_refused_for_what_it_is_says_nothing_about_the_server(paths):
    for exc in (RequestRejected("bad schema"), ContextExceeded("too long")):
        note_failure(paths, SMALL, exc, 1000.0, 0.0)
    assert state(paths, 1000.0) == "closed"


def test_a_full_queue_is_left_alone_for_a_moment_and_needs_no_probe(paths):
    note_failure(paths, SMALL, FULL, 1000.0, 0.0)
    assert state(paths, 1000.1) == "open"
    assert state(paths, 1003.0) == "closed"


def test_half_open_lets_one_question_through_at_a_time(paths):
    note_failure(paths, SMALL, REFUSED, 1000.0, 0.0)
    probe = leave(paths, SMALL, 1010.0)
    assert probe.probes
    assert leave(paths, SMALL, 1010.0) is None
    probe.close()
    probe.close()
    again = leave(paths, SMALL, 1010.0)
    assert again.probes
    note_failure(paths, SMALL, REFUSED, 1010.0, 0.0)
    again.close()
    assert leave(paths, SMALL, 1012.0) is None, "it failed again: twice as long"
    leave(paths, SMALL, 1020.0).close()


def test_the_first_word_of_a_probe_lets_the_others_in_before_it_is_done(paths):
    note_failure(paths, SMALL, REFUSED, 1000.0, 0.0)
    with_probe = leave(paths, SMALL, 1010.0)
    note_first_word(paths, SMALL)
    assert not leave(paths, SMALL, 1010.0).probes
    with_probe.close()
    note_failure(paths, SMALL, BROKEN, 1020.0, 5.0)
    assert leave(paths, SMALL, 1020.1) is None, "on probation until an answer is whole"


PROBER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from recorded import paths_under
from test_routing import SMALL
from swarmctl.dispatch.breakers import leave
probe = leave(paths_under(Path(sys.argv[1])), SMALL, time.time() + 60)
print("probes" if probe and probe.probes else "refused", flush=True)
sys.stdin.read()
"""


def test_the_probe_of_a_killed_process_is_free_again(paths, tmp_path, request):
    note_failure(paths, SMALL, REFUSED, time.time(), 0.0)
    argv = [sys.executable, "-c", PROBER, str(tmp_path), str(request.path.parent)]
    both = [subprocess.Popen(argv, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "ab"]
    said = [one.stdout.readline().strip() for one in both]
    assert sorted(said) == ["probes", "refused"]
    assert leave(paths, SMALL, time.time() + 60) is None
    for one in both:
        one.kill()
        one.communicate(timeout=10)
    assert leave(paths, SMALL, time.time() + 60).probes


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"failures": "x"}', "\0"])
def test_garbage_in_a_breaker_keeps_nobody_from_being_asked(paths, garbage):
    file = paths.state / "breakers" / f"{SMALL.host}@{SMALL.server}.json"
    file.parent.mkdir(parents=True)
    file.write_text(garbage)
    assert leave(paths, SMALL, 1000.0) is not None
    note_failure(paths, SMALL, REFUSED, 1000.0, 0.0)
    assert state(paths, 1000.0) == "open"
