"""The bodies of HTTP requests and answers: their members, types and meaning.

`wire.json` parses and renders with these classes, and `rest.openapi` describes the API with them,
so that the description agrees with what the broker does. Existing clients fix all names. A member
of a client's request that is not known is refused, because a misspelt option would be ignored in
silence.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType


def text(description: str, *, deprecated: bool = False) -> Meta:
    """Return the description of a member."""
    return Meta(
        description=description, extra_json_schema={"deprecated": True} if deprecated else None
    )


# -- Requests of clients


class CreateRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """How the consumer of a channel will read, and what the channel has of its own."""

    protocols: Annotated[
        list[str],
        text(
            "The protocols that the consumer can read, best first: `HTTP_STREAM_NDJSON_V1`,"
            " `HTTP_STREAM_SSE_V1`, `GRPC_STREAM_V1`. An empty list means no preference."
        ),
    ] = []
    ttl_secs: Annotated[
        float | None,
        text(
            "How many seconds the channel lives after its last read, or after its creation: at"
            " least 0.001, and at most the `max_channel_ttl_secs` of the node. Without it, the"
            " `channel_ttl_secs` of the node."
        ),
    ] = None
    capacity: Annotated[
        int | None,
        text(
            "How many places the channel has for events that are not delivered yet: at least 1, and"
            " at most the `max_buffer_capacity` of the node. Without it, the `buffer_capacity` of"
            " the node."
        ),
    ] = None
    label: Annotated[
        str | None,
        text(
            "A name by which operators shall recognise the channel: at most 64 visible ASCII"
            " characters and spaces."
        ),
    ] = None


class BatchMessage(msgspec.Struct, rename="camel", gc=False, forbid_unknown_fields=True):
    """An event that is written to every channel of a batch."""

    stream_id: Annotated[str, text("1 to 1,024 bytes of text without control characters.")]
    body: Annotated[msgspec.Raw, text("Any JSON value.")]


class BatchRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The same events for many channels."""

    messages: Annotated[list[BatchMessage], text("The events, in their order in each channel.")]
    channels: Annotated[list[str] | None, text("Producer addresses.")] = None
    channel_ids: Annotated[
        list[str] | None, text("The old name of `channels`.", deprecated=True)
    ] = None


class ExistsRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Channels that may exist."""

    channels: Annotated[list[str] | None, text("Addresses, of producers or consumers.")] = None
    channel_ids: Annotated[
        list[str] | None, text("The old name of `channels`.", deprecated=True)
    ] = None


class AckRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader has processed."""

    eid: Annotated[
        str,
        Meta(
            min_length=1,
            description="The id of an event. It and every event before it are acknowledged.",
        ),
    ]


class ManyChannel(msgspec.Struct, forbid_unknown_fields=True):
    """A channel of a read of many channels."""

    address: Annotated[str, text("The consumer address.")]
    after: Annotated[
        str | None,
        text("The id of the last event that the reader has, or `-` for none."),
    ] = None


class ReadManyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Many channels to read over one connection. The options mean what they mean in the query of a
    read of one channel."""

    channels: Annotated[list[ManyChannel], text("At most 100 channels, all different.")]
    ack: Literal["none", "explicit"] = "none"
    window: int | None = None
    takeover: bool = False
    reader: Annotated[str, text("The name of the reader; an empty text means none.")] = ""
    returning: bool = False
    limit: Annotated[
        int | None, text("The read ends after this many events of all channels together.")
    ] = None
    wait_ms: int | None = None
    heartbeat_ms: int | None = None
    stream: Annotated[list[str], text("The streams to send; an empty list means all.")] = []
    trace: bool = False


# -- Requests of operators


class AgentRequest(msgspec.Struct):
    name: str


class PipeAgentRequest(msgspec.Struct):
    name: str
    target: str


class RemoveAgentRequest(msgspec.Struct):
    name: str
    force: bool = False


class UnpipeAgentRequest(msgspec.Struct):
    name: str
    target: str | None = None
    force: bool = False


class DrainRequest(msgspec.Struct):
    target: str


# -- Answers to clients


class Done(msgspec.Struct):
    """The request was carried out."""

    status: Literal["OK"]


class Created(msgspec.Struct, rename="camel"):
    """A channel that was created."""

    channel_id: Annotated[str, text("The same as `consumerAddress`.", deprecated=True)]
    producer_address: Annotated[
        str, text("A writer uses this address. Nobody can derive the other address from it.")
    ]
    consumer_address: Annotated[str, text("The reader uses this address.")]
    agent_name: Annotated[
        str, text("The part of each address before its first dot.", deprecated=True)
    ]
    protocols: Annotated[
        list[str], text("The protocols of the request that the broker has, in the same order.")
    ]


class Written(msgspec.Struct):
    """An event that was accepted."""

    status: Literal["OK"]
    eid: Annotated[str, text("The id of the event.")]


class Failure(msgspec.Struct):
    """An event of a batch that one of its channels did not accept."""

    channel: Annotated[str, text("The address, as in the request.")]
    index: Annotated[int, text("The index of the event in `messages`, from 0.")]
    reason: Annotated[
        str, text("An error code, or `SKIPPED` if an earlier event timed out on this channel.")
    ]


class BatchWritten(msgspec.Struct):
    """What became of a batch."""

    failures: Annotated[list[Failure], text("The events that were not accepted.")]
    eids: Annotated[
        list[str | None],
        text("For each of `messages` its id, or `null` if no channel accepted it."),
    ]


class Existing(msgspec.Struct):
    """Which channels exist."""

    channels: Annotated[
        dict[str, bool], text("For each address of the request, whether its channel exists.")
    ]


class Acknowledged(msgspec.Struct):
    """An acknowledgement that was taken."""

    status: Literal["OK"]
    acknowledged: Annotated[int, text("How many events were not acknowledged before.")]


class Event(msgspec.Struct):
    """An event, as a reader gets it: one line of JSON, or the data of a server-sent event."""

    sid: Annotated[str, text("The stream id, as its writer gave it.")]
    eid: Annotated[
        str,
        text("23 random letters and digits. An event that is sent again has the same id."),
    ]
    ts: Annotated[datetime, text("When the broker accepted the event, in UTC.")]
    body: Annotated[Any, text("The JSON value that was written.")]
    traceparent: Annotated[
        str | UnsetType,
        text("With `trace=true`: the trace context of the event, if it has one."),
    ] = UNSET


class PartOfMany(msgspec.Struct):
    """A line of a read of many channels: an event, or the begin or the end of a channel."""

    channel: Annotated[int, text("The index of the channel in the request, from 0.")]
    sid: str | UnsetType = UNSET
    eid: str | UnsetType = UNSET
    ts: datetime | UnsetType = UNSET
    body: Any = UNSET
    traceparent: str | UnsetType = UNSET
    begun: Annotated[Literal[True] | UnsetType, text("The read of the channel begins.")] = UNSET
    position: Annotated[
        str | UnsetType, text("With `begun`: the event before the first one of this read, or `-`.")
    ] = UNSET
    recovered: Annotated[
        bool | UnsetType,
        text("With `begun`: as the header `Megaphone-Recovered` of a read of one channel."),
    ] = UNSET
    done: Annotated[
        Literal[True] | UnsetType, text("The read of the channel is over, or was refused.")
    ] = UNSET
    code: Annotated[
        str | UnsetType, text("With `done`: the code of the error, unless it is a clean end.")
    ] = UNSET
    message: str | UnsetType = UNSET
    retryAfter: Annotated[
        float | UnsetType, text("After how many seconds the channel may be read again.")
    ] = UNSET


class Error(msgspec.Struct):
    """An error: the members of RFC 9457, and a code that never changes."""

    code: Annotated[str, text("The code, on which a client decides what to do.")]
    message: Annotated[str, text("The error in words, for people.")]
    type: str
    title: Annotated[str, text("The name of the HTTP status.")]
    status: Annotated[int, text("The HTTP status.")]
    detail: Annotated[str, text("The same as `message`.")]


# -- Answers to operators and supervisors


class Agent(msgspec.Struct, rename="camel"):
    name: str
    since: Annotated[datetime, text("When the agent got its mode.")]
    warming_up: Annotated[bool, text("Whether a MASTER takes no new channels yet.")]
    mode: Annotated[str, text("MASTER, PIPED or REPLICA.")]
    channels_count: int


class ListedChannel(msgspec.Struct, rename="camel"):
    address: str
    agent_id: str


class ReaderOfChannel(msgspec.Struct, rename="camel"):
    kind: str
    face: str | None
    name: str
    age_s: float | None
    taken_s: float | None
    node: str | None


class ChannelInfo(msgspec.Struct, rename="camel"):
    address: str
    agent_id: str
    id: str
    tenant: str
    label: str
    age_s: float
    expires_s: float | None
    capacity: int
    ttl_s: float
    unsent: int
    in_flight: int
    kept: int
    bytes: int | None
    waiting_writers: int
    waiting_s: float | None
    written_s: float | None
    read_s: float | None
    reader: ReaderOfChannel | None


class Pipe(msgspec.Struct, rename="camel"):
    agent: str
    target: str
    is_connected: bool
    backlog: int


class WatchedChannel(msgspec.Struct, rename="camel", omit_defaults=True):
    address: str
    depth: int | None = None
    in_flight: int | None = None
    waiting_writers: int | None = None
    is_read: bool | None = None
    age_s: float | None = None
    oldest_s: float | None = None
    rate: float | None = None
    label: str | None = None
    tenant: str | None = None
    id: str | None = None
    unsent: int | None = None
    bytes: int | None = None


class NodeView(msgspec.Struct, rename="camel"):
    at: datetime
    counts: dict[str, int]
    levels: dict[str, int]
    notable: dict[str, int]
    agents: list[Agent]
    pipes: list[Pipe]
    drain: "DrainStep | None"
    channels: list[WatchedChannel]


class DrainStep(msgspec.Struct, rename="camel"):
    agent: str
    agents_moved: int
    agents_left: int
    agents_failed: int
    channels_moved: int
    channels_left: int
    done: bool
