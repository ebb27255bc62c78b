"""What the router may do beyond taking the cheapest that is likely good enough: the inventory's `routing`,
as the ask path reads it from the snapshot, without reading an inventory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """As `inventory.wishes.RoutingWish`, which explains each field."""

    explore: float = 0.03
    cascade: bool = True
    hedge: bool = True
    queue: int = 64
    queue_seconds: float = 60.0
