"""The router's learned weights on disk, their history, and the ratings that they are learned from.

Each fit is a file of its own, data/routing/VERSION.json, and a line of journal/routers.jsonl; `live.json`
names the one that `ask` reads, and how many ratings were counted by then. A file that is garbage counts as
none: then the router is as it was before it learned.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import LedgerError, UsageError
from swarmctl.exchange import CATEGORIES, RECORD_VERSION
from swarmctl.ledger import journal
from swarmctl.ledger.scores import COMPARISON_WEIGHT, GARBAGE, scores_by_digest
from swarmctl.routing.beliefs import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from swarmctl.exchange import Category
    from swarmctl.paths import Paths
    from swarmctl.routing.beliefs import Weights

#: Versions whose weights are kept.
KEPT = 10
#: What was said of other weights of a model counts so much.
OTHER_WEIGHTS = 0.25
#: Fitted anew after so many new ratings, and after such a share of those before.
FEWEST_NEW, GROWTH = 10, 0.1
OPINIONS = """
    WITH said AS (
        SELECT exchange AS id, (1 + score) / 2 AS good, 1.0 AS weight, id AS opinion FROM current_ratings
        WHERE score IS NOT NULL
        UNION ALL SELECT a, if(choice = 'a', 1, 0), $weight, id FROM comparisons WHERE choice <> 'tie'
        UNION ALL SELECT b, if(choice = 'b', 1, 0), $weight, id FROM comparisons WHERE choice <> 'tie')
    SELECT e.id, epoch(e.at_utc), e.question, e.category, e.model, coalesce(e.digest, ''), s.good, s.weight,
           s.opinion, e.route::VARCHAR
    FROM said s JOIN exchanges e ON e.id = s.id WHERE e.question IS NOT NULL ORDER BY s.opinion"""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What was said of one answer: how good (0 to 1), and how much that counts. `route` is the exchange's."""

    exchange: str
    seconds: float
    question: str
    category: Category
    model: str
    digest: str
    good: float
    weight: float
    id: str
    route: Mapping[str, Any]


def read_weights(paths: Paths, version: str | None = None) -> Weights | None:
    """The weights that are live, or of a version; None where there are none, or they cannot be read."""
    try:
        found = version or str(_live(paths)["version"])
        return from_record(json.loads(_file(paths, found).read_text(encoding="utf-8")))
    except (OSError, *GARBAGE):
        return None


def keep(paths: Paths, weights: Weights, counted: float, details: Mapping[str, Any]) -> None:
    """Keep weights, write down that they were fitted, and let `ask` use them. Raises LedgerError."""
    try:
        write_whole(_file(paths, weights.version), json.dumps(to_record(weights)))
    except OSError as exc:
        raise LedgerError(f"cannot write {_file(paths, weights.version)}: {exc.strerror}",
                          hint="is the disk full, or the folder not yours?") from exc
    journal.append(paths.journal, {
        "v": RECORD_VERSION, "kind": "router", "id": f"router-{weights.version}", "at": weights.at,
        "version": weights.version, "ratings": weights.ratings, "until": weights.until, **details},
        journal.ROUTERS)
    _point(paths, weights.version, counted)
    for old in versions(paths)[:-KEPT]:
        with suppress(OSError):
            _file(paths, old).unlink()


def use(paths: Paths, version: str) -> None:
    """Have `ask` read a version that was kept, or none with "none". Raises UsageError, LedgerError."""
    if version != "none" and read_weights(paths, version) is None:
        raise UsageError(f"no weights {version} are kept", hint=", ".join(versions(paths)) or "none are")
    _point(paths, version, counted(paths))


def versions(paths: Paths) -> tuple[str, ...]:
    """The versions whose weights are kept, oldest first."""
    found = (path.stem for path in (paths.data / "routing").glob("[0-9]*.json"))
    return tuple(sorted(found))


def counted(paths: Paths) -> float:
    """How many ratings count now. Raises LedgerError."""
    return sum(good + bad for good, bad in scores_by_digest(paths).values())


def due(paths: Paths) -> bool:
    """Whether enough new ratings came to fit anew. Raises LedgerError."""
    before = 0.0
    with suppress(OSError, *GARBAGE):
        before = float(_live(paths)["counted"])
    new = counted(paths) - before
    return new >= FEWEST_NEW and new >= GROWTH * before


def read_opinions(paths: Paths) -> tuple[Opinion, ...]:
    """Every rating and comparison that stands, oldest first. Raises LedgerError."""
    from swarmctl.ledger import store

    store.sync(paths)
    with store.open_ledger(paths, read_only=True) as connection:
        rows = connection.execute(OPINIONS, {"weight": COMPARISON_WEIGHT}).fetchall()
    return tuple(_opinions(rows))


def _opinions(rows: list[tuple[Any, ...]]) -> Iterator[Opinion]:
    for exchange, seconds, question, category, model, digest, good, weight, identity, route in rows:
        if category in CATEGORIES and question.strip():
            taken = json.loads(route) if route else {}
            yield Opinion(exchange, seconds or 0.0, question, category, model, digest, float(good),
                          float(weight), identity, taken if isinstance(taken, dict) else {})


def shared(found: Mapping[tuple[str, str, str], tuple[float, float]], model: str, category: str,
           digest: str) -> tuple[float, float]:
    """Good and bad of a model's weights: their own ratings whole, those of its other weights in part."""
    good = bad = 0.0
    for (one, kind, weights), (up, down) in found.items():
        if one == model and kind == category:
            part = weight_of(weights, digest)
            good, bad = good + part * up, bad + part * down
    return good, bad


def weight_of(rated: str, digest: str) -> float:
    """How much a rating of one digest says of another. A record that names none is taken at its word."""
    return 1.0 if rated in ("", digest) else OTHER_WEIGHTS


def _point(paths: Paths, version: str, count: float) -> None:
    try:
        write_whole(paths.data / "routing" / "live.json", json.dumps({"version": version, "counted": count}))
    except OSError as exc:
        raise LedgerError(f"cannot write in {paths.data / 'routing'}: {exc.strerror}",
                          hint="is the disk full, or the folder not yours?") from exc


def _live(paths: Paths) -> dict[str, Any]:
    raw = json.loads((paths.data / "routing" / "live.json").read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise TypeError(raw)
    return raw


def _file(paths: Paths, version: str) -> Path:
    return paths.data / "routing" / f"{version}.json"
