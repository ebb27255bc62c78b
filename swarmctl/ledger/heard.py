"""How sure models were of answers that people rated, out of the journal, and the curves that follow from it.

The curves are one small file in data/routing, written by rename; whoever asks reads it. It can be made anew
from the journal at any time, so a file that is garbage counts as none.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.ledger import follow
from swarmctl.ledger.scores import GARBAGE, is_rating
from swarmctl.routing.calibration import Heard, fit
from swarmctl.routing.confidence import SIGNALS, STAGES, WHOLE, Curve, Curves, Trail
from swarmctl.routing.signs import SIGNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from swarmctl.ledger.journal import Record
    from swarmctl.paths import Paths

NAMES = (*SIGNALS, *SIGNS)


def refit(paths: Paths) -> Curves:
    """Fit the curves on all ratings so far and store them. Raises LedgerError."""
    curves = fit(list(heard(paths)))
    raw = {"names": NAMES, "stages": STAGES, **asdict(curves)}
    write_whole(_file(paths), json.dumps(raw))
    return curves


def read_curves(paths: Paths) -> Curves:
    """The curves as last fitted; none where there are none, or of other signals than ours."""
    try:
        raw = json.loads(_file(paths).read_text(encoding="utf-8"))
        if (tuple(raw["names"]), tuple(raw["stages"])) != (NAMES, STAGES):
            return Curves()
        models = {str(digest): {str(category): _curve(one) for category, one in by.items()}
                  for digest, by in raw["models"].items()}
        return Curves(_curve(raw["pooled"]) if raw["pooled"] else None, models)
    except (OSError, *GARBAGE):
        return Curves()


def heard(paths: Paths) -> Iterator[Heard]:
    """The rated answers whose tokens' probabilities were recorded. The latest rating that stands counts."""
    rows: dict[str, Record] = {}
    ratings: dict[str, dict[str, float]] = {}
    undone = set()
    for row in follow.fresh(follow.sizes(paths.journal), {}, _wanted):
        if row["kind"] == "exchange":
            rows[row["id"]] = row
        elif row["kind"] == "rating" and is_rating(row):
            undone.add(row.get("undoes"))
            if row.get("score") is not None and not row.get("undoes"):
                ratings.setdefault(row["exchange"], {})[row["id"]] = (1 + row["score"]) / 2
    for identity, given in ratings.items():
        standing = [one for one in given if one not in undone]
        if standing and (found := _heard(rows.get(identity), given[max(standing)])):
            yield found


def heard_record(before: float, trail: Trail, signs: Sequence[float]) -> dict[str, Any]:
    """What was heard of an answer, as it is recorded with its exchange."""
    return {"before": round(before, 4), "trail": trail_record(trail),
            "signs": [round(one, 4) for one in signs]}


def trail_record(trail: Trail) -> dict[str, Any]:
    """A trail as it is recorded."""
    return {"tokens": trail.tokens, "total": round(trail.total, 4), "first": round(trail.first, 4),
            "least": round(trail.least, 4), "beginning": [round(one, 4) for one in trail.beginning]}


def _wanted(raw: bytes) -> bool:
    return b'"rating"' in raw or (b'"exchange"' in raw and b'"heard"' in raw)


def _heard(row: Record | None, good: float) -> Heard | None:
    try:
        said = row["route"]["cascade"]["heard"] if row else None
        if not row or not said:
            return None
        numbers = {key: float(said["trail"][key]) for key in ("total", "first", "least")}
        trail = Trail(int(said["trail"]["tokens"]), **numbers,
                      beginning=[float(one) for one in said["trail"]["beginning"]])
        signs = tuple(float(one) for one in said["signs"])
        if len(signs) != len(SIGNS):
            return None
        return Heard(str(row["digest"]), str(row["category"]), float(said["before"]), trail, signs, good)
    except GARBAGE:
        return None


def _curve(raw: Mapping[str, Any]) -> Curve:
    weights = tuple(tuple(float(w) for w in stage) for stage in raw["weights"])
    information = tuple(float(one) for one in raw["information"])
    lengths = [len(SIGNALS)] * WHOLE + [len(NAMES)]
    if [len(stage) for stage in weights] != lengths or len(information) != WHOLE + 1:
        raise ValueError(raw)
    return Curve(weights, information, int(raw["ratings"]), float(raw["gain"]), float(raw["gain_low"]),
                 str(raw["by"]))


def _file(paths: Paths) -> Path:
    return paths.data / "routing" / "confidence.json"
