"""The protobuf of the gRPC face: messages to the model, and the model to messages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    AgentInfo,
    BatchFailure,
    DrainProgress,
    Event,
    NewChannel,
    NewEvent,
    ReadOptions,
    WriteFailure,
)
from megaphone.wire.decode import Converted
from megaphone.wire.errors import DOMAIN
from megaphone_api.v1 import admin_pb2 as admin
from megaphone_api.v1 import channels_pb2 as pb

MICROSECONDS_PER_S = 1_000_000
MEMBERS_AT_ONCE = 500
"""How many elements of a list are encoded into one piece of an answer."""
REPEATED_FIELDS = (1, 2)
"""The numbers of the repeated fields in the requests of ChannelService."""
TAGS = tuple(bytes([number << 3 | 2]) for number in REPEATED_FIELDS)
LEAST_MEMBER_BYTES = 2

T = TypeVar("T")


def optional(text: str) -> str | None:
    """Return a text, or None if it is empty, because proto3 has no other form for an unset text."""
    return text or None


def batch_events(request: pb.WriteBatchRequest) -> Sequence[NewEvent]:
    return Converted(request.messages, batch_event)


def batch_event(message: pb.WriteBatchRequest.Message) -> NewEvent:
    return NewEvent(message.stream_id, message.body)


def writes(request: pb.PublishRequest) -> Sequence[tuple[str, NewEvent]]:
    """Return the producer address and the event of each write."""
    return Converted(request.events, write_of)


def write_of(request: pb.WriteRequest) -> tuple[str, NewEvent]:
    return request.producer_address, new_event(request)


def new_event(request: pb.WriteRequest) -> NewEvent:
    return NewEvent(request.stream_id, request.body, optional(request.request_id))


def published(results: Sequence[str | WriteFailure]) -> Iterator[bytes]:
    """Yield the answer to published events in pieces. Each takes a short time to make."""
    for some in parts_of(results):
        part = pb.PublishResponse(results=[publish_result(result) for result in some])
        yield part.SerializeToString()


def publish_result(result: str | WriteFailure) -> pb.PublishResponse.Result:
    if isinstance(result, WriteFailure):
        return pb.PublishResponse.Result(reason=result.reason, message=result.message)
    return pb.PublishResponse.Result(event_id=result)


def read_options(request: pb.ReadRequest) -> ReadOptions:
    return ReadOptions(
        cursor=optional(request.after_event_id),
        acknowledge=request.acknowledge,
        in_flight=request.window or DEFAULT_IN_FLIGHT,
        take_over=request.take_over,
        limit=request.limit or None,
        wait_s=request.wait_ms / 1000 if request.HasField("wait_ms") else None,
        heartbeat_s=request.heartbeat_ms / 1000 if request.heartbeat_ms else None,
    )


def created(channel: NewChannel) -> pb.CreateChannelResponse:
    return pb.CreateChannelResponse(
        producer_address=channel.producer_address,
        consumer_address=channel.consumer_address,
        protocols=[protocol.value for protocol in channel.protocols],
    )


def written(event_id: str) -> pb.WriteResponse:
    return pb.WriteResponse(event_id=event_id)


def batch_written(failures: Sequence[BatchFailure]) -> Iterator[bytes]:
    """Yield the answer to a batch in pieces. To make one piece takes a short time."""
    for some in parts_of(failures):
        part = pb.WriteBatchResponse(failures=[batch_failure(failure) for failure in some])
        yield part.SerializeToString()


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


def events(batch: Sequence[Event]) -> pb.ReadResponse:
    response = pb.ReadResponse()
    for one in batch:
        seconds, microseconds = divmod(one.timestamp_us, MICROSECONDS_PER_S)
        # `add` makes the message in its place. A message made elsewhere would be copied, body too.
        response.events.add(
            event_id=one.id,
            stream_id=one.stream_id,
            timestamp=Timestamp(seconds=seconds, nanos=microseconds * 1000),
            body=one.body,
        )
    return response


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


def error_status(grpc_code: int, code: str, message: str, retry_after_s: float | None) -> bytes:
    """Return a `google.rpc.Status` for the trailing metadata `grpc-status-details-bin`."""
    status = Status(code=grpc_code, message=message)
    status.details.add().Pack(ErrorInfo(reason=code, domain=DOMAIN))
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
