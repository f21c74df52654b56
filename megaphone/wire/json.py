"""The JSON of the HTTP face: requests to the model, and the model to answers.

The names and forms are in `wire.bodies`. The lines of events are in `wire.lines`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import TypeVar

import msgspec

from megaphone.errors import BadRequest
from megaphone.model import (
    DEFAULT_IN_FLIGHT,
    HTTP,
    NO_OPTIONS,
    AgentInfo,
    BatchWritten,
    ChannelInfo,
    ChannelOptions,
    DrainProgress,
    NewChannel,
    NewEvent,
    NodeView,
    ReaderInfo,
    ReadOptions,
    agent_of,
    short_id,
)
from megaphone.wire import bodies
from megaphone.wire.bodies import BatchMessage, BatchRequest, ExistsRequest
from megaphone.wire.decode import Converted, decode_json

MEMBERS_AT_ONCE = 500
"""How many elements of a list are encoded into one piece of an answer."""
MAX_MILLISECONDS = 10**9
encode = msgspec.json.Encoder().encode

T = TypeVar("T")


def parse_create(body: bytes) -> tuple[list[str], ChannelOptions]:
    """Return the protocols and the options in a request to create a channel. An empty body has
    none."""
    if not body:
        return [], NO_OPTIONS
    request = decode_json(body, bodies.CreateRequest)
    options = ChannelOptions(request.capacity, request.ttl_secs, request.label or "")
    return request.protocols, options


def parse_batch(body: bytes, trace: str | None = None) -> tuple[list[str], Sequence[NewEvent]]:
    """Return the addresses and the messages of a batch, all with one trace context."""
    request = decode_json(body, BatchRequest)
    return named_channels(request), Converted(request.messages, lambda one: message_of(one, trace))


def message_of(message: BatchMessage, trace: str | None) -> NewEvent:
    return NewEvent(message.stream_id, bytes(message.body), None, trace)


def parse_exists(body: bytes) -> list[str]:
    """Return the addresses in a request that asks which channels exist."""
    return named_channels(decode_json(body, ExistsRequest))


def parse_ack(body: bytes) -> str:
    """Return the id of the event that a request acknowledges."""
    return decode_json(body, bodies.AckRequest).eid


def parse_read_many(body: bytes) -> tuple[list[tuple[str, str | None]], ReadOptions]:
    """Return the channels of a read of many channels, each with its cursor, and the options."""
    request = decode_json(body, bodies.ReadManyRequest)
    options = ReadOptions(
        acknowledge=request.ack == "explicit",
        in_flight=DEFAULT_IN_FLIGHT if request.window is None else request.window,
        take_over=request.takeover,
        reader=request.reader,
        returning=request.returning,
        limit=request.limit,
        wait_s=seconds("wait_ms", request.wait_ms),
        heartbeat_s=seconds("heartbeat_ms", request.heartbeat_ms),
        streams=frozenset(request.stream) or None,
        trace=request.trace,
        face=HTTP,
    )
    return [(one.address, one.after) for one in request.channels], options


def seconds(name: str, milliseconds: int | None) -> float | None:
    if milliseconds is None:
        return None
    if not 0 <= milliseconds < MAX_MILLISECONDS:
        raise BadRequest(f"`{name}` must be a whole number from 0 to {MAX_MILLISECONDS - 1}")
    return milliseconds / 1000


def parse_agent_name(body: bytes) -> str:
    """Return the name in a request to add or promote an agent."""
    return decode_json(body, bodies.AgentRequest).name


def parse_pipe_agent(body: bytes) -> tuple[str, str]:
    """Return the name and the target in a request to replicate an agent."""
    request = decode_json(body, bodies.PipeAgentRequest)
    return request.name, request.target


def parse_remove_agent(body: bytes) -> tuple[str, bool]:
    """Return the name in a request to remove an agent, and whether it is forced."""
    request = decode_json(body, bodies.RemoveAgentRequest)
    return request.name, request.force


def parse_unpipe_agent(body: bytes) -> tuple[str, str | None, bool]:
    """Return the name and the target in a request to end the replication of an agent, and whether
    it is forced."""
    request = decode_json(body, bodies.UnpipeAgentRequest)
    return request.name, request.target, request.force


def parse_drain(body: bytes) -> str:
    """Return the target of a request to drain."""
    return decode_json(body, bodies.DrainRequest).target


def named_channels(request: BatchRequest | ExistsRequest) -> list[str]:
    named = request.channel_ids if request.channels is None else request.channels
    if named is None:
        raise BadRequest("the body does not fit: it lacks `channels`, a list of addresses")
    return named


def created(channel: NewChannel) -> bytes:
    return encode(
        bodies.Created(
            channel_id=channel.consumer_address,
            producer_address=channel.producer_address,
            consumer_address=channel.consumer_address,
            agent_name=channel.agent,
            protocols=[protocol.value for protocol in channel.protocols],
        )
    )


def written(event_id: str) -> bytes:
    """Return the answer to a write, a `bodies.Written`. No answer is more frequent."""
    return b'{"status":"OK","eid":"%b"}' % event_id.encode()


def batch_written(written: BatchWritten) -> Iterator[bytes]:
    """Yield the answer to a batch in pieces. Each takes a short time to make."""
    yield b'{"failures":'
    yield from listed(
        written.failures,
        lambda one: bodies.Failure(one.channel, one.index, one.reason),
    )
    separator = b',"eids":['
    for start in range(0, len(written.events), MEMBERS_AT_ONCE):
        yield separator + encode(written.event_ids(start, start + MEMBERS_AT_ONCE))[1:-1]
        separator = b","
    yield b"]}" if written.events else b',"eids":[]}'


def existing(channels: Mapping[str, bool]) -> bytes:
    return encode(bodies.Existing(dict(channels)))


def acknowledged(count: int) -> bytes:
    return encode(bodies.Acknowledged("OK", count))


def agents(infos: Iterable[AgentInfo]) -> bytes:
    return encode([agent(info) for info in infos])


def agent(info: AgentInfo) -> bodies.Agent:
    return bodies.Agent(
        name=info.name,
        since=info.since,
        warming_up=info.warming_up,
        mode=info.mode.value,
        channels_count=info.channels,
    )


def shown_channels(infos: Sequence[ChannelInfo]) -> Iterator[bytes]:
    """Yield a list of channels with details in pieces. Each takes a short time to make."""
    return listed(infos, channel_info)


def shown_channel(info: ChannelInfo) -> bytes:
    return encode(channel_info(info))


def channel_info(info: ChannelInfo) -> bodies.ChannelInfo:
    return bodies.ChannelInfo(
        address=info.address,
        agent_id=agent_of(info.address),
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


def reader_of_channel(reader: ReaderInfo) -> bodies.ReaderOfChannel:
    kind = "acknowledging" if reader.acknowledges else "plain"
    return bodies.ReaderOfChannel(
        kind, reader.face, reader.name, reader.age_s, reader.taken_s, reader.node
    )


def channels(addresses: Sequence[str]) -> Iterator[bytes]:
    """Yield a list of channels in pieces. Each takes a short time to make."""
    return listed(addresses, lambda one: bodies.ListedChannel(one, agent_of(one)))


def listed(members: Sequence[T], rendered: Callable[[T], msgspec.Struct]) -> Iterator[bytes]:
    separator = b"["
    for start in range(0, len(members), MEMBERS_AT_ONCE):
        piece = encode([rendered(one) for one in members[start : start + MEMBERS_AT_ONCE]])
        yield separator + piece[1:-1]
        separator = b","
    yield b"]" if members else b"[]"


def drained(progress: DrainProgress) -> bytes:
    """Return one line of the answer to a drain."""
    return encode(drain_step(progress)) + b"\n"


def drain_step(progress: DrainProgress) -> bodies.DrainStep:
    return bodies.DrainStep(
        agent=progress.agent,
        agents_moved=progress.agents_moved,
        agents_left=progress.agents_left,
        agents_failed=progress.agents_failed,
        channels_moved=progress.channels_moved,
        channels_left=progress.channels_left,
        done=progress.done,
    )


def node_view(view: NodeView) -> bytes:
    """Return one line of the answer to a watcher."""
    line = bodies.NodeView(
        at=view.at,
        counts=dict(view.counts),
        levels=dict(view.levels),
        notable=dict(view.notable),
        agents=[agent(info) for info in view.agents],
        pipes=[bodies.Pipe(p.agent, p.target, p.is_connected, p.backlog) for p in view.pipes],
        drain=None if view.drain is None else drain_step(view.drain),
        channels=[
            bodies.WatchedChannel(
                one.address,
                one.depth,
                one.in_flight,
                one.waiting_writers,
                one.is_read,
                one.age_s,
                one.oldest_s,
                one.rate,
                one.label,
                one.tenant,
                short_id(one.channel_id),
                one.unsent,
                one.bytes,
            )
            for one in view.channels
        ],
    )
    return encode(line) + b"\n"


def error(code: str, message: str, status: int) -> bytes:
    """Return an error: `code` and `message` for existing clients, and the members of RFC 9457."""
    return encode(
        bodies.Error(
            code=code,
            message=message,
            type="about:blank",
            title=HTTPStatus(status).phrase,
            status=status,
            detail=message,
        )
    )
