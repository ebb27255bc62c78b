"""The replay: a trace, hosts and a policy in, every question's clock out."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from simulated.hosts import Host

#: Times a question that failed is sent again, by whoever routes.
RETRIES = 3


@dataclass(slots=True)
class Told:
    """One question's end. Seconds since it arrived; None where it was lost."""

    question: object
    host: str = ""
    first: float | None = None
    whole: float | None = None
    tries: int = 0


@dataclass(slots=True)
class Run:
    """What came of a trace."""

    told: list = field(default_factory=list)
    energy: float = 0.0
    seconds: float = 0.0


class Policy:
    """Chooses a host for each question. `pick` returns a host's name, or None to be asked again when anything
    has changed; the policy is told of all that it could see."""

    name = ""

    def pick(self, question, hosts, now):
        """Where to send it now."""
        raise NotImplementedError

    def sent(self, question, host, now):
        """It was sent."""

    def spoke(self, question, host, now):
        """Its first token came."""

    def answered(self, one, host, now):
        """It was answered."""

    def failed(self, question, host, now):
        """The host refused it or died with it."""

    def refused(self, question, host, now):
        """The host, being down, did not take it."""
        self.failed(question, host, now)

    def gives_up(self, question, waiting, now):  # noqa: ARG002
        """Whether one that waits is refused now."""
        return False

    def order(self, waiting, now):  # noqa: ARG002
        """In which order those that wait are considered."""
        return list(waiting)


def replay(questions, policy, machines, outages=(), after=600.0):
    """Run a trace to its end. `outages` are (host, from, until)."""
    return _Replay(questions, policy, machines, outages).until(questions[-1].at + after)


class _Replay:
    """The clock, what is yet to happen, and who waits."""

    def __init__(self, questions, policy, machines, outages):
        self.policy = policy
        self.hosts = {machine.name: Host(machine) for machine in machines}
        self.told = {question.number: Told(question) for question in questions}
        self.events = [(question.at, 1, question.number, question) for question in questions]
        self.events += [(at, 0, index, (what, name)) for index, (name, down, back) in enumerate(outages)
                        for at, what in ((down, "down"), (back, "up"))]
        heapq.heapify(self.events)
        self.waiting = {}
        self.now = 0.0

    def until(self, end):
        """Run, and say what came of it."""
        while self.now < end and self._step():
            pass
        joules = sum(host.joules(self.now) for host in self.hosts.values())
        return Run(list(self.told.values()), joules / 3600, self.now)

    def _step(self):
        """The next thing that happens; False where nothing ever will."""
        changes = [(at, host) for host in self.hosts.values() if (at := host.next_change()) is not None]
        soonest, host = min(changes, key=lambda pair: pair[0], default=(float("inf"), None))
        if self.events and self.events[0][0] <= soonest:
            self.now, kind, _, what = heapq.heappop(self.events)
            if kind == 1:
                self._send(what)
                return True
            self._outage(*what)
        elif host is not None:
            self.now = soonest
            self._settle(host)
        elif self.waiting:
            self.now += 0.25  # whoever waits looks again
        else:
            return False
        self._look_again()
        return True

    def _look_again(self):
        """Who waits looks again, and once more after each that leaves: it may have been in another's way."""
        left = len(self.waiting) + 1
        while len(self.waiting) < left:
            left = len(self.waiting)
            for question in self.policy.order(self.waiting.values(), self.now):
                self._send(question)

    def _send(self, question):
        name = self.policy.pick(question, self.hosts, self.now)
        if name is None:
            self.waiting[question.number] = question
            if self.policy.gives_up(question, self.waiting, self.now):
                del self.waiting[question.number]
            return
        self.waiting.pop(question.number, None)
        self.told[question.number].tries += 1
        if self.hosts[name].send(question, self.now):
            self.policy.sent(question, name, self.now)
        else:
            self._lost(question, name, self.policy.refused)

    def _lost(self, question, name, tell):
        tell(question, name, self.now)
        if self.told[question.number].tries <= RETRIES:
            heapq.heappush(self.events, (self.now + 0.01, 1, question.number, question))

    def _outage(self, what, name):
        if what == "up":
            self.hosts[name].recover(self.now)
            return
        for one in self.hosts[name].fail(self.now):
            self._lost(one.question, name, self.policy.failed)

    def _settle(self, host):
        done = host.settle(self.now)
        for one in host.active:
            if one.read == self.now:
                self.policy.spoke(one.question, host, self.now)
        for one in done:
            entry = self.told[one.question.number]
            entry.host, entry.first = host.machine.name, one.read - one.question.at
            entry.whole = self.now - one.question.at
            self.policy.answered(one, host, self.now)
