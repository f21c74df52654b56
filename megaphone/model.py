"""The values that all parts of the broker share: plain data, without I/O and without rules."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, StrEnum
from typing import Final, NamedTuple, Self

from megaphone.errors import MegaphoneError

DEFAULT_IN_FLIGHT = 100
"""The most events in flight to an acknowledging reader that asks for no other number."""

HTTP: Final = "http"
GRPC: Final = "grpc"
FACES = (HTTP, GRPC)
"""The names of the faces, for operators."""

SHORT_ID_DIGITS: Final = 8
"""How many hexadecimal digits of a channel id are its short id."""

MAX_NAME_LENGTH = 100
"""The largest number of characters in the name of an agent."""

MAX_TENANT_LENGTH = 64
"""The largest number of characters in the name of a tenant."""

START = "-"
"""A cursor before the first event of a channel, in place of an event id."""

SKIPPED = "SKIPPED"
"""The reason of an event that was not tried, because an earlier one timed out on its channel."""


PORT_PATTERN = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
HOST_PATTERN = r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s@]+)"
ENDPOINT_PATTERN = rf"{HOST_PATTERN}:{PORT_PATTERN}"

READER_PATTERN: Final = "[A-Za-z0-9_-]{1,64}"
"""What the name of a reader may be."""

LINE_BODY_BYTES: Final = 16_384
"""An event with a body up to this size is rendered once, as one line that all its readers share. A
larger body is sent between the two halves of its line instead, because no reader may copy it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port: where a server listens, or where a client reaches it."""

    host: str
    """A name or an IP address; an IPv6 address without its brackets."""
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read host:port; the host may be an IPv6 address in brackets.

        Raises: ValueError, with a message for the user, if the text has another form or the port
            is above 65535.
        """
        found = re.fullmatch(ENDPOINT_PATTERN, text)
        if found is None:
            raise ValueError("an endpoint is host:port, such as 0.0.0.0:3000 or [::]:3000")
        host, port = found.groups()
        return cls(host.strip("[]"), int(port))

    def with_port(self, port: int) -> Self:
        """Return the same host with another port."""
        return replace(self, port=port)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Action(StrEnum):
    """What a caller may be allowed to do. The values are the names in settings and in tokens."""

    CREATE = "create"
    WRITE = "write"
    READ = "read"
    ACK = "ack"
    EXISTS = "exists"
    DISPOSE = "dispose"
    METRICS = "metrics"


class AgentMode(Enum):
    """The modes of an agent on this node."""

    MASTER = "MASTER"
    """The agent is served here, and takes new channels once it is warm."""
    REPLICA = "REPLICA"
    """Another node replicates the agent to this one. It takes no new channels."""
    PIPED = "PIPED"
    """This node replicates the agent to another one. It is served here, unless it was a REPLICA
    before. It takes no new channels."""


class ReadKind(StrEnum):
    """What a reader does so that it loses nothing. The values are labels of metrics."""

    PLAIN = "plain"
    RESUMING = "resuming"
    ACKNOWLEDGING = "acknowledging"


class ReadEnd(StrEnum):
    """Why the read of a channel has ended. The values are labels of metrics, with these texts."""

    WINDOW = "window"
    """Its read time was over."""
    LIMIT = "limit"
    """The client has got as many events as it wanted."""
    CLIENT_GONE = "client_gone"
    """The client has closed or lost its connection."""
    STALLED = "stalled"
    """The client took nothing for too long."""
    TAKEN_OVER = "taken_over"
    """Another reader has taken its place."""
    CHANNEL_GONE = "channel_gone"
    """The channel has expired, or was removed."""
    MOVED = "moved"
    """The agent of the channel moves to another node."""
    SHUTDOWN = "shutdown"
    """The node stops, or lets its clients go to other nodes."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105, because it is no password
    """The token of the caller has expired."""
    REVOKED = "revoked"
    """A reload, or the issuer of the token, has taken from the caller what it was allowed."""
    STORE_LOST = "store_lost"
    """The shared store may have lost events, or could not end the read."""
    FAILED = "failed"
    """A bug. The log of the broker has the details."""


class ReadProtocol(Enum):
    """The protocols for reading a channel, by the names that `/create` negotiates."""

    HTTP_STREAM_NDJSON_V1 = "HTTP_STREAM_NDJSON_V1"
    HTTP_STREAM_SSE_V1 = "HTTP_STREAM_SSE_V1"
    GRPC_STREAM_V1 = "GRPC_STREAM_V1"


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent, as operators see it."""

    name: str
    mode: AgentMode
    since: datetime
    """When the agent got its present mode."""
    warming_up: bool
    channels: int
    """How many channels of the agent are on this node."""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """The progress of a drain, which moves the agents of a node to another one."""

    agent: str
    """The agent that is moving; empty at the start and at the end."""
    agents_moved: int
    agents_left: int
    """How many agents are still here, including those that failed to move."""
    agents_failed: int
    channels_moved: int
    """How many channels the other node has received so far, from the agents that have moved and
    from the agent that is moving."""
    channels_left: int
    done: bool = False
    """Whether no agent is left to move."""


@dataclass(frozen=True, slots=True)
class PipeInfo:
    """A pipe to another node."""

    agent: str
    target: str
    """Host and port of the other node."""
    is_connected: bool
    backlog: int
    """How many channels may have changes that were not sent to the target yet."""


@dataclass(frozen=True, slots=True)
class WatchedChannel:
    """A channel, as an operator watches it. None stands for what the store does not say."""

    address: str = field(repr=False)
    """The consumer address."""
    depth: int | None = None
    """How many events occupy a place."""
    in_flight: int | None = None
    waiting_writers: int | None = None
    is_read: bool | None = None
    age_s: float | None = None
    oldest_s: float | None = None
    """The age of the oldest event that occupies a place; None also if there is none."""
    rate: float | None = None
    """How many events a second were written since the last view; None also if the channel was not
    in that view."""
    label: str | None = None
    """As in `ChannelOptions`; None also if the channel has none."""
    tenant: str | None = None
    """The name of the tenant to which the channel belongs."""
    channel_id: bytes = b""
    unsent: int | None = None
    """How many events the next reader would get now."""
    bytes: int | None = None
    """As in `ChannelInfo`, if channels are sorted by it."""


@dataclass(frozen=True, slots=True)
class ReaderInfo:
    """An open read, as operators see it. None stands for what this node cannot find out."""

    acknowledges: bool
    """Whether an event keeps its place until the reader acknowledges it."""
    name: str
    """The name that the reader has given itself; empty if it has none."""
    face: str | None
    """The protocol of the reader: one of `FACES`."""
    age_s: float | None
    """How long ago the read began."""
    taken_s: float | None
    """How long ago the reader took events last; None also if it has taken none."""
    node: str | None = None
    """The name of the node of the reader, if that is another one."""


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel with all that an operator may see of it: no event."""

    address: str = field(repr=False)
    """The consumer address."""
    channel_id: bytes
    tenant: str
    label: str
    """As in `ChannelOptions`."""
    age_s: float
    expires_s: float | None
    """After how long the channel expires; None while it is read, or while its agent is replicated.
    """
    capacity: int
    ttl_s: float
    unsent: int
    """How many events the next reader would get now."""
    in_flight: int
    """How many events a reader was sent and has not acknowledged, although it must."""
    kept: int
    """How many delivered events the channel has for replay."""
    bytes: int | None
    """What the channel and its events take of the memory, in a shared store of that of the store.
    None if the store does not say it."""
    waiting_writers: int
    waiting_s: float | None
    """How long the first of these writers has waited; None without one."""
    written_s: float | None
    """How long ago the last event was accepted; None if there was none, or if the channel has
    dropped it."""
    read_s: float | None
    """How long ago the last read ended: 0 while there is one, and None if there was none."""
    reader: ReaderInfo | None
    """The open read."""

    @property
    def short_id(self) -> str:
        """The name of the channel in log lines."""
        return short_id(self.channel_id)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node at one moment, as operators watch it."""

    at: datetime
    counts: Mapping[str, int]
    """By its name, how often each thing has happened since the start."""
    levels: Mapping[str, int]
    """By its name, how much there is of each thing."""
    notable: Mapping[str, int]
    """Those of the counts that an operator should look at, if they have grown since the last view:
    by how much."""
    agents: Sequence[AgentInfo]
    pipes: Sequence[PipeInfo]
    drain: DrainProgress | None
    """The progress of the drain that runs."""
    channels: Sequence[WatchedChannel]


class Account:
    """The bytes that the channels of one tenant use. `core.budget` counts them."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


@dataclass(slots=True, eq=False, init=False)
class Event:
    """One event, shared by all channels to which it was written.

    The id, the stream id, the timestamp, the body and the trace never change. The other attributes
    are notes of the broker, and do change.
    """

    id: str
    """23 random letters and digits, the same in each delivery of the event."""
    stream_id: str
    timestamp_us: int
    """When the broker accepted the event: microseconds since 1970 in UTC."""
    body: bytes = field(repr=False)
    """One JSON value in UTF-8, as the writer sent it, without line breaks."""
    trace: str | None
    """The trace context of the event, if its trace is sampled: see `core.traces`."""
    rendered: bytes | None = field(repr=False)
    """The event as a line of JSON, kept while several channels hold the event."""
    holders: int = field(repr=False)
    """How many logs and waiting writers hold the event. `core.budget` counts them."""
    awaited: int = field(repr=False)
    """In how many channels the event occupies a place. `core.budget` counts them."""
    payer: Account | None = field(repr=False)
    """The account of the first holder, whose bytes those of the event are while it is held."""

    # Written out, because an initializer that `dataclass` makes is not compiled.
    def __init__(
        self,
        event_id: str,
        stream_id: str,
        timestamp_us: int,
        body: bytes,
        trace: str | None = None,
    ) -> None:
        self.id = event_id
        self.stream_id = stream_id
        self.timestamp_us = timestamp_us
        self.body = body
        self.trace = trace
        self.rendered = None
        self.holders = self.awaited = 0
        self.payer = None


@dataclass(slots=True, init=False)
class NewEvent:
    """An event as its writer sends it: without id and time."""

    stream_id: str
    body: bytes = field(repr=False)
    request_id: str | None
    """The idempotency key. If a write repeats a key, its event is not accepted a second time."""
    trace: str | None
    """As in `Event`."""

    def __init__(
        self,
        stream_id: str,
        body: bytes,
        request_id: str | None = None,
        trace: str | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.body = body
        self.request_id = request_id
        self.trace = trace


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """What one channel has instead of what the channels of its node have."""

    capacity: int | None = None
    """The capacity; None means that of the node."""
    ttl_s: float | None = None
    """The TTL; None means that of the node."""
    label: str = ""
    """The name by which operators shall recognise the channel; empty if it has none."""


@dataclass(slots=True)
class NewChannel:
    """A channel that was created, as its creator gets it."""

    agent: str
    producer_address: str = field(repr=False)
    consumer_address: str = field(repr=False)
    protocols: tuple[ReadProtocol, ...]


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """An event of a batch that one of its channels did not accept."""

    channel: str = field(repr=False)
    """The address, as the request gave it."""
    index: int
    """The index of the event in the batch."""
    reason: str
    """An error code, or SKIPPED."""


@dataclass(frozen=True, slots=True)
class BatchWritten:
    """The result of a batch."""

    events: Sequence[Event]
    """The events that the batch made."""
    accepted: int
    """How many of the first of these events at least one channel has accepted."""
    earlier_ids: Mapping[int, str]
    """By the index of an event: the id under which an earlier batch with the same idempotency key
    wrote it, if there was one."""
    failures: Sequence[BatchFailure]
    """The events that were not accepted, in the order of the addresses."""

    @property
    def failure(self) -> str | None:
        """The reason of the first failure; None if all events were accepted."""
        return self.failures[0].reason if self.failures else None

    def event_ids(self, start: int, end: int) -> list[str | None]:
        """Return the ids of the events with the indexes from `start` to before `end`; None for an
        event that no channel has accepted."""
        return [
            self.earlier_ids.get(index, event.id) if index < self.accepted else None
            for index, event in enumerate(self.events[start:end], start)
        ]


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """The reason for which one event of several was not accepted."""

    reason: str
    """An error code, or SKIPPED."""
    message: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The options of a read. Without any, the reader is a plain one, as old clients are."""

    cursor: str | None = None
    """The cursor: an event id, or START. The event and all before it count as acknowledged."""
    acknowledge: bool = False
    """Deliver an event only when the reader acknowledges it."""
    in_flight: int = DEFAULT_IN_FLIGHT
    """The most events in flight, with `acknowledge`."""
    take_over: bool = False
    """End the open read of the channel, if there is one, as broken, and take its place."""
    reader: str = ""
    """The name that the reader has given itself, if it has."""
    returning: bool = False
    """Do that to an open read of the same `reader` only, and let a read of any other reader refuse
    this one."""
    limit: int | None = None
    """End the read after this many events."""
    wait_s: float | None = None
    """End the read after this long instead of the poll duration, at most `max_read_secs`. 0 takes
    only events that are ready."""
    heartbeat_s: float | None = None
    """Send a heartbeat after this long without an event."""
    streams: frozenset[str] | None = None
    """Send only the events of these streams; None means all. The others count as read by a plain
    reader, and as acknowledged by an acknowledging one that acknowledges all that it was sent."""
    trace: bool = False
    """Send the trace context of each event that has one."""
    face: str = field(default="", compare=False)
    """Which of `FACES` the reader uses, for operators; empty if it uses none."""

    @property
    def kind(self) -> ReadKind:
        """What the reader does so that it loses nothing."""
        if self.acknowledge:
            return ReadKind.ACKNOWLEDGING
        return ReadKind.PLAIN if self.cursor is None else ReadKind.RESUMING

    def ends_read_of(self, reader: str) -> bool:
        """Return whether this read takes the place of an open one of the named reader."""
        return reader == self.reader if self.returning else self.take_over


class ChannelBegun(NamedTuple):
    """The read of one of many channels begins."""

    channel: int
    """The index of the channel in the request."""
    position: str
    """The cursor before the first event: an event id, or START."""
    recovered: bool | None
    """As `Reader.recovered`."""


class ChannelEvents(NamedTuple):
    """Events of one of many channels, in order."""

    channel: int
    events: list[Event]


class ChannelDone(NamedTuple):
    """The read of one of many channels is over, or was refused."""

    channel: int
    error: MegaphoneError | None
    """Why it was refused, or did not end cleanly; None after a clean end."""


Part = ChannelBegun | ChannelEvents | ChannelDone
"""A part of a read of many channels."""


class Progress(NamedTuple):
    """How far a channel was read, as its source knows it."""

    cursor: str = START
    """The cursor of the next read: an event id, or START."""
    sent: str = START
    """The last event that was sent to any reader, or START."""
    has_gap: bool = False
    """Whether events were evicted before a reader got them, and no reader has learned of it yet."""


@dataclass(frozen=True, slots=True)
class KeyOf:
    """The idempotency key of an event."""

    request_id: str = field(repr=False)
    age_s: float
    """How long ago the event was accepted."""


@dataclass(frozen=True, slots=True)
class ChannelAdded:
    """A channel is on the source."""

    address: str = field(repr=False)
    """The consumer address, as in every change."""
    capacity: int = 0
    """The capacity of the channel; 0 if the source does not say."""
    ttl_s: float = 0.0
    """The TTL of the channel; 0 if the source does not say."""
    label: str = ""
    """As in `ChannelOptions`."""
    tenant: str = ""
    """The name of the tenant to which the channel belongs; empty if the source does not say."""


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """A channel has expired or was disposed of."""

    address: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventAdded:
    """An event was added to a channel, after the events of earlier changes."""

    address: str = field(repr=False)
    event: Event
    offset: int
    """The offset of the event; 0 if the source does not say."""
    key: KeyOf | None = None


@dataclass(frozen=True, slots=True)
class KeyAdded:
    """A channel remembers the idempotency key of an event that it does not hold any more."""

    address: str = field(repr=False)
    event_id: str
    key: KeyOf


@dataclass(frozen=True, slots=True)
class ProgressMade:
    """A channel was read, or the cursor of its next read has changed."""

    address: str = field(repr=False)
    progress: Progress


@dataclass(frozen=True, slots=True)
class EventsForgotten:
    """The events up to an offset were dropped. All later changes concern later events."""

    address: str = field(repr=False)
    event_id: str
    """The last of the dropped events."""
    offset: int


ChannelChange = ChannelAdded | ChannelEnded | EventAdded | KeyAdded | ProgressMade | EventsForgotten
"""One thing that happened to a channel and that a target must apply."""

HistoryChange = EventAdded | KeyAdded | ProgressMade | EventsForgotten
"""A change within a channel that exists."""


@dataclass(frozen=True, slots=True)
class ChannelState:
    """How a channel is used on this node."""

    is_read: bool
    is_in_use: bool
    """Whether the channel is read, or its last read ended less than a TTL ago."""
    is_copy: bool
    """Whether no client has read the channel or written to it on this node."""
    cursor: str | None
    """The cursor at which the next read starts: an event id, or START. None if no reader of this
    node has taken or acknowledged events."""


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """The limits of a channel. All channels of a store have the same, except for the capacity and
    the TTL: a creator may ask for others, and a channel from another node keeps its own."""

    capacity: int
    """How many places the channel has, and how many delivered events it keeps for replay."""
    ttl_s: float
    """How long a channel lives after the end of its last read, or after its creation."""
    redelivery_window_s: float
    """How recently an event must have been sent for a plain reader to get it again."""
    max_waiting_writers: int
    """How many writers may wait for a free place at once."""
    idempotency_window_s: float = 60.0
    """How long a channel remembers an idempotency key. This is not a setting."""


NO_OPTIONS: Final = ChannelOptions()
"""The options of a channel whose creator asks for nothing."""


def short_id(channel_id: bytes) -> str:
    """Return the beginning of a channel id, by which operators find the channel. Unlike an address
    it gives no right to use the channel."""
    return channel_id[: SHORT_ID_DIGITS // 2].hex()


def agent_of(address: str) -> str:
    """Return the name of the agent in an address, of a producer or a consumer."""
    return address.partition(".")[0]
