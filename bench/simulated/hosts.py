"""Simulated hosts: what a model server does with the questions it is given.

A host decodes its active questions side by side, each slower the more there are (continuous batching). One
loop does all of it, as in llama-server: prompts that have come are read together in one pass, which gives
each of the others a single token, however long it takes. What it has no slot for waits in the host's own
queue, first come first served. A model that was not asked for a while is unloaded. A host that is down
refuses at once. load_check.py holds this against real servers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

#: A model is unloaded after so many idle seconds (Ollama's keep-alive).
KEEP = 300.0
#: Prompt tokens of one pass (llama-server's --batch-size).
PASS = 2048.0
#: What is left of the token that is under way when a prompt comes, on average: it is ended first.
UNDER_WAY = 0.5
#: Conversations that a host still has in its cache.
REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """What a host is. Speeds in tokens per second of one question alone; `crowding` is how much each further
    one slows all; watts at the wall; `overhead` is the seconds of a request that are neither prefill nor
    decode, in which it holds its slot."""

    name: str
    prefill: float
    decode: float
    slots: int
    crowding: float
    load_seconds: float
    idle_watts: float
    load_watts: float
    overhead: float = 0.0

    def rate(self, prompt, answer):
        """Questions a second with all slots at work."""
        slowed = 1 + self.crowding * (self.slots - 1)
        held = self.overhead + prompt * self.slots / self.prefill + answer * slowed / self.decode
        return self.slots / held


WORLOCK = Machine("worlock", 2400.0, 62.0, 4, 0.18, 6.0, 70.0, 420.0)
SPINOZA = Machine("spinoza", 110.0, 8.5, 2, 0.55, 9.0, 18.0, 65.0)
CALISOTA = Machine("calisota", 4200.0, 95.0, 4, 0.15, 4.0, 55.0, 330.0)
#: The example swarm of the README (two GPUs, a small CPU box, a newer GPU), and an office's eight: two newer
#: GPUs, three older ones, a laptop with unified memory and two CPU boxes.
SWARMS = {
    "three": (WORLOCK, SPINOZA, CALISOTA),
    "eight": (
        CALISOTA,
        Machine("desk-1", 3600.0, 88.0, 4, 0.15, 4.0, 50.0, 300.0),
        Machine("desk-2", 1500.0, 42.0, 2, 0.20, 7.0, 45.0, 240.0),
        Machine("desk-3", 1300.0, 38.0, 2, 0.20, 7.0, 45.0, 220.0),
        Machine("desk-4", 900.0, 30.0, 2, 0.25, 8.0, 40.0, 180.0),
        Machine("laptop", 420.0, 24.0, 2, 0.30, 6.0, 8.0, 60.0),
        Machine("server", 260.0, 14.0, 4, 0.35, 8.0, 90.0, 260.0),
        SPINOZA,
    ),
}


@dataclass(slots=True)
class Sent:
    """A question at a host: what is left of it, and its clock. It may be read from `begins` on."""

    question: object
    sent: float
    prompt_left: float
    answer_left: float
    started: float | None = None
    read: float | None = None
    ready: float = 0.0
    begins: float = 0.0
    cached: int = 0


class Host:
    """One host. Time moves by `advance`; `next_change` says when its state changes by itself."""

    def __init__(self, machine):
        self.machine = machine
        self.active = []
        self.queue = deque()
        self.now = 0.0
        self.loading_until = 0.0
        self.last_used = 0.0
        self.loaded = True
        self.up = True
        self.busy_seconds = 0.0
        self.cache = OrderedDict()
        self.reading = {}
        self.pass_ends = 0.0

    def send(self, question, now):
        """Take a question; False where the host is down."""
        if not self.up:
            return False
        self.advance(now)
        self.queue.append(Sent(question, now, float(question.prompt), float(question.answer)))
        self._fill()
        return True

    def advance(self, now):
        """Let time pass; no phase may end within it (see next_change)."""
        if self.active:
            self.busy_seconds += now - self.now
            self.last_used = now
        if not self.reading:
            decoded = (now - self.now) / self._token_seconds()
            for one in self._decoding():
                one.answer_left -= decoded
        self.now = now

    def next_change(self):
        """When the next phase ends, or None."""
        if self.reading:
            return self.pass_ends
        soonest = [max(self.now, one.begins) for one in self.active if one.read is None]
        token = self._token_seconds()
        soonest += [self.now + max(0.0, one.answer_left) * token for one in self._decoding()]
        return min(soonest, default=None)

    def settle(self, now):
        """The questions that are answered by now."""
        self.advance(now)
        if self.reading and now >= self.pass_ends:
            self._end_pass(now)
        done = [one for one in self._decoding() if one.answer_left <= 1e-6]
        for one in done:
            self.active.remove(one)
            self._remember(one.question)
        self._fill()
        self._begin_pass(now)
        return done

    def fail(self, now):
        """The host dies: all that it held is lost."""
        self.advance(now)
        lost = [*self.active, *self.queue]
        self.active, self.up, self.loaded = [], False, False
        self.queue.clear()
        self.cache.clear()
        self.reading = {}
        return lost

    def recover(self, now):
        """It is back, with nothing loaded."""
        self.now, self.up = now, True

    def cold(self, now):
        """Whether a question sent now would wait for the model."""
        return not self.loaded or (not self.active and now - self.last_used > KEEP)

    def holds(self, conversation):
        """Tokens of a conversation that need not be read again."""
        return self.cache.get(conversation, 0)

    def joules(self, now):
        """What it drew by now."""
        idle = now - self.busy_seconds
        return self.busy_seconds * self.machine.load_watts + idle * self.machine.idle_watts

    def _fill(self):
        while self.queue and len(self.active) < self.machine.slots:
            one = self.queue.popleft()
            if self.cold(self.now):
                self.loaded, self.loading_until = True, self.now + self.machine.load_seconds
                self.cache.clear()
            one.started, one.ready = self.now, max(self.now, self.loading_until)
            one.cached = min(self.holds(one.question.conversation), one.question.history)
            one.begins = one.ready + self.machine.overhead
            one.prompt_left = max(1.0, one.prompt_left - one.cached)
            self.last_used = self.now
            self.active.append(one)

    def _begin_pass(self, now):
        """Read what has come, as much of it as one pass takes; who decodes gets one token meanwhile."""
        if self.reading:
            return
        room = PASS
        for one in self.active:
            if one.read is None and one.begins <= now + 1e-9 and room > 0:
                self.reading[id(one)] = taken = min(one.prompt_left, room)
                room -= taken
        if self.reading:
            decoding = len(self._decoding())
            under_way = UNDER_WAY * self._token_seconds() if decoding else 0.0
            self.pass_ends = (now + under_way + (PASS - room) / self.machine.prefill
                              + self._token_seconds(len(self.reading) + decoding))

    def _end_pass(self, now):
        for one in self._decoding():
            one.answer_left -= 1 + UNDER_WAY
        for one in self.active:
            one.prompt_left -= self.reading.get(id(one), 0.0)
            if one.read is None and one.prompt_left <= 1e-6:
                one.prompt_left, one.read = 0.0, now
                one.answer_left -= 1
        self.reading = {}

    def _decoding(self):
        return [one for one in self.active if one.read is not None]

    def _token_seconds(self, at_work=None):
        """Of each of those that decode, or of so many."""
        count = len(self._decoding()) if at_work is None else at_work
        return (1 + self.machine.crowding * max(0, count - 1)) / self.machine.decode

    def _remember(self, question):
        self.cache[question.conversation] = question.prompt + question.answer
        self.cache.move_to_end(question.conversation)
        while len(self.cache) > REMEMBERED:
            self.cache.popitem(last=False)
