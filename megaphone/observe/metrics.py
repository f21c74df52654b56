"""Counts what happens, and renders the counts as Prometheus text.

The counts are plain integers, because everything happens on one event loop and nothing needs a
lock. Their names are those of the Rust broker (0.10), so that its dashboards go on working. These
names lack the `_total` that prometheus-client would add. So this module renders our own metrics,
and that library renders only those of the process and the interpreter.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, generate_latest

from megaphone.core.budget import Budget
from megaphone.errors import LimitExceeded, MegaphoneError, RateLimited

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_S = (80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480)


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


@dataclass(frozen=True, slots=True)
class NoWebhooks:
    """The `WebhookCounts` of a node without webhooks."""

    sent: int = 0
    failed: int = 0
    lost: int = 0


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


class Family(NamedTuple):
    """A metric that has labels."""

    kind: str
    """`counter` or `gauge`."""
    name: str
    """Its name without `megaphone_`."""
    meaning: str
    samples: Sequence[tuple[Mapping[str, str], int | float]]
    """Each of its values, with its labels. Compiled code would make a `float` of each number."""


class Metrics:
    """Implements `core.ports.Observer`, and reads the counts of webhooks, connections and logs."""

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
        self.reads_open = 0
        self.writers_waiting = 0
        self.writes_timed_out = 0
        self.reads_cut_off = 0
        self.refusals: dict[tuple[str, str], int] = {}
        """How often a tenant was refused something, by its name in metrics and the limit that it
        had reached."""
        self._durations = [0] * (len(DURATION_BUCKETS_S) + 1)
        self._durations_sum_s = 0.0
        self.store: Callable[[], Mapping[str, object]] | None = None
        """Returns what a shared store is, by the names of labels."""
        self._families: list[Callable[[], Iterable[Family]]] = []
        self._process = CollectorRegistry()
        self._process.register(PROCESS_COLLECTOR)
        self._process.register(GC_COLLECTOR)

    # -- What happens

    def channel_created(self) -> None:
        self.channels_created += 1

    def channel_removed(self, age_s: float, lost: int) -> None:
        self.channels_disposed += 1
        self.messages_lost += lost
        self._durations[bisect_left(DURATION_BUCKETS_S, age_s)] += 1
        self._durations_sum_s += age_s

    def events_written(self, count: int) -> None:
        self.messages_received += count

    def events_read(self, count: int, redelivered: int) -> None:
        self.messages_read += count - redelivered
        self.messages_redelivered += redelivered

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

    def read_started(self) -> None:
        self.reads_open += 1

    def read_ended(self) -> None:
        self.reads_open -= 1

    def writer_waits(self) -> None:
        self.writers_waiting += 1

    def writer_waited(self) -> None:
        self.writers_waiting -= 1

    # -- The text

    def add(self, families: Callable[[], Iterable[Family]]) -> None:
        """Render some metrics of another part of the node too."""
        self._families.append(families)

    def render(self) -> bytes:
        """Return all metrics as Prometheus text, format 0.0.4."""
        lines = [
            *of_kind("counter", self._counters()),
            *of_kind("gauge", self._gauges()),
            *self._duration_histogram(),
        ]
        for families in self._families:
            for one in families():
                lines += labelled(one)
        if self.store is not None:
            lines += info("store_info", "The shared store, and what 201 means.", self.store())
        return "\n".join([*lines, ""]).encode() + generate_latest(self._process)

    async def text(self) -> bytes:
        """Do the same as `render`."""
        return self.render()

    def counts(self) -> Mapping[str, int]:
        """Fulfil `core.ports.Counts`."""
        return {name: value for name, value, _ in self._counters()}

    def levels(self) -> Mapping[str, int]:
        """Fulfil `core.ports.Counts`."""
        return {name: value for name, value, _ in self._gauges()}

    def _counters(self) -> Sequence[tuple[str, int, str]]:
        """Return for each counter its name, its value and its meaning."""
        return (
            ("channel_created", self.channels_created, "Channels created."),
            ("channel_fed", self.channels_fed, "Channels received from other nodes."),
            ("channel_forgotten", self.channels_forgotten, "Channels released to other nodes."),
            (
                "channel_disposed",
                self.channels_disposed,
                "Channels that expired or were disposed of.",
            ),
            ("messages_received", self.messages_received, "Events accepted from writers."),
            ("messages_read", self.messages_read, "Events sent to readers, each counted once."),
            ("messages_redelivered", self.messages_redelivered, "Events sent to readers again."),
            (
                "messages_unroutable",
                self.messages_unroutable,
                "Events written to unknown channels.",
            ),
            (
                "messages_lost",
                self.messages_lost,
                "Events that no reader was sent, or that were refused.",
            ),
            ("messages_fed", self.messages_fed, "Events received from other nodes."),
            ("messages_forwarded", self.messages_forwarded, "Events sent to other nodes."),
            (
                "agents_left_behind",
                self.agents_not_moved,
                "Agents with channels that a drain could not move.",
            ),
            ("webhooks_sent", self._webhooks.sent, "Webhook requests that were accepted."),
            (
                "webhooks_failed",
                self._webhooks.failed,
                "Attempts to send a webhook request that failed.",
            ),
            (
                "webhooks_lost",
                self._webhooks.lost,
                "Ended channels that were not reported to a webhook.",
            ),
            (
                "connections_refused",
                self._connections.refused,
                "HTTP connections refused at the limit.",
            ),
            (
                "tls_handshakes_failed",
                self._connections.handshakes_failed,
                "HTTP connections that began no TLS, or with a wrong certificate.",
            ),
            (
                "log_lines_dropped",
                self._logs.dropped,
                "Log lines dropped because nobody read the log.",
            ),
            ("writes_timed_out", self.writes_timed_out, "Writers that found no place in time."),
            ("reads_cut_off", self.reads_cut_off, "Reads broken because their clients stalled."),
        )

    def _gauges(self) -> Sequence[tuple[str, int, str]]:
        """Return the same for each gauge."""
        return (
            ("channels", self.channels_alive, "Channels on this node."),
            ("connections", self._connections.open, "HTTP connections open."),
            ("reads_open", self.reads_open, "Reads open."),
            ("writers_waiting", self.writers_waiting, "Writers that wait for a place."),
            ("buffered_bytes", self._budget.used, "Bytes of memory used for clients."),
            (
                "buffered_bytes_limit",
                self._budget.limit,
                "The largest number of bytes for clients.",
            ),
        )

    def _duration_histogram(self) -> Iterator[str]:
        yield from family("channel_duration", "histogram", "Lifetime of channels in seconds.")
        cumulated = list(accumulate(self._durations))
        for bound, count in zip((*DURATION_BUCKETS_S, "+Inf"), cumulated, strict=True):
            yield f'megaphone_channel_duration_bucket{{le="{bound}"}} {count}'
        yield f"megaphone_channel_duration_sum {self._durations_sum_s}"
        yield f"megaphone_channel_duration_count {cumulated[-1]}"


def labelled(metric: Family) -> Iterator[str]:
    yield from family(metric.name, metric.kind, metric.meaning)
    for labels, value in metric.samples:
        yield f"megaphone_{metric.name}{{{pairs(labels)}}} {value}"


def info(name: str, meaning: str, labels: Mapping[str, object]) -> Iterator[str]:
    """Yield a metric that says something by its labels."""
    yield from family(name, "gauge", meaning)
    yield f"megaphone_{name}{{{pairs(labels)}}} 1"


def pairs(labels: Mapping[str, object]) -> str:
    return ",".join(f'{label}="{escaped(str(value))}"' for label, value in labels.items())


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def of_kind(kind: str, some: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    for name, value, meaning in some:
        yield from family(name, kind, meaning)
        yield f"megaphone_{name} {value}"


def family(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP megaphone_{name} {meaning}"
    yield f"# TYPE megaphone_{name} {kind}"
