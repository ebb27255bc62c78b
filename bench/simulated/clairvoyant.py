"""What nobody can do: schedules made with every answer's length known. How good one can be is intractable, so
this tries several rules on each trace; load.py takes the best of them, and `alone` is what no schedule beats.

Two kinds, for they say different things. `FAIR` put nobody off: swarmctl's own rules with each answer's true
length, and a greedy schedule by several keys. `RUTHLESS` serve the 95th percentile and not people: the one in
25 that take longest, and those that can no longer end in a given time, wait until nobody else does (as Moore
and Hodgson's rule for the fewest late jobs puts them last).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import inf

from simulated.ours import Swarmctl
from simulated.replay import Policy


@dataclass(frozen=True, slots=True)
class Rule:
    """In which order; who goes last: answers of more tokens than `costly`, and those that cannot end
    within `due` seconds of their arrival any more."""

    key: str
    costly: float = inf
    due: float = inf


#: Tokens of the longest answers of simulated.traffic: one in 25 is longer.
COSTLY = 560.0
class Clairvoyant(Policy):
    """Keeps the queue itself, and sends each question to where it ends first, what it slows there counted."""

    name = "clairvoyant"

    def __init__(self, machines, seed, rule):  # noqa: ARG002
        self.rule = rule
        self.fastest = max(machine.decode for machine in machines)

    def pick(self, question, hosts, now):
        """The host on which it is best answered, or wait for that one."""
        if all(len(host.active) >= host.machine.slots for host in hosts.values() if host.up):
            return None
        prices = {name: _price(question, host, now) for name, host in hosts.items() if host.up}
        if not prices:
            return None
        best = min(prices, key=lambda name: prices[name])
        host = hosts[best]
        return best if len(host.active) + len(host.queue) < host.machine.slots else None

    def order(self, waiting, now):
        """By the rule's key, those that it puts off at the end."""
        return sorted(waiting, key=lambda question: self._rank(question, now))

    def _rank(self, question, now):
        alone = question.answer / self.fastest
        last = question.answer > self.rule.costly or now + alone > question.at + self.rule.due
        return last, _key(self.rule.key, question.at, alone)


class Knowing(Swarmctl):
    """swarmctl as it is, but for each question it is told how long the answer will be."""

    def pick(self, question, hosts, now):
        """As ever, with that for its answers' usual length."""
        learned = self.candidates
        self.candidates = {name: _told(candidate, question) for name, candidate in learned.items()}
        picked = super().pick(question, hosts, now)
        self.candidates = learned
        return picked


FAIR = (Knowing, *(partial(Clairvoyant, rule=Rule(key))
                   for key in ("shortest", "first come", "first to end", "least slack")))
RUTHLESS = tuple(partial(Clairvoyant, rule=Rule("least slack", costly, due)) for costly, due in (
    (COSTLY, 8.0), (COSTLY, 10.0), (COSTLY, 14.0), (COSTLY, 20.0), (COSTLY, 40.0),
    (inf, 12.0), (inf, 20.0), (inf, 40.0)))


def alone(question, machines):
    """Seconds of an answer that has the fastest host to itself and its whole conversation cached: no schedule
    beats that."""
    return min(max(1, question.prompt - question.history) / machine.prefill
               + question.answer / machine.decode for machine in machines)


def _told(candidate, question):
    habits = replace(candidate.habits, answer_tokens={question.category: float(question.answer)})
    return replace(candidate, habits=habits)


def _key(key, at, alone):
    """What comes first: the least. `alone` is the seconds of its answer on a host of its own."""
    return {"shortest": alone, "first come": at, "first to end": at + alone, "least slack": at - alone}[key]


def _price(question, host, now):
    """Seconds to its end, and by how much it slows those at work beside it."""
    machine = host.machine
    beside = min(len(host.active), machine.slots - 1)
    read = (question.prompt - min(question.history, host.holds(question.conversation))) / machine.prefill
    wait = 0.0
    if len(host.active) >= machine.slots:
        wait = min(one.prompt_left / machine.prefill
                   + one.answer_left * (1 + machine.crowding * beside) / machine.decode
                   for one in host.active)
    return wait + (machine.load_seconds if host.cold(now) else 0.0) + read \
        + question.answer * (1 + 2 * machine.crowding * beside) / machine.decode
