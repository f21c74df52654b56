"""A write is stored once however its way breaks, and its writer learns what became of it."""

import asyncio
import json
from typing import Any

import pytest

from megaphone.errors import BadRequest, ChannelNotFound, PayloadTooLarge
from megaphone.model import ReadOptions
from tests.clients.driver import Client, ClientError, Driver, until
from tests.clients.drivers.kinds import Kind
from tests.clients.roads import Babbler, End
from tests.clients.stages import Stage, other_node, stage
from tests.clients.troubles import (
    NO_EVENT,
    PASSING,
    WEB_PAGE,
    Late,
    LostAnswer,
    Refusal,
)
from tests.support.faces import Created, http_face, read_all
from tests.support.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAM = "s"
WHAT_IS_READY = ReadOptions(wait_s=0)
HOW = ["write", "batch", "publish"]


async def stored(way: Stage, created: Created) -> list[Any]:
    """Return the bodies that a channel has."""
    events = await read_all(way.face, created.consumer, WHAT_IS_READY)
    return [json.loads(event.body) for event in events]


async def write(client: Client, created: Created, how: str, bodies: list[Any]) -> None:
    """Write events in one call; each must be taken."""
    match how:
        case "write":
            for body in bodies:
                await client.write(created.producer, STREAM, body)
        case "batch":
            messages = [(STREAM, body) for body in bodies]
            assert await client.batch([created.producer], messages) == []
        case _:
            results = await client.publish([(created.producer, STREAM, body) for body in bodies])
            assert all("class" not in one for one in results)


def call_of(way: Stage, how: str) -> str:
    """Return the call that a client makes for it: over HTTP a publisher writes batches."""
    return "batch" if (how, way.scheme) == ("publish", "http") else how


@pytest.mark.parametrize("how", HOW)
async def test_a_write_whose_answer_is_lost_is_stored_once(
    driver: Driver, kind: Kind, how: str
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        way.plan.next(call_of(way, how), LostAnswer(), LostAnswer())
        await write(client, created, how, [0, 1, 2])
        assert len(way.plan.happened) == 2
        assert await stored(way, created) == [0, 1, 2]


@pytest.mark.parametrize("how", HOW)
async def test_a_write_whose_answer_is_lost_while_its_channel_moves_is_stored_once(
    driver: Driver, kind: Kind, how: str
) -> None:
    """The second try meets a node that says that the channel has moved."""
    async with (
        stage(kind) as way,
        other_node() as other,
        driver.client(way.url) as client,
        http_face(other) as face,
    ):
        created = await way.face.create()
        call = call_of(way, how)
        way.plan.next(call, LostAnswer(), Late(0.7))
        writing = asyncio.create_task(write(client, created, how, [0]))
        await until(lambda: len(way.plan.times_of(call)) >= 2)
        await way.drain_to(other)
        await asyncio.wait({writing}, timeout=1.5)
        assert not writing.done()
        way.turn_to(other)
        await writing
        events = await read_all(face, created.consumer, WHAT_IS_READY)
        assert [event.body for event in events] == [b"0"]


@pytest.mark.parametrize("how", HOW)
async def test_a_refusal_that_passes_fails_no_write(driver: Driver, kind: Kind, how: str) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        for number, refusal in enumerate(PASSING):
            way.road.cut()  # because a publisher over gRPC has one call for all its events
            way.plan.next(call_of(way, how), refusal)
            await write(client, created, how, [number])
            assert way.plan.happened.pop() == (call_of(way, how), refusal)
        assert await stored(way, created) == list(range(len(PASSING)))


@pytest.mark.parametrize("stream", ["", ".", ".."])
async def test_a_stream_that_a_path_may_not_name_does_not_look_like_a_channel_that_has_gone(
    driver: Driver, kind: Kind, stream: str
) -> None:
    """The client writes to it, or says that the name is wrong."""
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        refusals: list[ClientError] = []
        try:
            await client.write(created.producer, stream, 1)
        except ClientError as error:
            refusals.append(error)
        assert await stored(way, created) == ([] if refusals else [1])
        assert all((one.name, one.code) == ("BadRequest", "BAD_REQUEST") for one in refusals)


@pytest.mark.parametrize("end", [End.RESET, End.CLOSED], ids=lambda end: end.name)
async def test_writes_survive_cut_connections(driver: Driver, kind: Kind, end: End) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        way.weather.ends = (end,)
        way.weather.cuts, way.weather.mean_life_bytes = (4, 300)
        created = await way.face.create()
        bodies = list(range(60))
        for how in ("write", "batch", "publish"):
            await write(client, created, how, bodies[:20])
            bodies = bodies[20:]
        assert await stored(way, created) == list(range(60))


async def test_creating_asking_and_acknowledging_go_on_after_troubles(
    driver: Driver, kind: Kind
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        for call in ("create", "exists", "ack"):
            way.plan.next(call, PASSING[0], LostAnswer())
        producer, consumer = await client.create()
        event_id = await client.write(producer, STREAM, 1)
        assert await client.exists(producer, consumer, gone_from(producer)) == {
            producer: True,
            consumer: True,
            gone_from(producer): False,
        }
        assert await client.ack(consumer, event_id) in (0, 1)
        assert len(way.plan.happened) == 6


def gone_from(producer: str) -> str:
    """Return the address of a channel that does not exist."""
    return f"{producer.partition('.')[0]}.{'a' * 50}.1"


# -- What a writer learns


async def test_a_channel_that_stays_full_takes_nothing(driver: Driver, kind: Kind) -> None:
    async with (
        stage(kind, buffer_capacity=2, write_timeout_millis=200) as way,
        driver.client(way.url) as client,
    ):
        created = await way.face.create()
        await write(client, created, "write", [0, 1])
        with pytest.raises(ClientError) as refused:
            await client.write(created.producer, STREAM, 2, timeout_s=1.0)
        assert (refused.value.name, refused.value.code) == ("WriteTimeout", "TIMEOUT")
        failed = await client.batch([created.producer], [(STREAM, 3), (STREAM, 4)])
        assert [index for _, index, _ in failed] == [0, 1]
        assert await stored(way, created) == [0, 1]


async def test_a_writer_without_an_answer_learns_that_it_cannot_know(
    driver: Driver, kind: Kind
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        await client.write(created.producer, STREAM, 0)
        way.weather.is_silent = True
        with pytest.raises(ClientError) as unknown:
            await client.write(created.producer, STREAM, 1, timeout_s=1.0)
        assert unknown.value.name == "OutcomeUnknown"
        assert (await stored(way, created))[:1] == [0]


async def test_a_writer_learns_that_nobody_is_there(driver: Driver, kind: Kind) -> None:
    async with driver.client(f"{kind.scheme}://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ClientError) as failed:
            await client.write("node.AAAA", STREAM, 1, timeout_s=1.0)
        assert failed.value.name == "ConnectionFailed"


async def test_a_server_that_is_no_broker_fails_a_write_in_time(driver: Driver, kind: Kind) -> None:
    for says in (b"220 mail.example.com ESMTP\r\n", b""):
        async with (
            Babbler(says) as babbler,
            driver.client(f"{kind.scheme}://127.0.0.1:{babbler.port}") as client,
        ):
            with pytest.raises(ClientError) as failed:
                await client.write("node.AAAA", STREAM, 1, timeout_s=0.5)
            assert failed.value.name in ("OutcomeUnknown", "ConnectionFailed", "ProtocolError")
            assert "mail" not in failed.value.message


async def test_an_answer_that_is_garbage_is_no_success(driver: Driver, kind: Kind) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        for garbage in (NO_EVENT, WEB_PAGE):
            way.plan.next("write", *[garbage] * 100)
            with pytest.raises(ClientError) as failed:
                await client.write(created.producer, STREAM, 1, timeout_s=0.5)
            assert failed.value.name in ("OutcomeUnknown", "ProtocolError")
            assert "garbage" not in failed.value.message
            way.plan.clear()


async def test_a_refusal_that_no_other_try_heals_is_raised_at_once(
    driver: Driver, kind: Kind
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        for refused in (ChannelNotFound(), BadRequest("bad"), PayloadTooLarge("large")):
            way.plan.next("write", Refusal.by(refused))
            with pytest.raises(ClientError) as failed:
                await client.write(created.producer, STREAM, 1)
            assert (failed.value.name, failed.value.code) == (type(refused).__name__, refused.code)
        assert len(way.plan.times_of("write")) == 3


async def test_writers_go_on_while_others_wait(driver: Driver, kind: Kind) -> None:
    """One full channel holds up no writer of another."""
    async with stage(kind, buffer_capacity=1) as way, driver.client(way.url) as client:
        full, free = await way.face.create(), await way.face.create()
        await client.write(full.producer, STREAM, 0)
        waiting = asyncio.create_task(client.write(full.producer, STREAM, 1))
        await client.write(free.producer, STREAM, 0)
        assert not waiting.done()
        assert await stored(way, full) == [0]
        await waiting
