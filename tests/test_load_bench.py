"""The replay of bench/load.py: what it reports about swarmctl must not be a fault of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench"
#: Run in bench/, where alone its modules are found.
FLOOR = """
from simulated.clairvoyant import FAIR, RUTHLESS, alone
from simulated.hosts import SWARMS
from simulated.ours import Swarmctl
from simulated.peers import PEERS
from simulated.replay import replay
from simulated.traffic import trace

machines = SWARMS["three"]
questions = trace(7, 60, 2.0)
for make in (*PEERS, Swarmctl, *FAIR, *RUTHLESS):
    told = replay(questions, make(machines, 0), machines).told
    assert len(told) == len(questions)
    for one in told:
        assert one.whole is None or one.whole >= alone(one.question, machines) - 1e-6, (make, one)
    assert all(one.whole is not None for one in told) or make in PEERS, make
"""
RATIOS = """
from random import Random
from types import SimpleNamespace as Some
from load import _at, _p95, _tail, _whole

rng = Random(1)
runs = [Some(told=[Some(whole=rng.choice((None, rng.random()))) for _ in range(40 + 10 * seed)])
        for seed in range(4)]
runs += [Some(told=[Some(whole=rng.random()) for _ in range(900)])]
sizes = [len(run.told) for run in runs]
for _ in range(100):
    picked = rng.choices(range(5), k=5)
    counts = [picked.count(seed) for seed in range(5)]
    assert _p95(_tail(runs), sizes, counts) == _at(_whole([runs[seed] for seed in picked]), 0.95)
"""


def test_no_schedule_beats_each_answer_alone_on_the_fastest_host():
    _run(FLOOR)


def test_a_percentile_over_seeds_drawn_anew_is_that_of_their_runs_together():
    _run(RATIOS)


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
