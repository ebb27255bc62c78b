"""Everything that Prometheus may know, as one text: counted from the journal, read from the ledger and the
snapshot, seen of the hosts, and told by the gateway. One object, no global state.

A scrape reads a few small files and what the journal has grown by; hosts are looked at in the background.
"""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from swarmctl import __version__
from swarmctl.errors import SwarmError
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.ledger import follow, rounds
from swarmctl.monitor.catalogue import CATALOGUE
from swarmctl.monitor.counts import Counts, cumulated
from swarmctl.monitor.host_gauges import host_gauges, snapshot_gauges
from swarmctl.monitor.opinions import TopicOpinions, by_category
from swarmctl.monitor.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric as Family

    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.monitor.catalogue import Metric
    from swarmctl.monitor.counts import Labels
    from swarmctl.monitor.hosts import HostPoller
    from swarmctl.monitor.tally import Tariffs
    from swarmctl.paths import Paths

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Gauges = dict[str, dict[tuple[str, ...], float]]


class Metrics:
    """What this swarm's metrics are at any time, for any number of threads. `poller` looks at the hosts, from
    the first exposition on, so that nobody is looked at for nobody; without it there are no metrics of hosts.
    The gateway tells of requests by `request`, `under_way` and `rejected`."""

    def __init__(self, paths: Paths, poller: HostPoller | None = None,
                 clock: Callable[[], float] = time.time) -> None:
        self._paths = paths
        self._poller = poller
        self._clock = clock
        self._tally = Tally(paths, self._tariffs)
        self._topics = TopicOpinions(paths)
        self._told = Counts()
        self._lock = threading.Lock()
        self._scraping = threading.Lock()

    def request(self, surface: str, status: int, seconds: float) -> None:
        """A request to the gateway was answered, or its client is gone (499). `surface` is one of the
        gateway's own words (openai, ollama, anthropic …), never a client's."""
        with self._lock:
            self._told.add("swarmctl_http_requests_total", (surface, str(status)))
            self._told.observe("swarmctl_http_request_seconds", (surface,), seconds)

    @contextmanager
    def under_way(self, surface: str) -> Iterator[None]:
        """A request is being served while the block runs."""
        with self._lock:
            self._told.add("swarmctl_http_requests_in_flight", (surface,), 1)
        try:
            yield
        finally:
            with self._lock:
                self._told.add("swarmctl_http_requests_in_flight", (surface,), -1)

    def rejected(self, surface: str, reason: str) -> None:
        """A request was refused before it was routed; `reason` is one of the gateway's own words (key, limit,
        busy, size, body …)."""
        with self._lock:
            self._told.add("swarmctl_rejections_total", (surface, reason))

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format. Raises LedgerError where the journal cannot be read."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        with self._scraping:
            registry.register(_Collected(list(self._families())))
        return generate_latest(registry)

    def close(self) -> None:
        """Keep what was counted, and look at hosts no more."""
        self._tally.keep()
        if self._poller:
            self._poller.stop(1.0)

    def _families(self) -> Iterator[Family]:
        counts = self._tally.read_on()
        gauges = self._gauges()
        for metric in CATALOGUE:
            with self._lock:
                told = dict(self._told.series(metric.name))
            series = {**counts.series(metric.name), **told}
            series |= {labels: [value] for labels, value in gauges.get(metric.name, {}).items()}
            if series:
                yield _family(metric, series)

    def _gauges(self) -> Gauges:
        fleet = self._fleet()
        found: Gauges = {"swarmctl_build_info": {(__version__,): 1.0}}
        found |= by_category(self._paths)
        found |= self._topics.gauges(self._tally.votes)
        found |= _stores(self._paths)
        if fleet:
            found |= snapshot_gauges(self._paths, fleet, self._clock())
        if self._poller:
            self._poller.start()
            found |= host_gauges(self._poller.hosts())
        return found

    def _fleet(self) -> Fleet | None:
        with suppress(SwarmError):
            return read_fleet(self._paths.fleet)
        return None

    def _tariffs(self) -> Tariffs:
        fleet = self._fleet()
        return {entry.name: (entry.load_watts, entry.energy_price, entry.currency)
                for entry in fleet.hosts} if fleet else {}


class _Collected:
    """Families that are there already, as prometheus_client asks for them."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def _stores(paths: Paths) -> Gauges:
    found: Gauges = {"swarmctl_journal_bytes": {(): float(sum(follow.sizes(paths.journal).values()))},
                     "swarmctl_rounds_waiting": {(): float(sum(one.unsigned for one in rounds.read(paths)))}}
    there = next((folder for folder in (paths.journal, *paths.journal.parents) if folder.is_dir()), None)
    if there:
        with suppress(OSError):
            found["swarmctl_data_disk_free_bytes"] = {(): float(shutil.disk_usage(there).free)}
    return found


def _family(metric: Metric, series: Mapping[Labels, list[float]]) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, values in series.items():
            histogram.add_metric(labels, list(cumulated(metric.buckets, values)), values[-1])
        return histogram
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, values in series.items():
            counter.add_metric(labels, values[0])
        return counter
    gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, values in series.items():
        gauge.add_metric(labels, values[0])
    return gauge
