"""`compare`: two models, one question, blind. What a person prefers without knowing the name is worth more
than a thumb, and becomes a preference pair later."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from swarmctl.dispatch.probe import route
from swarmctl.dispatch.question import Answered, Asked, as_question, as_request, put
from swarmctl.dispatch.record import fresh_id, timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.exchange import Comparison
from swarmctl.ledger.journal import append

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.answer import Sink
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.paths import Paths

Choice = Literal["left", "right", "tie", "both-bad"]


@dataclass(frozen=True, slots=True)
class Blind:
    """Two answers, in the order in which they are shown."""

    left: Answered
    right: Answered


def pair_of_models(swarm: Swarm, asked: Asked, wanted: tuple[str, ...], now: float) -> tuple[str, str]:
    """The two models to compare: those named, else a model and its canary, else the two that the router ranks
    highest. Raises UsageError."""
    if len(set(wanted)) == 2:
        return wanted[0], wanted[1]
    if wanted:
        raise UsageError("name two different models, each with -m, or none")
    trials = [one for one in swarm.candidates if one.canary and one.share]
    if trials:
        return trials[0].model, f"{trials[0].model}:{trials[0].release}"
    request = as_request(asked)
    _, question = as_question(asked, request, swarm)
    ranked = route(swarm, question, swarm.candidates, now).prices
    names = list(dict.fromkeys(price.candidate.model for price in ranked))
    if len(names) < 2:
        raise UsageError("only one model is served, and a comparison needs two",
                         hint="give a host a second model in the inventory, then `swarmctl up`")
    return names[0], names[1]


def answer_both(swarm: Swarm, asked: Asked, models: tuple[str, str], sinks: Callable[[], Sink], *,
                terminal: str,
                clock: Callable[[], float], coin: Callable[[], bool]) -> Blind:
    """Ask both models at the same time; `coin` decides which is shown on the left. Both exchanges are
    recorded."""
    found: dict[str, Answered | SwarmError] = {}

    def one(model: str) -> None:
        try:
            found[model] = put(swarm, replace(asked, model=model, via="compare"), sinks(), terminal=terminal,
                               clock=clock)
        except SwarmError as exc:
            found[model] = exc

    threads = [threading.Thread(target=one, args=(model,), daemon=True) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (_or_raise(found[model]) for model in models)
    return Blind(second, first) if coin() else Blind(first, second)


def decide(paths: Paths, blind: Blind, choice: Choice, *, comment: str | None, terminal: str,
           now: float) -> Comparison:
    """Record what the person chose. Raises LedgerError."""
    left, right = blind.left.exchange, blind.right.exchange
    chosen: dict[Choice, Literal["a", "b", "tie", "both-bad"]] = {
        "left": "a", "right": "b", "tie": "tie", "both-bad": "both-bad"}
    comparison = Comparison(
        id=fresh_id(now), at=timestamp(now), a=left.id, b=right.id, model_a=left.model, model_b=right.model,
        category=left.category, left=left.id, choice=chosen[choice], comment=comment, terminal=terminal,
        digest_a=left.digest, digest_b=right.digest)
    append(paths.journal, comparison.to_record())
    return comparison


def _or_raise(found: Answered | SwarmError) -> Answered:
    if isinstance(found, SwarmError):
        raise found
    return found
