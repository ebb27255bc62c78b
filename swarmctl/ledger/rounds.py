"""Rounds of improvement: what `improve` did, step by step, and what a human said to it.

`rounds.jsonl` lies beside the journal and is as append-only: each record says that a stage of a round has
ended, and what came of it. A round is what its records add up to, so one that was cut goes on after its last
record.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.exchange import RECORD_VERSION, new_id
from swarmctl.ledger import journal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.paths import Paths

#: in this order; `sign` is left out where the policy wants no signature
STAGES = ("begin", "build", "train", "deploy", "evaluate", "sign", "canary", "end")


@dataclass(frozen=True, slots=True)
class Event:
    """A stage that ended. `status` is what follows: go on (open), wait for a human or for votes (waiting), or
    how the round ended (promoted, kept, refused, rejected, rolled back, failed)."""

    id: str
    at: str
    round: str
    model: str
    stage: str
    status: str
    details: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    by: str = ""

    def to_record(self) -> dict[str, Any]:
        """The line of rounds.jsonl."""
        return {"v": RECORD_VERSION, "kind": "round", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Round:
    """One round so far. `details` holds what its stages found out: dataset, run, release, report,
    decision."""

    id: str
    model: str
    began: str
    stage: str
    status: str
    details: Mapping[str, Any]
    events: tuple[Event, ...]

    @property
    def over(self) -> bool:
        """Whether nothing will follow."""
        return self.status not in ("open", "waiting")

    @property
    def unsigned(self) -> bool:
        """Whether only a human's word is missing."""
        return self.stage == "evaluate" and self.status == "waiting"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it stands as it does."""
        return next((event.reasons for event in reversed(self.events) if event.reasons), ())


def append(paths: Paths, now: float, **fields: Any) -> Event:  # noqa: ANN401  the fields of an Event
    """Record what has been done (`now` is seconds since 1970). Raises LedgerError."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    made = Event(id=new_id(int(now * 1000), secrets.randbits(30)), at=at, **fields)
    journal.append(paths.journal, made.to_record(), journal.ROUNDS)
    return made


def read(paths: Paths) -> tuple[Round, ...]:
    """Every round, oldest first; what is torn is passed over."""
    found = journal.scan(paths.journal / f"{journal.ROUNDS}.jsonl")
    events = (_event(line.record) for line in found if line.record is not None)
    return rounds(event for event in events if event is not None)


def rounds(events: Iterable[Event]) -> tuple[Round, ...]:
    """What the events add up to, in the order in which rounds began."""
    found: dict[str, Round] = {}
    for event in events:
        before = found.get(event.round, Round(event.round, event.model, event.at, "", "open", {}, ()))
        found[event.round] = replace(before, stage=event.stage, status=event.status,
                                     details={**before.details, **event.details},
                                     events=(*before.events, event))
    return tuple(found.values())


def _event(record: Mapping[str, Any]) -> Event | None:
    known = {key: value for key, value in record.items() if key in Event.__slots__}
    try:
        made = Event(**{**known, "reasons": tuple(known.get("reasons") or ())})
    except TypeError:
        return None
    return made if record.get("kind") == "round" else None
