"""Small first, over the lab's two tiny models: quality and cost of four ways to answer the same questions.

    python bench/cascade.py [llamacpp|ollama] [QUESTIONS] [LABELS] [MIX ...]

The two models are equally cheap in seconds on one machine, so their hosts are made unequal: the large one's
gets 1.5 % of a CPU at 380 W, the small one's 15 % at 45 W. The large one then takes about ten times as long
for an answer, as 30 billion parameters do against 3. A bad answer costs 4 s, about as many times the large
model's answer as by the defaults (60 s against 10 s); both were set by a pilot of 20 questions that looked at
seconds alone. What a bad answer costs says how much quality is given for time, so the cascade is also shown
where it costs three times as much: at that price it is to be as good as the large model (docs/cascade.md).
With Ollama both shares are four times as large, and a bad answer costs a quarter: with less it once gave no
answer within 30 s.

Questions are the tiny family's own, from that half of its held-out tenth which nothing was tuned on (by a
hash of what they ask); those that are rated and those that are asked are disjoint. `everyday` has 60 %
routine, 25 % complex, 15 % code; `even` has every kind alike. All is asked greedily, through
`dispatch.question.put`. A cost is what a question's answer took, a small model's part that was thrown away
included: measured seconds, watt hours at load, and both as seconds by the router's tariff.

Needs SWARMCTL_TEST_LLAMACPP, or SWARMCTL_TEST_OLLAMA.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from silent import Silent
from throttled import Server

from recipes.tiny.tasks import KINDS, draw, is_right
from swarmctl.dispatch.question import Asked, put
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.evaluation.learned import Known, Vectors
from swarmctl.evaluation.left_out import beliefs_left_out
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.ledger.heard import heard, read_curves
from swarmctl.ledger.routers import read_opinions
from swarmctl.paths import Paths
from swarmctl.routing.calibration import BY, Rows, fit, left_out
from swarmctl.routing.confidence import ASKED, OF_QUESTION, STAGES, WHOLE
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime
from swarmctl.verbs import route
from swarmctl.verbs.rate import Opinion, rate

SHARES, WATTS = {"small": 0.15, "large": 0.015}, {"small": 45.0, "large": 380.0}
BAD_ANSWER = 4.0
FASTER = {"llamacpp": 1, "ollama": 4}
MIXES = {
    "everyday": {"capital": 20, "spelling": 20, "chat": 20, "sum": 9, "count": 8, "reading": 8, "code": 15},
    "even": dict.fromkeys(KINDS, 1),
}
POLICIES = {"always small": 1, "always large": 1, "static": 1, "cascade": 1, "cascade, 3 times": 3,
            "always large, again": 1}
# and how many times as much a bad answer costs; the last is a control: it must cost what the second does
APART = 11  # questions between two policies
LONGEST = 64
LABELS = 2000
CHECK = "Is that right? Answer yes or no."


@dataclass
class Home:
    """A SWARMCTL_HOME with both hosts; `policy` is what its router may do."""

    folder: Path
    servers: dict
    policy: Policy
    bad: float = BAD_ANSWER

    @property
    def paths(self):
        return Paths.from_environ({"SWARMCTL_HOME": str(self.folder), "HOME": str(self.folder)})

    def __post_init__(self):
        hosts = tuple(server.entry(host, 3000.0, 100.0) for host, server in self.servers.items())
        fleet = Fleet("bench", "-", "2026-01-01T00:00:00Z", None, 30.0, self.bad, hosts, self.policy)
        write_fleet(self.paths.fleet, fleet)

    def swarm(self):
        return make_swarm(self.paths, read_fleet(self.paths.fleet))

    def ask(self, task, model=None):
        asked = Asked(task.question, model=model, temperature=0.0, max_tokens=LONGEST)
        return put(self.swarm(), asked, Silent(), terminal="bench", clock=time.time).exchange

    def copy(self, name, policy, bad):
        target = self.folder.parent / name.replace(" ", "-")
        shutil.copytree(self.folder, target)
        return Home(target, self.servers, policy, bad)


def questions(mix, count, seed, known):
    """So many held-out questions of a mix, none of them among the known, which they join."""
    rng, found = Random(seed), []
    kinds, shares = zip(*MIXES[mix].items(), strict=True)
    for _ in range(count * 50):
        if len(found) == count:
            break
        task = draw(rng.choices(kinds, shares)[0], rng, held_out=True)
        if not untouched(task):
            continue
        if task.kind == "chat" or task.question not in known:
            known.add(task.question)
            found.append(task)
    return found


def ask_what(mixes, count, seed):
    """The questions that are asked, of each mix. They are drawn before those that are rated, because the
    world has few of some kinds."""
    return {mix: questions(mix, count, f"asked {mix} {seed}", set()) for mix in mixes}


def weights(mix, tasks):
    """What each question counts, so that every kind has its share of the mix: of some there are too few."""
    drawn, shares = Counter(task.kind for task in tasks), MIXES[mix]
    each = len(tasks) / sum(shares.values())
    return np.array([each * shares[task.kind] / drawn[task.kind] for task in tasks])


def untouched(task):
    """Whether it is of the half that nothing was tuned on."""
    return hashlib.sha1(task.key.encode()).digest()[0] % 2 == 1


def learn(home, tasks):
    """Both models answer, both answers are rated. The questions with the small one's exchanges."""
    found = []
    for task in tasks:
        for server in home.servers.values():
            row = home.ask(task, server.tag)
            rate(home.paths, Opinion("up" if is_right(task, row.answer) else "down"), terminal="bench",
                 now=time.time(), id_part=row.id)
            if server.model == "small":
                found.append((task, row))
    return found


def cost(home, row):
    """Seconds and watt hours of all that was done for an answer."""
    watts = {host: server.watts for host, server in home.servers.items()}
    spent = [(row.host, row.timings.total_seconds or 0.0)]
    said = row.route.get("cascade") or {}
    if said.get("decision") == "escalate":
        spent.append((said["host"], said["seconds"]))
    return sum(s for _, s in spent), sum(watts[host] * s / 3600 for host, s in spent)


def priced(swarm, seconds, watt_hours):
    """Seconds of a person's time, by the router's tariff."""
    return seconds + watt_hours / 1000 * 0.3 / swarm.tariff.value_of_time * 3600


def measure(homes, tasks):
    """Every question by every policy. The policies take turns, so that the machine's moods hit all alike, and
    each is some questions behind the one before it: asked twice in a row, a prompt would be in the server's
    cache the second time, and cost less."""
    found = {name: [None] * len(tasks) for name in POLICIES}
    forced = {"always small": "tiny-small"} | dict.fromkeys(("always large", "always large, again"),
                                                            "tiny-large")
    for turn in range(len(tasks)):
        for behind, name in enumerate(POLICIES):
            place, home = (turn - APART * behind) % len(tasks), homes[name]
            task = tasks[place]
            row = home.ask(task, forced.get(name))
            seconds, watt_hours = cost(home, row)
            said = row.route.get("cascade") or {}
            for out in row.route["excluded"]:
                print(f"  {out['model']} on {out['host']} is out: {out['reason']}", file=sys.stderr)
            why = said.get("why", "").partition(":")[0]
            found[name][place] = (is_right(task, row.answer), seconds, watt_hours,
                                  priced(home.swarm(), seconds, watt_hours), said.get("decision", "-"),
                                  row.model, why)
    return found


def show(mix, found, counts, rng):
    print(f"\n{mix}: {len(found['cascade'])} questions\n")
    print("| | right | seconds | mWh | cost in s | of always large | right, less always large's |")
    print("|---|---|---|---|---|---|---|")
    table = {name: np.array([[float(one) for one in row[:4]] for row in rows])
             for name, rows in found.items()}
    large = table["always large"]
    for name, rows in table.items():
        picks = rng.integers(0, len(rows), (2000, len(rows)))
        ratio = [counts[i] @ rows[i, 3] / (counts[i] @ large[i, 3]) for i in picks]
        gap = [np.average(rows[i, 0] - large[i, 0], weights=counts[i]) for i in picks]
        (a, b), (c, d) = np.quantile(ratio, [0.025, 0.975]), np.quantile(gap, [0.025, 0.975])
        mean, usual = (np.average(one, axis=0, weights=counts) for one in (rows, large))
        print(f"| {name} | {mean[0]:.1%} | {mean[1]:.2f} | {1000 * mean[2]:.1f} | {mean[3]:.2f} | "
              f"{mean[3] / usual[3]:.2f} [{a:.2f}, {b:.2f}] | "
              f"{mean[0] - usual[0]:+.1%} [{c:+.1%}, {d:+.1%}] |")
    for name in list(POLICIES)[2:-1]:
        ways = Counter(f"{row[4]} → {row[5]}" + (f" ({row[6]})" if row[6] else "") for row in found[name])
        print(f"\n{name}: " + "; ".join(f"{count} {way}" for way, count in ways.most_common()))


def self_check(server, tasks):
    """Log-odds of "yes" over "no" as the first token, asked of the model about its own answer."""
    found = []
    for task, row in tasks:
        turns = (Message("user", task.question), Message("assistant", row.answer), Message("user", CHECK))
        ask = ChatRequest(turns, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=20)
        chunks = runtime(server.kind).chat(Endpoint(port=server.port, model=server.tag), ask,
                                           connect_timeout=5, first_token_timeout=60, token_timeout=30)
        top = [pair for chunk in chunks for token in chunk.tokens for pair in token.top]
        best = {letter: max((value for text, value in top if text.strip().lower().startswith(letter)),
                            default=-12.0) for letter in "yn"}
        found.append((best["y"] - best["n"]) / 4)
    return np.array(found)


def signals_table(samples, check):
    """What each signal tells of answers that it was not fitted on, beside the belief before."""
    good = np.array([one.good for one in samples])
    before = np.array([one.before for one in samples])
    rows = Rows(samples)
    checked = Rows(samples)
    checked.x[WHOLE] = np.c_[checked.x[ASKED], check - check.mean()]
    both = tuple(range(rows.x[WHOLE].shape[1]))
    ways = {"the belief before, put right by the sort of question": (rows, ASKED, both[:OF_QUESTION]),
            "answer-token probabilities": (rows, WHOLE, BY["probabilities"]),
            "answer text": (rows, WHOLE, BY["text"]), "probabilities and text": (rows, WHOLE, both),
            "one-token self-check": (checked, WHOLE, tuple(range(OF_QUESTION + 1)))}
    print(f"\nsignals of the small model, {len(good)} rated answers, {good.mean():.0%} right\n")
    print("| signal | gain over the belief before, nats [90 %] | AUC | expected calibration error |")
    print("|---|---|---|---|")
    print(f"| none (the belief before) | 0 | {auc(before, good):.2f} | {ece(before, good):.3f} |")
    everyone = list(range(len(good)))
    for name, (those, stage, columns) in ways.items():
        said = left_out(those, stage, (everyone,), everyone, columns)
        p = 1 / (1 + np.exp(-(rows.before + said)))
        gain = _likelihood(p, good) - _likelihood(before, good)
        error = 1.645 * gain.std(ddof=1) / len(gain) ** 0.5
        print(f"| {name} | {gain.mean():+.3f} [{gain.mean() - error:+.3f}, {gain.mean() + error:+.3f}] | "
              f"{auc(p, good):.2f} | {ece(p, good):.3f} |")


def _likelihood(p, good):
    return good * np.log(p) + (1 - good) * np.log(1 - p)


def auc(score, good):
    right, wrong = score[good > 0.5], score[good < 0.5]
    return float(((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)).mean())


def ece(p, good, bins=10):
    """Mean distance of belief and outcome over bins of equal size."""
    parts = np.array_split(np.argsort(p), bins)
    return sum(len(part) * abs(p[part].mean() - good[part].mean()) for part in parts) / len(p)


def nothing_said(tasks, samples):
    """The small model in a swarm that only asks it to count letters or to read notes."""
    print("\n| asked only | answers | right | gain, nats | its lower end | verdict |")
    print("|---|---|---|---|---|---|")
    for kinds in (("count",), ("reading",), ("count", "reading"), tuple(KINDS)):
        some = [one for (task, _), one in zip(tasks, samples, strict=True) if task.kind in kinds]
        if len(some) < 20:
            continue
        mean = sum(one.good for one in some) / len(some)
        believed = [replace(one, before=min(max(mean, 0.02), 0.98)) for one in some]
        curve = fit(believed).models[some[0].digest][""]
        print(f"| {', '.join(kinds)} | {len(some)} | {mean:.0%} | {curve.gain:+.3f} | {curve.gain_low:+.3f} "
              f"| {'speaks' if curve.speaks else 'says nothing: skipped'} |")


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else "llamacpp"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 150
    labels = int(sys.argv[3]) if len(sys.argv) > 3 else LABELS
    folder = Path(tempfile.mkdtemp(prefix="swarmctl-bench-"))
    servers = {}
    try:
        for host, model in (("spinoza", "small"), ("calisota", "large")):
            servers[host] = Server(kind, model, 1.0, WATTS[model])
        run(kind, folder, servers, count, labels, sys.argv[4:] or MIXES)
    finally:
        for server in servers.values():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run(kind, folder, servers, count, labels, mixes):
    asked = ask_what(mixes, count, "live again")
    known = {task.question for tasks in asked.values() for task in tasks}
    home = Home(folder / "home", servers, Policy(explore=0.0, cascade=True, hedge=False))
    learned = learn(home, questions("even", labels, "labels again", known))
    route.fit(home.paths, time.time, lambda line: print(line, file=sys.stderr), wait=60)
    curves = read_curves(home.paths)
    small = [one for one in heard(home.paths, _expected(home)) if one.digest == servers["spinoza"].digest]
    print(f"{kind}: {labels} questions, rated of both models")
    check = self_check(servers["spinoza"], learned)
    signals_table(small, check)
    nothing_said(learned, small)
    for digest, by in curves.models.items():
        name = next(server.model for server in servers.values() if server.digest == digest)
        curve = by[""]
        print(f"\n{name}: judged by {curve.by}, gain {curve.gain:.3f} (at least {curve.gain_low:.3f}); "
              "information after " + ", ".join(f"{tokens} tokens {told:.1f}" for tokens, told in
                                               zip((*STAGES, "all"), curve.information, strict=True)))
    shutil.rmtree(home.paths.state / "habits")
    for server in servers.values():
        server.throttle(SHARES[server.model] * FASTER[kind])
    slow(home, questions("even", 40, "speeds", known))
    homes = {name: home.copy(name, Policy(explore=0.0, cascade=name.startswith("cascade"), hedge=False),
                             BAD_ANSWER * times / FASTER[kind]) for name, times in POLICIES.items()}
    rng = np.random.default_rng(0)
    for mix in mixes:
        show(mix, measure(homes, asked[mix]), weights(mix, asked[mix]), rng)


def _expected(home):
    """What the router was to believe of each answer, had it not seen its prompt."""
    served = [one for entry in read_fleet(home.paths.fleet).hosts for one in entry.served]
    known = [Known(one.model, one.digest, one.parameters, one.quality) for one in served]
    return beliefs_left_out(read_opinions(home.paths), known, Vectors())


def slow(home, tasks):
    """Let the router learn the hosts' speeds."""
    for task in tasks:
        for server in home.servers.values():
            home.ask(task, server.tag)


if __name__ == "__main__":
    main()
