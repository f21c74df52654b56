"""The protobuf between nodes: from changes of channels to messages, and back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from megaphone.errors import BadRequest
from megaphone.model import (
    START,
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    Event,
    EventAdded,
    EventsForgotten,
    KeyAdded,
    KeyOf,
    Progress,
    ProgressMade,
)
from megaphone_api import sync_pb2 as pb

MICROSECONDS_PER_S = 1_000_000

EXTENSIONS_KEY = "megaphone-sync"
"""The initial metadata with which a node says that it understands the extensions."""
PROOF_KEY = "megaphone-node"
"""The metadata in which a node proves that it has the node secret: the metadata of a call, and the
initial metadata of the answer to a greeting. `cluster.node_secret` makes and checks both."""
REPLY = "OK"


def proof_of(metadata: Iterable[tuple[str, Any]]) -> str | None:
    """Return the proof in the metadata of a call or an answer; None if there is none."""
    return next((str(value) for key, value in metadata if key == PROOF_KEY), None)


def start(agent: str, key: bytes, source_id: str) -> pb.SyncRequest:
    message = pb.PipeAgentStart(agent_id=agent, key=key, source_id=source_id)
    return pb.SyncRequest(pipe_agent_start=message)


def end(agent: str) -> pb.SyncRequest:
    return pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id=agent))


def requests(changes: Sequence[ChannelChange], *, extended: bool) -> Iterator[pb.SyncRequest]:
    """Yield the messages for some changes; without extensions, only those that every node knows."""
    for change in changes:
        match change:
            case ChannelAdded():
                yield pb.SyncRequest(channel_created=created_message(change))
            case ChannelEnded(address):
                yield pb.SyncRequest(channel_disposed=pb.ChannelDisposed(channel_id=address))
            case EventAdded(address, event, offset, key):
                yield pb.SyncRequest(event_received=event_message(address, event, offset, key))
            case _ if extended:
                yield extension(change)


def created_message(added: ChannelAdded) -> pb.ChannelCreated:
    return pb.ChannelCreated(
        channel_id=added.address,
        capacity=added.capacity,
        ttl_ms=milliseconds(added.ttl_s),
        label=added.label,
        tenant=added.tenant,
    )


def extension(change: KeyAdded | ProgressMade | EventsForgotten) -> pb.SyncRequest:
    match change:
        case KeyAdded(address, event_id, key):
            taken = pb.KeyTaken(
                channel_id=address,
                request_id=key.request_id,
                event_id=event_id,
                age_ms=milliseconds(key.age_s),
            )
            return pb.SyncRequest(key_taken=taken)
        case ProgressMade(address, progress):
            return pb.SyncRequest(channel_position=position_message(address, progress))
        case EventsForgotten(address, event_id, offset):
            forgotten = pb.EventsForgotten(channel_id=address, event_id=event_id, sequence=offset)
            return pb.SyncRequest(events_forgotten=forgotten)


def position_message(address: str, progress: Progress) -> pb.ChannelPosition:
    return pb.ChannelPosition(
        channel_id=address,
        event_id=progress.cursor,
        sent_event_id=progress.sent,
        has_gap=progress.has_gap,
    )


def in_use(addresses: Sequence[str], positions: Mapping[str, str]) -> pb.FindChannelsInUseReply:
    return pb.FindChannelsInUseReply(
        channel_ids=addresses,
        positions=[
            pb.ChannelPosition(channel_id=address, event_id=event_id)
            for address, event_id in positions.items()
        ],
    )


def positions(reply: pb.FindChannelsInUseReply) -> dict[str, str]:
    return {position.channel_id: position.event_id for position in reply.positions}


def milliseconds(seconds: float) -> int:
    return max(0, int(seconds * 1000))


def event_message(address: str, event: Event, offset: int, key: KeyOf | None) -> pb.EventReceived:
    seconds, microseconds = divmod(event.timestamp_us, MICROSECONDS_PER_S)
    return pb.EventReceived(
        channel_id=address,
        stream_id=event.stream_id,
        event_id=event.id,
        timestamp=Timestamp(seconds=seconds, nanos=microseconds * 1000),
        json_payload=event.body.decode(),
        sequence=offset,
        request_id="" if key is None else key.request_id,
        age_ms=0 if key is None else milliseconds(key.age_s),
        traceparent=event.trace or "",
    )


def change_of(request: pb.SyncRequest) -> ChannelChange:
    """Return the change in a message. Raises: BadRequest, if the message has no known change."""
    match request.WhichOneof("sync_event"):
        case "channel_created":
            created = request.channel_created
            return ChannelAdded(
                created.channel_id,
                created.capacity,
                created.ttl_ms / 1000,
                created.label,
                created.tenant,
            )
        case "channel_disposed":
            return ChannelEnded(request.channel_disposed.channel_id)
        case "channel_position":
            position = request.channel_position
            return ProgressMade(position.channel_id, progress_of(position))
        case "key_taken":
            taken = request.key_taken
            key = KeyOf(taken.request_id, taken.age_ms / 1000)
            return KeyAdded(taken.channel_id, taken.event_id, key)
        case "events_forgotten":
            forgotten = request.events_forgotten
            return EventsForgotten(forgotten.channel_id, forgotten.event_id, forgotten.sequence)
        case "event_received":
            received = request.event_received
            return EventAdded(
                received.channel_id, event_of(received), received.sequence, key_of(received)
            )
        case _:
            raise BadRequest("a message without a sync_event that this node knows")


def event_of(received: pb.EventReceived) -> Event:
    timestamp = received.timestamp
    return Event(
        event_id=received.event_id,
        stream_id=received.stream_id,
        timestamp_us=timestamp.seconds * MICROSECONDS_PER_S + timestamp.nanos // 1000,
        body=received.json_payload.encode(),
        trace=received.traceparent or None,
    )


def key_of(received: pb.EventReceived) -> KeyOf | None:
    if not received.request_id:
        return None
    return KeyOf(received.request_id, received.age_ms / 1000)


def progress_of(position: pb.ChannelPosition) -> Progress:
    return Progress(position.event_id, position.sent_event_id or START, position.has_gap)
