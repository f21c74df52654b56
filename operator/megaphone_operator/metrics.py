"""What the operator counts, for Prometheus."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counts passes, and remembers the status of each cluster. No label names a cluster."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        name = "megaphone_operator_"
        self._passes = Counter(f"{name}passes", "Passes.", ["result"], registry=registry)
        self._seconds = Histogram(
            f"{name}pass_seconds", "How long passes take.", buckets=SECONDS, registry=registry
        )
        self._errors = Counter(f"{name}errors", "Errors by kind.", ["kind"], registry=registry)
        self._success = Gauge(
            f"{name}last_success_timestamp_seconds",
            "When a pass succeeded last. Alert on this one.",
            registry=registry,
        )
        self._leader = Gauge(f"{name}is_leader", "1 if this copy leads.", registry=registry)
        self._clusters = Gauge(
            f"{name}clusters", "Clusters by condition.", ["condition", "status"], registry=registry
        )
        self._to_move = Gauge(
            f"{name}channels_to_move", "Channels on nodes that will go.", registry=registry
        )
        self._statuses: dict[object, Mapping[str, Any]] = {}
        for result in ("ok", "failed"):
            self._passes.labels(result)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Measure one pass."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds.observe(time.monotonic() - begun)

    def succeeded(self) -> None:
        self._passes.labels("ok").inc()
        self._success.set_to_current_time()

    def failed(self, kind: str) -> None:
        self._passes.labels("failed").inc()
        self.count_error(kind)

    def count_error(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def lead(self, is_leader: bool) -> None:
        self._leader.set(is_leader)

    def note_status(self, key: object, status: Mapping[str, Any]) -> None:
        self._statuses[key] = status

    def forget(self, key: object) -> None:
        self._statuses.pop(key, None)

    def render(self) -> bytes:
        """Return the text of all metrics."""
        self._clusters.clear()
        for status in self._statuses.values():
            for condition in status["conditions"]:
                self._clusters.labels(condition["type"], condition["status"]).inc()
        self._to_move.set(sum(status["channelsToMove"] for status in self._statuses.values()))
        return generate_latest(self._registry)
