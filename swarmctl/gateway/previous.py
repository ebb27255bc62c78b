"""Going on from an exchange of the journal, for the API whose clients name one instead of sending it all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.gateway.turn import BadRequest
from swarmctl.ledger.lookup import conversation_messages, find_exchange

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.dispatch.question import Asked


def gone_on(journal: Path, asked: Asked, exchange: str, terminal: str) -> Asked:
    """The question behind all that was said up to an exchange of the same terminal. Instructions are not
    carried over; images are not kept in the journal. Raises BadRequest where there is no such exchange,
    LedgerError where the journal cannot be read."""
    try:
        row = find_exchange(journal, exchange)
    except UsageError as exc:
        raise _missing(exchange) from exc
    if row["id"] != exchange or row.get("terminal") != terminal:
        raise _missing(exchange)
    before = tuple(turn for turn in conversation_messages(journal, exchange) if turn.role != "system")
    given = asked.history
    first = given[:1] if given and given[0].role == "system" else ()
    return replace(asked, history=(*first, *before, *given[len(first):]), previous=exchange,
                   conversation=row.get("conversation"),
                   holder=(str(row.get("host")), str(row.get("model"))))


def _missing(exchange: str) -> BadRequest:
    return BadRequest(f"Previous response with id 'resp_{exchange}' not found.", param="previous_response_id")
