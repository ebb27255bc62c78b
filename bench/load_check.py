"""Is the simulator of load.py right? The same questions through real llama-servers and through a replay.

    python bench/load_check.py [SEEDS] [SECONDS]

Three real llama-servers stand for the README's hosts: paced.py gives them those hosts' speeds and slots while
the CPU idles. Each seed has servers of its own, and all seeds run at once. First every server's curve is
measured: prefill, seconds a token with one question and with all slots at work, what a request takes besides.
Then each policy is given the same bursty trace in real time: swarmctl on `ask`'s own way in this process, the
peers straight to the servers (simulated/real.py). The replay gets the measured curves, the same moments, and
the lengths that the real answers had.

The criterion, set before the first run: for each policy, over all seeds together, the replay's mean and
median of the time to the whole answer are within 15 % of the real ones, and its 95th percentile within 25 %;
and of two policies whose real 95th percentiles differ by more than 25 %, the replay's differ in the same
direction.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from paced import Paced, build
from simulated.hosts import SWARMS
from simulated.ours import Swarmctl
from simulated.peers import LeastBusy, LeastConnections, RandomOfTwo
from simulated.real import ask_all, heard, mean_tokens, measure, wishes
from simulated.replay import Policy, replay
from table import milliseconds, show

from swarmctl.paths import Paths

SWARM = "three"
#: Without round robin and LiteLLM's latency policy: those give the slow host more than it can do, and their
#: lines there take many minutes to end.
POLICIES = (Swarmctl, LeastConnections, RandomOfTwo, LeastBusy)
LOAD = 0.7
#: The criterion.
BOUNDS = {"mean": 0.15, "p50": 0.15, "p95": 0.25}


@dataclass(frozen=True, slots=True)
class Side:
    """One policy's answers, real or replayed."""

    whole: tuple
    first: tuple
    hosts: tuple

    def __add__(self, other):
        return Side(self.whole + other.whole, self.first + other.first, self.hosts + other.hosts)

    def seconds(self):
        """Mean, median, 95th percentile; and that of the first token."""
        return (statistics.fmean(self.whole), _at(self.whole, 0.5), _at(self.whole, 0.95),
                _at(self.first, 0.95))


class Same(Policy):
    """Sends each question where it really went: what is off then is off in the hosts, not in who is asked."""

    def __init__(self, answers):
        self.hosts = {number: answer.host for number, answer in answers.items()}

    def pick(self, question, hosts, now):  # noqa: ARG002
        """The same."""
        return self.hosts[question.number]


def main(seeds=2, seconds=45):
    """Measure, ask, replay, compare."""
    folder = Path(tempfile.mkdtemp(prefix="swarmctl-bench-"))
    command = f"python bench/load_check.py {seeds} {seconds}"
    try:
        library = build(folder)
        with ProcessPoolExecutor(seeds) as pool:
            found = list(pool.map(partial(one_seed, seconds=seconds, folder=folder, library=library),
                                  range(seeds)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show("The servers, as measured", command,
         ("seed", "host", "prefill /s", "tokens /s of one", "at once", "each of them", "request besides",
          "on ask's way"), [row for _, rows, _ in found for row in rows])
    sides = {policy.name: tuple(sum_of(run[policy.name][side] for run, _, _ in found) for side in range(3))
             for policy in POLICIES}
    rows, wrong = verdict(sides)
    show("The simulator beside real servers", command,
         ("policy", "", "mean", "p50", "p95", "first token p95", "shares of " + ", ".join(_names())), rows,
         note=f"Bench and servers used {sum(spent for _, _, spent in found):.2f} cores. **The check is "
              + ("passed.**" if not wrong else f"not passed:** {'; '.join(wrong)}."))


def one_seed(seed, seconds, folder, library):
    """Every policy on this seed's servers: per policy its three sides; the servers' curves as rows; and how
    many cores it all kept busy."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # others' work on this machine is not to be in the way
    servers, began = {}, time.monotonic()
    try:
        for machine in SWARMS[SWARM]:
            servers[machine.name] = Paced(machine, library)
        home = folder / str(seed)
        with ThreadPoolExecutor(len(servers)) as pool:
            found = pool.map(lambda name: measure(servers[name], _paths(home / f"measured-{name}")), servers)
            curves = dict(zip(servers, found, strict=True))
        found = {policy.name: one_policy(policy, seed, seconds, servers, curves, _paths(home / policy.name))
                 for policy in POLICIES}
    finally:
        for server in servers.values():
            server.stop()
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    rows = [_curve_row(seed, name, curve) for name, curve in curves.items()]
    return found, rows, spent / (time.monotonic() - began)


def one_policy(policy, seed, seconds, servers, curves, paths):
    """Real, replayed, and replayed with each question sent where it really went."""
    ours = policy is Swarmctl
    machines = {name: curve.machine(servers[name].machine, asked=ours) for name, curve in curves.items()}
    wanted = wishes(seed, seconds, _rate())
    order = tuple(machines.values())
    answers = ask_all(wanted, servers, machines, None if ours else policy(order, seed), paths)
    if len(answers) < len(wanted):
        raise SystemExit(f"{policy.name}: {len(wanted) - len(answers)} of {len(wanted)} were not answered")
    print(f"seed {seed}, {policy.name}: {len(answers)} answers, load {os.getloadavg()[0]:.1f}",
          file=sys.stderr)
    before, outside = (statistics.median((curve.before, curve.outside)[index] for curve in curves.values())
                       if ours else 0.0 for index in (0, 1))
    questions = [heard(wish, answers[wish.number]) for wish in wanted]
    replayed = [Side(*zip(*((one.whole + outside, one.first + before, one.host)
                            for one in replay(questions, how, order).told if one.whole is not None),
                          strict=True))
                for how in (policy(order, seed), Same(answers))]
    return Side(*zip(*((one.whole, one.first, one.host) for one in answers.values()), strict=True)), *replayed


def verdict(sides):
    """The table's rows, and what is wrong by the criterion."""
    rows, wrong, late = [], [], {}
    for name, (real, told, same) in sides.items():
        off, hosts_off = ([b / a - 1 for a, b in zip(real.seconds(), side.seconds(), strict=True)]
                          for side in (told, same))
        rows += [(name, "real", *_seconds(real), _shares(real)),
                 (name, "replayed", *_seconds(told), _shares(told)),
                 (name, "off by", *(f"{one:+.0%}" for one in off), ""),
                 (name, "to the same hosts, off by", *(f"{one:+.0%}" for one in hosts_off), "")]
        late[name] = real.seconds()[2], told.seconds()[2]
        wrong += [f"{name}'s {what} is off by {one:+.0%}"
                  for (what, bound), one in zip(BOUNDS.items(), off, strict=False) if abs(one) > bound]
    for one, two in combinations(late, 2):
        (a, told_a), (b, told_b) = late[one], late[two]
        if max(a, b) > (1 + BOUNDS["p95"]) * min(a, b) and (a < b) != (told_a < told_b):
            wrong.append(f"{one} and {two} change places")
    return rows, wrong


def sum_of(sides):
    """All seeds as one."""
    first, *others = sides
    for other in others:
        first = first + other
    return first


def _rate():
    """Questions a second at LOAD, of what the hosts are said to do together."""
    prompt, answer = mean_tokens()
    return LOAD * sum(machine.rate(prompt, answer) for machine in SWARMS[SWARM])


def _names():
    return [machine.name for machine in SWARMS[SWARM]]


def _seconds(side):
    return tuple(f"{one:.2f} s" for one in side.seconds())


def _shares(side):
    counted = Counter(side.hosts)
    return ", ".join(f"{counted[name] / len(side.hosts):.0%}" for name in _names())


def _curve_row(seed, name, curve):
    slots = max(curve.step)
    return (seed, name, f"{curve.prefill:,.0f}", f"{1 / curve.step[1]:.1f}", slots,
            f"{1 / curve.step[slots]:.1f}", milliseconds(curve.direct),
            milliseconds(curve.held + curve.outside))


def _paths(home):
    return Paths.from_environ({"SWARMCTL_HOME": str(home), "HOME": str(home)})


def _at(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
