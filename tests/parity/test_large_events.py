"""Events of hundreds of kilobytes, in backlogs that no single message could hold."""

import grpc as grpcio
import pytest

from megaphone.app import App
from megaphone.model import START, ReadOptions
from tests.support.faces import Done, Face, GrpcFace, read_all

BODIES = [b'"' + b"%03d" % number + b"x" * 500_000 + b'"' for number in range(24)]


@pytest.mark.parametrize(
    "options", [ReadOptions(), ReadOptions(acknowledge=True), ReadOptions(cursor=START)]
)
async def test_a_backlog_of_large_events_is_read_in_one_read_without_waiting(
    face: Face, options: ReadOptions
) -> None:
    channel = await face.create()
    for body in BODIES:
        await face.write(channel.producer, "s", body)
    options = ReadOptions(options.cursor, acknowledge=options.acknowledge, wait_s=0)
    events = await read_all(face, channel.consumer, options)
    assert [event.body for event in events] == BODIES


LARGEST = 5_000_000


@pytest.mark.settings(max_body_bytes=LARGEST)
async def test_a_read_of_many_channels_has_no_message_larger_than_the_largest_event_needs(
    app: App, grpc: GrpcFace
) -> None:
    channels = [await grpc.create() for _ in range(3)]
    small = [b"%d" % number for number in range(50)]
    bodies = [small, [b'"' + b"x" * (LARGEST - 2) + b'"'], small]
    for channel, written in zip(channels, bodies, strict=True):
        for body in written:
            await grpc.write(channel.producer, "s" * 500, body)
    addresses = [channel.consumer for channel in channels]
    room = [("grpc.max_receive_message_length", LARGEST + 16_384)]
    async with (
        grpcio.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}", room) as client,
        GrpcFace(client).read_many(addresses, ReadOptions(wait_s=0)) as read,
    ):
        parts = [part async for part in read]
    for index, written in enumerate(bodies):
        events = [part[1] for part in parts if isinstance(part, tuple) and part[0] == index]
        assert [event.body for event in events] == written
        assert Done(index) in parts
