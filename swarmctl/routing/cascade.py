"""Ask the small model first? And when is what it has said enough to show it, or to ask the large one?

All in seconds of a person's time, as in `routing.cost`. With p the belief that the small model's answer is
good, the choices while it streams are

    commit     (T - t) s + B (1 - p)           show it: the rest of it must still be made
    escalate   D + B (1 - Q(p))                throw it away and ask the large one
    hold       (t' - t) (s + h) + E V(p')      look at more of it, up to its next stage t'

with s the price of one of the small model's tokens, T how many it says, B the price of a bad answer, D that
of waiting for the large one, Q(p) the large one's share of good answers, and h what a person minds in a
token that is there and is not shown. V is the least of the three. At T there is no more to look at.

How p moves is Wald's model: what is still to be heard adds to the log-odds a normal step, N(+d/2, d) where
the answer is good and N(-d/2, d) where it is bad. (Variance d with mean d/2 is what makes p a martingale:
looking cannot shift a belief on average.) d between two stages is what the calibration found the confidence
to be worth. A model that says nothing has d = 0: holding only costs, and it is never held. Backward induction
from T over a grid of log-odds gives V; the expectation is by Gauss-Hermite quadrature.

Two thresholds a stage are all there is: commit and escalate are linear in p; the mean of a concave function
of the belief to come is concave in the belief now; so hold is concave, and so is the least of the three.
Where that is not hold it is linear, hence {p: escalate} and {p: commit} are intervals at the two ends.

Asking small first costs `start` and V after it. It is chosen where that is less than both "small only" and
"large only" by more than a margin, so under the model it is never dearer than the better of the two.
(DeGroot, Optimal Statistical Decisions, 1970, ch. 12; Ferguson, Optimal Stopping and Applications, ch. 3.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Literal

from swarmctl.routing.confidence import SUREST, log_odds, probability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Cost = Callable[[float, float], float]
    Belief = Callable[[float], float]

#: What a person minds in a second whose text is there and not shown, beside the second itself.
HELD_BACK = 0.25
#: Seconds, and share of the better fixed choice, that small first must save in expectation.
MARGIN_SECONDS = 0.02
MARGIN_SHARE = 0.02
#: Odds ratio of "the large one is right" where the small one is right, against where it is wrong: what is
#: hard for one is hard for the other. On three public pairs of models it was 1.9, 9.7 and 10.4
#: (docs/cascade.md).
TOGETHER = 4.0
#: An answer is held for at most so many times the tokens that were expected of it.
LONGER = 2
STEPS = 60
GRID = tuple(-SUREST + 2 * SUREST * i / STEPS for i in range(STEPS + 1))
#: Gauss-Hermite, for the standard normal.
NODES = ((0.0, 0.406349206349), (1.023255663789, 0.244097502894), (-1.023255663789, 0.244097502894),
         (2.076847978678, 0.049916406765), (-2.076847978678, 0.049916406765),
         (3.205429002856, 0.002789141321), (-3.205429002856, 0.002789141321),
         (4.512745863399, 2.2345844e-05), (-4.512745863399, 2.2345844e-05))

Decision = Literal["hold", "commit", "escalate"]


@dataclass(frozen=True, slots=True)
class Stakes:
    """What the choice depends on. Prices in seconds; `before` and `large` are shares of good answers.

    `start` is the small model's price until its first token, `token` that of one token, `tokens` how many it
    will say; `direct` the large model's price for the whole answer, its risk apart. `at` are the stages, in
    tokens, and `information` what its confidence tells by each, the last of both for the whole answer.
    """

    before: float
    large: float
    start: float
    token: float
    tokens: float
    direct: float
    bad: float
    at: tuple[float, ...]
    information: tuple[float, ...]
    held_back: float = HELD_BACK
    token_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """At one stage: escalate at a belief of `low` or less, commit at `high` or more, hold between."""

    tokens: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether to ask the small model first, and when to stop. `small`, `large` and `cascade` are the
    expected prices of the three ways; `escalates` is the expected share that goes on to the large one."""

    first: bool
    small: float
    large: float
    cascade: float
    escalates: float
    thresholds: tuple[Threshold, ...]

    def decide(self, belief: float, tokens: int, *, whole: bool = False) -> tuple[Decision, Threshold]:
        """What to do after so many tokens, where `belief` is the share of good answers. One that runs longer
        than expected is held as at the stage before its end, up to LONGER times as long."""
        last = self.thresholds[-1]
        passed = [one for one in self.thresholds[:-1] if one.tokens <= tokens]
        ends = whole or not passed or tokens >= LONGER * last.tokens
        now = last if ends else passed[-1]
        if belief <= now.low:
            return "escalate", now
        return ("commit" if belief >= now.high else "hold"), now


def hopeless(stakes: Stakes) -> bool:
    """Whether small first would be no cheaper even if its first token told right from wrong for certain."""
    _, wrong = _together(stakes.before, stakes.large)
    given_up = min(stakes.direct + stakes.bad * (1 - wrong), stakes.bad + stakes.tokens * stakes.token)
    at_best = stakes.start + stakes.before * stakes.tokens * stakes.token + (1 - stakes.before) * given_up
    return at_best >= _fixed(stakes) - _margin(stakes)


def plan(stakes: Stakes) -> Plan:
    """Solve the stopping problem, backwards from the whole answer. Pure and quick (some milliseconds)."""
    good, bad = _together(stakes.before, stakes.large)

    def commit(p: float, tokens: float) -> float:
        return (stakes.tokens - tokens) * stakes.token + stakes.bad * (1 - p)

    def escalate(p: float) -> float:
        return stakes.direct + stakes.bad * (1 - p * good - (1 - p) * bad)

    beliefs = [probability(odds) for odds in GRID]
    value = [min(commit(p, stakes.tokens), escalate(p)) for p in beliefs]
    share = [float(escalate(p) < commit(p, stakes.tokens)) for p in beliefs]
    found = [_whole(stakes, commit, escalate, beliefs)]
    stages = list(zip((0.0, *stakes.at), (0.0, *stakes.information), strict=True))
    for (tokens, known), (later, told) in zip(stages[-2::-1], stages[:0:-1], strict=True):
        wait = (later - tokens) * (stakes.token + stakes.token_seconds * stakes.held_back)
        step = max(0.0, told - known)
        hold = [wait + _expected(value, odds, step) for odds in GRID]
        goes_on = [_expected(share, odds, step) for odds in GRID]
        now = [(commit(p, tokens), escalate(p), h) for p, h in zip(beliefs, hold, strict=True)]
        value = [min(row) for row in now]
        share = [1.0 if row[1] == min(row) else 0.0 if row[0] == min(row) else g
                 for row, g in zip(now, goes_on, strict=True)]
        found.append(Threshold(tokens, *_ends(beliefs, now)))
    return _verdict(stakes, hold, goes_on, found)


def _whole(stakes: Stakes, commit: Cost, escalate: Belief, beliefs: Sequence[float]) -> Threshold:
    """At the whole answer there is nothing to hold for."""
    ends = [(commit(p, stakes.tokens), escalate(p), float("inf")) for p in beliefs]
    return Threshold(stakes.tokens, *_ends(beliefs, ends))


def _ends(beliefs: Sequence[float], costs: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Where escalating stops to be the least, and where committing begins to be; 0 and 1 for nowhere."""
    low = _crossing(beliefs, [min(c, h) - e for c, e, h in costs])
    high = _crossing(beliefs, [c - min(e, h) for c, e, h in costs])
    return low, high


def _crossing(beliefs: Sequence[float], over: Sequence[float]) -> float:
    """Where `over` falls through zero; 0 where it is negative from the start, 1 where it never is."""
    if over[0] <= 0:
        return 0.0
    for i in range(1, len(over)):
        if over[i] <= 0:
            share = over[i - 1] / (over[i - 1] - over[i])
            return beliefs[i - 1] + share * (beliefs[i] - beliefs[i - 1])
    return 1.0


def _expected(value: Sequence[float], odds: float, step: float) -> float:
    """The mean of a value on the grid after a step of that information from these log-odds."""
    if step <= 0:
        return _at(value, odds)
    p, wide = probability(odds), sqrt(step)
    return sum(weight * (p * _at(value, odds + step / 2 + wide * node)
                         + (1 - p) * _at(value, odds - step / 2 + wide * node)) for node, weight in NODES)


def _at(value: Sequence[float], odds: float) -> float:
    """A value between the grid's points."""
    place = min(max((odds + SUREST) / (2 * SUREST) * STEPS, 0.0), STEPS - 1e-9)
    below = int(place)
    return value[below] + (place - below) * (value[below + 1] - value[below])


def _together(small: float, large: float) -> tuple[float, float]:
    """The large model's share of good answers where the small one's is good, and where it is bad: TOGETHER
    apart in odds, and `large` on the whole."""
    low, high = -20.0, 20.0
    for _ in range(50):
        odds = (low + high) / 2
        good, bad = _share(odds + log(TOGETHER)), _share(odds)
        if small * good + (1 - small) * bad < large:
            low = odds
        else:
            high = odds
    return good, bad


def _share(odds: float) -> float:
    return 1 / (1 + exp(-odds))


def _verdict(stakes: Stakes, hold: Sequence[float], goes_on: Sequence[float],
             found: Sequence[Threshold]) -> Plan:
    odds = log_odds(stakes.before)
    cascade = stakes.start + _at(hold, odds)
    first = cascade < _fixed(stakes) - _margin(stakes)
    return Plan(first, _small(stakes), _large(stakes), cascade, _at(goes_on, odds), tuple(found[-2::-1]))


def _small(stakes: Stakes) -> float:
    """The small model alone."""
    return stakes.start + stakes.tokens * stakes.token + stakes.bad * (1 - stakes.before)


def _large(stakes: Stakes) -> float:
    """The large model alone."""
    return stakes.direct + stakes.bad * (1 - stakes.large)


def _fixed(stakes: Stakes) -> float:
    return min(_small(stakes), _large(stakes))


def _margin(stakes: Stakes) -> float:
    return max(MARGIN_SECONDS, MARGIN_SHARE * _fixed(stakes))
