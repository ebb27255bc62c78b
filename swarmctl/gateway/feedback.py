"""POST /v1/feedback: a client's word on an answer, recorded as `swarmctl rate` does.

{"exchange": ID, and any of: "rating": "up" | "down", "stars": 1 to 5, "score": -1 to 1, "comment": TEXT,
"correction": TEXT}. ID is the header x-swarmctl-exchange, or an answer's id with its API's own prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.rating import Opinion, rate
from swarmctl.dispatch.shadow import fit_when_due
from swarmctl.errors import LedgerError, SwarmError, UsageError
from swarmctl.gateway import reading
from swarmctl.gateway.turn import BadRequest
from swarmctl.ledger.lookup import ID_LENGTH, find_exchange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.gateway.keys import Key
    from swarmctl.paths import Paths

#: What a rating of the gateway calls who rated, where no key says.
RATER = "serve"
LONGEST = 1 << 20


def take(paths: Paths, body: Mapping[str, Any], key: Key | None, now: float) -> dict[str, Any]:
    """Record feedback; the rating as recorded. A key may rate its own answers, with the scope `rate` all.

    Raises BadRequest (404 where there is no such answer), LedgerError.
    """
    identity = _identity(body)
    opinion = _opinion(body)
    try:
        if key is not None and "rate" not in key.scopes:
            _own(find_exchange(paths.journal, identity), key)
        rated = rate(paths, opinion, terminal=key.terminal if key else RATER, now=now, id_part=identity)
    except UsageError as exc:
        raise BadRequest(exc.message, param="exchange", status=404) from exc
    except LedgerError:
        raise
    except SwarmError as exc:
        raise BadRequest(str(exc), param="correction") from exc
    fit_when_due(paths)
    return {"object": "feedback", "rating": rated.rating.to_record()}


def _own(exchange: Mapping[str, Any], key: Key) -> None:
    if exchange.get("terminal") != key.terminal:
        raise UsageError(f"no exchange of the key {key.name} has this id")


def _identity(body: Mapping[str, Any]) -> str:
    given = reading.text(body, "exchange") or ""
    identity = given.rpartition("-")[2].rpartition("_")[2].lower()
    if len(identity) != ID_LENGTH:
        raise BadRequest("exchange must be an answer's whole id", param="exchange")
    return identity


def _opinion(body: Mapping[str, Any]) -> Opinion:
    word, stars = reading.text(body, "rating"), reading.count(body, "stars", 1, 5)
    score = reading.number(body, "score", -1, 1)
    if word not in (None, "up", "down"):
        raise BadRequest("rating must be up or down", param="rating")
    if sum(one is not None for one in (word, stars, score)) > 1:
        raise BadRequest("give one of rating, stars and score", param="score")
    comment, correction = (_bounded(body, key) for key in ("comment", "correction"))
    opinion = Opinion(str(stars) if stars is not None else word, comment,
                      None if correction is None else lambda _: correction, score)
    if opinion == Opinion():
        raise BadRequest("say at least one of rating, stars, score, comment and correction")
    return opinion


def _bounded(body: Mapping[str, Any], key: str) -> str | None:
    found = reading.text(body, key)
    if found is not None and len(found) > LONGEST:
        raise BadRequest(f"{key} may have {LONGEST:,} characters at most", param=key)
    return found
