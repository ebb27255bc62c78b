"""Whether another round of training is worth it now. Pure: counts and times in, a decision and its reasons
out.

A round wants a reason (enough new ratings, a significant drop, a drift of the topics) and must not be
forbidden (the cooldown, the week's hours and kilowatt hours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmctl.inventory import ImproveWish
    from swarmctl.learning.approval import Approval

HOUR = 3600.0
WEEK = 7 * 24 * HOUR


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to decide on. `labels` are new since the last round's data set; `before` and `lately` the
    approval of what is served now, split in time; `hours_since` the last round, None before the first;
    `hours` and `kwh` of training in the last seven days."""

    labels: int
    before: Approval | None = None
    lately: Approval | None = None
    drift: str | None = None
    hours_since: float | None = None
    hours: float = 0.0
    kwh: float = 0.0


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a round should begin, and every reason for and against."""

    go: bool
    reasons: tuple[str, ...]


def due(seen: Seen, policy: ImproveWish) -> Due:
    """Decide. What forbids a round is named even where nothing asks for one."""
    wishes, obstacles = _wishes(seen, policy), _obstacles(seen, policy)
    if wishes and not obstacles:
        return Due(True, wishes)
    return Due(False, (*(wishes or _short(seen, policy)), *obstacles))


def dropped(before: Approval, lately: Approval) -> bool:
    """Whether approval fell significantly: both 95 % intervals are apart, which for two independent shares is
    a test at well under 5 % (Schenker & Gentleman, The American Statistician 55, 2001)."""
    return lately.high < before.low


def _wishes(seen: Seen, policy: ImproveWish) -> tuple[str, ...]:
    found = []
    if seen.labels >= policy.labels:
        found.append(f"{seen.labels} new ratings ({policy.labels} are enough)")
    if seen.before and seen.lately and dropped(seen.before, seen.lately):
        found.append(f"approval fell from {_share(seen.before)} to {_share(seen.lately)}")
    if seen.drift:
        found.append(f"the topics drifted: {seen.drift}")
    return tuple(found)


def _obstacles(seen: Seen, policy: ImproveWish) -> tuple[str, ...]:
    found = []
    if seen.hours_since is not None and seen.hours_since < policy.cooldown_hours:
        found.append(f"the last round was {seen.hours_since:.1f} h ago and the cooldown is "
                     f"{policy.cooldown_hours:g} h")
    if seen.hours >= policy.budget_hours:
        found.append(f"{seen.hours:.1f} h of training in seven days, {policy.budget_hours:g} h are allowed")
    if policy.budget_kwh is not None and seen.kwh >= policy.budget_kwh:
        found.append(f"{seen.kwh:.2f} kWh for training in seven days, {policy.budget_kwh:g} are allowed")
    return tuple(found)


def _short(seen: Seen, policy: ImproveWish) -> tuple[str, ...]:
    return (f"{seen.labels} new ratings, {policy.labels} are needed; no significant drop, no drift",)


def _share(approval: Approval) -> str:
    return f"{approval.share or 0:.0%} ({approval.low:.0%} to {approval.high:.0%} of {approval.votes:g})"
