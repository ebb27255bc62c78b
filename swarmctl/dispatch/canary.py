"""Which release of a model answers a conversation: its canary, for a fixed share of them, else its champion.

The conversation's id alone decides, so it stays with one release for as long as it lasts, whoever asks, and
no list of who was sent where has to be kept.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.dispatch.probe import route
from swarmctl.errors import NoCandidate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.routing.cost import Candidate, Question, Route


def chosen_by(conversation: str, share: float) -> bool:
    """Whether a conversation is among that share of all."""
    return int(sha256(conversation.encode()).hexdigest()[:8], 16) / 2**32 < share


def named(candidate: Candidate, model: str) -> bool:
    """Whether a person means this candidate by `-m`: MODEL is any release of it that routing may choose,
    MODEL:RELEASE that one. Where the inventory's own name ends in `:latest`, that may be left out."""
    bare = candidate.model.removesuffix(":latest")
    return model in (candidate.model, bare, f"{candidate.model}:{candidate.release}")


def divided(candidates: Sequence[Candidate], model: str | None,
            conversation: str) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """Who may answer a conversation, and who steps in for a canary that fails.

    A release that was asked for by its name answers whatever its share; a canary without a share is otherwise
    asked nothing, and no conversation ("") means no canary.
    """
    if model is not None and any(model == f"{c.model}:{c.release}" and c.release for c in candidates):
        return tuple(candidates), ()
    canaries = {c.model for c in candidates
                if c.canary and conversation and chosen_by(conversation, c.share)}
    first = tuple(c for c in candidates if c.canary == (c.model in canaries))
    return first, tuple(c for c in candidates if c.model in canaries and not c.canary)


def find_way(swarm: Swarm, question: Question, first: Sequence[Candidate], fallback: Sequence[Candidate],
             now: float, holder: tuple[str, str] | None, cached: int) -> Route:
    """The way of a question over those who may answer it, then over those who step in. Raises NoCandidate."""
    try:
        way = route(swarm, question, first, now, holder, cached)
    except NoCandidate:
        if not fallback:
            raise
        return route(swarm, question, fallback, now, holder, cached)
    if not fallback or not any(price.candidate.canary for price in way.prices):
        return way
    try:
        after = route(swarm, question, fallback, now, holder, cached)
    except NoCandidate:
        return way
    return replace(way, prices=(*way.prices, *after.prices), excluded=(*way.excluded, *after.excluded),
                   stand_ins=len(after.prices))
