"""Processes that die, stop, move and sleep: of brokers and of applications."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.clients.driver import Client, ClientError, Driver, Reading, driver_of
from tests.clients.drivers.kinds import HTTP, Kind
from tests.clients.records import Records
from tests.clients.roads import Road
from tests.clients.stages import stage
from tests.support.process import BrokerProcess, broker_process
from tests.support.settings import IS_LONG

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAM = "s"
WRITER = 0
BEAT_S = 0.2
AGENT = "node"
SOON: dict[str, Any] = {"heartbeat_s": BEAT_S}
KILLED = 3 if IS_LONG else 1
NEED_NO_PROCESS = (
    "test_a_channel_outlives_an_application_that_is_busy_with_one_event",
    "test_an_application_that_stores_its_cursor_gets_nothing_twice",
)
SHORT_LIFE: dict[str, Any] = {"poll_duration_millis": 300, "channel_ttl_secs": 0.7}
"""A read lasts 0.3 s, and a channel lives 0.7 s without one."""


@dataclass(slots=True)
class Writer:
    """Writes through the client under test, and records what it learns."""

    client: Client
    producer: str
    records: Records
    written: int = 0

    async def write(self, count: int, pause_s: float = 0.0) -> None:
        for _ in range(count):
            number, began = self.written, self.records.tick()
            self.written += 1
            body = self.records.body(WRITER, number)
            try:
                event_id = await self.client.write(self.producer, STREAM, body)
            except ClientError as error:
                self.records.settle(WRITER, number, began, error)
                raise
            self.records.settle(WRITER, number, began, event_id)
            await asyncio.sleep(pause_s)


async def shows_all(records: Records, reading: Reading) -> None:
    await reading.until(lambda: records.are_all_in(reading))
    if reading.error is not None:
        raise reading.error
    assert not records.faults_of_life(reading)


# -- Brokers


def port_of(broker: BrokerProcess, kind: Kind) -> int:
    return broker.grpc_port if kind.scheme == "grpc" else broker.http_port


@contextmanager
def broker_in(folder: Path, **settings: Any) -> Iterator[BrokerProcess]:
    folder.mkdir()
    with broker_process(folder, agent_warmup_secs=0, **settings) as broker:
        yield broker


@asynccontextmanager
async def road_to(broker: BrokerProcess, kind: Kind) -> AsyncIterator[Road]:
    road = Road(port_of(broker, kind))
    await road.open()
    try:
        yield road
    finally:
        await road.aclose()


def url_of(road: Road, kind: Kind) -> str:
    return f"{kind.scheme}://127.0.0.1:{road.port}"


@pytest.fixture(autouse=True)
def skip_what_needs_more_processes(request: pytest.FixtureRequest, kind: Kind) -> None:
    """Processes cost most of the time, so the short form breaks them over HTTP only."""
    if not IS_LONG and kind is not HTTP and request.node.originalname not in NEED_NO_PROCESS:
        pytest.skip("needs more processes: MEGAPHONE_TESTED_LONG=1")


async def test_a_broker_that_is_killed_and_comes_back_has_no_channel(
    driver: Driver, kind: Kind, tmp_path: Path
) -> None:
    with broker_in(tmp_path / "one", agent=AGENT) as one:
        async with road_to(one, kind) as road, driver.client(url_of(road, kind)) as client:
            producer, consumer = await client.create()
            reading = client.read(consumer, **SOON)
            records = Records()
            writer = Writer(client, producer, records)
            await writer.write(5)
            await shows_all(records, reading)
            road.close()
            one.process.kill()
            trying = asyncio.create_task(writer.write(1))
            with broker_in(tmp_path / "two", agent=AGENT) as two:
                road.to_port = port_of(two, kind)
                await road.open()
                error = await reading.fails()
                assert (error.name, error.code) == ("ChannelNotFound", "NOT_FOUND")
                with pytest.raises(ClientError) as refused:
                    await trying
                assert refused.value.name in ("ChannelNotFound", "BadRequest")
                assert not records.faults_of_life(reading, died=True)
                assert await client.exists(consumer) == {consumer: False}
                await client.create()


async def test_a_node_that_hands_over_ends_no_read_and_loses_no_write(
    driver: Driver, kind: Kind, tmp_path: Path
) -> None:
    settings = {"poll_duration_millis": 500}
    with (
        broker_in(tmp_path / "target", agent="other", **settings) as target,
        broker_in(
            tmp_path / "source",
            agent=AGENT,
            drain_target=f"http://{target.grpc_target}",
            **settings,
        ) as source,
    ):
        async with road_to(source, kind) as road, driver.client(url_of(road, kind)) as client:
            producer, consumer = await client.create()
            reading = client.read(consumer, **SOON)
            records = Records()
            writing = asyncio.create_task(Writer(client, producer, records).write(100, 0.01))
            await reading.has(20)
            source.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(source.process.wait)
            road.to_port = port_of(target, kind)
            await writing
            await shows_all(records, reading)
            await client.stop(reading)
            assert await is_owner(target, consumer)


async def is_owner(broker: BrokerProcess, address: str) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{broker.url}/agents/{address.partition('.')[0]}") as answer,
    ):
        return answer.status == 204


# -- Applications that are busy


async def test_a_channel_outlives_an_application_that_is_busy_with_one_event(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with stage(kind, **SHORT_LIFE) as way, driver.client(way.url) as client:
        producer, consumer = await client.create()
        reading = client.read(consumer, pauses={"1": 3.0}, **SOON)
        await Writer(client, producer, records).write(20, 0.1)
        await shows_all(records, reading)
        await client.stop(reading)


# -- Laptops that sleep


async def test_a_sleep_shorter_than_the_life_of_the_channel_loses_nothing(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with (
        stage(kind, poll_duration_millis=300, channel_ttl_secs=20) as way,
        driver_of(kind) as sleeper,
        sleeper.client(way.url) as client,
        driver.client(way.url) as other,
    ):
        producer, consumer = await client.create()
        reading = client.read(consumer, **SOON)
        writer = Writer(other, producer, records)
        await writer.write(10)
        await shows_all(records, reading)
        sleeper.sleep()
        await writer.write(30, 0.05)
        sleeper.wake()
        await writer.write(10)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_a_sleep_longer_than_the_life_of_the_channel_ends_the_read(kind: Kind) -> None:
    async with (
        stage(kind, **SHORT_LIFE) as way,
        driver_of(kind) as driver,
        driver.client(way.url) as client,
    ):
        producer, consumer = await client.create()
        reading = client.read(consumer, **SOON)
        await client.write(producer, STREAM, 1)
        await reading.has(1)
        driver.sleep()
        while (await way.face.exists([consumer]))[consumer]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        driver.wake()
        error = await reading.fails()
        assert (error.name, error.code) == ("ChannelNotFound", "NOT_FOUND")


@pytest.mark.timeout(240)
@pytest.mark.skipif(not IS_LONG, reason="sleeps for 70 s: MEGAPHONE_TESTED_LONG=1")
@pytest.mark.parametrize("network", [True, False], ids=["with its network", "without network"])
async def test_a_sleep_of_70_s_with_the_settings_of_production(kind: Kind, network: bool) -> None:
    """With the network up the node ends the read after 20 s, and keeps the channel for 60 s more.
    Without, it notices at once, and the channel has expired when the laptop wakes."""
    records = Records()
    async with (
        stage(kind, poll_duration_millis=20_000) as way,
        driver_of(kind) as driver,
        driver.client(way.url) as client,
        driver_of(kind) as awake,
        awake.client(way.url) as other,
    ):
        producer, consumer = await client.create()
        reading = client.read(consumer)
        writer = Writer(other, producer, records)
        await writer.write(5)
        await shows_all(records, reading)
        driver.sleep()
        if not network:
            way.road.cut()
        await asyncio.sleep(50)
        await writer.write(5)
        await asyncio.sleep(20)
        driver.wake()
        if network:
            await shows_all(records, reading)
            await client.stop(reading)
        else:
            assert (await reading.fails()).name == "ChannelNotFound"


# -- Applications that die


async def test_an_application_that_is_killed_gets_the_rest_in_its_next_life(
    driver: Driver, kind: Kind
) -> None:
    """What it had dealt with may come again, if that was not acknowledged yet."""
    records, lives = Records(), []
    async with stage(kind) as way, driver.client(way.url) as other:
        producer, consumer = await other.create()
        writer = Writer(other, producer, records)
        for _ in range(KILLED):
            victim = await Driver.start(kind)
            async with victim.client(way.url) as client:
                lives.append(client.read(consumer, **SOON))
                await writer.write(30)
                await lives[-1].has(10)
                await victim.kill()
        async with driver.client(way.url) as client:
            lives.append(client.read(consumer, **SOON))
            await lives[-1].until(lambda: records.are_all_in(*lives))
            await client.stop(lives[-1])
    assert not records.faults_of_lives(*lives)


async def test_an_application_that_stores_its_cursor_gets_nothing_twice(
    driver: Driver, kind: Kind
) -> None:
    records, lives = Records(), []
    async with stage(kind) as way, driver.client(way.url) as client:
        producer, consumer = await client.create()
        writer = Writer(client, producer, records)
        cursor = None
        for _ in range(3):
            lives.append(client.read(consumer, after=cursor, **SOON))
            await writer.write(20)
            await lives[-1].has(10)
            await client.stop(lives[-1])
            cursor = lives[-1].cursor
        lives.append(client.read(consumer, after=cursor, **SOON))
        await lives[-1].until(lambda: records.are_all_in(*lives))
        await client.stop(lives[-1])
    assert not records.faults_of_lives_with_cursor(*lives)
