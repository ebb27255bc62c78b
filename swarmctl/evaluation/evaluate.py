"""One release against another: asked, graded by every measure apart, and judged by one of them.

What comes out is a plain mapping, the report's JSON; `report.py` makes it readable.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from swarmctl.errors import UsageError
from swarmctl.evaluation.answering import Style, lanes_named, lanes_of, replies
from swarmctl.evaluation.ballots import blind_votes, judged
from swarmctl.learning import gates
from swarmctl.learning.grade import MATCHES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from swarmctl.evaluation.answering import Lane, Reply
    from swarmctl.evaluation.questions import Question
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.learning.gates import Interval
    from swarmctl.paths import Paths

REPORT_VERSION = 1
#: what may decide; each is reported whichever decides
BY = ("references", "votes", "judge")
#: how many of the most different answers the report shows
EXAMPLES = 12


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: how a person knows it, and its weights."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is evaluated and how. `by` is the measure that decides, `measure` how references are compared.
    `folder` is where answers and reports lie. The capability set is asked greedily and once: what a model can
    do is not what it happens to say."""

    model: str
    old: Side
    new: Side
    held_out: tuple[Question, ...]
    capability: tuple[Question, ...]
    folder: Path
    style: Style = field(default_factory=Style)
    by: str = "references"
    measure: str = "f1"
    margin: float = gates.MARGIN
    judge: str | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told: progress as (what, done, of all), and servers that fail as (host, why)."""

    tick: Callable[[str, int, int], None]
    lost: Callable[[str, str], None]


def evaluate(paths: Paths, fleet: Fleet, plan: Plan, watch: Watch, *, at: str,
             served: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The report. `served` is what quantising measured (perplexity, KL divergence), taken in as it is.

    Raises UsageError where one of the two, or the judge, is not served; ServerUnavailable where no server is
    left; LedgerError.
    """
    old, new = (_answered(paths, fleet, plan, side, watch, plan.held_out, plan.style)
                for side in (plan.old, plan.new))
    able = [_answered(paths, fleet, plan, side, watch, plan.capability, Style(0.0, plan.style.max_tokens))
            for side in (plan.old, plan.new)]
    references = _graded(plan.held_out, old, new, plan.measure)
    exact = _graded(plan.held_out, old, new, "exact")
    capability = _graded(plan.capability, able[0], able[1], None)
    people = gates.votes(blind_votes(paths, plan.new.digest, plan.old.digest))
    judge = _judged(paths, fleet, plan, old, new, watch)
    quality = {"references": references and references[2], "votes": people, "judge": judge}[plan.by]
    name = {"references": "reference answers", "votes": "people's blind votes",
            "judge": f"the judge {plan.judge}"}
    verdict = gates.decide(quality or None, capability and capability[2], name=name[plan.by],
                           margin=plan.margin)
    return {
        "version": REPORT_VERSION, "at": at, "model": plan.model, "old": asdict(plan.old),
        "new": asdict(plan.new), "style": asdict(plan.style), "by": plan.by, "measure": plan.measure,
        "margin": plan.margin, **gates.summary(verdict),
        "measures": {"references": _row(references), "exact": _row(exact), "capability": _row(capability),
                     "votes": _ballot(people), "judge": judge and {**_ballot(judge), "model": plan.judge}},
        "speed": {"old": _speed(old), "new": _speed(new)}, "unfinished": _unfinished(old, new),
        "served": dict(served or {}), "examples": _examples(plan, old, new)}


def _answered(paths: Paths, fleet: Fleet, plan: Plan, side: Side, watch: Watch,
              questions: Sequence[Question], style: Style) -> Mapping[str, list[Reply]]:
    lanes = _lanes(paths, fleet, side.digest, side.name)
    return replies(lanes, questions, style,
                   plan.folder / f"answers-{side.digest[:12]}-{style.tag}.jsonl", lost=watch.lost,
                   tick=lambda done, of: watch.tick(side.name, done, of))


def _lanes(paths: Paths, fleet: Fleet, digest: str, name: str) -> tuple[Lane, ...]:
    lanes = lanes_of(paths, fleet, digest)
    if not lanes:
        raise UsageError(f"no host serves {name} ({digest[:12]})",
                         hint="`swarmctl status` shows what is served; `swarmctl deploy` serves a release")
    return lanes


def _graded(questions: Sequence[Question], old: Mapping[str, list[Reply]], new: Mapping[str, list[Reply]],
            measure: str | None) -> tuple[float, float, Interval] | None:
    """Both means and the interval of their difference over the questions that have a reference."""
    known = [question for question in questions if question.reference is not None]
    if not known:
        return None
    before, after = ([_score(question, side[question.key], measure) for question in known]
                     for side in (old, new))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    interval = gates.paired(differences, [question.group for question in known])
    return sum(before) / len(known), sum(after) / len(known), interval


def _score(question: Question, said: Sequence[Reply], measure: str | None) -> float:
    """The mean over the samples. An answer that was cut or refused is worth nothing."""
    match = MATCHES[measure or question.match]
    return sum(match(reply.answer, question.reference or "") * (reply.finish == "stop")
               for reply in said) / len(said)


def _judged(paths: Paths, fleet: Fleet, plan: Plan, old: Mapping[str, list[Reply]],
            new: Mapping[str, list[Reply]], watch: Watch) -> gates.Votes | None:
    if plan.judge is None:
        return None
    judges = lanes_named(paths, fleet, plan.judge)
    if not judges:
        raise UsageError(f"no host serves the judge {plan.judge}",
                         hint="`swarmctl status` shows what is served")
    return gates.votes(judged(judges, plan.held_out, new, old,
                              lambda done, of: watch.tick(f"judge {plan.judge}", done, of)))


def _row(graded: tuple[float, float, Interval] | None) -> dict[str, Any] | None:
    if graded is None:
        return None
    old, new, interval = graded
    return {"old": old, "new": new, **asdict(interval)}


def _ballot(votes: gates.Votes) -> dict[str, Any]:
    return {**asdict(votes), "verdict": votes.verdict}


def _speed(answers: Mapping[str, list[Reply]]) -> float | None:
    """Tokens per second while decoding, over all answers; None where the server does not say."""
    said = [reply for of_one in answers.values() for reply in of_one if reply.seconds > 0]
    return sum(reply.tokens for reply in said) / sum(reply.seconds for reply in said) if said else None


def _unfinished(old: Mapping[str, list[Reply]], new: Mapping[str, list[Reply]]) -> dict[str, int]:
    """Answers of each that did not end by themselves: a model that lost its end runs into the limit."""
    return {name: sum(reply.finish != "stop" for of_one in side.values() for reply in of_one)
            for name, side in (("old", old), ("new", new))}


def _examples(plan: Plan, old: Mapping[str, list[Reply]],
              new: Mapping[str, list[Reply]]) -> list[dict[str, Any]]:
    """The questions on which the two differ most, worst for the new one first."""
    known = [question for question in plan.held_out if question.reference is not None]
    scored = [(_score(question, new[question.key], plan.measure)
               - _score(question, old[question.key], plan.measure), question) for question in known]
    scored.sort(key=lambda pair: (pair[0], pair[1].key))
    shown = scored if len(scored) <= EXAMPLES else scored[:EXAMPLES // 2] + scored[-EXAMPLES // 2:]
    return [{"prompt": question.prompt, "reference": question.reference, "difference": difference,
             "old": old[question.key][0].answer, "new": new[question.key][0].answer}
            for difference, question in shown if difference]
