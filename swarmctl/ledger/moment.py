"""How a person names a time in the past: a span such as 2d, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from swarmctl.errors import UsageError

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SPAN = re.compile(r"(\d{1,6})([mhdw])")


def moment(text: str, now: float, option: str = "--since") -> float:
    """Seconds since 1970 of `2d` before `now`, or of an ISO date, local where it names no zone. Raises
    UsageError."""
    span = SPAN.fullmatch(text)
    try:
        if span:
            back = timedelta(**{UNITS[span[2]]: int(span[1])})
            return (datetime.fromtimestamp(now, UTC) - back).timestamp()
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option} {text}: no such time",
                         hint="30m, 12h, 2d, 1w, 2026-11-23 or 2026-11-23T09:00") from exc
