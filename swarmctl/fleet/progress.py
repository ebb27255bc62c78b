"""What converging a host tells whoever watches: one event a change, from whichever thread works on that
host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Event:
    """Step `number` of `total` on a host. `fraction` is how far it is, 0 to 1, or None where nobody knows.

    `state` is begun, going, done or failed.
    """

    host: str
    number: int
    total: int
    title: str
    state: str
    detail: str = ""
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells of one step."""

    host: str
    number: int
    total: int
    title: str
    tell: Callable[[Event], None]

    def __call__(self, detail: str, fraction: float | None = None, state: str = "going") -> None:
        """Say how the step is going."""
        self.tell(Event(self.host, self.number, self.total, self.title, state, detail, fraction))

    def bytes(self, size: int) -> Callable[[int], None]:
        """A progress callback that counts towards `size` bytes."""
        return lambda there: self(f"{there / 1e6:,.1f} of {size / 1e6:,.1f} MB", there / max(size, 1))
