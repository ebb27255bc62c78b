"""Is the simulator of load.py right? The same questions through the real ask path and through a replay.

    python bench/load_check.py [QUESTIONS]

Three real llama-servers with one slot each and unequal shares of a CPU (throttled.py; needs root) are asked
from threads, at bursty moments, by `swarmctl`'s own path and host by host in turn. The replay gets the
servers' measured speeds and overheads, the same moments, and the lengths that the real answers had. Both
sides' percentiles are shown.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

from silent import Silent
from simulated.hosts import Machine
from simulated.ours import Swarmctl
from simulated.peers import RoundRobin
from simulated.replay import replay
from simulated.traffic import SHAPE, Question
from table import show
from throttled import Server

from recipes.tiny.tasks import KINDS, draw
from swarmctl.dispatch.question import Asked, put
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.snapshot import Fleet, read_fleet, write_fleet
from swarmctl.paths import Paths
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.named import runtime

#: Shares of one CPU, and the load: of what the three can do together.
SHARES = {"calisota": 0.10, "worlock": 0.05, "spinoza": 0.02}
LOAD, LONGEST, WARM_UP = 0.7, 64, 6
#: Tokens that a question and an answer have about.
PROMPT, ANSWER = 30.0, 20.0
POLICY = Policy(explore=0.0, cascade=False, hedge=False, queue=1000, queue_seconds=600.0)


def main(count=300):
    """Measure, replay, compare."""
    folder = Path(tempfile.mkdtemp(prefix="swarmctl-bench-"))
    servers = {}
    try:
        for host, share in SHARES.items():
            servers[host] = Server("llamacpp", "large", share, 100.0)
        machines = {host: measured(host, server) for host, server in servers.items()}
        rng = Random(5)
        tasks = [draw(rng.choice(list(KINDS)), rng, held_out=True).question for _ in range(count)]
        rate = LOAD * sum(1 / (one.overhead + PROMPT / one.prefill + ANSWER / one.decode)
                          for one in machines.values())
        moments = [0.0]
        while len(moments) < count:
            moments.append(moments[-1] + rng.gammavariate(SHAPE, 1 / (SHAPE * rate)))
        rows = []
        for name, policy in (("swarmctl", Swarmctl), ("round robin", RoundRobin)):
            home = folder / name.replace(" ", "-")
            real = ask_all(home, servers, machines, tasks, moments, name == "swarmctl")
            rows += compared(name, policy, real, machines, moments)
    finally:
        for server in servers.values():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    show("The simulator beside real servers", f"python bench/load_check.py {count}",
         ("policy", "", "p50", "p95", "first token p95", "shares of " + ", ".join(SHARES)), rows)


def measured(host, server):
    """The server as the simulator knows one: medians of a few questions asked alone."""
    speeds = []
    for number in range(WARM_UP):
        said = Message("user", f"Spell out every number up to {number + 30}, please.")
        request = ChatRequest((said,), LONGEST)
        began = time.monotonic()
        chunks = list(runtime("llamacpp").chat(Endpoint(port=server.port, model=server.tag), request,
                                               connect_timeout=5, first_token_timeout=60, token_timeout=60))
        timings = chunks[-1].timings
        rest = time.monotonic() - began - timings.prompt_seconds - timings.decode_seconds
        fresh = timings.prompt_tokens - (timings.cached_tokens or 0)
        speeds.append((fresh / timings.prompt_seconds, timings.completion_tokens / timings.decode_seconds,
                       max(0.0, rest)))
    prefill, decode, overhead = (sorted(column)[len(speeds) // 2] for column in zip(*speeds, strict=True))
    return Machine(host, prefill, decode, 1, 0.0, 0.0, 5.0, 100.0, overhead)


def ask_all(folder, servers, machines, tasks, moments, routed):
    """Ask at the moments; per question its exchange and seconds."""
    paths = Paths.from_environ({"SWARMCTL_HOME": str(folder), "HOME": str(folder)})
    entries = tuple(server.entry(host, machines[host].prefill, machines[host].decode)
                    for host, server in servers.items())
    write_fleet(paths.fleet, Fleet("bench", "-", "2026-01-01T00:00:00Z", None, 30.0, 60.0, entries, POLICY))
    found, hosts = {}, list(servers)

    def one(number):
        host = None if routed else hosts[number % len(hosts)]
        asked = Asked(tasks[number], host=host, max_tokens=LONGEST, temperature=1.0)
        began = time.monotonic()
        row = put(make_swarm(paths, read_fleet(paths.fleet)), asked, Silent(), terminal="bench",
                  clock=time.time).exchange
        found[number] = (row, time.monotonic() - began)

    began, threads = time.monotonic(), []
    for number, moment in enumerate(moments):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        threads.append(threading.Thread(target=one, args=(number,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(600)
    return found


def compared(name, policy, real, machines, moments):
    """The two rows of one policy."""
    questions, firsts = [], []
    for number, (row, _) in sorted(real.items()):
        timings = row.timings
        fresh = (timings.prompt_tokens or 1) - (timings.cached_tokens or 0)
        questions.append(Question(number, moments[number], row.category, max(2, fresh),
                                  max(2, timings.completion_tokens or 2), number))
        firsts.append((timings.first_token_seconds or 0.0) + (timings.queue_seconds or 0.0))
    run = replay(questions, policy(tuple(machines.values()), 0), tuple(machines.values()))
    took = [seconds for _, seconds in real.values()]
    told = [one for one in run.told if one.whole is not None]
    return [_row(name, "real", took, firsts, Counter(row.host for row, _ in real.values())),
            _row(name, "replayed", [one.whole for one in told], [one.first for one in told],
                 Counter(one.host for one in told))]


def _row(name, side, took, firsts, hosts):
    shares = ", ".join(f"{hosts[host] / max(1, hosts.total()):.0%}" for host in SHARES)
    seconds = (_at(took, 0.5), _at(took, 0.95), _at(firsts, 0.95))
    return (name, side, *(f"{one:.2f} s" for one in seconds), shares)


def _at(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
