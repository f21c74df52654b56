"""Counts what happens on a node, and knows where each count is.

The counts are plain integers, because everything happens on one event loop and nothing needs a
lock. `observe.catalogue` says what each metric is, and `observe.rendering` renders it;
prometheus-client renders only the metrics of the process and the interpreter.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Final, Protocol

from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, generate_latest

from megaphone import __version__
from megaphone.build import build_kind
from megaphone.core.budget import Budget
from megaphone.core.histogram import Histogram
from megaphone.errors import LimitExceeded, MegaphoneError, RateLimited
from megaphone.model import ReadEnd, ReadKind
from megaphone.observe.calls import OK, TIMED_METHODS, FaceCalls
from megaphone.observe.lag import LoopLag
from megaphone.observe.rendering import Source, render

DURATION_BUCKETS_S: Sequence[float] = (80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480)
LEVELS: Final = (
    "channels",
    "channels_blocked",
    "reads_open",
    "writers_waiting",
    "buffered_bytes",
    "buffered_bytes_limit",
    "buffered_events",
    "webhooks_waiting",
)
"""The gauges that operators watch, beside the connections."""
COUNTS: Final = (
    "channel_created",
    "channel_fed",
    "channel_forgotten",
    "channel_disposed",
    "messages_received",
    "messages_read",
    "messages_redelivered",
    "messages_unroutable",
    "messages_lost",
    "messages_fed",
    "messages_forwarded",
    "agents_left_behind",
    "webhooks_sent",
    "webhooks_failed",
    "webhooks_lost",
    "connections_refused",
    "tls_handshakes_failed",
    "log_lines_dropped",
    "writes_timed_out",
    "reads_cut_off",
)
"""The counters that operators watch."""


class WebhookCounts(Protocol):
    """The counts of `megaphone.observe.webhooks.Webhooks`, for all hooks together."""

    @property
    def sent(self) -> int:
        """How many requests an endpoint has accepted."""

    @property
    def failed(self) -> int:
        """How many tries to send a request have failed."""

    @property
    def lost(self) -> int:
        """How many removed channels were not reported to a hook, and will not be."""

    @property
    def waiting(self) -> int:
        """How many removed channels are to be reported to a hook."""


@dataclass(frozen=True, slots=True)
class NoWebhooks:
    """The `WebhookCounts` of a node without webhooks."""

    sent: int = 0
    failed: int = 0
    lost: int = 0
    waiting: int = 0


class ConnectionCounts(Protocol):
    """The counts of `megaphone.rest.connection.limits.Connections`."""

    @property
    def open(self) -> int:
        """How many HTTP connections are open."""

    @property
    def refused(self) -> int:
        """How many HTTP connections were refused, or served for health probes only, because
        `max_connections` was reached."""

    @property
    def handshakes_failed(self) -> int:
        """How many clients did not agree with this node on TLS, or had no certificate for it."""


@dataclass(frozen=True, slots=True)
class NoConnections:
    """The `ConnectionCounts` of a node without an HTTP face."""

    open: int = 0
    refused: int = 0
    handshakes_failed: int = 0


class LogCounts(Protocol):
    """The counts of `megaphone.observe.logs.LineWriter`."""

    @property
    def dropped(self) -> int:
        """How many lines of the process log were dropped, because nobody read them in time."""


@dataclass(frozen=True, slots=True)
class NoLogs:
    """The `LogCounts` of a node that does not write its process log with a `LineWriter`."""

    dropped: int = 0


class Metrics:
    """Implements `core.ports.Observer`, and reads the counts of all other parts of the node."""

    def __init__(
        self,
        webhooks: WebhookCounts | None = None,
        budget: Budget | None = None,
        connections: ConnectionCounts | None = None,
        logs: LogCounts | None = None,
    ) -> None:
        self._webhooks = webhooks or NoWebhooks()
        self._budget = budget or Budget()
        self._connections = connections or NoConnections()
        self._logs = logs or NoLogs()
        self.channels_created = 0
        self.channels_fed = 0
        self.channels_forgotten = 0
        self.channels_disposed = 0
        self.messages_received = 0
        self.messages_read = 0
        self.messages_redelivered = 0
        self.messages_unroutable = 0
        self.messages_lost = 0
        self.messages_fed = 0
        self.messages_forwarded = 0
        self.agents_not_moved = 0
        self.reads_open_by_kind: dict[str, int] = {kind.value: 0 for kind in ReadKind}
        self.writers_waiting = 0
        self.writes_timed_out = 0
        self.reads_cut_off = 0
        self.refusals: dict[tuple[str, str], int] = {}
        """How often a tenant was refused something, by its name in metrics and the limit that it
        had reached."""
        self.reads_opened: dict[str, int] = {kind.value: 0 for kind in ReadKind}
        self.reads_ended: dict[str, int] = {end.value: 0 for end in ReadEnd}
        self.recoveries: dict[str, int] = {"true": 0, "false": 0}
        self.delivery = Histogram()
        self.write_wait = Histogram()
        self.durations = Histogram(DURATION_BUCKETS_S)
        self._blocked: dict[bytes, int] = {}
        """How many writers wait in each channel in which some do."""
        self._request_seconds: dict[str, Histogram] = {name: Histogram() for name in TIMED_METHODS}
        self.http = FaceCalls(self._request_seconds)
        """The calls over HTTP, which that face counts here."""
        self.grpc = FaceCalls(self._request_seconds)
        self.lag = LoopLag()
        self._sources: dict[str, Source] = self._own_sources()
        self._process = CollectorRegistry()
        self._process.register(PROCESS_COLLECTOR)
        self._process.register(GC_COLLECTOR)

    # -- What happens

    def channel_created(self) -> None:
        self.channels_created += 1

    def channel_removed(self, age_s: float, lost: int) -> None:
        self.channels_disposed += 1
        self.messages_lost += lost
        self.durations.add(age_s)

    def events_written(self, count: int) -> None:
        self.messages_received += count

    def events_read(self, count: int, redelivered: int, written_us: int) -> None:
        self.messages_read += count - redelivered
        if redelivered:
            self.messages_redelivered += redelivered
        if written_us:
            seconds = time() - written_us * 1e-6
            if seconds < 0.0:  # another node, whose clock differs, has written the event
                seconds = 0.0
            self.delivery.add(seconds)

    def events_unroutable(self, count: int) -> None:
        self.messages_unroutable += count

    def channel_applied(self) -> None:
        self.channels_fed += 1

    def channel_released(self) -> None:
        self.channels_forgotten += 1

    @property
    def channels_alive(self) -> int:
        added = self.channels_created + self.channels_fed
        return added - self.channels_disposed - self.channels_forgotten

    def events_applied(self, count: int) -> None:
        self.messages_fed += count

    def events_replicated(self, count: int) -> None:
        self.messages_forwarded += count

    def events_lost(self, count: int) -> None:
        self.messages_lost += count

    def agents_left_behind(self, count: int) -> None:
        self.agents_not_moved += count

    def refused(self, error: MegaphoneError) -> None:
        if isinstance(error, (LimitExceeded, RateLimited)) and error.tenant and error.limit:
            key = error.tenant, error.limit
            self.refusals[key] = self.refusals.get(key, 0) + 1

    def writer_timed_out(self) -> None:
        self.writes_timed_out += 1

    def read_cut_off(self) -> None:
        self.reads_cut_off += 1

    def read_started(self, kind: ReadKind, recovered: bool | None) -> None:
        self.reads_open_by_kind[kind.value] += 1
        self.reads_opened[kind.value] += 1
        if recovered is not None:
            self.recoveries["true" if recovered else "false"] += 1

    def read_ended(self, kind: ReadKind, end: ReadEnd) -> None:
        self.reads_open_by_kind[kind.value] -= 1
        self.reads_ended[end.value] += 1

    def writer_waits(self, channel_id: bytes) -> None:
        self.writers_waiting += 1
        self._blocked[channel_id] = self._blocked.get(channel_id, 0) + 1

    def writer_waited(self, channel_id: bytes, seconds: float) -> None:
        self.writers_waiting -= 1
        self.write_wait.add(seconds)
        left = self._blocked[channel_id] - 1
        if left:
            self._blocked[channel_id] = left
        else:
            del self._blocked[channel_id]

    # -- Where the counts are

    def add(self, name: str, source: Source) -> None:
        """Render a metric of the catalogue too, whose value another part of the node knows."""
        self._sources[name] = source

    def render(self) -> bytes:
        """Return all metrics as Prometheus text, format 0.0.4."""
        return render(self._sources) + generate_latest(self._process)

    async def text(self) -> bytes:
        """Do the same as `render`."""
        return self.render()

    def counts(self) -> Mapping[str, int]:
        """Fulfil `core.ports.Counts`."""
        return {name: whole(self._sources[name]) for name in COUNTS}

    @property
    def reads_open(self) -> int:
        return sum(self.reads_open_by_kind.values())

    def levels(self) -> Mapping[str, int]:
        """Fulfil `core.ports.Counts`."""
        return {
            **{name: whole(self._sources[name]) for name in LEVELS},
            **{f"reads_open_{kind}": count for kind, count in self.reads_open_by_kind.items()},
            "connections": self._connections.open,
            "loop_lag_us": round(self.lag.last_s * 1e6),
        }

    def _own_sources(self) -> dict[str, Source]:
        """Return where the value of each metric is that every node has."""
        webhooks, budget, connections = self._webhooks, self._budget, self._connections
        build = {
            "version": __version__,
            "build": build_kind(),
            "python": platform.python_version(),
        }
        return {
            "channel_created": lambda: self.channels_created,
            "channel_fed": lambda: self.channels_fed,
            "channel_forgotten": lambda: self.channels_forgotten,
            "channel_disposed": lambda: self.channels_disposed,
            "messages_received": lambda: self.messages_received,
            "messages_read": lambda: self.messages_read,
            "messages_redelivered": lambda: self.messages_redelivered,
            "messages_unroutable": lambda: self.messages_unroutable,
            "messages_lost": lambda: self.messages_lost,
            "messages_fed": lambda: self.messages_fed,
            "messages_forwarded": lambda: self.messages_forwarded,
            "agents_left_behind": lambda: self.agents_not_moved,
            "writes_timed_out": lambda: self.writes_timed_out,
            "reads_cut_off": lambda: self.reads_cut_off,
            "channels": lambda: self.channels_alive,
            "channels_blocked": lambda: len(self._blocked),
            "channel_duration": lambda: self.durations,
            "reads_open": lambda: self.reads_open,
            "writers_waiting": lambda: self.writers_waiting,
            "buffered_bytes": lambda: budget.used,
            "buffered_bytes_limit": lambda: budget.limit,
            "buffered_events": lambda: budget.events,
            "delivery_seconds": lambda: self.delivery,
            "write_wait_seconds": lambda: self.write_wait,
            "reads_opened_total": lambda: by_label("kind", self.reads_opened),
            "reads_ended_total": lambda: by_label("reason", self.reads_ended),
            "recoveries_total": lambda: by_label("recovered", self.recoveries),
            "requests_total": lambda: [
                *requests_of("http", self.http),
                *requests_of("grpc", self.grpc),
            ],
            "request_seconds": lambda: by_label("method", self._request_seconds),
            "limited_total": lambda: [
                ({"tenant": tenant, "limit": limit}, count)
                for (tenant, limit), count in self.refusals.items()
            ],
            "webhooks_sent": lambda: webhooks.sent,
            "webhooks_failed": lambda: webhooks.failed,
            "webhooks_lost": lambda: webhooks.lost,
            "webhooks_waiting": lambda: webhooks.waiting,
            "connections": lambda: [({"face": "http"}, connections.open)],
            "connections_refused": lambda: connections.refused,
            "tls_handshakes_failed": lambda: connections.handshakes_failed,
            "log_lines_dropped": lambda: self._logs.dropped,
            "loop_lag_seconds": lambda: self.lag.seconds,
            "build_info": lambda: [(build, 1)],
        }


def whole(source: Source) -> int:
    """Return the value of a metric that has one whole number."""
    value = source()
    assert isinstance(value, int)
    return value


def by_label(label: str, values: Mapping[str, object]) -> list[tuple[dict[str, str], object]]:
    """Return some values with the label by which they are known."""
    return [({label: of}, value) for of, value in values.items()]


def requests_of(face: str, calls: FaceCalls) -> list[tuple[dict[str, str], object]]:
    """Return how many calls there were over a face, by method and code."""
    return [
        ({"face": face, "method": one.method, "code": code}, count)
        for one in calls.by_method.values()
        for code, count in ((OK, one.ok), *one.failed.items())
    ]
