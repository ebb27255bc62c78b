"""How swarmctl spreads load over unequal hosts, beside what gateways do: a replay with the very routing code.

    python bench/load.py [SEEDS] [SECONDS]

Traffic (simulated/traffic.py) of several seeds at 30 to 90 % of what the hosts can do, with a host that fails
in the middle and models that are unloaded when idle. Shown are percentiles of the time to the whole answer
and to the first token over all that were asked, goodput (answers a second whose first token came within
PATIENCE), what was lost, and energy. Who was refused, or had no answer by the end, took for ever: swarmctl's
queue refuses as the inventory's defaults say, the peers' clients wait as long as it takes.
"""

from __future__ import annotations

import sys
from math import inf, isinf

from simulated.hosts import SWARMS
from simulated.ours import Swarmctl
from simulated.peers import PEERS, Clairvoyant
from simulated.replay import replay
from simulated.traffic import mean_lengths, trace
from table import show

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
PATIENCE = 10.0
COMMAND = "python bench/load.py"


def main(seeds=3, seconds=1800, loads=LOADS):
    """Replay and print."""
    prompt, answer = mean_lengths()
    for name, machines in SWARMS.items():
        capacity = sum(machine.rate(prompt, answer) for machine in machines)
        for outage in (False, True):
            rows = [row for load in loads
                    for row in measure(machines, seeds, seconds, load, load * capacity, outage)]
            show(f"Load: {name} unequal hosts{', three of which are away in turn' if outage else ''}",
                 f"{COMMAND} {seeds} {seconds}",
                 ("load", "policy", "p50", "p95", "p99", "first token p95", "goodput /s", "lost",
                  "Wh an answer"),
                 rows)


def measure(machines, seeds, seconds, load, rate, outage):
    """The rows of one load."""
    found = {}
    for policy in (*PEERS, Swarmctl, Clairvoyant):
        found[policy.name] = _summary([_one(policy, machines, seed, seconds, rate, outage)
                                       for seed in range(seeds)])
    best = min(found[peer.name]["p95"] for peer in PEERS)
    ours, never = found["swarmctl"]["p95"], found["clairvoyant"]["p95"]
    return [*((f"{load:.0%}", name, *cells(values)) for name, values in found.items()),
            (f"{load:.0%}", "swarmctl's p95 over the best peer's, over the clairvoyant's", "",
             f"{ours / best:.2f}", f"{ours / never:.2f}", "", "", "", "")]


def _one(policy, machines, seed, seconds, rate, outage):
    gone = [machines[0], machines[1], machines[-1]]
    outages = [(machine.name, seconds * at, seconds * (at + 1 / 30))
               for machine, at in zip(gone, (0.2, 0.45, 0.7), strict=True)] if outage else []
    return replay(trace(seed, seconds, rate), policy(machines, seed), machines, outages)


def _summary(runs):
    told = [one for run in runs for one in run.told]
    whole = sorted(inf if one.whole is None else one.whole for one in told)
    first = sorted(inf if one.whole is None else one.first for one in told)
    answered = sum(one.whole is not None for one in told)
    return {"p50": _at(whole, 0.5), "p95": _at(whole, 0.95), "p99": _at(whole, 0.99),
            "first": _at(first, 0.95),
            "goodput": sum(f <= PATIENCE for f in first) / sum(run.seconds for run in runs),
            "lost": 1 - answered / len(told),
            "energy": sum(run.energy for run in runs) / max(1, answered)}


def cells(values):
    """One row's numbers."""
    return (*(_seconds(values[key]) for key in ("p50", "p95", "p99", "first")), f"{values['goodput']:.3f}",
            f"{values['lost']:.1%}", f"{values['energy']:.2f}")


def _seconds(value):
    return "never" if isinf(value) else f"{value:.1f} s"


def _at(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
