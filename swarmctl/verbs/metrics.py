"""`metrics`: what Prometheus may know of this swarm, once, by looking at every host now."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from swarmctl.monitor.hosts import HostPoller
from swarmctl.monitor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.paths import Paths


def metrics(paths: Paths, clock: Callable[[], float], *, hosts: bool = True) -> bytes:
    """Everything but what only a running gateway knows, in Prometheus's text format. Without `hosts` no host
    is looked at. Raises LedgerError."""
    poller = Once(paths, clock=clock) if hosts else None
    with closing(Metrics(paths, poller, clock)) as made:
        return made.exposition()


class Once(HostPoller):
    """Looks at every host when it is begun, and waits for their answers."""

    def start(self) -> None:
        """See HostPoller.start."""
        self.once()
