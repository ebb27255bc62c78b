"""How often each model was found good or bad in each category: what routing learns from, read on every `ask`.

Counted from the journal's tail, with a cache in state, so that an `ask` pays for a few `stat`s and one short
line. The cache is one file, replaced by rename: its first line holds how far each month was read and the
totals, its second the ratings behind them, which is only parsed when a new rating has come. A cache that is
garbage, or knows of more journal than there is, is thrown away and counted anew. Processes that count at the
same time each write a cache that is right in itself.

A rating of score s counts (1+s)/2 good and (1-s)/2 bad; the latest of an exchange that was not taken back
stands. A comparison counts half: its winner good, its loser bad; both bad where both were; a tie not at all.
Counted apart are the weights (by digest) that made the answer: what was said of a release that was rolled
back says less of the one that serves now.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import LedgerError
from swarmctl.ledger import follow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

Totals = dict[tuple[str, str], tuple[float, float]]
#: Good and bad by (model, category, digest); an empty digest where the record does not say.
ByDigest = dict[tuple[str, str, str], tuple[float, float]]

CACHE_VERSION = 2
COMPARISON_WEIGHT = 0.5
#: Bytes of journal without a rating that may be read again on every call before the cache is rewritten.
SLACK = 128 << 10
#: What parsing a cache that holds anything at all may raise.
GARBAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


_Rated = tuple[str, str, float | None, str]
_Compared = tuple[str, str, str, str, str, str]


@dataclass(slots=True)
class Votes:
    """The ratings that are behind the totals: of each exchange, by id, and the ids that were taken back."""

    ratings: dict[str, dict[str, _Rated]] = field(default_factory=dict)
    undone: set[str] = field(default_factory=set)
    comparisons: dict[str, _Compared] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take in one record; what is neither a rating nor a comparison in our form is passed over."""
        if record["kind"] == "rating" and is_rating(record):
            self._rate(record)
        elif record["kind"] == "comparison" and is_comparison(record):
            self.comparisons.setdefault(record["id"], (
                record["model_a"], record["model_b"], record["category"], record["choice"],
                str(record.get("digest_a") or ""), str(record.get("digest_b") or "")))

    def _rate(self, record: Record) -> None:
        if record.get("undoes"):
            self.undone.add(record["undoes"])
            return
        of_exchange = self.ratings.setdefault(record["exchange"], {})
        of_exchange.setdefault(record["id"], (record["model"], record["category"], record.get("score"),
                                              str(record.get("digest") or "")))

    def totals(self) -> ByDigest:
        """Good and bad of each (model, category, digest)."""
        counted: ByDigest = {}
        for *key, good, bad in (*self._rated(), *self._compared()):
            model, category, digest = key
            before = counted.get((model, category, digest), (0.0, 0.0))
            counted[model, category, digest] = (before[0] + good, before[1] + bad)
        return counted

    def standing(self) -> Iterator[tuple[str, str, str, float]]:
        """(exchange, model, category, score) of each exchange that is rated, by the latest rating that was
        not taken back."""
        for exchange, (model, category, score, _) in self._standing():
            yield exchange, model, category, score

    def _standing(self) -> Iterator[tuple[str, tuple[str, str, float, str]]]:
        for exchange, of_exchange in self.ratings.items():
            left = [one for one in of_exchange if one not in self.undone]
            if not left:
                continue
            model, category, score, digest = of_exchange[max(left)]
            if score is not None:
                yield exchange, (model, category, score, digest)

    def _rated(self) -> Iterator[tuple[str, str, str, float, float]]:
        for _, (model, category, score, digest) in self._standing():
            yield model, category, digest, (1 + score) / 2, (1 - score) / 2

    def _compared(self) -> Iterator[tuple[str, str, str, float, float]]:
        for model_a, model_b, category, choice, digest_a, digest_b in self.comparisons.values():
            if choice == "tie":
                continue
            yield model_a, category, digest_a, *_half(choice == "a")
            yield model_b, category, digest_b, *_half(choice == "b")


def scores(paths: Paths) -> Mapping[tuple[str, str], tuple[float, float]]:
    """(model, category) → (good, bad), as of now. Raises LedgerError where the journal cannot be read."""
    found: Totals = {}
    for (model, category, _), (good, bad) in scores_by_digest(paths).items():
        before = found.get((model, category), (0.0, 0.0))
        found[model, category] = (before[0] + good, before[1] + bad)
    return found


def scores_by_digest(paths: Paths) -> Mapping[tuple[str, str, str], tuple[float, float]]:
    """(model, category, digest) → (good, bad), as of now; the digest is empty where a record does not say.
    Raises LedgerError where the journal cannot be read."""
    cache = paths.state / "scores.json"
    sizes = follow.sizes(paths.journal)
    known = _read_cache(cache)
    if known is None or not follow.continues(known[0], sizes):
        return _count(cache, sizes, {}, Votes())
    marks, totals, behind = known
    fresh, read = _relevant(sizes, marks)
    if fresh:
        votes = _votes(behind)
        return _count(cache, sizes, {} if votes is None else marks, votes or Votes())
    if sum(read.values()) - sum(marks.values()) > SLACK:
        _write(cache, read, totals, behind)
    return totals


def standing(paths: Paths) -> Iterator[tuple[str, str, str, float]]:
    """(exchange, model, category, score from -1 to 1) of each exchange that is rated, by the rating that
    stands. Raises LedgerError."""
    scores(paths)
    known = _read_cache(paths.state / "scores.json")
    votes = _votes(known[2]) if known else None
    yield from votes.standing() if votes else ()


def forget(paths: Paths) -> None:
    """Drop the cache; the next call counts the whole journal. Raises LedgerError."""
    cache = paths.state / "scores.json"
    try:
        cache.unlink(missing_ok=True)
    except OSError as exc:
        raise LedgerError(f"cannot remove {cache}: {exc.strerror}", hint="is the folder yours?") from exc


def is_rating(record: Record) -> bool:
    """Whether a record of that kind has what counting it needs."""
    score = record.get("score")
    return (all(isinstance(record.get(key), str) for key in ("exchange", "model", "category"))
            and isinstance(record.get("undoes"), str | None)
            and (score is None or (isinstance(score, int | float) and -1 <= score <= 1)))


def is_comparison(record: Record) -> bool:
    """Whether a record of that kind has what counting it needs."""
    return (all(isinstance(record.get(key), str) for key in ("a", "b", "model_a", "model_b", "category"))
            and record.get("choice") in ("a", "b", "tie", "both-bad"))


def _half(won: bool) -> tuple[float, float]:
    return (COMPARISON_WEIGHT, 0.0) if won else (0.0, COMPARISON_WEIGHT)


def _count(cache: Path, sizes: Mapping[Path, int], marks: Mapping[str, int], votes: Votes) -> ByDigest:
    fresh, read = _relevant(sizes, marks)
    for record in fresh:
        votes.add(record)
    totals = votes.totals()
    _write(cache, read, totals, json.dumps(
        [votes.ratings, sorted(votes.undone), votes.comparisons]))
    return totals


def _relevant(sizes: Mapping[Path, int], marks: Mapping[str, int]) -> tuple[list[Record], dict[str, int]]:
    """Ratings and comparisons past the marks, and the new marks."""
    read = {path.name: marks.get(path.name, 0) for path in sizes}
    records = [record for record in follow.fresh(sizes, read, _may_be_a_vote)
               if record["kind"] in ("rating", "comparison")]
    return records, read


def _may_be_a_vote(raw: bytes) -> bool:
    return b'"rating"' in raw or b'"comparison"' in raw


def _read_cache(cache: Path) -> tuple[dict[str, int], ByDigest, str] | None:
    """Marks, totals and the unparsed votes behind them; None where the cache is missing or garbage."""
    try:
        head, _, behind = cache.read_text(encoding="utf-8").partition("\n")
        raw = json.loads(head)
        if raw["version"] != CACHE_VERSION:
            return None
        marks = {str(name): follow.mark(mark) for name, mark in raw["marks"].items()}
        totals = {(str(model), str(category), str(digest)): (float(good), float(bad))
                  for model, category, digest, good, bad in raw["totals"]}
    except (OSError, *GARBAGE):
        return None
    return marks, totals, behind


def _votes(behind: str) -> Votes | None:
    try:
        ratings, undone, comparisons = json.loads(behind)
        return Votes({str(one): {str(key): _rated(vote) for key, vote in votes.items()}
                      for one, votes in ratings.items()},
                     set(map(str, undone)), {str(key): _compared(vote) for key, vote in comparisons.items()})
    except GARBAGE:
        return None


def _write(cache: Path, marks: Mapping[str, int], totals: ByDigest, votes: str) -> None:
    """Replace the cache. It only saves time, so a full disk or a read-only folder is no error."""
    head: dict[str, Any] = {"version": CACHE_VERSION, "marks": dict(marks),
                            "totals": [[*key, *value] for key, value in totals.items()]}
    with suppress(OSError):
        write_whole(cache, f"{json.dumps(head)}\n{votes}")


def _rated(vote: Any) -> _Rated:  # noqa: ANN401
    model, category, score, digest = vote
    return str(model), str(category), None if score is None else float(score), str(digest)


def _compared(vote: Any) -> _Compared:  # noqa: ANN401
    model_a, model_b, category, choice, digest_a, digest_b = vote
    return str(model_a), str(model_b), str(category), str(choice), str(digest_a), str(digest_b)
