"""The values that all parts of the broker share. Plain data: no I/O, no rules."""

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import NamedTuple, Self

DEFAULT_WINDOW = 100
"""Events that an acknowledging reader has in flight at most, unless it asks for another number."""

MAX_NAME_LENGTH = 100
"""Characters in the name of an agent."""

START = "-"
"""In place of an event's id: before the first event of a channel."""

SKIPPED = "SKIPPED"
"""Why an event of a batch was not written: an earlier one of its channel timed out."""


PORT_PATTERN = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
HOST_PATTERN = r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s@]+)"
ENDPOINT_PATTERN = rf"{HOST_PATTERN}:{PORT_PATTERN}"

LINE_BODY_BYTES = 16_384
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


class AgentMode(Enum):
    """What a virtual agent does on this node."""

    MASTER = "MASTER"
    """Takes new channels, once it is warm."""
    REPLICA = "REPLICA"
    """Is fed by another node; takes no new channels."""
    PIPED = "PIPED"
    """Is forwarded to other nodes; takes no new channels."""


class ReadProtocol(Enum):
    """The ways of reading a channel, by the names that `/create` negotiates."""

    HTTP_STREAM_NDJSON_V1 = "HTTP_STREAM_NDJSON_V1"
    HTTP_STREAM_SSE_V1 = "HTTP_STREAM_SSE_V1"
    GRPC_STREAM_V1 = "GRPC_STREAM_V1"


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What operators are told of an agent."""

    name: str
    mode: AgentMode
    since: datetime
    """When it took on its mode."""
    warming_up: bool
    channels: int
    """How many channels of its are on this node."""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far a node is with moving its agents to another one."""

    agent: str
    """The agent that is on its way; empty at the start and at the end."""
    agents_moved: int
    agents_left: int
    """How many are yet to move, those included that failed to."""
    agents_failed: int
    channels_moved: int
    """How many channels are on the other node: of agents that have moved, or are on their way."""
    channels_left: int
    done: bool = False
    """Nothing is left to move."""


@dataclass(slots=True, eq=False)
class Event:
    """One event, shared by all channels it is written to.

    What clients see of it is not changed after it is made.
    """

    id: str
    """23 random letters and digits; a repeated delivery repeats it."""
    stream_id: str
    timestamp_us: int
    """When the broker took it: microseconds since the epoch, UTC."""
    body: bytes = field(repr=False)
    """One JSON value in UTF-8, as it was written, without line breaks."""
    rendered: bytes | None = field(default=None, repr=False)
    """What a face made of the event, kept for the other channels that share it."""
    holders: int = field(default=0, repr=False)
    """How many logs of channels, and writers that wait, hold it. Counted by `core.budget`."""
    awaited: int = field(default=0, repr=False)
    """In how many channels its reader is yet to get it. Counted by `core.budget`."""


@dataclass(frozen=True, slots=True)
class Message:
    """An event that is yet to be written: without channel, id and time."""

    stream_id: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Write:
    """An event that is yet to be written to one channel."""

    address: str = field(repr=False)
    stream_id: str
    body: bytes = field(repr=False)
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewChannel:
    """What the creator of a channel is told."""

    agent: str
    producer_address: str = field(repr=False)
    consumer_address: str = field(repr=False)
    protocols: tuple[ReadProtocol, ...]


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """One event of a batch that one channel did not take."""

    channel: str = field(repr=False)
    """The address, as it was given."""
    index: int
    """Which of the batch's messages."""
    reason: str
    """An error code, or SKIPPED."""


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """Why one event of several was not taken."""

    reason: str
    """An error code, or SKIPPED."""
    message: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a reader wants to read. The default is the plain reader that old clients are."""

    after_event_id: str | None = None
    """Resume after this event, or START; it and all before it count as acknowledged."""
    acknowledge: bool = False
    """Keep each event in the buffer until it is acknowledged."""
    window: int = DEFAULT_WINDOW
    """With `acknowledge`: how many events may be in flight."""
    take_over: bool = False
    """End the read that is open, if there is one, as a broken one, and take its place."""
    limit: int | None = None
    """End after this many events."""
    wait_s: float | None = None
    """End after this long, if that is sooner than the poll duration; 0 takes what is ready."""
    heartbeat_s: float | None = None
    """Send a sign of life after this long without an event."""


class Progress(NamedTuple):
    """How far a channel was read."""

    position: str = START
    """The event after which the next read starts, or START."""
    sent: str = START
    """The last event that any reader was sent, or START."""
    has_gap: bool = False
    """Whether events were evicted that no reader had, and no reader has learned of it."""


@dataclass(frozen=True, slots=True)
class KeyOf:
    """The idempotency key of an event."""

    request_id: str = field(repr=False)
    age_s: float
    """How long ago the event was taken."""


@dataclass(frozen=True, slots=True)
class ChannelAdded:
    """A channel is on the node that forwards it."""

    address: str = field(repr=False)
    """That of the consumer, as in all of these."""
    capacity: int = 0
    """How many events it holds; 0 if the node that forwards it does not say."""


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """A channel has expired or was disposed of."""

    address: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventAdded:
    """An event is in a channel, after those that were told of before."""

    address: str = field(repr=False)
    event: Event
    number: int
    """Its place in the channel's order, from 1; 0 if the node that forwards it does not say."""
    key: KeyOf | None = None


@dataclass(frozen=True, slots=True)
class KeyAdded:
    """The key of an event is remembered in a channel that does not hold the event any more."""

    address: str = field(repr=False)
    event_id: str
    key: KeyOf


@dataclass(frozen=True, slots=True)
class ProgressMade:
    """A channel was read, or its next read starts elsewhere."""

    address: str = field(repr=False)
    progress: Progress


@dataclass(frozen=True, slots=True)
class EventsForgotten:
    """Events were read and are kept no more; what is told next comes after them."""

    address: str = field(repr=False)
    event_id: str
    """The last of them."""
    number: int


ChannelChange = ChannelAdded | ChannelEnded | EventAdded | KeyAdded | ProgressMade | EventsForgotten
"""What another node must be told to have the same channels."""

HistoryChange = EventAdded | KeyAdded | ProgressMade | EventsForgotten
"""A change within a channel that is there."""


@dataclass(frozen=True, slots=True)
class ChannelState:
    """How a channel is used on this node."""

    is_read: bool
    is_in_use: bool
    """Whether it is read, or was until less than its time to live ago, kept alive or not."""
    is_copy: bool
    """Whether nobody has read it, or written to it, here."""
    cursor: str | None
    """The event after which the next read starts, or START; None if no reader has come here."""


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """What bounds a channel. The same for all channels of a store but for the capacity, which a
    channel brings along when it comes from another node."""

    capacity: int = 100
    """Events that wait for a reader or its acknowledgement, and as many again kept for replay."""
    ttl_s: float = 60.0
    """How long a channel lives after its last read has ended, or after it was made."""
    redelivery_window_s: float = 10.0
    """How old an event sent to a plain reader may be to be sent again after a broken read."""
    idempotency_window_s: float = 60.0
    """How long a request id is remembered."""
    max_waiting_writers: int = 1_000
    """Writers that wait for room at once."""
