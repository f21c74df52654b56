"""`megaphone.v1.ChannelService`: the calls of clients, translated to the broker and back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc
from google.protobuf.message import Message

from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.pace import ANSWER_WORK, Pace
from megaphone.core.ports import Doorkeeper, Sending
from megaphone.errors import MegaphoneError
from megaphone.model import WriteFailure
from megaphone.rpc.answers import joined
from megaphone.rpc.callers import caller, client_of, present_caller
from megaphone.rpc.errors import present_call
from megaphone.rpc.reads import read_time_s, stream_events, stream_many
from megaphone.rpc.traces import FACE, traceparent
from megaphone.wire import protobuf as wire
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

COPIES = 3
"""How many times grpc has a request in memory while it is served: in slices, whole, and decoded."""


class ChannelServicer(ChannelServiceServicer):
    def __init__(self, broker: Broker, budget: Budget, doorkeeper: Doorkeeper) -> None:
        self._broker = broker
        self._tracing = broker.tracing
        self._doorkeeper = doorkeeper
        self._budget = budget
        self._clock = asyncio.get_running_loop().time

    def _held(self, request: Message) -> AbstractContextManager[None]:
        """Return a context in which a request counts against the budget. Use it for the whole call,
        because grpc keeps the request in memory until the call ends.

        Raises: LimitExceeded, on entering the context, if there is no memory for the request.
        """
        return self._budget.reserved(COPIES * request.ByteSize(), self._clock())

    async def CreateChannel(
        self, request: pb.CreateChannelRequest, context: Context
    ) -> pb.CreateChannelResponse:
        options = wire.channel_options(request)
        peers = self._broker.peers
        ip = client_of(context, peers.proxies) if peers.limit_creates else None
        return wire.created(await self._broker.create(caller(), request.protocols, options, ip))

    async def Write(self, request: pb.WriteRequest, context: Context) -> pb.WriteResponse:
        given = request.traceparent or traceparent()
        with self._held(request), self._tracing.sending(FACE) as sending:
            event = wire.new_event(request, sending.trace_of(given))
            if sending.has_spans:
                sending.to_channel(self._broker.short_id_of(request.producer_address))
            event_id = await self._broker.write(caller(), request.producer_address, event)
            sending.note(given, event_id)
        return wire.written(event_id)

    async def WriteBatch(  # type: ignore[override]
        self, request: pb.WriteBatchRequest, context: Context
    ) -> bytes:
        given = traceparent()
        with self._held(request), self._tracing.sending(FACE) as sending:
            written = await self._broker.write_batch(
                caller(),
                request.channels,
                wire.batch_events(request, sending.trace_of(given)),
                wire.optional(request.request_id),
            )
            sending.note(given, failure=written.failure, events=len(request.messages))
        return await joined(wire.batch_written(written))

    async def Publish(  # type: ignore[override]
        self, requests: AsyncIterator[pb.PublishRequest], context: Context
    ) -> AsyncIterator[bytes]:
        proxies = self._broker.peers.proxies
        async for request in counted(requests):
            with self._held(request), self._tracing.sending(FACE) as sending:
                writer = await present_caller(self._doorkeeper, context, proxies)
                writes = wire.writes(request, sending.trace_of)
                results = await self._broker.write_each(writer, writes)
                if sending.has_spans:
                    await note_results(sending, request, results)
            present_call().end()
            yield await joined(wire.published(results))

    # This is a coroutine that writes, and not a generator: the generator of a lost client would
    # hang at its `yield` and keep the lease of the channel.
    async def Read(self, request: pb.ReadRequest, context: Context) -> None:  # type: ignore[override]
        reading = self._broker.read(
            caller(),
            request.consumer_address,
            wire.read_options(request),
            within_s=read_time_s(context.time_remaining()),
        )
        events = wire.traced_events if request.trace else wire.events
        await stream_events(context, reading, self._budget, events)

    async def ReadMany(self, request: pb.ReadManyRequest, context: Context) -> None:  # type: ignore[override]
        reading = self._broker.read_many(
            caller(),
            wire.many_channels(request),
            wire.many_options(request),
            within_s=read_time_s(context.time_remaining()),
        )
        parts = wire.traced_parts if request.trace else wire.parts
        await stream_many(context, reading, self._budget, parts)

    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, context: Context
    ) -> pb.AcknowledgeResponse:
        count = await self._broker.acknowledge(caller(), request.consumer_address, request.event_id)
        return wire.acknowledged(count)

    async def ChannelsExist(
        self, request: pb.ChannelsExistRequest, context: Context
    ) -> pb.ChannelsExistResponse:
        return wire.existing(await self._broker.exists(caller(), request.channels))

    async def DisposeChannel(
        self, request: pb.ChannelServiceDisposeChannelRequest, context: Context
    ) -> pb.ChannelServiceDisposeChannelResponse:
        await self._broker.dispose(caller(), request.producer_address)
        return pb.ChannelServiceDisposeChannelResponse()


async def counted(requests: AsyncIterator[pb.PublishRequest]) -> AsyncIterator[pb.PublishRequest]:
    """Yield the messages of a stream. Each begins a call that counts, also one that cannot be read;
    how long the stream is open does not count.

    Raises: BadRequest or PayloadTooLarge, if a message cannot be read.
    """
    call = present_call()
    call.leave_to_messages()
    try:
        async for request in requests:
            call.begin()
            yield request
    except MegaphoneError:
        call.begin()
        raise


async def note_results(
    sending: Sending, request: pb.PublishRequest, results: Sequence[str | WriteFailure]
) -> None:
    """Note what became of the published events that are traced, in slices."""
    pace = Pace()
    for one, result in zip(request.events, results, strict=True):
        if isinstance(result, WriteFailure):
            sending.note(one.traceparent, failure=result.reason)
        else:
            sending.note(one.traceparent, result)
        await pace.work(ANSWER_WORK)
