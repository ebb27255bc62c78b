"""The replay's other half: the same policies in front of real servers, in real time, and the servers' curves.

swarmctl's questions go `ask`'s own way (dispatch.question.put), from a thread each. A peer is its class of
simulated.peers, which sends each question straight to a server.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, replace
from itertools import chain
from random import Random
from types import SimpleNamespace

from silent import Silent

from simulated.hosts import Host
from simulated.traffic import Question, mean_lengths, trace
from swarmctl.dispatch.question import Asked, put
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.named import runtime

#: What load.py's traffic is divided by, to last minutes and to fit the tiny model's context; and its ends.
SHORTER_PROMPT, SHORTER_ANSWER = 2, 4
LONGEST_PROMPT, LONGEST_ANSWER = 500, 200
#: Tokens of an answer that are no digits: quotes and its end.
FRAME = 3
#: Words from which a category follows (routing.category), and letters that form none of those words.
SIGNS = {"routine": "say", "complex": "explain", "code": "function"}
CONSONANTS, VOWELS, LETTERS_A_TOKEN = "bdfgklmnprstvz", "aou", 1.5
#: No learning, no second request: both sides only spread the load.
PLAIN = Policy(explore=0.0, cascade=False, hedge=False)
TIMEOUT = 600.0
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """A question to be asked for real: its text, and how many digits the answer has."""

    number: int
    at: float
    category: str
    text: str
    digits: int

    @property
    def schema(self):
        """What makes the answer so long, and leaves it a proper end: a bound would tell the router."""
        return {"type": "string", "pattern": f"^[0-9]{{{self.digits}}}$"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it. Seconds since it was due."""

    host: str
    first: float
    whole: float
    timings: object


@dataclass(frozen=True, slots=True)
class Curve:
    """A server as it was measured: seconds a token (`step`) by how many questions are answered at once; what
    a request takes besides when it is sent directly, and on `ask`'s way: in its slot, before it, and outside
    of it in all."""

    prefill: float
    step: dict
    direct: float
    held: float
    before: float
    outside: float

    def machine(self, like, *, asked):
        """The simulator's host with this curve."""
        alone, slots = self.step[1], max(self.step)
        crowding = (self.step[slots] / alone - 1) / (slots - 1) if slots > 1 else 0.0
        return replace(like, prefill=self.prefill, decode=1 / alone, crowding=max(0.0, crowding),
                       load_seconds=0.0, overhead=self.held if asked else self.direct)


def wishes(seed, seconds, rate):
    """A trace of load.py's traffic, shorter, as questions to be asked."""
    rng = Random(seed)
    return [Wish(one.number, one.at, one.category,
                 text(rng, one.number, one.category,
                      min(LONGEST_PROMPT, (one.prompt - one.history) // SHORTER_PROMPT)),
                 max(2, min(LONGEST_ANSWER, one.answer // SHORTER_ANSWER)))
            for one in trace(seed, seconds, rate)]


def mean_tokens():
    """Of prompts and answers, about."""
    prompt, answer = mean_lengths()
    return prompt / SHORTER_PROMPT, answer / SHORTER_ANSWER + FRAME


def text(rng, number, category, tokens):
    """A prompt of about so many tokens that begins like no other, so that nothing of it is in a cache."""
    said = f"{number} {SIGNS[category]} "
    while len(said) < tokens * LETTERS_A_TOKEN:
        said += "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(3)) + "-"
    return said


def measure(server, paths):
    """The server's curve, a few questions at a time."""
    rng = Random(server.port)
    count = iter(range(10**6, 10**7))

    def alone(tokens, digits):
        return _direct(server, Wish(0, 0.0, "", text(rng, next(count), "routine", tokens), digits))

    short, long = ([alone(tokens, 8) for _ in range(ROUNDS)] for tokens in (20, LONGEST_PROMPT))
    fresh, took = ([statistics.median(of(one.timings) for one in many) for many in (short, long)]
                   for of in (_fresh, lambda timings: timings.prompt_seconds))
    digits = max(10, round(server.machine.decode / 2))
    many = sorted({1, 2, server.machine.slots})
    rounds = [[_at_once([lambda: alone(20, digits)] * together) for together in many] for _ in range(ROUNDS)]
    step = {together: statistics.median(_step(one.timings) for one in chain.from_iterable(found))
            for together, found in zip(many, zip(*rounds, strict=True), strict=True)}
    rests = [one.whole - one.timings.prompt_seconds - one.timings.decode_seconds for one in short]
    held, before, outside = _by_ask(server, paths, rng, count)
    return Curve((fresh[1] - fresh[0]) / (took[1] - took[0]), step, statistics.median(rests), held, before,
                 outside)


def ask_all(wanted, servers, machines, policy, paths):
    """Give each question to the policy at its moment; the answers by number. `policy` is None for swarmctl's
    own way, which reads the machines from the snapshot in `paths`."""
    _snapshot(paths, servers, machines)
    hosts = {name: Host(machine) for name, machine in machines.items()}
    found, lock, threads = {}, threading.Lock(), []
    began = time.monotonic()

    def by_peer(wish, host):
        answer = _direct(servers[host], wish, began + wish.at)
        with lock:
            found[wish.number] = answer
            policy.answered(SimpleNamespace(sent=wish.at, question=heard(wish, answer)), hosts[host],
                            time.monotonic() - began)

    def by_swarmctl(wish):
        found[wish.number] = _put(paths, wish, None, began + wish.at)

    for wish in wanted:
        time.sleep(max(0.0, began + wish.at - time.monotonic()))
        if policy is None:
            task, arguments = by_swarmctl, (wish,)
        else:
            with lock:
                host = policy.pick(heard(wish), hosts, time.monotonic() - began)
                policy.sent(heard(wish), host, time.monotonic() - began)
            task, arguments = by_peer, (wish, host)
        threads.append(threading.Thread(target=task, args=arguments, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(TIMEOUT)
    return found


def heard(wish, answer=None):
    """The simulator's question, with the lengths that were real once they are known."""
    if answer is None:
        return Question(wish.number, wish.at, wish.category, 2, 2, wish.number)
    return Question(wish.number, wish.at, wish.category, max(2, _fresh(answer.timings)),
                    max(2, answer.timings.completion_tokens), wish.number)


def _step(timings):
    """Seconds a token: the first one's time is the prompt's."""
    return timings.decode_seconds / (timings.completion_tokens - 1)


def _fresh(timings):
    return timings.prompt_tokens - (timings.cached_tokens or 0)


def _direct(server, wish, due=None):
    """Send it to the server itself."""
    due = due or time.monotonic()
    request = ChatRequest((Message("user", wish.text),), temperature=1.0, schema=wish.schema)
    first = chunk = None
    for chunk in runtime("llamacpp").chat(server.endpoint, request, connect_timeout=TIMEOUT,
                                          first_token_timeout=TIMEOUT, token_timeout=TIMEOUT):
        first = first or (time.monotonic() if chunk.text else None)
    return Answer(server.machine.name, first - due, time.monotonic() - due, chunk.timings)


def _put(paths, wish, host, due=None):
    """Send it as `ask` does."""
    due, firsts = due or time.monotonic(), []
    asked = Asked(wish.text, host=host, temperature=1.0, schema=wish.schema)
    row = put(make_swarm(paths, read_fleet(paths.fleet)), asked, Silent(), terminal="bench", clock=time.time,
              watch=lambda chunk: firsts.append(time.monotonic()) if chunk.text else None).exchange
    whole = time.monotonic() - due
    if wish.category and row.category != wish.category:
        raise SystemExit(f"a question was to be {wish.category} and is {row.category}: {wish.text}")
    return Answer(row.host, firsts[0] - due, whole, row.timings)


def _by_ask(server, paths, rng, count):
    """What a request takes besides on the way of `ask`: in its slot, before that, and outside it in all."""
    host = server.machine.name
    _snapshot(paths, {host: server}, {host: server.machine})
    found = [_put(paths, Wish(0, 0.0, "", text(rng, next(count), "routine", 20), 8), host)
             for _ in range(ROUNDS)]
    seen = [(one.timings.total_seconds - one.timings.prompt_seconds - one.timings.decode_seconds,
             one.first - one.timings.first_token_seconds, one.whole - one.timings.total_seconds)
            for one in found]
    return tuple(statistics.median(column) for column in zip(*seen, strict=True))


def _snapshot(paths, servers, machines):
    entries = tuple(server.entry(machines[host]) for host, server in servers.items())
    write_fleet(paths.fleet, Fleet("bench", "-", "2026-01-01T00:00:00Z", None, 30.0, 60.0, entries, PLAIN))


def _at_once(tasks):
    found = []
    threads = [threading.Thread(target=lambda task=task: found.append(task()), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    return found
