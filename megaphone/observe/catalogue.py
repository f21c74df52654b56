"""Every metric of a node: its name, and what an operator must know to read it.

`docs/metrics.md` is made of this, and nothing is rendered that is not here. The names without
`_total` are those of the Rust broker (0.10), or older than the rule that new counters end in it. A
name, a label and its values never change, because dashboards and alerts depend on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from megaphone.errors import KeysUnavailable, TokenExpired, Unauthenticated
from megaphone.model import AgentMode, ReadEnd, ReadKind
from megaphone.observe.calls import FACES, METHODS, TIMED_METHODS

PREFIX: Final = "megaphone_"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is. Its value is known elsewhere."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    """Its name without `PREFIX`."""
    unit: str
    meaning: str
    """The text of HELP: one sentence, plain text."""
    worry: str = ""
    """When an operator should look, and at what. Markdown."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the values of each label are, by its name. Markdown."""
    only: str = ""
    """Which nodes have it, if not all."""


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics that belong together."""

    title: str
    metrics: Sequence[Metric]


def words(values: Sequence[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


OUTCOMES: Final = words(("success", "failure"))
WITH_STORE: Final = "with a shared store"

CATALOGUE: Final = (
    Group(
        "Requests",
        (
            Metric(
                "counter",
                "requests_total",
                "calls",
                "Calls that were answered, each once.",
                "Any `INTERNAL_SERVER_ERROR` is a bug. Much `TIMEOUT` of `write` means that readers"
                " are too slow. Many other errors mean that clients, or their settings, are wrong.",
                {
                    "face": words(FACES),
                    "method": f"{words(METHODS)}; `other` are calls of supervisors, of browsers for"
                    " pages, of operators and other nodes, and unknown calls. A read counts when it"
                    " opens; each message of a `Publish` counts as a call",
                    "code": "`OK`, a code of [errors.md](errors.md), `CANCELLED` if the client left"
                    " before its answer, `UNIMPLEMENTED` for an unknown method of gRPC, and other"
                    " statuses of gRPC for its services of health and reflection",
                },
            ),
            Metric(
                "histogram",
                "request_seconds",
                "seconds",
                "How long calls took until their answers were ready, without the wait for a place.",
                "It grows if the node has too much to do: look at the lag of its loop, and with a"
                " shared store at `megaphone_store_call_seconds`.",
                {
                    "method": f"{words(TIMED_METHODS)}, of both faces together. A read takes until"
                    " it is open"
                },
            ),
            Metric(
                "histogram",
                "write_wait_seconds",
                "seconds",
                "How long writers waited for a place in a full channel.",
                "Waits near `write_timeout_millis` end with `TIMEOUT`: readers are too slow, or"
                " have gone.",
            ),
            Metric(
                "counter",
                "limited_total",
                "refusals",
                "How often a tenant was refused something, because it had reached a limit.",
                "A tenant needs more than its share, or one of its programs has gone wild.",
                {
                    "tenant": "the name of a tenant with a table in the settings, if it is among"
                    " the first 100; `default`; `other` for all others",
                    "limit": "a limit of [limits.md](limits.md)",
                },
            ),
            Metric(
                "counter",
                "auth_failures_total",
                "refusals",
                "How many tokens and other proofs were refused, by the code of the error.",
                "More than a few a second: somebody guesses tokens, or a client has no new token"
                " yet. The log `megaphone.audit` says from which IP address.",
                {"reason": words((Unauthenticated.code, TokenExpired.code, KeysUnavailable.code))},
            ),
        ),
    ),
    Group(
        "Events",
        (
            Metric("counter", "messages_received", "events", "Events accepted from writers."),
            Metric(
                "counter", "messages_read", "events", "Events sent to readers, each counted once."
            ),
            Metric(
                "counter",
                "messages_redelivered",
                "events",
                "Events sent to readers again. With a shared store, it also counts what a node had"
                " for a reader when the node died, whether the reader got it or not.",
                "Many of them: reads break, because of the network or of slow clients.",
            ),
            Metric(
                "counter",
                "messages_unroutable",
                "events",
                "Events written to unknown channels.",
                "Writers go on after their channels have expired, or write to the wrong node.",
            ),
            Metric(
                "counter",
                "messages_lost",
                "events",
                "Events that were removed before a reader was sent them, or that this node refused"
                " from a source node.",
                "Any: channels expire before somebody has read their events.",
            ),
            Metric("counter", "messages_fed", "events", "Events received from other nodes."),
            Metric("counter", "messages_forwarded", "events", "Events sent to other nodes."),
            Metric(
                "histogram",
                "delivery_seconds",
                "seconds",
                "The time from the write of an event to its first hand-over to a reader, for the"
                " oldest event of each batch.",
                "The time in which nobody reads a channel counts too. If it grows although readers"
                " are there, the node or the store is slow.",
            ),
            Metric(
                "counter",
                "writes_timed_out",
                "events",
                "Writers that found no place in time.",
                "It grows: readers are too slow, or have gone. Events of batches count here too,"
                " unlike in `megaphone_requests_total`.",
            ),
        ),
    ),
    Group(
        "Channels",
        (
            Metric(
                "gauge",
                "channels",
                "channels",
                "Channels on this node.",
                "Near `megaphone_channels_limit`. With a shared store, look at"
                " `megaphone_store_channels` instead: this one is only the number of channels that"
                " this node has made since its start, less the number that it has removed.",
            ),
            Metric(
                "gauge",
                "channels_limit",
                "channels",
                "The largest number of channels: on this node, or in the shared store.",
            ),
            Metric(
                "gauge",
                "channels_blocked",
                "channels",
                "Channels in which writers of this node wait for a place.",
                "More than 0 for long: `megactl list-channels --blocked` finds them.",
            ),
            Metric("gauge", "writers_waiting", "writers", "Writers that wait for a place."),
            Metric("counter", "channel_created", "channels", "Channels created."),
            Metric("counter", "channel_fed", "channels", "Channels received from other nodes."),
            Metric("counter", "channel_forgotten", "channels", "Channels released to other nodes."),
            Metric(
                "counter",
                "channel_disposed",
                "channels",
                "Channels that expired or were disposed of.",
            ),
            Metric("histogram", "channel_duration", "seconds", "Lifetime of channels in seconds."),
            Metric(
                "gauge",
                "buffered_bytes",
                "bytes",
                "Bytes of memory used for clients.",
                "Above 85 % of `megaphone_buffered_bytes_limit`: near it, writes are refused with"
                " `LIMIT_EXCEEDED`.",
            ),
            Metric(
                "gauge",
                "buffered_bytes_limit",
                "bytes",
                "The largest number of bytes for clients.",
            ),
            Metric(
                "gauge",
                "buffered_events",
                "events",
                "Events in the memory of this node, also those that are kept for readers that"
                " resume.",
                "With a shared store the events are there, and not here.",
            ),
        ),
    ),
    Group(
        "Reads",
        (
            Metric("gauge", "reads_open", "reads", "Reads open."),
            Metric(
                "counter",
                "reads_opened_total",
                "reads",
                "Reads of a channel that were opened.",
                "Its rate is several times the number of open reads divided by their length:"
                " clients read again and again, after errors or without a pause.",
                {"kind": words(tuple(ReadKind))},
            ),
            Metric(
                "counter",
                "reads_ended_total",
                "reads",
                "Reads of a channel that have ended, by the first reason.",
                "`stalled`: clients too slow for what they are sent. `taken_over`: two clients read"
                " one channel. `store_lost`: the store lost data, or was away. `failed`: a bug.",
                {"reason": words(tuple(ReadEnd))},
            ),
            Metric(
                "counter",
                "recoveries_total",
                "reads",
                "Reads that were told whether events are missing before their first one.",
                'With `recovered="false"`, a reader has learned that it has missed events.',
                {"recovered": words(("true", "false"))},
            ),
            Metric(
                "counter",
                "reads_cut_off",
                "reads",
                "Reads broken because their clients stalled.",
                "It grows: clients are too slow. It is `stalled` of `megaphone_reads_ended_total`,"
                " but a read of many channels counts once.",
            ),
        ),
    ),
    Group(
        "Connections",
        (
            Metric(
                "gauge",
                "connections",
                "connections",
                "Connections of clients that are open.",
                "",
                {"face": "`http`; those of gRPC are not counted"},
            ),
            Metric(
                "counter",
                "connections_refused",
                "connections",
                "HTTP connections refused at the limit.",
                "Any: `max_connections` or `max_connections_per_ip` is reached.",
            ),
            Metric(
                "counter",
                "tls_handshakes_failed",
                "connections",
                "HTTP connections whose TLS handshake failed, or did not begin.",
            ),
        ),
    ),
    Group(
        "Keys, certificates and settings",
        (
            Metric(
                "gauge",
                "jwks_fetched_timestamp_seconds",
                "Unix time",
                "When the keys of an issuer were fetched last, in Unix time; 0 if they never were.",
                "More than an hour ago: new keys of the issuer are not known here.",
                {"issuer": "the name of an issuer whose keys are fetched"},
                "with issuers whose keys are fetched",
            ),
            Metric(
                "gauge",
                "certificate_not_after_timestamp_seconds",
                "Unix time",
                "When the certificate expires, in Unix time.",
                "Less than 14 days from now.",
                {"door": words(("public", "nodes"))},
                "with TLS",
            ),
            Metric(
                "counter",
                "certificate_reloads_total",
                "reloads",
                "How often the node read new files of a certificate while it served.",
                "Any `failure`: the old certificate stays in use until it expires. The log says"
                " what is wrong.",
                {"outcome": OUTCOMES},
                "with TLS",
            ),
            Metric(
                "counter",
                "reloads_total",
                "reloads",
                "How often the node read its settings again while it served.",
                "Any `failure`: the old settings stay in use. The log says what is wrong.",
                {"outcome": OUTCOMES},
            ),
        ),
    ),
    Group(
        "Agents and other nodes",
        (
            Metric(
                "gauge",
                "agents",
                "agents",
                "Agents on this node, by their modes.",
                "No `MASTER` for long: the node takes no new channels.",
                {"mode": words([mode.value for mode in AgentMode])},
                "with channels in memory",
            ),
            Metric(
                "counter",
                "agents_left_behind",
                "agents",
                "Agents with channels that a drain could not move.",
                "Any: their channels end with the node.",
            ),
            Metric(
                "gauge",
                "pipe_connected",
                "0 or 1",
                "Whether all pipes of an agent to other nodes are connected.",
                "0 for longer than a restart of the target takes.",
                {"agent": "an agent that this node replicates"},
            ),
            Metric(
                "gauge",
                "pipe_channels_untold",
                "channels",
                "Channels that may have changes which a target does not have yet.",
                "It grows: the target, or the network to it, is too slow.",
                {"agent": "an agent that this node replicates"},
            ),
        ),
    ),
    Group(
        "The shared store",
        (
            Metric(
                "gauge",
                "store_info",
                "1",
                "The shared store, and how safe an accepted event is in it.",
                "",
                {
                    "server": "its kind and version",
                    "persistence": "how it persists",
                    "wait_replicas": "how many replicas confirm each write",
                },
                WITH_STORE,
            ),
            Metric(
                "gauge",
                "store_channels",
                "channels",
                "Channels of all nodes in the shared store.",
                "Near `megaphone_channels_limit`.",
                only=WITH_STORE,
            ),
            Metric(
                "histogram",
                "store_call_seconds",
                "seconds",
                "How long the store took to answer the calls of one turn of the event loop.",
                "Above a few milliseconds: the store or the network is slow, and so is each call of"
                " a client.",
                only=WITH_STORE,
            ),
            Metric(
                "counter",
                "store_errors_total",
                "calls",
                "Calls to the store that failed.",
                "Any for long: the log says why.",
                {
                    "kind": "`unreachable`: no connection in time; `broken`: the connection ended"
                    " before the answer; `late`: no answer in time; `busy`: too many calls wait"
                    " here; `not_serving`: the store cannot serve now; `full`: it has no memory;"
                    " `unconfirmed`: too few replicas have it; `refused`: any other error that it"
                    " answered; `unhandled`: a bug"
                },
                WITH_STORE,
            ),
            Metric(
                "counter",
                "store_reconnects_total",
                "connections",
                "Connections to the store that replaced one which had ended.",
                "More than after a failover: the store or the network has a fault.",
                only=WITH_STORE,
            ),
        ),
    ),
    Group(
        "Webhooks",
        (
            Metric("counter", "webhooks_sent", "requests", "Webhook requests that were accepted."),
            Metric(
                "counter",
                "webhooks_failed",
                "requests",
                "Attempts to send a webhook request that failed.",
            ),
            Metric(
                "counter",
                "webhooks_lost",
                "channels",
                "Ended channels that were not reported to a webhook.",
                "Any: an endpoint was away for too long.",
            ),
            Metric(
                "gauge",
                "webhooks_waiting",
                "channels",
                "Ended channels that are to be reported to a webhook.",
                "It grows: an endpoint is slow or away. From 100,000 on, reports are lost.",
            ),
        ),
    ),
    Group(
        "The process",
        (
            Metric(
                "histogram",
                "loop_lag_seconds",
                "seconds",
                "How late the event loop called a timer, which it should call every 0.5 s.",
                "Above 0.1 s: the node has more to do than one core can.",
            ),
            Metric(
                "counter",
                "log_lines_dropped",
                "lines",
                "Log lines dropped because nobody read the log.",
            ),
            Metric(
                "gauge",
                "build_info",
                "1",
                "The broker that runs.",
                "",
                {
                    "version": "of the broker",
                    "build": words(("compiled", "pure")),
                    "python": "its version",
                },
            ),
            Metric(
                "gauge", "workers", "processes", "Worker processes.", only="with several workers"
            ),
            Metric(
                "counter",
                "workers_died",
                "processes",
                "Worker processes that ended by themselves.",
                "Any: the log says how they ended.",
                only="with several workers",
            ),
        ),
    ),
)

METRICS: Final[Mapping[str, Metric]] = {
    metric.name: metric for group in CATALOGUE for metric in group.metrics
}
"""Each metric by its name without `PREFIX`."""
