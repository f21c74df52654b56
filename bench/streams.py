"""Events through the whole broker: written in batches at one end, read as a stream at the other.

The limits are the defaults, so a channel holds one batch. There are a few writers. Each waits for
its answer before it sends the next batch, so the server is busy but no channel is full.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import TypeAlias

import grpc

from bench.events import BATCH_EVENTS, BODIES, STREAM_ID
from bench.processes import HOST, BenchError, bare, broker
from bench.raw import (
    Channel,
    Exchange,
    OpenRead,
    Tally,
    ask_batch,
    batch_body,
    make_channels,
    post,
)
from bench.report import Result, compared
from bench.rounds import Measure, Plan, Sample, Watch, alternate
from megaphone_api.v1 import channels_pb2 as pb

WRITERS = 4
SERVICE = "/megaphone.v1.ChannelService"

WriteBatch = Callable[[], Awaitable[None]]
ReadCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.ReadRequest, pb.ReadResponse]"


def flow(pid: int, writers: Sequence[WriteBatch], tally: Tally) -> Measure:
    """Return a function that writes batches for a while and waits until all events are read."""

    async def measure(seconds: float) -> Sample:
        watch, before, sent = Watch(pid), tally.count, 0

        async def repeat(write: WriteBatch) -> None:
            nonlocal sent
            while time.monotonic() < watch.began + seconds:
                await write()
                sent += BATCH_EVENTS

        async with asyncio.TaskGroup() as group:
            for write in writers:
                group.create_task(repeat(write))
        await tally.reach(before + sent)
        return watch.sample(sent)

    return measure


# -- HTTP


async def measure_http(plan: Plan) -> list[Result]:
    async with broker() as ours, bare("http-relay") as baseline:
        channels = await make_channels(ours.http_port, WRITERS)
        with ExitStack() as stack:
            rounds = await alternate(
                "http-stream",
                plan,
                await http_flow(stack, ours.pid, ours.http_port, channels, "/write-batch"),
                await http_flow(stack, baseline.pid, baseline.port, channels, "/write-batch/{}"),
            )
    return [
        compared(
            "http-stream",
            "HTTP batches in, NDJSON out, events",
            rounds,
            against="a bare aiohttp relay: the same requests in, lines made beforehand out",
        )
    ]


async def http_flow(
    stack: ExitStack, pid: int, port: int, channels: Sequence[Channel], write_path: str
) -> Measure:
    """Open a read of each channel, and a connection that writes to it.

    The bare relay finds the read by `write_path`; the broker finds the channel by the body.
    """
    tally = Tally()
    writers = []
    for channel in channels:
        read = await OpenRead.connect(port, f"/read/{channel.consumer}", tally)
        stack.callback(read.close)
        exchange = await Exchange.connect(port)
        stack.callback(exchange.close)
        body = batch_body([channel.producer], BODIES, STREAM_ID)
        writers.append(http_writer(exchange, post(write_path.format(channel.consumer), body)))
    return flow(pid, writers, tally)


def http_writer(exchange: Exchange, request: bytes) -> WriteBatch:
    return lambda: ask_batch(exchange, request)


# -- gRPC


async def measure_grpc(plan: Plan) -> list[Result]:
    async with broker() as ours, bare("grpc-relay") as baseline, AsyncExitStack() as stack:
        channels = await make_channels(ours.http_port, WRITERS)
        # The bare relay has no addresses, so both are the same there.
        relayed = [Channel(channel.producer, channel.producer) for channel in channels]
        rounds = await alternate(
            "grpc-stream",
            plan,
            await grpc_flow(stack, ours.pid, ours.grpc_port, channels),
            await grpc_flow(stack, baseline.pid, baseline.port, relayed),
        )
    return [
        compared(
            "grpc-stream",
            "gRPC Publish in, Read out, events",
            rounds,
            against="a bare grpc.aio relay: the same requests in, messages made beforehand out",
        )
    ]


async def grpc_flow(
    stack: AsyncExitStack, pid: int, port: int, channels: Sequence[Channel]
) -> Measure:
    """Open a read of each channel, and a stream that publishes to it."""
    tally = Tally()
    target = f"{HOST}:{port}"
    to_write = await stack.enter_async_context(grpc.aio.insecure_channel(target))
    to_read = await stack.enter_async_context(grpc.aio.insecure_channel(target))
    writers = []
    for channel in channels:
        await count_read(stack, to_read, channel.consumer, tally)
        writers.append(publisher(stack, to_write, channel.producer))
    return flow(pid, writers, tally)


async def count_read(
    stack: AsyncExitStack, connection: grpc.aio.Channel, consumer: str, tally: Tally
) -> None:
    """Open a read and count its events until the stack ends."""
    call = read_call(connection, consumer)
    stack.callback(call.cancel)
    await call.initial_metadata()

    async def count() -> None:
        async for response in call:
            tally.add(len(response.events))
        tally.fail("the server ended a read")

    stack.callback(asyncio.create_task(count()).cancel)


def read_call(connection: grpc.aio.Channel, consumer: str) -> ReadCall:
    read: grpc.aio.UnaryStreamMultiCallable[pb.ReadRequest, pb.ReadResponse]
    read = connection.unary_stream(
        f"{SERVICE}/Read",
        request_serializer=pb.ReadRequest.SerializeToString,
        response_deserializer=pb.ReadResponse.FromString,
    )
    return read(pb.ReadRequest(consumer_address=consumer))


def publisher(stack: AsyncExitStack, connection: grpc.aio.Channel, producer: str) -> WriteBatch:
    """Return a function that publishes a batch and waits for the answer."""
    publish: grpc.aio.StreamStreamMultiCallable[bytes, pb.PublishResponse]
    publish = connection.stream_stream(
        f"{SERVICE}/Publish",
        request_serializer=None,  # the request is already bytes
        response_deserializer=pb.PublishResponse.FromString,
    )
    call = publish()
    stack.callback(call.cancel)
    request = publish_request(producer).SerializeToString()

    async def write() -> None:
        await call.write(request)
        answer = await call.read()
        if not isinstance(answer, pb.PublishResponse):
            raise BenchError("the server ended a stream of batches")
        if not all(result.event_id for result in answer.results):
            raise BenchError("events of a batch were refused")

    return write


def publish_request(producer: str) -> pb.PublishRequest:
    return pb.PublishRequest(
        events=[
            pb.WriteRequest(producer_address=producer, stream_id=STREAM_ID, body=body)
            for body in BODIES
        ]
    )
