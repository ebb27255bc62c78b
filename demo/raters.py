"""Simulated raters whose taste is written down: an answer should be correct, and terse.

They ask the tiny models' own kinds of questions, each twice at temperature 1, and say what people say: a
thumb up for the terse right answer, a thumb down for everything else, and now and then what it should have
been.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from recipes.tiny.tasks import draw, is_terse
from swarmctl.cli.streaming import SilentSink
from swarmctl.dispatch.question import Asked, put
from swarmctl.verbs.rate import Opinion, rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes.tiny.tasks import Task
    from swarmctl.dispatch.swarm import Swarm

#: what they ask
KINDS = ("capital", "spelling", "sum", "code", "count")
#: the exam: of letters to count no tiny model knows enough for an exam of exact answers
EXAM_KINDS = KINDS[:4]
#: what the model must not unlearn: letters to count, and two kinds that no rater ever asks
ABILITIES = ("count", "chat", "reading")
CORRECTED = 0.2
RATERS = 40
#: seconds between a rater's answer and the next: time to read
PACE = 20.0
LONGEST = 48


@dataclass(slots=True)
class Clock:
    """The raters' own time, which runs ahead of nobody's. `step` is what passes each time it is looked at."""

    now: float
    step: float = PACE / RATERS

    def __call__(self) -> float:
        """A moment later."""
        self.now += self.step
        return self.now


def taste(task: Task, reply: str) -> str:
    """What every rater says of a reply."""
    return "up" if is_terse(task, reply) else "down"


def should_be(task: Task) -> str:
    """What a rater writes where an answer was not liked."""
    return task.answer


def ask_and_rate(swarm: Swarm, model: str, prompts: int, *, seed: str, clock: Callable[[], float],
                 opinion: Callable[[Task, str], str] = taste,
                 correction: Callable[[Task], str] = should_be) -> dict[str, int]:
    """Ask that many prompts twice and rate both answers. How many thumbs went up and down."""
    rng, sink = Random(f"raters {seed}"), SilentSink(sys.stdout, sys.stderr)
    said = {"up": 0, "down": 0}
    for number in range(prompts):
        task = draw(rng.choice(KINDS), rng, held_out=False)
        for _ in range(2):
            asked = Asked(task.question, model=model, temperature=1.0, max_tokens=LONGEST,
                          seed=rng.randrange(2**31))
            rater = f"rater-{number % RATERS}"
            row = put(swarm, asked, sink, terminal=rater, clock=clock).exchange
            value = opinion(task, row.answer)
            said[value] += 1
            better = _always(correction(task)) if value == "down" and rng.random() < CORRECTED else None
            rate(swarm.paths, Opinion(value, correction=better), terminal=rater, now=clock(), id_part=row.id)
    return said


def _always(text: str) -> Callable[[str], str]:
    return lambda _: text


def exam(count: int, seed: str) -> list[Task]:
    """Prompts that nobody ever trained on: held out of the first training, and asked by no rater."""
    rng = Random(f"exam {seed}")
    return [draw(EXAM_KINDS[number % len(EXAM_KINDS)], rng, held_out=True) for number in range(count)]


def abilities(count: int, seed: str) -> list[Task]:
    """The capability set, and what is measured beside the exam."""
    rng = Random(f"abilities {seed}")
    return [draw(ABILITIES[number % len(ABILITIES)], rng, held_out=True) for number in range(count)]
