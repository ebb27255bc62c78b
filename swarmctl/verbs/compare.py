"""`compare`: two models, one question, blind. What a person prefers without knowing the name is worth more
than a thumb, and becomes a preference pair later."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from swarmctl.dispatch.probe import route
from swarmctl.dispatch.question import Answered, Asked, as_question, as_request, put
from swarmctl.dispatch.record import fresh_id, timestamp
from swarmctl.dispatch.shadow import SHADOW_VIA
from swarmctl.errors import LedgerError, SwarmError, UsageError
from swarmctl.exchange import Comparison, Exchange, Message
from swarmctl.ledger import follow
from swarmctl.ledger.journal import append
from swarmctl.ledger.lookup import find_exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.dispatch.answer import Sink
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

Choice = Literal["left", "right", "tie", "both-bad"]


@dataclass(frozen=True, slots=True)
class Blind:
    """Two answers, in the order in which they are shown."""

    left: Exchange
    right: Exchange


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
    found: dict[str, Answered | SwarmError | OSError] = {}

    def one(model: str) -> None:
        try:
            found[model] = put(swarm, replace(asked, model=model, via="compare"), sinks(), terminal=terminal,
                               clock=clock)
        except (SwarmError, OSError) as exc:  # raised where both are waited for
            found[model] = exc

    threads = [threading.Thread(target=one, args=(model,), daemon=True) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (_or_raise(found[model]).exchange for model in models)
    return Blind(second, first) if coin() else Blind(first, second)


def shadowed(paths: Paths, coin: Callable[[], bool]) -> tuple[str, Blind]:
    """The newest question that a second model answered in the shadow and nobody has compared yet, and both
    answers. Raises UsageError where there is none, LedgerError."""
    rows = {row["id"]: row for row in follow.fresh(follow.sizes(paths.journal), {}, _may_tell)}
    judged = {row.get(side) for row in rows.values() if row["kind"] == "comparison" for side in ("a", "b")}
    waiting = [row for row in rows.values() if row.get("via") == SHADOW_VIA and row["id"] not in judged
               and row.get("answer") and row.get("parent")]
    for one in sorted(waiting, key=lambda row: str(row["id"]), reverse=True):
        shadow, usual = _exchange(one), _exchange(find_exchange(paths.journal, one["parent"]))
        asked = next((turn.content for turn in reversed(shadow.messages) if turn.role == "user"), "")
        return asked, Blind(shadow, usual) if coin() else Blind(usual, shadow)
    raise UsageError("no answers of two models to one question wait to be compared",
                     hint="exploration leaves some from time to time; `swarmctl compare QUESTION` asks two")


def decide(paths: Paths, blind: Blind, choice: Choice, *, comment: str | None, terminal: str,
           now: float) -> Comparison:
    """Record what the person chose. Raises LedgerError."""
    left, right = blind.left, blind.right
    chosen: dict[Choice, Literal["a", "b", "tie", "both-bad"]] = {
        "left": "a", "right": "b", "tie": "tie", "both-bad": "both-bad"}
    comparison = Comparison(
        id=fresh_id(now), at=timestamp(now), a=left.id, b=right.id, model_a=left.model, model_b=right.model,
        category=left.category, left=left.id, choice=chosen[choice], comment=comment, terminal=terminal,
        digest_a=left.digest, digest_b=right.digest)
    append(paths.journal, comparison.to_record())
    return comparison


def _may_tell(raw: bytes) -> bool:
    return b'"shadow"' in raw or b'"comparison"' in raw


def _exchange(row: Record) -> Exchange:
    """As much of an exchange as comparing needs. Raises LedgerError where the row is not in our form."""
    try:
        said = tuple(Message(one["role"], str(one["content"])) for one in row["messages"])
        return Exchange(row["id"], row["at"], said, str(row["answer"]), row["finish"], row["category"],
                        row["host"], row["runtime"], row["model"], row["digest"], row["template"],
                        row["conversation"])
    except (KeyError, TypeError) as exc:
        raise LedgerError(f"the exchange {row['id']} is in the journal, but not in our form",
                          hint="was the journal edited?") from exc


def _or_raise(found: Answered | SwarmError | OSError) -> Answered:
    if isinstance(found, SwarmError | OSError):
        raise found
    return found
