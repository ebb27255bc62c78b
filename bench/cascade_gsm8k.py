"""A cascade that reads the weak model's answer: public answers to GSM8K, judged by our own fit of signs.

    python bench/cascade_gsm8k.py [--open] [CSV ...]

bench/routing/gsm8k.csv.gz (columns and source: docs/cascade.md) is open; it was divided by a hash of the
question's id, the first signs were chosen on its tuning half, and then its confirmation half was measured.
The last three signs, and how sums are read, were chosen on all of it. On gsm8k-held.csv.gz nothing was
chosen; with --open it is left alone. Rows:

held      labels from the open questions alone, measured on the held ones; and five folds of the held ones
confirm   labels from the tuning half alone, measured on the confirmation half
folds     all open rows, five folds: labels from the other four (all of them were looked at while tuning)
CSV       a further file of the same columns, measured as the held ones
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
from apgr import apgr, cpt, interval

from swarmctl.routing.calibration import FEWEST, Heard, fit
from swarmctl.routing.confidence import SIGNALS, WHOLE, Trail, believe
from swarmctl.routing.signs import SIGNS, signs

DATA = Path(__file__).parent / "routing" / "gsm8k.csv.gz"
HELD = DATA.with_name("gsm8k-held.csv.gz")
LABELS = (30, 100, 300)
DRAWS = 10
SMALL_COST = 0.1  # of one call of the strong model
HEAD = ("| what decides | APGR [95 %] | CPT50 | CPT80 | APGR within the strong model's cost |\n"
        "|---|---|---|---|---|")


class Rows:
    def __init__(self, path):
        openly = gzip.open if path.suffix == ".gz" else open
        with openly(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.half = np.array([_half(row["prompt_id"]) for row in rows])
        self.fold = np.array([int(row["fold"]) for row in rows])
        self.weak = np.array([float(row["weak_score"]) for row in rows])
        self.strong = np.array([float(row["strong_score"]) for row in rows])
        self.signs = [signs(row["prompt"], row["weak_response"]) for row in rows]
        self.length = np.array([float(len(row["prompt"])) for row in rows])
        self.answer = np.array([float(len(row["weak_response"])) for row in rows])


def _half(identity):
    return int(hashlib.sha256(identity.encode()).hexdigest(), 16) % 2


def doubts(rows, learn, judge):
    """How doubtful each judged answer is, after learning from the labels: the product's curve, without
    probabilities."""
    before = float(np.mean(rows.weak[learn]))
    curves = fit([Heard("weak", "complex", before, Trail(), rows.signs[i], float(rows.weak[i]))
                  for i in learn])
    curve = curves.of("weak", "complex")
    return np.array([-believe(curve, before, Trail(), rows.signs[i]) for i in judge]), curve


def confirm(labels, pool, target, judge, n):
    """`n` labels out of `pool` of `labels`, measured on `judge` of `target`: a row of scores a draw."""
    both = Joined(labels, target)
    return np.array([doubts(both, rng.choice(pool, min(n, len(pool)), replace=False), judge + both.offset)[0]
                     for rng in map(np.random.default_rng, range(DRAWS))])


class Joined:
    """Two files as one, or one as it is."""

    def __init__(self, first, second):
        self.offset = 0 if first is second else len(first.weak)
        self.weak = first.weak if first is second else np.r_[first.weak, second.weak]
        self.signs = first.signs if first is second else [*first.signs, *second.signs]


def folds(rows, n):
    """`n` labels of the other folds; ranks within the fold."""
    found = []
    for rng in map(np.random.default_rng, range(DRAWS)):
        score = np.zeros(len(rows.weak))
        for fold in range(5):
            judge, pool = np.nonzero(rows.fold == fold)[0], np.nonzero(rows.fold != fold)[0]
            said, _ = doubts(rows, rng.choice(pool, min(n, len(pool)), replace=False), judge)
            score[judge] = said.argsort().argsort() / len(judge)
        found.append(score)
    return np.array(found)


def show(name, scores, weak, strong):
    scores = np.atleast_2d(scores)
    area = np.mean([apgr(one, weak, strong) for one in scores])
    low, high = interval(scores, weak, strong)
    rest = [np.mean([measure(one, weak, strong) for one in scores])
            for measure in (lambda *a: cpt(*a, 0.5), lambda *a: cpt(*a, 0.8),
                            lambda *a: apgr(*a, until=1 - SMALL_COST))]
    print(f"| {name} | {area:.3f} [{low:.3f}, {high:.3f}] | {rest[0]:.0f} | {rest[1]:.0f} | {rest[2]:.3f} |")


def table(title, labels, pool, target, judge):
    weak, strong = target.weak[judge], target.strong[judge]
    print(f"\n{title}: {len(judge)} questions, weak {weak.mean():.3f}, strong {strong.mean():.3f}\n")
    print(HEAD)
    show("length of the question", target.length[judge], weak, strong)
    show("length of the answer", target.answer[judge], weak, strong)
    for n in LABELS:
        show(f"signs, {n} labels", confirm(labels, pool, target, judge, n), weak, strong)
    show("oracle", strong - weak, weak, strong)


def folded(title, rows):
    print(f"\n{title}, five folds of {len(rows.weak)} questions\n\n{HEAD}")
    for n in LABELS:
        show(f"signs, {n} labels", folds(rows, n), rows.weak, rows.strong)


def main():
    rows = Rows(DATA)
    given = sys.argv[1:]
    for name in given[1:] if given[:1] == ["--open"] else [HELD, *given]:
        found = Rows(Path(name))
        every = np.arange(len(found.weak))
        table(f"{Path(name).name}, labels from the open questions", rows, np.arange(len(rows.weak)), found,
              every)
        folded(Path(name).name, found)
    tune, judge = (np.nonzero(rows.half == part)[0] for part in (0, 1))
    table("confirm", rows, tune, rows, judge)
    folded("folds", rows)
    _, curve = doubts(rows, tune, tune)
    named = zip(SIGNS, curve.weights[WHOLE][len(SIGNALS):], strict=True)
    print(f"\nFitted on the tuning half ({len(tune)} labels; fewer than {FEWEST} make no curve), judged by "
          f"{curve.by}, gain {curve.gain:.3f} nats (at least {curve.gain_low:.3f}).\nWeights: "
          + ", ".join(f"{name} {weight:+.2f}" for name, weight in named))


if __name__ == "__main__":
    main()
