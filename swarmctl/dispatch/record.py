"""Turn an outcome into an Exchange, append it to the journal, and learn its speeds."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.habits import learn
from swarmctl.errors import LedgerError
from swarmctl.exchange import Exchange, new_id
from swarmctl.ledger.journal import append

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.dispatch.answer import Outcome
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import Category, ChatRequest
    from swarmctl.routing.cost import Price, Route

#: A row keeps the front of a long table; 300 hosts would make every row a novel.
ROUTE_ROWS = 12


class Unrecorded(LedgerError):
    """An answer that could not be recorded; it carries the exchange, so that it is not lost as well."""

    def __init__(self, exc: LedgerError, exchange: Exchange) -> None:
        super().__init__(exc.message, host=exc.host, hint=exc.hint)
        self.exchange = exchange


def fresh_id(now: float) -> str:
    """A new id for a row made at `now` (seconds since 1970)."""
    return new_id(int(now * 1000), secrets.randbits(30))


def timestamp(now: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record(swarm: Swarm, ask: ChatRequest, route: Route, outcome: Outcome, *, category: Category, now: float,
           conversation: str | None, parent: str | None, terminal: str, via: str,
           identity: str | None = None, cascade: Mapping[str, Any] | None = None,
           explored: bool = False) -> Exchange:
    """Append the exchange to the journal and return it. `identity` is its id where that had to be known
    before; `cascade` what happened on the way to a larger model; `explored` that it was spent on learning.

    Raises Unrecorded: then nothing was recorded.
    """
    candidate = outcome.price.candidate
    identity = identity or fresh_id(now)
    exchange = Exchange(
        id=identity, at=timestamp(now), messages=ask.messages, answer=outcome.answer, finish=outcome.finish,
        category=category, host=candidate.host, runtime=candidate.runtime, model=candidate.model,
        digest=candidate.digest, template=candidate.template, conversation=conversation or identity,
        parent=parent,
        terminal=terminal, via=via, error=outcome.error, params=ask.params(), timings=outcome.timings,
        attempts=outcome.attempts, route=route_record(route, cascade, explored=explored),
        tool_calls=outcome.tool_calls, thought=outcome.thought,
    )
    try:
        append(swarm.paths.journal, exchange.to_record())
    except LedgerError as exc:
        raise Unrecorded(exc, exchange) from exc
    if outcome.timings.completion_tokens:
        with suppress(OSError):  # the exchange is on the disk; what it taught may be lost
            learn(swarm.paths, outcome.price, category=category, characters=ask.characters(),
                  finish=outcome.finish, timings=outcome.timings, company=outcome.company,
                  memory=swarm.learned)
    return exchange


def route_record(route: Route, cascade: Mapping[str, Any] | None = None, *,
                 explored: bool = False) -> dict[str, Any]:
    """The route as it is recorded and shown by --json."""
    return {
        "reason": route.reason,
        "prices": [price_record(price) for price in route.prices[:ROUTE_ROWS]],
        "excluded": [{"host": out.candidate.host, "model": out.candidate.model, "reason": out.reason}
                     for out in route.excluded[:ROUTE_ROWS]],
        **({"cascade": dict(cascade)} if cascade else {}),
        **({"explored": True} if explored else {}),
    }


def price_record(price: Price) -> dict[str, Any]:
    """One row of the table, without the candidate's whole description."""
    row = {field.name: _rounded(getattr(price, field.name)) for field in fields(price)
           if field.name != "candidate"}
    return {"host": price.candidate.host, "model": price.candidate.model, "total": round(price.total, 4),
            **row}


def _rounded(value: Any) -> Any:  # noqa: ANN401  a field of a price
    if isinstance(value, float):
        return round(value, 4)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
