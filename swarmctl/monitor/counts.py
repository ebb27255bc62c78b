"""Counters and histograms as plain numbers that can be kept on disk: by metric, by its labels' values.

prometheus_client's own counters begin at zero with each process and cannot be set; what is counted from the
journal must go on where it stopped, whoever exposes it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from swarmctl.monitor.catalogue import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Labels = tuple[str, ...]

#: Series of one metric. More hosts and models than that are counted together as OTHER.
MOST = 5000
OTHER = "other"
LONGEST_LABEL = 200


class Counts:
    """Sums by metric and labels. A histogram's are one a bucket (not cumulated), the last of them past every
    bound, and then the sum of what was observed."""

    def __init__(self) -> None:
        self._found: dict[str, dict[Labels, list[float]]] = {}

    def add(self, name: str, labels: Labels, value: float = 1.0) -> None:
        """Raise a counter, or a gauge that goes up and down."""
        self._series(name, labels, 1)[0] += value

    def observe(self, name: str, labels: Labels, value: float) -> None:
        """Count a value into its bucket."""
        buckets = BY_NAME[name].buckets
        series = self._series(name, labels, len(buckets) + 2)
        series[bisect_left(buckets, value)] += 1
        series[-1] += value

    def series(self, name: str) -> Mapping[Labels, list[float]]:
        """All series of a metric."""
        return self._found.get(name, {})

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {name: [[list(labels), values] for labels, values in found.items()]
                for name, found in self._found.items()}

    @classmethod
    def from_record(cls, raw: dict[str, Any]) -> Counts:
        """From JSON. Raises what a thing of another form may: KeyError, TypeError, ValueError."""
        made = cls()
        for name, found in raw.items():
            metric = BY_NAME[name]
            wide = len(metric.buckets) + 2 if metric.buckets else 1
            for labels, values in found:
                if len(labels) != len(metric.labels) or len(values) != wide:
                    raise ValueError(name)
                made._found.setdefault(name, {})[tuple(map(str, labels))] = [float(one) for one in values]
        return made

    def _series(self, name: str, labels: Labels, wide: int) -> list[float]:
        found = self._found.setdefault(name, {})
        labels = tuple(label[:LONGEST_LABEL] for label in labels)
        if labels not in found and len(found) >= MOST:
            labels = (OTHER,) * len(labels)
        return found.setdefault(labels, [0.0] * wide)


def cumulated(metric_buckets: tuple[float, ...], values: list[float]) -> Iterator[tuple[str, float]]:
    """A histogram's buckets as Prometheus wants them: (upper bound, how many up to there)."""
    total = 0.0
    for bound, count in zip((*metric_buckets, None), values, strict=False):
        total += count
        yield ("+Inf" if bound is None else repr(bound)), total
