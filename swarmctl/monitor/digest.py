"""The operators' digest of a span of time: what was asked, how it was liked, what went badly, what changed,
and what waits for a word. Numbers from the ledger; changes from the records of releases and rounds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from swarmctl.learning.approval import wilson
from swarmctl.learning.markdown import cell
from swarmctl.ledger import rounds
from swarmctl.ledger.store import open_ledger, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmctl.ledger.rounds import Round
    from swarmctl.paths import Paths

WORST = 8
VOLUMES = """
    SELECT model, host, count(*) AS questions, count(*) FILTER (finish = 'error') AS failed,
           count(*) FILTER (failovers > 0) AS failed_over, median(first_token_seconds) AS first_token,
           median(total_seconds) AS total, sum(completion_tokens) AS tokens
    FROM exchanges WHERE at_utc >= ? GROUP BY ALL ORDER BY questions DESC, model, host"""
APPROVED = """
    SELECT model, category, digest, sum((1 + score) / 2) AS good, count(*) AS votes FROM current_ratings
    WHERE score IS NOT NULL AND at_utc >= ? GROUP BY ALL ORDER BY model, category, votes DESC"""
BAD = """
    SELECT id, model, host, question, answer, score, stars, comment, correction FROM answers
    WHERE at_utc >= ? AND (score < 0 OR correction IS NOT NULL)
    ORDER BY score NULLS LAST, comment IS NULL, at_utc DESC LIMIT ?"""
CHANGES = """
    SELECT strftime(at_utc, '%Y-%m-%d %H:%M') AS at, record->>'action' AS action, record->>'model' AS model,
           record->>'release' AS release, record->>'reason' AS reason, record->>'by' AS by
    FROM decisions WHERE kind = 'release' AND at_utc >= ? ORDER BY at_utc, id"""


def digest(paths: Paths, since: float, now: float, topics: Sequence[Mapping[str, Any]] = ()) -> dict[str,
                                                                                                     Any]:
    """Everything, as plain data. `topics` are rows of what is known of them. Raises LedgerError."""
    sync(paths)
    start = datetime.fromtimestamp(since, UTC).replace(tzinfo=None)
    with open_ledger(paths, read_only=True) as ledger:
        volumes, approved, bad, changes = (
            _rows(ledger, *query) for query in ((VOLUMES, [start]), (APPROVED, [start]), (BAD, [start,
                                                                                                WORST]),
                                                (CHANGES, [start])))
    every = rounds.read(paths)
    return {"since": _at(since), "until": _at(now), "volumes": volumes,
            "approval": [_approval(row) for row in approved], "worst": bad, "changes": changes,
            "topics": [dict(topic) for topic in topics],
            "rounds": [summary(one) for one in every if _seconds(one) >= since],
            "proposed": [summary(one) for one in every if one.unsigned]}


def summary(one: Round) -> dict[str, Any]:
    """A round in short."""
    return {"round": one.id, "model": one.model, "began": one.began, "stage": one.stage, "status": one.status,
            "reasons": list(one.reasons), "details": dict(one.details)}


def markdown(found: Mapping[str, Any]) -> str:
    """The digest as a person reads it."""
    lines = [f"# Review: {found['since'][:16]} to {found['until'][:16]} UTC", ""]
    lines += _proposed(found["proposed"])
    lines += _section("Volumes", ("model", "host", "questions", "failed", "failed over", "first token",
                                  "whole answer"), [_volume(row) for row in found["volumes"]],
                      "Nothing was asked.")
    lines += _section("Approval", ("model", "weights", "category", "good", "95 % interval", "votes"),
                      [_approved(row) for row in found["approval"]], "Nothing was rated.")
    if found["topics"]:
        lines += _section("Topics", ("topic", "questions", "good", "trend"),
                          [_topic(row) for row in found["topics"]], "")
    lines += _section("Worst answers", ("id", "model", "question", "answer", "said"),
                      [_worst(row) for row in found["worst"]], "No answer was disliked.")
    lines += _section("What changed", ("when", "what", "model", "release", "why", "by"), [
        tuple(row[key] or "" for key in ("at", "action", "model", "release", "reason", "by"))
        for row in found["changes"]], "Nothing.")
    lines += _section("Rounds of improvement", ("round", "began", "stands", "why"), [
        (row["round"], row["began"][:16], f"{row['stage']}: {row['status']}", "; ".join(row["reasons"]))
        for row in found["rounds"]], "None.")
    return "\n".join(lines).rstrip() + "\n"


def round_page(one: Mapping[str, Any]) -> str:
    """One round as a person reads it before signing."""
    details = one["details"]
    known = [(name, details[key]) for name, key in (
        ("data set", "dataset"), ("run", "run"), ("release", "release"), ("decision", "decision"),
        ("report", "report"), ("training, hours", "hours"), ("energy, kWh",
                                                             "kwh")) if details.get(key) is not None]
    lines = [f"# Round {one['round']}: {one['model']}", "",
             f"Stands at {one['stage']}: **{one['status']}**.", "",
             *(f"- {reason}" for reason in one["reasons"]), "",
             *(f"- {name}: {value:.3g}" if isinstance(value, float) else f"- {name}: {value}"
               for name, value in known)]
    return "\n".join(lines).rstrip() + "\n"


def _proposed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["Nothing waits for your word.", ""]
    lines = ["## Waits for your word", ""]
    for row in rows:
        release = row["details"].get("release", "?")
        lines += [f"- **{row['round']}**: serve {row['model']}:{release} to a share of the conversations "
                  f"({'; '.join(row['reasons'])})",
                  f"  `swarmctl review approve {row['round']}` or `swarmctl review reject {row['round']}`"]
    return [*lines, ""]


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> list[str]:
    body = ["| " + " | ".join(cell(str(one), 120) for one in row) + " |" for row in rows]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body] if body else [empty]
    return [f"## {title}", "", *table, ""]


def _volume(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["model"] or "", row["host"] or "", str(row["questions"]), str(row["failed"]),
            str(row["failed_over"]), _span(row["first_token"]), _span(row["total"]))


def _approved(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["model"], row["digest"][:8], row["category"], f"{row['approval']:.0%}",
            f"{row['low']:.0%} to {row['high']:.0%}", str(row["votes"]))


def _topic(row: Mapping[str, Any]) -> tuple[str, ...]:
    good = "" if row["approval"] is None else f"{row['approval']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
    trend = "" if row["trend"] is None else f"{row['trend']:+.1%}"
    return row["name"], str(row["size"]), good, trend


def _worst(row: Mapping[str, Any]) -> tuple[str, ...]:
    said = row["comment"] or (f"should be: {row['correction']}" if row["correction"] else "")
    return row["id"][-6:], row["model"], row["question"] or "", row["answer"] or "", said


def _approval(row: Mapping[str, Any]) -> dict[str, Any]:
    found = wilson(float(row["good"]), float(row["votes"]))
    return {**row, "approval": found.share, "low": found.low, "high": found.high}


Rows = list[dict[str, Any]]


def _rows(ledger: Any, statement: str, values: Sequence[Any]) -> Rows:  # noqa: ANN401  duckdb's
    cursor = ledger.execute(statement, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _span(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def _seconds(one: Round) -> float:
    return datetime.fromisoformat(one.began).timestamp()


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
