"""How swarmctl spreads load over unequal hosts, beside what gateways do: a replay with the very routing code.

    python bench/load.py [SEEDS] [SECONDS] [SEEDS_AT_80] [FIRST_SEED]

Traffic (simulated/traffic.py) of several seeds at 30 to 90 % of what the hosts can do, with a host that fails
in the middle and models that are unloaded when idle. Shown are percentiles of the time to the whole answer
and to the first token over all that were asked, goodput (answers a second whose first token came within
PATIENCE), what was lost, and energy. Who was refused, or had no answer by the end, took for ever: swarmctl's
queue refuses as the inventory's defaults say, the peers' clients wait as long as it takes.

The 95th percentile of a few seeds is a matter of luck: at the load that the goal is set for there are more of
them, and ratios have their interval over seeds. The clairvoyants are replayed there.
"""

from __future__ import annotations

import random
import sys
from math import inf, isinf

from simulated.clairvoyant import FAIR, RUTHLESS, alone
from simulated.hosts import SWARMS
from simulated.ours import Swarmctl
from simulated.peers import PEERS
from simulated.replay import replay
from simulated.traffic import mean_lengths, trace
from table import show

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
#: The load of which the goal speaks.
GOAL_AT = 0.8
PATIENCE = 10.0
#: Times that the seeds are drawn anew for an interval.
DRAWS = 1000
COMMAND = "python bench/load.py"
FAIR_NAME, RUTHLESS_NAME = "clairvoyant, fair", "clairvoyant, ruthless"


def main(seeds=3, seconds=1800, many=10, first=0, loads=LOADS):
    """Replay and print."""
    prompt, answer = mean_lengths()
    said, ratios = f"{COMMAND} {seeds} {seconds} {many} {first}", []
    for name, machines in SWARMS.items():
        capacity = sum(machine.rate(prompt, answer) for machine in machines)
        for outage in (False, True):
            swarm, rows = f"{name}{', away' if outage else ''}", []
            for load in loads:
                goal = load == GOAL_AT
                drawn = range(first, first + (many if goal else seeds))
                found, floor = measure(machines, drawn, seconds, load * capacity, outage, goal)
                rows += [(f"{load:.0%}", policy, *cells(_summary(runs))) for policy, runs in found.items()]
                ratios.append((swarm, f"{load:.0%}", len(drawn), *_ratios(found, floor)))
            show(f"Load: {name} unequal hosts{', three of which are away in turn' if outage else ''}", said,
                 ("load", "policy", "p50", "p95", "p99", "first token p95", "goodput /s", "lost",
                  "Wh an answer"),
                 rows)
    show("95th percentiles over the best peer's", said,
         ("hosts", "load", "seeds", "best peer", "swarmctl", "95 % interval", FAIR_NAME, RUTHLESS_NAME,
          "each alone on the fastest"),
         ratios)


def measure(machines, seeds, seconds, rate, outage, clairvoyants=True):
    """Each policy's runs over the seeds, the clairvoyants' by the rule that did best there; and the seconds
    of each question that no schedule beats."""
    def runs(make):
        return [_one(make, machines, seed, seconds, rate, outage) for seed in seeds]

    def best_of(rules):
        return _better(*(runs(rule) for rule in rules))

    found = {policy.name: runs(policy) for policy in (*PEERS, Swarmctl)}
    if clairvoyants:
        found[FAIR_NAME] = best_of(FAIR)
        found[RUTHLESS_NAME] = _better(found[FAIR_NAME], best_of(RUTHLESS))
    return found, sorted(alone(one.question, machines) for run in found["swarmctl"] for one in run.told)


def _better(*choices):
    """Of each seed the runs with the lower 95th percentile."""
    return [min(of_seed, key=lambda run: _at(_whole([run]), 0.95)) for of_seed in zip(*choices, strict=True)]


def _ratios(found, floor):
    """The cells of the table of ratios."""
    names = [peer.name for peer in PEERS]
    tails = {name: _tail(found[name]) for name in (*names, "swarmctl")}
    seeds = range(len(found["swarmctl"]))
    sizes = [len(run.told) for run in found["swarmctl"]]
    peer = min(names, key=lambda name: _p95(tails[name], sizes, [1] * len(seeds)))
    best = _p95(tails[peer], sizes, [1] * len(seeds))
    rng, drawn = random.Random(0), []
    for _ in range(DRAWS):
        picked = rng.choices(seeds, k=len(seeds))
        counts = [picked.count(seed) for seed in seeds]
        drawn.append(_p95(tails["swarmctl"], sizes, counts)
                     / min(_p95(tails[name], sizes, counts) for name in names))
    drawn.sort()
    return (peer, f"{_at(_whole(found['swarmctl']), 0.95) / best:.2f}",
            f"{_at(drawn, 0.025):.2f} to {_at(drawn, 0.975):.2f}",
            *(f"{_at(_whole(found[name]), 0.95) / best:.2f}" if name in found else ""
              for name in (FAIR_NAME, RUTHLESS_NAME)),
            f"{_at(floor, 0.95) / best:.2f}")


def _tail(runs):
    """Every time to the whole answer and its seed's place, the longest first."""
    return sorted(((value, place) for place, run in enumerate(runs) for value in _whole([run])), reverse=True)


def _p95(tail, sizes, counts):
    """The 95th percentile where each seed counts so many times."""
    size = sum(one * count for one, count in zip(sizes, counts, strict=True))
    beyond = size - int(0.95 * size)
    for value, place in tail:
        beyond -= counts[place]
        if beyond <= 0:
            return value
    return tail[-1][0]


def _one(policy, machines, seed, seconds, rate, outage):
    gone = [machines[0], machines[1], machines[-1]]
    outages = [(machine.name, seconds * at, seconds * (at + 1 / 30))
               for machine, at in zip(gone, (0.2, 0.45, 0.7), strict=True)] if outage else []
    return replay(trace(seed, seconds, rate), policy(machines, seed), machines, outages)


def _summary(runs):
    told = [one for run in runs for one in run.told]
    whole = _whole(runs)
    first = sorted(inf if one.whole is None else one.first for one in told)
    answered = sum(one.whole is not None for one in told)
    return {"p50": _at(whole, 0.5), "p95": _at(whole, 0.95), "p99": _at(whole, 0.99),
            "first": _at(first, 0.95),
            "goodput": sum(f <= PATIENCE for f in first) / sum(run.seconds for run in runs),
            "lost": 1 - answered / len(told),
            "energy": sum(run.energy for run in runs) / max(1, answered)}


def _whole(runs):
    return sorted(inf if one.whole is None else one.whole for run in runs for one in run.told)


def cells(values):
    """One row's numbers."""
    return (*(_seconds(values[key]) for key in ("p50", "p95", "p99", "first")), f"{values['goodput']:.3f}",
            f"{values['lost']:.1%}", f"{values['energy']:.2f}")


def _seconds(value):
    return "never" if isinf(value) else f"{value:.1f} s"


def _at(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
