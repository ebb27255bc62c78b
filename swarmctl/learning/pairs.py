"""From what people said to rows to train on: pairs for DPO, labels for KTO, examples for SFT. Pure.

A pair needs two answers to the same prompt, system and tools, of which one is better:

- choice: a blind comparison named it; the last one of the two answers counts,
- correction: a person wrote what the answer should have been,
- regenerated: the same was asked again, and one answer was liked and another disliked,
- stars: two answers to the same differ by two stars or more.

An answer that failed, was stopped or was cut off teaches nothing: the end of an answer is a part of it.
Pairs that contradict each other are settled by the stronger source, else by the majority, else left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from swarmctl.learning.labels import latest_choices, normal, standing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.exchange import Message
    from swarmctl.learning.labels import Answer, Labels, Vote

Kind = Literal["dpo", "kto", "sft"]
KINDS: tuple[Kind, ...] = ("dpo", "kto", "sft")
#: Sources of a code dataset, whose groups are files.
CODE = ("fim", "completion", "commit")
#: The strongest first.
SOURCES = ("choice", "correction", "regenerated", "stars", "liked", "disliked", "chosen", "rejected",
           "import", *CODE)
#: Labels that say which of two answers is better, and not whether it is good.
RELATIVE = ("chosen", "rejected")
STAR_GAP = 2
#: Ratings of one prompt that are paired with each other: its newest.
PAIRED = 64
#: A KTO set needs this share of its rarer label.
ONE_SIDED = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One row to train on, of any kind: `rejected` is set for DPO only, `label` for KTO only.

    `answers` and `votes` are the ids it came from, `origin` a file and line where it was imported, `group`
    its group of the split where the prompt does not decide it. `corrected` tells that a person wrote
    `completion`.
    """

    prompt: tuple[Message, ...]
    completion: str
    source: str
    rejected: str | None = None
    label: bool | None = None
    tools: str = ""
    at: str = ""
    answers: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    origin: str = ""
    group: str = ""
    corrected: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """What is learned: the completion, and for a pair the rejected one."""
        return (self.completion,) if self.rejected is None else (self.completion, self.rejected)


@dataclass(frozen=True, slots=True)
class Made:
    """Rows, and how much was left out for which reason."""

    rows: tuple[Row, ...]
    dropped: Counter[str]


def make(labels: Labels, kind: Kind, *, liked: bool = False) -> Made:
    """The rows of a kind. `liked` takes liked answers into SFT beside corrections."""
    dropped: Counter[str] = Counter()
    rows = {"dpo": _pairs, "kto": _unpaired, "sft": _examples}[kind](labels, dropped)
    if kind == "sft" and not liked:
        rows = [row for row in rows if row.corrected]
    return Made(tuple(rows), dropped)


def one_sided(rows: Sequence[Row]) -> tuple[int, int] | None:
    """(good, bad) labels where one of them is too rare for KTO to learn from; None where both are there."""
    good = sum(row.label is True for row in rows)
    bad = len(rows) - good
    return (good, bad) if not rows or min(good, bad) < ONE_SIDED * len(rows) else None


def _pairs(labels: Labels, dropped: Counter[str]) -> list[Row]:
    found = [*_chosen(labels, dropped), *_corrected(labels, dropped, pair=True), *_rated(labels, dropped)]
    return _settled(found, dropped)


def _chosen(labels: Labels, dropped: Counter[str]) -> Iterator[Row]:
    for choice in latest_choices(labels.choices):
        a, b = labels.answers.get(choice.a), labels.answers.get(choice.b)
        if choice.side in ("tie", "both-bad"):
            dropped[choice.side] += 1
        elif a is None or b is None:
            dropped["the answer is not recorded"] += 1
        elif a.key != b.key:
            dropped["not the same prompt, system and tools"] += 1
        elif trouble := _trouble(a) or _trouble(b):
            dropped[trouble] += 1
        else:
            yield from _pair(*((a, b) if choice.side == "a" else (b, a)), "choice", (choice.id,), dropped)


def _corrected(labels: Labels, dropped: Counter[str], *, pair: bool) -> Iterator[Row]:
    for vote in standing(labels.votes).values():
        answer = labels.answers.get(vote.exchange)
        if vote.correction is None or not vote.correction.strip():
            continue
        trouble = ("the answer is not recorded" if answer is None
                   else _trouble(answer) if pair else _untold(answer))
        if answer is None or trouble:
            dropped[trouble] += 1
        elif normal(vote.correction) == normal(answer.text):
            dropped["both answers are the same"] += 1
        else:
            yield Row(answer.prompt, vote.correction, "correction", answer.text if pair else None,
                      tools=answer.tools, at=answer.at, answers=(answer.id,), votes=(vote.id,),
                      models=(answer.model,), origin=answer.origin, corrected=True)


def _rated(labels: Labels, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs out of ratings of several answers to the same thing."""
    by_key: dict[str, list[tuple[Answer, Vote]]] = defaultdict(list)
    for vote in standing(labels.votes).values():
        answer = labels.answers.get(vote.exchange)
        trouble = "the answer is not recorded" if answer is None else _trouble(answer)
        if answer is None or trouble:
            dropped[trouble] += vote.correction is None  # else it was counted as a correction
        elif vote.score is not None:
            by_key[answer.key].append((answer, vote))
    for several in by_key.values():
        dropped["more ratings of one prompt than are paired"] += max(0, len(several) - PAIRED)
        for one, other in combinations(several[-PAIRED:], 2):
            better, worse = (one, other) if (one[1].score or 0) > (other[1].score or 0) else (other, one)
            if source := _gap(better[1], worse[1]):
                ids = (better[1].id, worse[1].id)
                yield from _pair(better[0], worse[0], source, ids, dropped)


def _gap(better: Vote, worse: Vote) -> str:
    """Why the one is better enough than the other; empty where it is not."""
    if (better.score or 0) > 0 > (worse.score or 0):
        return "regenerated"
    if better.stars is not None and worse.stars is not None and better.stars - worse.stars >= STAR_GAP:
        return "stars"
    return ""


def _pair(better: Answer, worse: Answer, source: str, votes: tuple[str, ...],
          dropped: Counter[str]) -> Iterator[Row]:
    if normal(better.text) == normal(worse.text):
        dropped["both answers are the same"] += 1
        return
    yield Row(better.prompt, better.text, source, worse.text, tools=better.tools, at=max(better.at, worse.at),
              answers=(better.id, worse.id), votes=votes, models=(better.model, worse.model),
              origin=better.origin)


def _settled(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Rows without those that others contradict: the same two texts the other way round."""
    ways: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        ways[_texts(row)].append(row)
    kept = []
    for row in rows:
        prompt, chosen, rejected = _texts(row)
        against = ways.get((prompt, rejected, chosen), [])
        if not against or _weight(ways[prompt, chosen, rejected]) > _weight(against):
            kept.append(row)
        else:
            dropped["contradicted by another vote"] += 1
    return kept


def _weight(rows: Sequence[Row]) -> tuple[int, int]:
    """The strength of what speaks for one way: the best source, then how many say so."""
    return -min(SOURCES.index(row.source) for row in rows), len(rows)


def _texts(row: Row) -> tuple[str, str, str]:
    prompt = "\n".join(f"{turn.role}: {normal(turn.content)}" for turn in row.prompt)
    return prompt + row.tools, normal(row.completion), normal(row.rejected or "")


def _unpaired(labels: Labels, dropped: Counter[str]) -> list[Row]:
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in (*_rated_alone(labels, dropped), *_chosen_alone(labels, dropped)):
        rows[_texts(row)[:2]].append(row)
    kept = []
    for several in rows.values():
        direct = [row for row in several if row.source not in RELATIVE] or several
        votes = Counter(row.label for row in direct)
        if votes[True] == votes[False]:
            dropped["contradicted by another vote"] += len(several)
            continue
        kept.append(next(row for row in direct if row.label is (votes[True] > votes[False])))
    return kept


def _rated_alone(labels: Labels, dropped: Counter[str]) -> Iterator[Row]:
    for row in _corrected(labels, Counter(), pair=False):
        yield _labelled(row, good=True)
    for vote in standing(labels.votes).values():
        answer = labels.answers.get(vote.exchange)
        trouble = "the answer is not recorded" if answer is None else _trouble(answer)
        if answer is None or trouble:
            dropped[trouble] += 1
        elif not vote.score:
            dropped["no thumb, or three stars"] += 1
        else:
            yield _alone(answer, "liked" if vote.score > 0 else "disliked", vote.id, good=vote.score > 0)


def _chosen_alone(labels: Labels, dropped: Counter[str]) -> Iterator[Row]:
    """Winners and losers of blind choices: weaker than a rating, which says whether the winner was good."""
    for choice in latest_choices(labels.choices):
        if choice.side == "tie":
            dropped["tie"] += 1
            continue
        for name, identity in (("a", choice.a), ("b", choice.b)):
            answer = labels.answers.get(identity)
            trouble = "the answer is not recorded" if answer is None else _trouble(answer)
            if answer is None or trouble:
                dropped[trouble] += 1
            else:
                won = choice.side == name
                yield _alone(answer, "chosen" if won else "rejected", choice.id, good=won)


def _alone(answer: Answer, source: str, vote: str, *, good: bool) -> Row:
    return Row(answer.prompt, answer.text, source, label=good, tools=answer.tools, at=answer.at,
               answers=(answer.id,), votes=(vote,), models=(answer.model,), origin=answer.origin)


def _labelled(row: Row, *, good: bool) -> Row:
    return replace(row, label=good)


def _examples(labels: Labels, dropped: Counter[str]) -> list[Row]:
    corrected = list(_corrected(labels, dropped, pair=False))
    mended = {_texts(row)[0] for row in corrected}
    kept = list(corrected)
    for vote in standing(labels.votes).values():
        answer = labels.answers.get(vote.exchange)
        if answer is None or vote.correction is not None or (vote.score or 0) <= 0:
            continue
        row = _alone(answer, "liked", vote.id, good=True)
        if trouble := _trouble(answer):
            dropped[trouble] += 1
        elif _texts(row)[0] not in mended:
            kept.append(row)
    return [_labelled(row, good=True) for row in kept]


def _trouble(answer: Answer) -> str:
    """Why an answer teaches nothing; empty where it does."""
    if untold := _untold(answer):
        return untold
    if answer.calls or any(turn.tool_calls or turn.role == "tool" for turn in answer.prompt):
        return "calls of tools"
    if answer.finish != "stop":
        return {"length": "cut off at the limit", "cancelled": "stopped by its reader"}.get(answer.finish,
                                                                                            "failed")
    return "" if answer.text.strip() else "empty answer"


def _untold(answer: Answer) -> str:
    """Why even a person's own answer would teach nothing here: the turns are not all that was asked."""
    begun = bool(answer.prompt) and answer.prompt[-1].role == "assistant"
    return answer.untold or ("an answer that was begun for the model" if begun else "")


def models_match(row: Row, model: str | None) -> bool:
    """Whether a row speaks of a model: one of its answers is by it, or none is known to be by anybody."""
    return model is None or model in row.models or not any(row.models)


def by_prompt(rows: Sequence[Row], cap: int) -> Made:
    """At most `cap` rows of each group, the strongest sources and then the newest first."""
    held: dict[str, list[tuple[tuple[int, str], int, Row]]] = defaultdict(list)
    for place, row in enumerate(rows):
        held[row.group].append(((-SOURCES.index(row.source), row.at), place, row))
    kept: set[int] = set()
    for several in held.values():
        several.sort(key=lambda one: (one[0], -one[1]), reverse=True)
        kept |= {place for _, place, _ in several[:cap]}
    over = len(rows) - len(kept)
    return Made(tuple(row for place, row in enumerate(rows) if place in kept),
                Counter({"more of one prompt": over} if over else {}))
