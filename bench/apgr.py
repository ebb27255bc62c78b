"""How much of a stronger model's gain a router recovers, by the share of questions that it sends there.

x = share of questions sent to the strong model, in order of falling score; PGR(x) = (mean quality - weak) /
(strong - weak); APGR is the area under it: .5 for chance, more than 1 is possible, as the weak model is
sometimes right where the strong one is wrong. Equal scores are taken in any order, so the expected curve is
exact. (RouteLLM, arXiv 2406.18665.)
"""

from __future__ import annotations

import numpy as np


def curve(score, weak, strong):
    """Shares x from 0 to 1 and the part of the gain recovered at each."""
    score, weak, strong = (np.asarray(one, float) for one in (score, weak, strong))
    order = np.argsort(-score, kind="stable")
    sorted_score, gain = score[order], (strong - weak)[order]
    last = np.r_[np.nonzero(np.diff(sorted_score))[0], len(score) - 1]
    x = np.r_[0.0, (last + 1) / len(score)]
    return x, np.r_[0.0, np.cumsum(gain)[last]] / gain.sum()


def apgr(score, weak, strong, until=1.0):
    """The area; `until` less than 1 is a cascade's, which can send only that share within the strong model's
    cost."""
    x, part = curve(score, weak, strong)
    if until < 1.0:
        end = np.interp(until, x, part)
        keep = x < until
        x, part = np.r_[x[keep], until], np.r_[part[keep], end]
    return float(np.trapezoid(part, x) / until)


def cpt(score, weak, strong, level):
    """The least share, in per cent, that recovers `level` of the gain."""
    x, part = curve(score, weak, strong)
    hit = np.nonzero(part >= level)[0]
    if not len(hit):
        return float("nan")
    i = hit[0]
    return 100.0 * (x[i - 1] + (level - part[i - 1]) / (part[i] - part[i - 1]) * (x[i] - x[i - 1]))


def interval(scores, weak, strong, measure=apgr, repeats=1000, seed=0):
    """95 % by bootstrap over questions of the mean over draws; `scores` is (draws, questions)."""
    rng = np.random.default_rng(seed)
    scores, n, found = np.atleast_2d(scores), len(weak), []
    for _ in range(repeats):
        some = rng.integers(0, n, n)
        if strong[some].mean() > weak[some].mean():
            found.append(np.mean([measure(one[some], weak[some], strong[some]) for one in scores]))
    return tuple(float(one) for one in np.quantile(found, [0.025, 0.975]))
