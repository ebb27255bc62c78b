"""How sure models were of answers that people rated, out of the journal, and the curves that follow from it.

The curves are one small file in data/routing, written by rename; whoever asks reads it. It can be made anew
from the journal at any time, so a file that is garbage counts as none. `ask` fits
nothing, so what fits is imported where it is done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import LedgerError
from swarmctl.ledger.scores import GARBAGE
from swarmctl.routing.confidence import OF_QUESTION, SIGNALS, STAGES, WHOLE, Curve, Curves, Sorts, Trail
from swarmctl.routing.features import read_features
from swarmctl.routing.signs import SIGNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from swarmctl.ledger.routers import Opinion
    from swarmctl.paths import Paths
    from swarmctl.routing.calibration import Heard

NAMES = (*SIGNALS, *SIGNS)
#: How many signs answers were recorded with before more stood behind.
EARLIER = (11, 13)
#: Rated answers that are fitted, the newest, which bounds the time of it.
MOST = 4000


def refit(paths: Paths, before: Mapping[tuple[str, str], float] | None = None) -> Curves:
    """Fit the curves on all ratings so far and store them. `before` is what was to be believed before each
    answer, by (opinion, exchange); where it says nothing, what was recorded then. Raises LedgerError."""
    from swarmctl.routing.calibration import fit

    curves = fit(list(heard(paths, before or {}))[-MOST:])
    raw = {"names": NAMES, "stages": STAGES, **asdict(curves)}
    try:
        write_whole(_file(paths), json.dumps(raw))
    except OSError as exc:
        raise LedgerError(f"cannot write {_file(paths)}: {exc.strerror}",
                          hint="is the disk full, or the folder not yours?") from exc
    return curves


def read_curves(paths: Paths) -> Curves:
    """The curves as last fitted; none where there are none, or of other signals than ours."""
    try:
        raw = json.loads(_file(paths).read_text(encoding="utf-8"))
        if (tuple(raw["names"]), tuple(raw["stages"])) != (NAMES, STAGES):
            return Curves()
        models = {str(digest): {str(category): _curve(one) for category, one in by.items()}
                  for digest, by in raw["models"].items()}
        sorts = _sorts(raw["sorts"]) if raw.get("sorts") else None
        return Curves(_curve(raw["pooled"]) if raw["pooled"] else None, models, sorts)
    except (OSError, *GARBAGE):
        return Curves()


def heard(paths: Paths, before: Mapping[tuple[str, str], float]) -> Iterator[Heard]:
    """The rated answers whose tokens' probabilities were recorded. Raises LedgerError."""
    from swarmctl.ledger.routers import read_opinions

    for opinion in read_opinions(paths):
        if found := _heard(opinion):
            yield replace(found, before=before.get((opinion.id, opinion.exchange), found.before))


def heard_record(before: float, trail: Trail, signs: Sequence[float]) -> dict[str, Any]:
    """What was heard of an answer, as it is recorded with its exchange."""
    return {"before": round(before, 4), "trail": trail_record(trail),
            "signs": [round(one, 4) for one in signs]}


def trail_record(trail: Trail) -> dict[str, Any]:
    """A trail as it is recorded."""
    return {"tokens": trail.tokens, "total": round(trail.total, 4), "first": round(trail.first, 4),
            "least": round(trail.least, 4), "beginning": [round(one, 4) for one in trail.beginning]}


def _heard(opinion: Opinion) -> Heard | None:
    from swarmctl.routing.calibration import Heard

    try:
        said = opinion.route["cascade"]["heard"]
        numbers = {key: float(said["trail"][key]) for key in ("total", "first", "least")}
        beginning = [float(one) for one in said["trail"]["beginning"]]
        trail = Trail(int(said["trail"]["tokens"]), **numbers, beginning=beginning)
        signs = tuple(float(one) for one in said["signs"])
        if len(signs) not in (len(SIGNS), *EARLIER):
            return None
        signs += (0.0,) * (len(SIGNS) - len(signs))
        return Heard(opinion.digest, opinion.category, float(said["before"]), trail, signs, opinion.good,
                     opinion.weight, read_features(opinion.question))
    except GARBAGE:
        return None


def _curve(raw: Mapping[str, Any]) -> Curve:
    weights = _rows(raw["weights"])
    by_sort = tuple(_rows(stage) for stage in raw["sorted"])
    information = tuple(float(one) for one in raw["information"])
    lengths = [len(SIGNALS)] * WHOLE + [len(NAMES), OF_QUESTION]
    stages = zip(lengths, by_sort, strict=True) if by_sort else ()
    if ([len(stage) for stage in weights] != lengths or len(information) != WHOLE + 1
            or any(len(row) != length for length, rows in stages for row in rows)):
        raise ValueError(raw)
    return Curve(weights, information, int(raw["ratings"]), float(raw["gain"]), float(raw["gain_low"]),
                 str(raw["by"]), by_sort)


def _sorts(raw: Mapping[str, Any]) -> Sorts:
    centre, scale = _rows([raw["centre"], raw["scale"]])
    return Sorts(centre, scale, _rows(raw["landmarks"]), _rows(raw["back"]))


def _rows(raw: Sequence[Sequence[Any]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in raw)


def _file(paths: Paths) -> Path:
    return paths.data / "routing" / "confidence.json"
