"""The protobuf between nodes: changes of channels to messages, and messages to changes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from megaphone.errors import BadRequest
from megaphone.model import (
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    Event,
    EventAdded,
    PositionMoved,
)
from megaphone_api import sync_pb2 as pb

MICROSECONDS_PER_S = 1_000_000

EXTENSIONS_KEY = "megaphone-sync"
"""The initial metadata by which a node says that it understands the extensions."""
PROOF_KEY = "megaphone-node"
"""The metadata by which nodes prove to each other that they have the same secret: that of a call,
and the initial metadata of the answer to a greeting (see `core.node_secret`)."""
REPLY = "OK"


def proof_of(metadata: Iterable[tuple[str, Any]]) -> str | None:
    """Return the proof that a node has sent with a call or an answer, if any."""
    return next((str(value) for key, value in metadata if key == PROOF_KEY), None)


def start(agent: str, key: bytes, source_id: str) -> pb.SyncRequest:
    message = pb.PipeAgentStart(agent_id=agent, key=key, source_id=source_id)
    return pb.SyncRequest(pipe_agent_start=message)


def end(agent: str) -> pb.SyncRequest:
    return pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id=agent))


def requests(changes: Sequence[ChannelChange], *, extended: bool) -> Iterator[pb.SyncRequest]:
    """Yield what tells a node of changes; without extensions, what any node understands."""
    for change in changes:
        match change:
            case ChannelAdded(address):
                yield pb.SyncRequest(channel_created=pb.ChannelCreated(channel_id=address))
            case ChannelEnded(address):
                yield pb.SyncRequest(channel_disposed=pb.ChannelDisposed(channel_id=address))
            case EventAdded(address, event, number):
                yield pb.SyncRequest(event_received=event_message(address, event, number))
            case PositionMoved(address, event_id) if extended:
                position = pb.ChannelPosition(channel_id=address, event_id=event_id)
                yield pb.SyncRequest(channel_position=position)


def event_message(address: str, event: Event, number: int) -> pb.EventReceived:
    seconds, microseconds = divmod(event.timestamp_us, MICROSECONDS_PER_S)
    return pb.EventReceived(
        channel_id=address,
        stream_id=event.stream_id,
        event_id=event.id,
        timestamp=Timestamp(seconds=seconds, nanos=microseconds * 1000),
        json_payload=event.body.decode(),
        sequence=number,
    )


def change_of(request: pb.SyncRequest) -> ChannelChange:
    """Raises: BadRequest, for a message that is none of these."""
    match request.WhichOneof("sync_event"):
        case "channel_created":
            return ChannelAdded(request.channel_created.channel_id)
        case "channel_disposed":
            return ChannelEnded(request.channel_disposed.channel_id)
        case "channel_position":
            position = request.channel_position
            return PositionMoved(position.channel_id, position.event_id)
        case "event_received":
            received = request.event_received
            return EventAdded(received.channel_id, event_of(received), received.sequence)
        case _:
            raise BadRequest("a message without a sync_event that this node knows")


def event_of(received: pb.EventReceived) -> Event:
    timestamp = received.timestamp
    return Event(
        id=received.event_id,
        stream_id=received.stream_id,
        timestamp_us=timestamp.seconds * MICROSECONDS_PER_S + timestamp.nanos // 1000,
        body=received.json_payload.encode(),
    )
