"""A circuit breaker for one model on one host: who has just failed is left alone for a while, then tried by
one question before all others come back.

Pure: a `Breaker` and the time go in, another comes out; dispatch.breakers keeps them. Closed: asked as ever.
Open: asked nothing until `until`. Half-open: one probe at a time; its success closes, its failure opens for
twice as long. A server that fails at once would otherwise look idle, and draw all questions to itself.

What was under way when it opened fails with it: that is one failure, however many questions it takes along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: Seconds for which a first failure opens, and at most. A question that finds it failed again has lost
#: little: it goes to the next candidate.
FIRST, LONGEST = 2.0, 60.0
#: A refusal is not risked again before so many times the seconds that it cost, and doubling ends at so many
#: times: one that costs nothing is risked every few seconds, so that one that is back is not idle for long.
COST, DEAR = 2.0, 40.0
LONGEST_AT_ONCE = 4.0
#: Every pause is shortened or lengthened by up to this share, so that no crowd comes back at once.
JITTER = 0.2
#: A full queue is no fault; it is only left alone for a moment.
FULL = 1.0
#: What kinds of failure weigh; from 1 in a row on it is open. An answer that breaks off may be its prompt's
#: fault, once.
WEIGHTS = {"refused": 1.0, "broken": 0.5}

State = Literal["closed", "open", "half-open"]
Kind = Literal["refused", "broken", "full"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` is the weight of those in a row, `until` when it may be tried again (seconds since 1970),
    `since` when the first of them was and `last` the last; `why` says what that one said."""

    failures: float = 0.0
    until: float = 0.0
    since: float = 0.0
    why: str = ""
    last: float = 0.0

    def state(self, now: float) -> State:
        """How it stands. A clock that was put back keeps nothing open for longer than it was meant to be."""
        if now < self.until <= now + LONGEST * (1 + JITTER):
            return "open"
        return "half-open" if self.failures >= 1 else "closed"


CLOSED = Breaker()


def failed(before: Breaker, kind: Kind, why: str, now: float, *, cost: float = 0.0,
           luck: float = 0.5) -> Breaker:
    """After a failure of a question that was sent `cost` seconds ago. `luck`, from 0 to 1, places the pause
    within its jitter."""
    jitter = 1 + JITTER * (2 * luck - 1)
    if kind == "full":
        return replace(before, until=max(before.until, now + FULL * jitter), why=why)
    if before.failures >= 1 and now - cost < before.last <= now:
        return before  # it was under way already when the server was last seen to fail
    failures = before.failures + WEIGHTS[kind]
    since = before.since or now
    if failures < 1:
        return Breaker(failures, 0.0, since, why, now)
    return Breaker(failures, now + _pause(failures, cost if kind == "refused" else 0.0) * jitter, since, why,
                   now)


def spoke(before: Breaker) -> Breaker:
    """After its first word: closed, on probation. All may come back, but the next failure opens it again."""
    return replace(before, failures=min(before.failures, 0.5), until=0.0)


def _pause(failures: float, cost: float) -> float:
    """Seconds until the next try. An answer that breaks off has cost no wait for nothing."""
    doubled = min(FIRST * 2 ** min(failures - 1, 16), max(LONGEST_AT_ONCE, DEAR * cost))
    return min(LONGEST, max(doubled, COST * cost))
