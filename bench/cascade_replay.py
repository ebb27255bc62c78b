"""bench/cascade.py with many more questions: both models are asked once, and the cascade is replayed.

    python bench/cascade_replay.py [QUESTIONS] [LABELS] [DRAWS]

Asked greedily, a model says the same each time. So each question is asked once of each model, at full speed,
and every policy is put to those very answers, token by token, with the routing code and what it has learned
from the journal. What an answer costs follows from a line through answers that the throttled servers gave
(seconds by characters asked and tokens said), which a busy machine does not bend. All is drawn anew DRAWS
times, ratings included; questions that are rated are not asked. Intervals: 95 %, paired bootstrap over
questions.

Needs SWARMCTL_TEST_LLAMACPP.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cascade import (
    BAD_ANSWER,
    LABELS,
    LONGEST,
    MIXES,
    POLICIES,
    SHARES,
    WATTS,
    Home,
    ask_what,
    learn,
    priced,
    questions,
    slow,
    weights,
)
from silent import Silent
from throttled import Server

from recipes.tiny.tasks import is_right
from swarmctl.dispatch.admission import TERMS
from swarmctl.dispatch.cascade import Cascade, Escalated, _Held
from swarmctl.dispatch.question import Asked, as_request
from swarmctl.ledger.journal import read
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.verbs import route

HOSTS = (("spinoza", "small"), ("calisota", "large"))


class Replay:
    """Answers that were given once, and what they cost."""

    def __init__(self, servers):
        self.servers = {server.model: server for server in servers.values()}
        self.said = {}
        self.lines = {}

    def time(self, home):
        """Read the throttled servers' speeds off the newest exchanges with each."""
        rows = [row for row in read(home.paths.journal) if row["kind"] == "exchange"]
        for model in self.servers:
            own = [row for row in rows if row["model"] == f"tiny-{model}"][-40:]
            known = np.array([[1.0, len(row["messages"][-1]["content"]),
                               row["timings"]["completion_tokens"]] for row in own])
            took = np.array([row["timings"]["total_seconds"] for row in own])
            self.lines[model] = np.linalg.lstsq(known, took, rcond=None)[0]

    def answer(self, task, model):
        """Every chunk of a model's answer."""
        if (task.question, model) not in self.said:
            server = self.servers[model]
            ask = as_request(Asked(task.question, temperature=0.0, max_tokens=LONGEST, logprobs=True))
            self.said[task.question, model] = tuple(runtime(server.kind).chat(
                Endpoint(port=server.port, model=server.tag), ask, connect_timeout=5, first_token_timeout=60,
                token_timeout=30))
        return self.said[task.question, model]

    def right(self, task, model):
        return is_right(task, "".join(chunk.text for chunk in self.answer(task, model)))

    def cost(self, swarm, task, model, tokens=None):
        """Of an answer, or of its first tokens, in seconds by the tariff."""
        said = sum(bool(chunk.text) for chunk in self.answer(task, model)) if tokens is None else tokens
        seconds = float(self.lines[model] @ (1.0, len(task.question), said))
        return priced(swarm, seconds, WATTS[model] * seconds / 3600)

    def put(self, swarm, task):
        """(right, cost) of a question by a policy."""
        asked = Asked(task.question, temperature=0.0, max_tokens=LONGEST)
        found = route.explain(swarm, asked, time.time())
        cascade = Cascade(swarm, found.way, as_request(asked), found.sort.category)
        model = cascade.way.chosen.candidate.model.removeprefix("tiny-")
        if cascade.choice is None:
            return self.right(task, model), self.cost(swarm, task, model)
        held = _Held(cascade.choice, task.question, Silent(), None, TERMS)
        try:
            for chunk in self.answer(task, model):
                held.see(chunk)
        except Escalated:
            spent = self.cost(swarm, task, model, held.trail.tokens)
            return self.right(task, "large"), spent + self.cost(swarm, task, "large")
        return self.right(task, model), self.cost(swarm, task, model)


def draw(replay, folder, servers, number, count, labels, found):
    """One draw of ratings and of questions of each mix."""
    asked = ask_what(MIXES, count, f"again {number}")
    known = {task.question for tasks in asked.values() for task in tasks}
    home = Home(folder / f"home-{number}", servers, Policy(explore=0.0, cascade=True, hedge=False))
    learn(home, questions("even", labels, f"labels again {number}", known))
    route.fit(home.paths, time.time, lambda _: None, wait=60)
    shutil.rmtree(home.paths.state / "habits")
    for server in servers.values():
        server.throttle(SHARES[server.model])
    slow(home, questions("even", 40, f"speeds {number}", known))
    for server in servers.values():
        server.throttle(1.0)
    replay.time(home)
    ways = {name: home.copy(f"{number} {name}", Policy(explore=0.0, cascade=name.startswith("cascade"),
                                                       hedge=False), BAD_ANSWER * times).swarm()
            for name, times in POLICIES.items() if not name.startswith("always")}
    for mix in MIXES:
        for task in asked[mix]:
            swarm = ways["static"]
            row = {f"always {model}": (replay.right(task, model), replay.cost(swarm, task, model))
                   for model in ("small", "large")}
            row |= {name: replay.put(way, task) for name, way in ways.items()}
            found[mix].append((task, row))
        print(f"  draw {number + 1}: {mix}", file=sys.stderr)


def show(mix, rows):
    places: dict[str, int] = {}
    of = np.array([places.setdefault(task.question, len(places)) for task, _ in rows])
    counts = weights(mix, [task for task, _ in rows])
    picks = np.random.default_rng(0).integers(0, len(places), (2000, len(places)))
    print(f"\n{mix}: {len(rows)} questions, {len(places)} of them different\n")
    print("| | right | of always large's cost | right, less always large's |\n|---|---|---|---|")
    for name in POLICIES:
        each = np.array([[*row[name], *row["always large"], 1.0] for _, row in rows], dtype=float)
        sums = np.stack([np.bincount(of, column * counts) for column in each.T], axis=1)
        drawn, total = sums[picks].sum(1), sums.sum(0)
        (a, b), (c, d) = (np.quantile(way(drawn.T), [0.025, 0.975]) for way in (_ratio, _gap))
        print(f"| {name} | {total[0] / total[4]:.1%} | {_ratio(total):.3f} [{a:.3f}, {b:.3f}] | "
              f"{_gap(total):+.2%} [{c:+.2%}, {d:+.2%}] |")


def _ratio(sums):
    return sums[1] / sums[3]


def _gap(sums):
    return (sums[0] - sums[2]) / sums[4]


def main():
    count, labels, draws = (int(sys.argv[place]) if len(sys.argv) > place else usual
                            for place, usual in ((1, 875), (2, LABELS), (3, 2)))
    folder = Path(tempfile.mkdtemp(prefix="swarmctl-bench-"))
    servers, found = {}, {mix: [] for mix in MIXES}
    try:
        for host, model in HOSTS:
            servers[host] = Server("llamacpp", model, 1.0, WATTS[model])
        replay = Replay(servers)
        for number in range(draws):
            draw(replay, folder, servers, number, count, labels, found)
        print(f"{draws} draws of {labels} rated questions")
        for mix, rows in found.items():
            show(mix, rows)
    finally:
        for server in servers.values():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
