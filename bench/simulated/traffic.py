"""Traffic in the shape that public traces of language-model services have, from a seed.

Arrivals come in bursts: gaps are gamma-distributed, as BurstGPT (arXiv:2401.17644) found them. Prompts and
answers are log-normal with heavy tails, as in Azure's 2023 traces (Splitwise, arXiv:2311.18677). What kind of
question it is tells something of its answer's length; the length itself nobody knows. A third of the
questions go on with a conversation.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

#: share of questions, median prompt, median answer (tokens) of each category
KINDS = {"routine": (0.5, 60, 40), "complex": (0.3, 220, 150), "code": (0.2, 400, 220)}
PROMPT_SPREAD, ANSWER_SPREAD = 0.9, 0.8
LONGEST_PROMPT, LONGEST_ANSWER = 6000, 2000
#: the shape of the gaps' gamma distribution: a coefficient of variation of 1.4
SHAPE = 0.5
FOLLOWING = 0.33
CHARACTERS = 3.6


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the trace. Tokens; `history` of the prompt were said in the conversation before."""

    number: int
    at: float
    category: str
    prompt: int
    answer: int
    conversation: int
    history: int = 0

    @property
    def characters(self):
        """The prompt's length as routing sees it."""
        return round(self.prompt * CHARACTERS)


def trace(seed, seconds, rate):
    """Questions of `seconds` at `rate` a second on average."""
    rng = random.Random(seed)
    found, talks = [], []
    for at in _arrivals(rng, seconds, rate):
        category = rng.choices(list(KINDS), [share for share, *_ in KINDS.values()])[0]
        _, prompt, answer = KINDS[category]
        new = _length(rng, prompt, PROMPT_SPREAD, LONGEST_PROMPT)
        said = _length(rng, answer, ANSWER_SPREAD, LONGEST_ANSWER)
        talk, history = len(found), 0
        if talks and rng.random() < FOLLOWING:
            talk, history = talks.pop(rng.randrange(max(0, len(talks) - 30), len(talks)))
        whole = min(history + new, LONGEST_PROMPT)
        found.append(Question(len(found), at, category, whole, said, talk, min(history, whole - 1)))
        talks.append((talk, whole + said))
    return found


def mean_lengths(seed=1, count=4000):
    """The mean prompt and answer, in tokens: what capacity follows from."""
    sample = trace(seed, count, 1.0)
    return (sum(one.prompt - one.history for one in sample) / len(sample),
            sum(one.answer for one in sample) / len(sample))


def _arrivals(rng, seconds, rate):
    now = 0.0
    while (now := now + rng.gammavariate(SHAPE, 1 / (SHAPE * rate))) < seconds:
        yield now


def _length(rng, median, spread, longest):
    return max(2, min(longest, round(rng.lognormvariate(math.log(median), spread))))
