"""swarmctl's own policy: the very functions that `ask` and `serve` call, with the simulation's clock.

Prices, their order, where a question waits, what is learned of each answer and the circuit breakers are
`swarmctl.routing`'s; the queue is dispatch.queue and dispatch.admission without their files.
"""

from __future__ import annotations

from dataclasses import replace

from simulated.replay import Policy
from simulated.traffic import CHARACTERS
from swarmctl.errors import NoCandidate
from swarmctl.exchange import Timings
from swarmctl.routing.breaker import CLOSED, failed, spoke
from swarmctl.routing.cost import Candidate, Habits, Question, Standing, Tariff, choose
from swarmctl.routing.latency import fold
from swarmctl.routing.policy import Policy as Limits
from swarmctl.routing.waiting import Waiter, before, best_place, earlier, turn

#: Of eight billion parameters, as every host serves here: routing is about load alone.
PARAMETERS = 8_000_000_000


class Swarmctl(Policy):
    """Prices every host, claims a slot or waits for the one it prefers, and learns from each answer."""

    name = "swarmctl"

    def __init__(self, machines, seed=0):  # noqa: ARG002
        self.candidates = {machine.name: _candidate(machine) for machine in machines}
        self.busy = dict.fromkeys(self.candidates, 0)
        self.line = {}
        self.limits = Limits()
        self.breakers = dict.fromkeys(self.candidates, CLOSED)
        self.holder = {}
        self.under_way = {}
        self.sent_at = {}
        self.speaking = set()
        self.tariff = Tariff()

    def pick(self, question, hosts, now):
        """The first of the route; None where its slots are taken, or everything is out."""
        if not any(self.busy[name] < host.machine.slots for name, host in hosts.items()):
            return None
        standings = [(candidate, self._standing(candidate, question, hosts[name], now))
                     for name, candidate in self.candidates.items()]
        try:
            route = choose(Question(question.category, question.characters), standings, self.tariff)
        except NoCandidate:
            return None
        place, mine = self._place(question, route.prices)
        if not place.best.queue:
            self.line.pop(question.number, None)
            self.under_way[question.number] = place.best
            return place.best.candidate.host
        wants = {price.candidate.host: earlier(price) for price in place.wanted}
        self.line[question.number] = Waiter(mine.turn, wants)
        return None

    def _place(self, question, prices):
        """Where it is best answered, and its own place in line."""
        known = self.line.get(question.number)
        when = known.turn if known else turn(question.at, 0, prices)
        mine = Waiter(when, {price.candidate.host: earlier(price) for price in prices})
        others = [one for number, one in self.line.items() if number != question.number]
        lines = [(self.busy[host], before(host, mine, others))
                 for host in (price.candidate.host for price in prices)]
        return best_place(prices, lines, sum(one.turn > when for one in others)), mine

    def order(self, waiting, now):  # noqa: ARG002
        """By turns."""
        return sorted(waiting, key=lambda question: self.line[question.number].turn
                      if question.number in self.line else question.at)

    def gives_up(self, question, waiting, now):
        """As `ask` refuses: after so many seconds, or the last of a line that is too long."""
        mine = self.line.get(question.number)
        last = mine and len(waiting) > self.limits.queue \
            and all(one.turn <= mine.turn for one in self.line.values())
        if last or now - question.at >= self.limits.queue_seconds:
            self.line.pop(question.number, None)
            return True
        return False

    def sent(self, question, host, now):
        """A claim."""
        self.busy[host] += 1
        self.sent_at[question.number] = now

    def spoke(self, question, host, now):
        """The probe of a host that had failed lets the others come back."""
        name = host.machine.name
        self.speaking.add(question.number)
        if self.breakers[name].state(now) == "half-open":
            self.breakers[name] = spoke(self.breakers[name])

    def answered(self, one, host, now):
        """The claim is over, and its clock is learned."""
        name, question = host.machine.name, one.question
        self.busy[name] -= 1
        self.breakers[name] = CLOSED
        self.holder[question.conversation] = name
        price = self.under_way.pop(question.number)
        self.speaking.discard(question.number)
        timings = Timings(prompt_tokens=question.prompt, cached_tokens=one.cached,
                          prompt_seconds=one.read - max(one.started, one.ready) - host.machine.overhead,
                          completion_tokens=question.answer, decode_seconds=now - one.read,
                          load_seconds=max(0.0, one.ready - one.started),
                          first_token_seconds=one.read - one.sent, total_seconds=now - one.started)
        candidate = self.candidates[name]
        after = fold(candidate.habits, category=question.category, characters=question.characters,
                     finish="stop",
                     timings=timings, expected=price, company=price.busy)
        self.candidates[name] = replace(candidate, habits=after)

    def failed(self, question, host, now):
        """It died with its host."""
        self.under_way.pop(question.number)
        self.busy[host] -= 1
        kind = "broken" if question.number in self.speaking else "refused"
        self.speaking.discard(question.number)
        self.breakers[host] = failed(self.breakers[host], kind, "down", now,
                                     cost=now - self.sent_at[question.number])

    def refused(self, question, host, now):
        """The host took nothing: nothing was claimed there."""
        self.under_way.pop(question.number)
        self.breakers[host] = failed(self.breakers[host], "refused", "down", now)

    def _standing(self, candidate, question, host, now):
        name = candidate.host
        state = self.breakers[name].state(now)
        if state == "open" or (state == "half-open" and self.busy[name]):
            return Standing(out="it failed just now")
        cached = question.history * CHARACTERS if self.holder.get(question.conversation) == name else 0
        return Standing(loaded=not host.cold(now), busy=self.busy[name],
                        slots=host.machine.slots, cached_characters=round(cached))


def _candidate(machine):
    habits = Habits(machine.prefill, machine.decode, machine.overhead, CHARACTERS)
    return Candidate(machine.name, "llamacpp", "s", "model", "d", "t", 1, 0, machine.slots, PARAMETERS,
                     habits,
                     load_seconds=machine.load_seconds, idle_watts=machine.idle_watts,
                     load_watts=machine.load_watts, energy_price=0.30)
