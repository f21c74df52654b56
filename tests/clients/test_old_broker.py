"""The clients work with the broker of version 0.11.0, and say clearly what it cannot do."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.clients.driver import Client, ClientError, Driver
from tests.clients.drivers.kinds import Kind
from tests.clients.old_broker import MEGAPHONE, missing
from tests.clients.records import Records
from tests.clients.roads import Road
from tests.clients.stages import way_to
from tests.support.process import BrokerProcess, broker_process

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

STREAM = "s"
BEAT_S = 0.2


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("old")
    settings = {"poll_duration_millis": 500, "agent_warmup_secs": 0}
    with broker_process(folder, str(MEGAPHONE), **settings) as broker:
        yield broker


@asynccontextmanager
async def client_of(
    driver: Driver, kind: Kind, old: BrokerProcess
) -> AsyncIterator[tuple[Client, Road]]:
    port = old.grpc_port if kind.scheme == "grpc" else old.http_port
    async with (
        way_to(port, kind.scheme) as (road, _),
        driver.client(f"{kind.scheme}://127.0.0.1:{road.port}") as client,
    ):
        yield client, road


@pytest.mark.parametrize("ack", ["auto", "manual", "none"])
async def test_reading_and_writing_work(
    driver: Driver, kind: Kind, old: BrokerProcess, ack: str
) -> None:
    records = Records()
    async with client_of(driver, kind, old) as (client, road):
        producer, consumer = await client.create()
        reading = client.read(consumer, ack=ack, heartbeat_s=BEAT_S)
        for number in range(20):
            began = records.tick()
            body = records.body(0, number, 100)
            records.settle(0, number, began, await client.write(producer, STREAM, body))
            if number % 5 == 4:
                await reading.until(lambda: records.are_all_in(reading))
                road.cut()
        await reading.until(lambda: records.are_all_in(reading))
        assert not records.faults_of_life(reading)
        await client.stop(reading)


async def test_batches_and_publishers_work(driver: Driver, kind: Kind, old: BrokerProcess) -> None:
    async with client_of(driver, kind, old) as (client, _):
        producer, consumer = await client.create()
        assert await client.batch([producer], [(STREAM, 0), (STREAM, 1)]) == []
        results = await client.publish([(producer, STREAM, 2), (producer, STREAM, 3)])
        assert not any("class" in one for one in results)
        reading = client.read(consumer, heartbeat_s=BEAT_S)
        events = await reading.has(4)
        assert [event.body for event in events] == [0, 1, 2, 3]
        await client.stop(reading)
        assert await client.ack(consumer, events[-1].id) == 0
        assert await client.exists(producer) == {producer: True}


async def test_many_channels_can_be_read(driver: Driver, kind: Kind, old: BrokerProcess) -> None:
    """It has no call for that, so the client reads each channel for itself."""
    async with client_of(driver, kind, old) as (client, road):
        made = [await client.create() for _ in range(3)]
        reading = client.read(*(consumer for _, consumer in made), heartbeat_s=BEAT_S)
        for number in range(2):
            for producer, _ in made:
                await client.write(producer, STREAM, number)
            await reading.has(3 * (number + 1))
            road.cut()
        for _, consumer in made:
            assert [one.body for one in reading.events if one.consumer == consumer] == [0, 1]
        await client.stop(reading)


async def test_subscriptions_work(driver: Driver, kind: Kind, old: BrokerProcess) -> None:
    async with client_of(driver, kind, old) as (client, _):
        producer, consumer = await client.create()
        waiting = asyncio.create_task(client.first(consumer, "answer", timeout_s=20))
        await client.write(producer, "other", 0)
        await client.write(producer, "answer", 1)
        assert await waiting == 1


async def test_errors_have_their_classes(driver: Driver, kind: Kind, old: BrokerProcess) -> None:
    async with client_of(driver, kind, old) as (client, _):
        _, consumer = await client.create()
        gone = f"{consumer.partition('.')[0]}.{'a' * 50}.1"
        error = await client.read(gone).fails()
        assert error.name == "ChannelNotFound"
        with pytest.raises(ClientError, match=r"BadRequest|ChannelNotFound"):
            await client.write("not an address", STREAM, 1)
