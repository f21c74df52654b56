"""The protobuf of the gRPC face: messages to the model, and the model to messages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from megaphone.model import (
    DEFAULT_IN_FLIGHT,
    GRPC,
    AgentInfo,
    BatchFailure,
    BatchWritten,
    ChannelBegun,
    ChannelEvents,
    ChannelInfo,
    ChannelOptions,
    DrainProgress,
    Event,
    NewChannel,
    NewEvent,
    NodeView,
    Part,
    ReaderInfo,
    ReadOptions,
    WriteFailure,
    agent_of,
    short_id,
)
from megaphone.wire.decode import Converted
from megaphone.wire.errors import DOMAIN
from megaphone_api.v1 import admin_pb2 as admin
from megaphone_api.v1 import channels_pb2 as pb

MICROSECONDS_PER_S = 1_000_000
UINT64 = (1 << 64) - 1
STREAM_IDS_REMEMBERED = 1_000
SECONDS_REMEMBERED = 10
HEADS_REMEMBERED = 1_000
MEMBERS_AT_ONCE = 500
"""How many elements of a list are encoded into one piece of an answer."""
REPEATED_FIELDS = (1, 2, 9)
"""The numbers of the repeated fields in the requests of ChannelService."""
TAGS = tuple(bytes([number << 3 | 2]) for number in REPEATED_FIELDS)
LEAST_MEMBER_BYTES = 2

T = TypeVar("T")


def optional(text: str) -> str | None:
    """Return a text, or None if it is empty, because proto3 has no other form for an unset text."""
    return text or None


def batch_events(request: pb.WriteBatchRequest, trace: str | None = None) -> Sequence[NewEvent]:
    """Return the events of a batch, all with one trace context."""
    return Converted(request.messages, lambda one: NewEvent(one.stream_id, one.body, None, trace))


def writes(
    request: pb.PublishRequest, trace_of: Callable[[str], str | None]
) -> Sequence[tuple[str, NewEvent]]:
    """Return the producer address and the event of each write. `trace_of` returns the trace context
    for what a writer sent as its own."""

    def write_of(one: pb.WriteRequest) -> tuple[str, NewEvent]:
        given = one.traceparent
        return one.producer_address, new_event(one, trace_of(given) if given else None)

    return Converted(request.events, write_of)


def new_event(request: pb.WriteRequest, trace: str | None = None) -> NewEvent:
    return NewEvent(request.stream_id, request.body, request.request_id or None, trace)


def published(results: Sequence[str | WriteFailure]) -> Iterator[bytes]:
    """Yield the answer to published events in pieces. Each takes a short time to make."""
    for some in parts_of(results):
        yield b"".join([publish_result(result) for result in some])


def publish_result(result: str | WriteFailure) -> bytes:
    """Return a result as it stands in a PublishResponse."""
    if isinstance(result, str):
        return field_of(1, field_of(1, result.encode()))
    failure = pb.PublishResponse.Result(reason=result.reason, message=result.message)
    return field_of(1, failure.SerializeToString())


def read_options(request: pb.ReadRequest) -> ReadOptions:
    return replace(many_options(request), cursor=optional(request.after_event_id))


def many_channels(request: pb.ReadManyRequest) -> list[tuple[str, str | None]]:
    """Return the channels of a read of many channels, each with its cursor."""
    return [(one.consumer_address, optional(one.after_event_id)) for one in request.channels]


def many_options(request: pb.ReadManyRequest | pb.ReadRequest) -> ReadOptions:
    """Return the options of a read, without a cursor."""
    return ReadOptions(
        acknowledge=request.acknowledge,
        in_flight=request.window or DEFAULT_IN_FLIGHT,
        take_over=request.take_over,
        reader=request.reader,
        returning=request.returning,
        limit=request.limit or None,
        wait_s=request.wait_ms / 1000 if request.HasField("wait_ms") else None,
        heartbeat_s=request.heartbeat_ms / 1000 if request.heartbeat_ms else None,
        streams=frozenset(request.streams) or None,
        trace=request.trace,
        face=GRPC,
    )


def channel_options(request: pb.CreateChannelRequest) -> ChannelOptions:
    """Return the options in a request to create a channel."""
    return ChannelOptions(
        request.capacity if request.HasField("capacity") else None,
        request.ttl_secs if request.HasField("ttl_secs") else None,
        request.label,
    )


def created(channel: NewChannel) -> pb.CreateChannelResponse:
    return pb.CreateChannelResponse(
        producer_address=channel.producer_address,
        consumer_address=channel.consumer_address,
        protocols=[protocol.value for protocol in channel.protocols],
    )


def written(event_id: str) -> pb.WriteResponse:
    return pb.WriteResponse(event_id=event_id)


def batch_written(written: BatchWritten) -> Iterator[bytes]:
    """Yield the answer to a batch in pieces. To make one piece takes a short time."""
    for some in parts_of(written.failures):
        part = pb.WriteBatchResponse(failures=[batch_failure(failure) for failure in some])
        yield part.SerializeToString()
    for start in range(0, len(written.events), MEMBERS_AT_ONCE):
        event_ids = written.event_ids(start, start + MEMBERS_AT_ONCE)
        yield b"".join([field_of(2, (one or "").encode()) for one in event_ids])


def batch_failure(failure: BatchFailure) -> pb.WriteBatchResponse.Failure:
    return pb.WriteBatchResponse.Failure(
        channel=failure.channel, index=failure.index, reason=failure.reason
    )


def parts_of(members: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a list into parts. A message for each part, serialized and joined to the others, has the
    same meaning as one message for the whole list."""
    return (members[i : i + MEMBERS_AT_ONCE] for i in range(0, len(members), MEMBERS_AT_ONCE))


def existing(channels: Mapping[str, bool]) -> pb.ChannelsExistResponse:
    return pb.ChannelsExistResponse(channels=channels)


def acknowledged(count: int) -> pb.AcknowledgeResponse:
    return pb.AcknowledgeResponse(acknowledged=count)


def events(batch: Sequence[Event]) -> bytes:
    """Return a ReadResponse."""
    parts: list[bytes] = []
    for one in batch:
        before_body = before_body_of(one)
        parts += head_of(1, len(before_body) + len(one.body)), before_body, one.body
    return b"".join(parts)


def traced_events(batch: Sequence[Event]) -> bytes:
    """Do the same for a client that asks for trace contexts."""
    parts: list[bytes] = []
    for one in batch:
        before_body = before_body_of(one)
        after_body = b"" if one.trace is None else field_of(5, one.trace.encode())
        size = len(before_body) + len(one.body) + len(after_body)
        parts += head_of(1, size), before_body, one.body, after_body
    return b"".join(parts)


def parts(batch: Sequence[Part]) -> bytes:
    """Return a ReadManyResponse."""
    return b"".join([field_of(1, part_of(one, events)) for one in batch])


def traced_parts(batch: Sequence[Part]) -> bytes:
    """Do the same for a client that asks for trace contexts."""
    return b"".join([field_of(1, part_of(one, traced_events)) for one in batch])


def part_of(one: Part, bytes_of: Callable[[Sequence[Event]], bytes]) -> bytes:
    if isinstance(one, ChannelEvents):
        return bytes_of(one.events) + b"\x10" + varint(one.channel)
    part = pb.ReadManyResponse.Part(channel=one.channel)
    if isinstance(one, ChannelBegun):
        part.begun.position = one.position
        if one.recovered is not None:
            part.begun.recovered = one.recovered
    elif one.error is None:
        part.done.SetInParent()
    else:
        part.done.code, part.done.message = one.error.code, str(one.error)
        if one.error.retry_after_s is not None:
            part.done.retry_delay.FromNanoseconds(int(one.error.retry_after_s * 1_000_000_000))
    return part.SerializeToString()


def before_body_of(one: Event) -> bytes:
    """Return the fields of an Event, up to the body."""
    second, microseconds = divmod(one.timestamp_us, MICROSECONDS_PER_S)
    event_id, seconds, nanos = one.id.encode(), seconds_of(second), varint(microseconds * 1000)
    return b"%b%b%b\x1a%c%b\x10%b%b" % (
        head_of(1, len(event_id)),
        event_id,
        stream_of(one.stream_id),
        len(seconds) + 1 + len(nanos),
        seconds,
        nanos,
        head_of(4, len(one.body)),
    )


@lru_cache(STREAM_IDS_REMEMBERED)
def stream_of(stream_id: str) -> bytes:
    """Return the field `stream_id` of an Event."""
    return field_of(2, stream_id.encode())


@lru_cache(SECONDS_REMEMBERED)
def seconds_of(second: int) -> bytes:
    """Return the field `seconds` of a Timestamp."""
    return b"\x08" + varint(second & UINT64)  # so protobuf writes times before 1970


# -- The form of protobuf. The library makes an object for each event of a read, and for each result
# of a stream of writes. That takes longer than to make their bytes.


def field_of(number: int, content: bytes) -> bytes:
    """Return a field that is a text, bytes or a message."""
    return head_of(number, len(content)) + content


@lru_cache(HEADS_REMEMBERED)
def head_of(number: int, size: int) -> bytes:
    """Return what stands before the content of such a field: its number, its type and its size."""
    return varint(number << 3 | 2) + varint(size)


def varint(value: int) -> bytes:
    """Return a number that is not negative, seven bits in a byte, the lowest first."""
    if value < 1 << 7:
        return bytes((value,))
    if 1 << 28 <= value < 1 << 35:  # as most nanoseconds and all seconds of these years
        return bytes(
            (
                value & 127 | 128,
                value >> 7 & 127 | 128,
                value >> 14 & 127 | 128,
                value >> 21 & 127 | 128,
                value >> 28,
            )
        )
    return bytes((value & 127 | 128,)) + varint(value >> 7)


# -- Messages of operators


def agents(infos: Iterable[AgentInfo]) -> admin.ListAgentsResponse:
    return admin.ListAgentsResponse(agents=[agent(info) for info in infos])


def agent(info: AgentInfo) -> admin.Agent:
    since = Timestamp()
    since.FromDatetime(info.since)
    return admin.Agent(
        name=info.name,
        mode=admin.AgentMode.Value(f"AGENT_MODE_{info.mode.value}"),
        since=since,
        warming_up=info.warming_up,
        channels_count=info.channels,
    )


def channels(addresses: Sequence[str]) -> Iterator[bytes]:
    """Yield a list of channels in pieces. To make one piece takes a short time."""
    for some in parts_of(addresses):
        part = admin.ListChannelsResponse(channels=[listed_channel(one) for one in some])
        yield part.SerializeToString()


def shown_channels(infos: Sequence[ChannelInfo]) -> Iterator[bytes]:
    """Yield a list of channels with details in pieces. To make one piece takes a short time."""
    for some in parts_of(infos):
        channels = [
            admin.ListChannelsResponse.Channel(
                address=one.address, agent=agent_of(one.address), details=channel_info(one)
            )
            for one in some
        ]
        yield admin.ListChannelsResponse(channels=channels).SerializeToString()


def channel_info(info: ChannelInfo) -> admin.ChannelDetails:
    return admin.ChannelDetails(
        address=info.address,
        agent=agent_of(info.address),
        id=info.short_id,
        tenant=info.tenant,
        label=info.label,
        age_s=info.age_s,
        expires_s=info.expires_s,
        capacity=info.capacity,
        ttl_s=info.ttl_s,
        unsent=info.unsent,
        in_flight=info.in_flight,
        kept=info.kept,
        bytes=info.bytes,
        waiting_writers=info.waiting_writers,
        waiting_s=info.waiting_s,
        written_s=info.written_s,
        read_s=info.read_s,
        reader=None if info.reader is None else reader_of_channel(info.reader),
    )


def reader_of_channel(reader: ReaderInfo) -> admin.ChannelDetails.Reader:
    return admin.ChannelDetails.Reader(
        acknowledges=reader.acknowledges,
        name=reader.name,
        face=reader.face or "",
        age_s=reader.age_s,
        taken_s=reader.taken_s,
        node=reader.node or "",
    )


def listed_channel(address: str) -> admin.ListChannelsResponse.Channel:
    return admin.ListChannelsResponse.Channel(address=address, agent=address.partition(".")[0])


def drained(progress: DrainProgress) -> admin.DrainResponse:
    return admin.DrainResponse(
        agent=progress.agent,
        agents_moved=progress.agents_moved,
        agents_left=progress.agents_left,
        agents_failed=progress.agents_failed,
        channels_moved=progress.channels_moved,
        channels_left=progress.channels_left,
        done=progress.done,
    )


def node_view(view: NodeView) -> admin.WatchResponse:
    at = Timestamp()
    at.FromDatetime(view.at)
    return admin.WatchResponse(
        at=at,
        counts=view.counts,
        levels=view.levels,
        notable=view.notable,
        agents=[agent(info) for info in view.agents],
        pipes=[
            admin.WatchResponse.Pipe(
                agent=pipe.agent,
                target=pipe.target,
                connected=pipe.is_connected,
                backlog=pipe.backlog,
            )
            for pipe in view.pipes
        ],
        drain=None if view.drain is None else drained(view.drain),
        channels=[
            admin.WatchResponse.Channel(
                address=one.address,
                depth=one.depth,
                in_flight=one.in_flight,
                waiting_writers=one.waiting_writers,
                read=one.is_read,
                age_s=one.age_s,
                oldest_s=one.oldest_s,
                rate=one.rate,
                label=one.label or "",
                tenant=one.tenant or "",
                id=short_id(one.channel_id),
                unsent=one.unsent,
                bytes=one.bytes,
            )
            for one in view.channels
        ],
    )


def error_status(
    grpc_code: int,
    code: str,
    message: str,
    retry_after_s: float | None,
    limit: str | None = None,
) -> bytes:
    """Return a `google.rpc.Status` for the trailing metadata `grpc-status-details-bin`. `limit` is
    the name of the limit that was reached."""
    status = Status(code=grpc_code, message=message)
    metadata = {} if limit is None else {"limit": limit}
    status.details.add().Pack(ErrorInfo(reason=code, domain=DOMAIN, metadata=metadata))
    if retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_after_s * 1_000_000_000))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return bytes(status.SerializeToString())


# -- Counting the members of a message before it is decoded. A message of one megabyte can hold half
# a million empty members, which would take 40 MB and 20 ms to decode. Undecoded, as bytes, they
# take a fraction of both.


def has_more_members(message: bytes, most: int) -> bool:
    """Return whether the repeated fields of a message have together more than `most` elements.

    Raises: DecodeError, in some cases in which the bytes are not a message. In the other cases the
        decoder of the message finds the error later.
    """
    if len(message) <= LEAST_MEMBER_BYTES * most or sum(map(message.count, TAGS)) <= most:
        return False
    members = _Members.FromString(message)
    return sum(len(getattr(members, name)) for name in _MEMBER_FIELDS) > most


_MEMBER_FIELDS = [f"members_{number}" for number in REPEATED_FIELDS]


def _members_class() -> Any:
    """Return a message class whose repeated fields hold undecoded bytes."""
    file = FileDescriptorProto(name="members.proto", package="megaphone.wire", syntax="proto3")
    kind = file.message_type.add(name="Members")
    for number, name in zip(REPEATED_FIELDS, _MEMBER_FIELDS, strict=True):
        kind.field.add(
            name=name,
            number=number,
            label=FieldDescriptorProto.LABEL_REPEATED,
            type=FieldDescriptorProto.TYPE_BYTES,
        )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("megaphone.wire.Members"))


_Members = _members_class()
