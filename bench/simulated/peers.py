"""What gateways do today: the policies that swarmctl is compared with.

All of the gateways send a question on at once; it then waits in its host's own queue. LiteLLM's two are
written after router_strategy/least_busy.py and lowest_latency.py (its averages keep the first nine samples
and the newest one) and its cooldown of five seconds for a deployment that failed.
"""

from __future__ import annotations

import random
from collections import defaultdict

from simulated.replay import Policy

COOLDOWN = 5.0


class Counting(Policy):
    """Knows how many of its own questions are under way at each host, and leaves alone who failed just
    now."""

    def __init__(self, machines, seed=0):  # noqa: ARG002
        self.rng = random.Random(seed)
        self.busy = defaultdict(int)
        self.out = {}

    def well(self, hosts, now):
        """The hosts that may be tried."""
        return [name for name in hosts if self.out.get(name, -1.0) <= now] or list(hosts)

    def sent(self, question, host, now):  # noqa: ARG002
        """One more."""
        self.busy[host] += 1

    def answered(self, one, host, now):  # noqa: ARG002
        """One less."""
        self.busy[host.machine.name] -= 1

    def failed(self, question, host, now):  # noqa: ARG002
        """It is left alone for a while."""
        self.busy[host] -= 1
        self.out[host] = now + COOLDOWN

    def refused(self, question, host, now):  # noqa: ARG002
        """It never was under way."""
        self.out[host] = now + COOLDOWN


class RoundRobin(Counting):
    """One after the other."""

    name = "round robin"

    def __init__(self, machines, seed=0):
        super().__init__(machines, seed)
        self.turn = 0

    def pick(self, question, hosts, now):  # noqa: ARG002
        """The next one."""
        well = self.well(hosts, now)
        self.turn += 1
        return well[self.turn % len(well)]


class LeastConnections(Counting):
    """Fewest under way per slot (a weighted least connections, kinder to it than the plain one)."""

    name = "least connections"

    def pick(self, question, hosts, now):  # noqa: ARG002
        """The least loaded, at random among equals."""
        well = self.well(hosts, now)
        self.rng.shuffle(well)
        return min(well, key=lambda name: self.busy[name] / hosts[name].machine.slots)


class RandomOfTwo(Counting):
    """The less loaded of two at random (Mitzenmacher 2001)."""

    name = "random of two"

    def pick(self, question, hosts, now):  # noqa: ARG002
        """Two at random, the better of them."""
        well = self.well(hosts, now)
        two = self.rng.sample(well, min(2, len(well)))
        return min(two, key=lambda name: self.busy[name])


class LeastBusy(Counting):
    """LiteLLM's least-busy: the fewest under way, the first of equals."""

    name = "LiteLLM least-busy"

    def pick(self, question, hosts, now):  # noqa: ARG002
        """The first with the fewest."""
        return min(self.well(hosts, now), key=lambda name: self.busy[name])


class LowestLatency(Counting):
    """LiteLLM's latency-based-routing: the lowest mean of seconds per answer token over ten samples."""

    name = "LiteLLM latency"

    def __init__(self, machines, seed=0):
        super().__init__(machines, seed)
        self.seen = defaultdict(list)

    def pick(self, question, hosts, now):  # noqa: ARG002
        """The lowest mean; one that was never tried counts as 0."""
        well = self.well(hosts, now)
        self.rng.shuffle(well)
        return min(well, key=lambda name: sum(self.seen[name]) / max(1, len(self.seen[name])))

    def answered(self, one, host, now):
        """One more sample."""
        super().answered(one, host, now)
        seen = self.seen[host.machine.name]
        value = (now - one.sent) / one.question.answer
        self.seen[host.machine.name] = [*seen[:9], value] if len(seen) >= 10 else [*seen, value]


PEERS = (RoundRobin, LeastConnections, RandomOfTwo, LeastBusy, LowestLatency)
