"""`swarmctl rollback HOST`: the runtime's version from before serves again. Seconds, and no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.locks import HostLock, local_lock
from swarmctl.fleet.move import Mover
from swarmctl.fleet.surveyed import Surveyed, look, refresh, supply_of, yard_of
from swarmctl.inventory import RUNTIMES, placed_on
from swarmctl.runtimes.ollama_plan import adopted
from swarmctl.runtimes.versions import arrival

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.fleet.move import Moved
    from swarmctl.fleet.progress import Event
    from swarmctl.paths import Paths

LOCK_WAIT = 300.0


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Which runtime of which host went back."""

    host: str
    runtime: str
    moved: Moved


def roll_back_host(paths: Paths, inventory: Path, name: str, clock: Callable[[], float], *,
                   runtime: str | None = None, reason: str = "", note: Callable[[str], None],
                   event: Callable[[Event], None]) -> RolledBack:
    """Return a host to the version before; of two runtimes the one that moved last. The reason is kept in
    the host's history.

    Raises UsageError, LockBusy, RemoteErrors, and SwarmError where there is nothing to return to.
    """
    yard = yard_of(paths, inventory)
    (host,) = yard.chosen((name,))
    with local_lock(paths.state / "up.lock", "swarmctl rollback", wait=LOCK_WAIT, on_wait=note):
        one = look(yard, (host,))[name]
        if not isinstance(one, Surveyed):
            raise one
        try:
            chosen = runtime or _moved_last(one)
            if chosen == "ollama" and adopted(one.want, one.seen):
                raise SwarmError("its Ollama is adopted: whoever installed it rolls it back", host=name)
            mover = Mover(chosen, host, one.remote, one.seen.data_dir, one.want, supply_of(yard, (one,)),
                          event, lambda _: None, clock,
                          HostLock(one.remote, one.seen.data_dir, paths.state))
            moved = mover.roll_back(reason)
            refresh(yard, one)
        finally:
            one.remote.close()
    return RolledBack(name, chosen, moved)


def _moved_last(one: Surveyed) -> str:
    """The runtime of a host that can go back, of several the one whose version came last."""
    here = [name for name in RUNTIMES if placed_on(one.host, name)]
    if not here:
        raise UsageError(f"{one.host.name} serves nothing, so there is nothing to roll back")
    return max(here, key=lambda name: came.at if (came := arrival(name, one.seen)) else "")
