"""How answers are liked, as gauges: by model and category from the scores that routing reads, by topic from
the topics as they were last sorted. Nothing is counted anew unless a rating came or the topics changed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from swarmctl.learning.approval import approvals, wilson
from swarmctl.ledger import journal
from swarmctl.ledger.lookup import lines_backwards
from swarmctl.ledger.scores import scores, standing
from swarmctl.ledger.topic_store import prompt_key, read_assigned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.learning.approval import Approval
    from swarmctl.paths import Paths

Gauges = dict[str, dict[tuple[str, ...], float]]

NAMES = ("ratio", "low_ratio", "high_ratio", "votes")
#: Of topics and models only those with the most votes, so that labels stay few.
MOST_TOPICS = 100
ID = re.compile(rb'"id": ?"([0-9a-z]{16})"')


def by_category(paths: Paths) -> Gauges:
    """Approval by model and category. Raises LedgerError."""
    found: Gauges = {f"swarmctl_approval_{name}": {} for name in NAMES}
    for key, (good, bad) in scores(paths).items():
        approval = wilson(good, good + bad)
        if approval.share is None:
            continue
        values = (approval.share, approval.low, approval.high, approval.votes)
        for name, value in zip(NAMES, values, strict=True):
            found[f"swarmctl_approval_{name}"][key] = value
    return found


class TopicOpinions:
    """Approval by model and topic. Not for several threads at once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._keys: dict[str, str | None] = {}
        self._seen: tuple[int, int] = (-1, -1)
        self._gauges: Gauges = {}

    def gauges(self, votes: int) -> Gauges:
        """As of now; `votes` changes whenever a rating has come. Raises LedgerError."""
        try:
            sorted_at = (self._paths.topics / "topics.json").stat().st_mtime_ns
        except OSError:
            return {}
        if (sorted_at, votes) != self._seen:
            self._gauges = self._count()
            self._seen = (sorted_at, votes)
        return self._gauges

    def _count(self) -> Gauges:
        topics = read_assigned(self._paths)
        if topics is None:
            return {}
        names, assigned = topics
        rated = list(standing(self._paths))
        self._find({exchange for exchange, _, _, _ in rated} - self._keys.keys())
        found = approvals(((model, names[topic]), (1 + score) / 2) for exchange, model, _, score in rated
                          if (topic := assigned.get(self._keys.get(exchange) or "", -1)) in names)
        return _of_topics(found)

    def _find(self, missing: set[str]) -> None:
        """The keys of rated questions, read from the journal's end backwards; one that is gone has none."""
        for raw in _lines(self._paths) if missing else ():
            said = ID.search(raw)
            if said is None or said[1].decode() not in missing:
                continue
            record, _ = journal.parse(raw)
            if record is not None and record["kind"] == "exchange" and record["id"] in missing:
                missing.discard(record["id"])
                self._keys[record["id"]] = _key(record)
                if not missing:
                    return
        self._keys |= dict.fromkeys(missing)


def _lines(paths: Paths) -> Iterator[bytes]:
    for path in reversed(journal.files(paths.journal)):
        yield from lines_backwards(path)


def _key(record: Mapping[str, Any]) -> str | None:
    messages = record.get("messages")
    asked = [one.get("content") for one in messages if isinstance(one, dict) and one.get("role") == "user"] \
        if isinstance(messages, list) else []
    return prompt_key(asked[-1]) if asked and isinstance(asked[-1], str) else None


def _of_topics(found: Mapping[tuple[str, str], Approval]) -> Gauges:
    most = sorted(found.items(), key=lambda pair: (-pair[1].votes, pair[0]))[:MOST_TOPICS]
    return {"swarmctl_topic_approval_ratio": {key: one.share or 0.0 for key, one in most},
            "swarmctl_topic_approval_votes": {key: one.votes for key, one in most}}
