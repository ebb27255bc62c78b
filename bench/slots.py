"""What a slot costs: to claim and free one, alone and in a crowd of processes, and to wait for one.

    python bench/slots.py

CPU time, because the machine may be busy: a claim waits for nothing, so its wall time on an idle machine is
the same. The waiters are threads of one process, as the gateway's are, in front of a server that stays full.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from table import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from recorded import paths_under
from test_routing import SMALL, TARIFF

from swarmctl.dispatch.admission import TERMS, admit
from swarmctl.dispatch.probe import route
from swarmctl.dispatch.slots import claim
from swarmctl.dispatch.swarm import Swarm
from swarmctl.errors import Busy
from swarmctl.fleet.snapshot import Fleet, HostEntry
from swarmctl.routing.cost import Question, Standing, price
from swarmctl.routing.policy import Policy

ROUNDS, SLOTS = 1000, 4
CROWDS = (1, 8)
WAITERS, SECONDS = (1, 16, 64), 5.0


def main():
    """Measure and print."""
    rows = [(name, crowd, micro(measure(name, crowd))) for name in WAYS for crowd in CROWDS]
    rows += [(f"a second of waiting, {count} in line", 1, micro(waiting(count))) for count in WAITERS]
    show("A slot", "python bench/slots.py", ("what", "processes at once", "CPU"), rows,
         f"A server of {SLOTS} slots; CPU time of the calling process a round, of {ROUNDS} rounds; the worst "
         f"process of the crowd. Waiting is all waiters' together, over {SECONDS:g} s.")


def measure(name, crowd):
    """CPU seconds a round, of the worst process of the crowd."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as folder:
        children = [subprocess.Popen([sys.executable, __file__, name, folder], text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(crowd)]
        for one in children:
            one.stdout.readline()
        for one in children:
            one.stdin.write("go\n")
            one.stdin.flush()
        return max(json.loads(one.communicate(timeout=300)[0]) for one in children)


def child(name, folder):
    """Work when told to, and print the CPU seconds of a round."""
    paths = paths_under(Path(folder))
    work = WAYS[name](paths)
    work()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.process_time()
    for _ in range(ROUNDS):
        work()
    print(json.dumps((time.process_time() - began) / ROUNDS))


def claim_and_free(paths):
    def work():
        if slot := claim(paths, SMALL, SLOTS):
            slot.close()

    return work


def claim_beside_others(paths):
    def work():
        if slot := claim(paths, SMALL, SLOTS, 1):
            slot.close()

    return work


def admit_and_free(paths):
    many = swarm(paths, 3)
    prices = [at(one) for one in many.candidates]

    def work():
        with admit(many, prices, TERMS):
            pass

    return work


def route_from_memory(paths):
    many = swarm(paths, 3)
    question = Question("routine", 200)

    def work():
        route(many, question, many.candidates, time.time())

    return work


WAYS = {"claim a slot and free it": claim_and_free, "the same, beside others' use": claim_beside_others,
        "queue, breaker and slot: admit": admit_and_free,
        "route over 3 hosts whose standing is known": route_from_memory}


def waiting(count):
    """CPU seconds for each second in which so many wait for a slot that never comes."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as folder:
        full = swarm(paths_under(Path(folder)), 1, Policy(queue=2 * count, queue_seconds=SECONDS))
        prices = [at(full.candidates[0])]
        held = [claim(full.paths, full.candidates[0], SLOTS) for _ in range(SLOTS)]
        threads = [threading.Thread(target=refused, args=(full, prices)) for _ in range(count)]
        began = time.process_time()
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        spent = time.process_time() - began
        for slot in held:
            slot.close()
    return spent / SECONDS


def refused(full, prices):
    try:
        admit(full, prices, TERMS).close()
    except Busy:
        return
    raise AssertionError("there was a slot")


def swarm(paths, count, policy=Policy()):  # noqa: B008  frozen
    """So many hosts that are known to be well."""
    candidates = tuple(replace(SMALL, host=f"host{number}", parallel=SLOTS) for number in range(count))
    hosts = tuple(HostEntry(one.host, "local", "/tmp", 2.0, 1.0, 1.0, 0.3, "EUR", (), ())
                  for one in candidates)
    seen = {(one.host, one.server): (time.monotonic() + 1e6, Standing(slots=SLOTS)) for one in candidates}
    return Swarm(paths, Fleet("i", "d", "w", None, 30.0, 60.0, hosts, policy), candidates, seen)


def at(candidate):
    return price(Question("routine", 200), candidate, Standing(slots=SLOTS), TARIFF)


def micro(seconds):
    return f"{seconds * 1e6:,.0f} µs"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        main()
