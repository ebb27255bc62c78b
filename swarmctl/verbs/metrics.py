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
    poller = HostPoller(paths, clock=clock)
    with closing(Metrics.watching(paths, poller, clock) if hosts else Metrics(paths, clock=clock)) as made:
        try:
            if hosts:
                poller.once()
            return made.exposition()
        finally:
            poller.stop()
