"""The way between client and broker does what the suite says it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest

from megaphone.errors import AgentMoved, ShuttingDown
from megaphone.model import NewEvent, ReadOptions
from tests.clients.drivers.kinds import GRPC, HTTP, Kind
from tests.clients.roads import End
from tests.clients.stages import Stage, stage
from tests.clients.troubles import Garbage, LostAnswer, Refusal
from tests.support.faces import Face, GrpcFace, HttpFace, read_all, write_request

STREAM = "s"
WHAT_IS_READY = ReadOptions(wait_s=0)
GARBAGE = Garbage(b"HTTP/1.1 502 No\r\nContent-Length: 1\r\n\r\n{", b"\xff")
FAILURES = (aiohttp.ClientError, grpc.aio.AioRpcError, AssertionError, AttributeError, ValueError)
"""What the plain clients of the tests raise; grpc.aio gives None for what it cannot decode."""

each_protocol = pytest.mark.parametrize("kind", [HTTP, GRPC], ids=str)


@asynccontextmanager
async def face_over(way: Stage) -> AsyncIterator[Face]:
    """Call the broker over the way."""
    if way.scheme == "grpc":
        async with grpc.aio.insecure_channel(f"127.0.0.1:{way.road.port}") as channel:
            yield GrpcFace(channel)
    else:
        async with aiohttp.ClientSession() as session:
            yield HttpFace(session, way.road.port)


@each_protocol
async def test_calls_pass_in_calm_weather(kind: Kind) -> None:
    async with stage(kind) as way, face_over(way) as face:
        made = await face.create()
        await face.write(made.producer, STREAM, b"0")
        await face.write_batch([made.producer], [NewEvent(STREAM, b"1")])
        options = ReadOptions(acknowledge=True, cursor="-", wait_s=0)
        async with face.read(made.consumer, options) as read:
            assert read.recovered is True
            events = [event async for event in read]
        assert [event.body for event in events] == [b"0", b"1"]
        assert await face.acknowledge(made.consumer, events[-1].event_id) == 2
        assert await face.exists([made.consumer]) == {made.consumer: True}
        names = [name for name, _ in way.plan.seen]
        assert names == ["create", "write", "batch", "read", "ack", "exists"]


async def test_a_stream_of_batches_passes() -> None:
    async with stage(GRPC) as way, face_over(way) as face:
        assert isinstance(face, GrpcFace)
        made = await face.create()
        writes = [write_request(made.producer, STREAM, b"%d" % number) for number in range(4)]
        answers = await face.publish(writes[:2], writes[2:])
        assert [len(answer.results) for answer in answers] == [2, 2]
        assert way.plan.times_of("publish")


@each_protocol
async def test_a_planned_refusal_looks_like_the_broker_s(kind: Kind) -> None:
    async with stage(kind) as way, face_over(way) as face:
        made = await face.create()
        way.plan.next("write", Refusal.by(ShuttingDown(), retry_after_s=1))
        way.plan.next("read", Refusal.by(AgentMoved("moved"), retry_after_s=1))
        with pytest.raises(ShuttingDown):
            await face.write(made.producer, STREAM, b"0")
        with pytest.raises(AgentMoved):
            async with face.read(made.consumer) as read:
                await anext(read)
        await face.write(made.producer, STREAM, b"1")


@each_protocol
async def test_a_write_whose_answer_is_lost_was_carried_out(kind: Kind) -> None:
    async with stage(kind) as way, face_over(way) as face:
        made = await face.create()
        way.plan.next("write", LostAnswer(), GARBAGE)
        for _ in range(2):
            with pytest.raises(FAILURES):
                await face.write(made.producer, STREAM, b"0")
        async with way.face.read(made.consumer, WHAT_IS_READY) as read:
            assert len([event async for event in read]) == 1


@each_protocol
@pytest.mark.parametrize("end", [End.RESET, End.CLOSED], ids=lambda end: end.name)
async def test_a_connection_ends_in_the_middle_of_an_answer(kind: Kind, end: End) -> None:
    async with stage(kind) as way, face_over(way) as face:
        made = await way.face.create()
        way.weather.ends, way.weather.cuts, way.weather.mean_life_bytes = (end,), 9, 1
        await way.face.write(made.producer, STREAM, b"0")
        with pytest.raises(FAILURES):
            await read_all(face, made.consumer, WHAT_IS_READY)
        assert set(way.weather.happened) == {end}


@each_protocol
async def test_answers_pass_in_pieces(kind: Kind) -> None:
    async with stage(kind) as way, face_over(way) as face:
        way.weather.largest_piece, way.weather.longest_pause_s = 5, 0.001
        made = await face.create()
        assert await face.exists([made.consumer]) == {made.consumer: True}


@each_protocol
async def test_the_way_can_turn_to_another_broker(kind: Kind) -> None:
    async with stage(kind) as way, stage(kind) as other, face_over(way) as face:
        made = await other.face.create()
        way.turn_to(other.app)
        assert await face.exists([made.consumer]) == {made.consumer: True}
