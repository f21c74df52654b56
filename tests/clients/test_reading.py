"""Reading goes on whatever happens on the way, and ends with a clear exception when it must."""

import asyncio
import json
from typing import Any

import pytest

from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    PermissionDenied,
    ReaderBusy,
)
from megaphone.model import ReadOptions
from tests.clients.conftest import chosen_kind, params_of
from tests.clients.driver import Driver, Reading, until
from tests.clients.drivers.kinds import KINDS, PAGE, POLLS, Kind
from tests.clients.records import Records
from tests.clients.roads import Babbler, End
from tests.clients.stages import Stage, stage
from tests.clients.troubles import (
    BAD_GATEWAY,
    NO_EVENT,
    PASSING,
    WEB_PAGE,
    Late,
    LostAnswer,
    Refusal,
)
from tests.support.faces import Created
from tests.support.settings import IS_LONG

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAM = "s"
WRITER = 0
BEAT_S = 0.2
EVENT_BYTES = 1_000_000
SOON: dict[str, Any] = {"heartbeat_s": BEAT_S}


@pytest.fixture(params=params_of((*KINDS, PAGE, POLLS)))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each client library with each protocol, a page of a browser, and long polls."""
    return chosen_kind(request)


async def write(
    way: Stage, created: Created, records: Records, *sizes: int, stream: str = STREAM
) -> list[str]:
    """Write events directly to the broker, one for each size, and record them."""
    ids = []
    for size in sizes:
        number = len(records.writes)
        body = records.body(WRITER, number, size)
        began = records.tick()
        ids.append(await way.face.write(created.producer, stream, json.dumps(body).encode()))
        records.settle(WRITER, number, began, ids[-1])
    return ids


async def shows_all(records: Records, reading: Reading) -> None:
    """Wait until a read has shown all events, and judge it."""
    await reading.until(lambda: records.are_all_in(reading))
    if reading.error is not None:
        raise reading.error
    assert not records.faults_of_life(reading)


# -- Connections that break


@pytest.mark.parametrize("end", End, ids=lambda end: end.name)
async def test_connections_cut_at_random_offsets_cost_no_event(
    driver: Driver, kind: Kind, end: End
) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        way.weather.ends = (end,)
        way.weather.cuts, way.weather.mean_life_bytes = (3, 4_000)
        created = await way.face.create()
        reading = client.read(created.consumer, **SOON)
        while way.weather.cuts:
            await write(way, created, records, *[200] * 12)
            await shows_all(records, reading)
        await client.stop(reading)


@pytest.mark.skipif(not IS_LONG, reason="writes 5,000 events: MEGAPHONE_TESTED_LONG=1")
@pytest.mark.timeout(300)
async def test_thousands_of_events_survive_cuts_at_random_offsets(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        way.weather.cuts, way.weather.mean_life_bytes = (60, 10_000)
        created = await way.face.create()
        reading = client.read(created.consumer, **SOON)
        for _ in range(50):
            await write(way, created, records, *[20] * 100)
        way.weather.clear()
        await shows_all(records, reading)
        assert len(reading.events) == 5_000
        await client.stop(reading)


async def test_a_line_in_many_pieces_is_one_event(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        way.weather.largest_piece = 3
        created = await way.face.create()
        await write(way, created, records, 0, 150, 1_000, 150, 0)
        reading = client.read(created.consumer, heartbeat_s=2)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_an_event_of_a_megabyte_survives_a_cut_in_its_middle(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        way.weather.ends = (End.RESET,)
        way.weather.cuts, way.weather.mean_life_bytes = (2, EVENT_BYTES // 3)
        way.weather.largest_piece = 20_000
        created = await way.face.create()
        await write(way, created, records, 10, EVENT_BYTES, 10)
        reading = client.read(created.consumer, heartbeat_s=1)
        await shows_all(records, reading)
        assert [len(body[2]) for body in reading.bodies] == [10, EVENT_BYTES, 10]
        await client.stop(reading)


async def test_a_read_with_a_limit_counts_over_all_its_connections(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with stage(kind, poll_duration_millis=200) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, limit=7, **SOON)
        ids = await write(way, created, records, 0, 0, 0)
        await shows_all(records, reading)
        way.road.cut()
        ids += await write(way, created, records, *[0] * 6)
        await reading.until(lambda: False)
        assert [event.id for event in reading.events] == ids[:7]
        assert (reading.error, reading.cursor) == (None, ids[6])


@pytest.mark.parametrize("ack", ["auto", "none"])
async def test_a_read_of_some_streams_gets_only_these_and_goes_on_after_a_cut(
    driver: Driver, kind: Kind, ack: str
) -> None:
    """Those that nobody wants are more than a channel holds."""
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, streams=["a", "b"], ack=ack, **SOON)
        for number in range(3):
            await write(way, created, Records(), *[0] * 50, stream="other")
            await way.face.write(created.producer, "ab"[number % 2], str(number).encode())
            await reading.has(number + 1)
            way.road.cut()
        assert reading.bodies == [0, 1, 2]
        assert not reading.gaps
        await client.stop(reading)


async def test_a_read_of_many_channels_goes_on_after_cuts(driver: Driver, kind: Kind) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        channels = [(await way.face.create(), Records()) for _ in range(3)]
        reading = client.read(*(created.consumer for created, _ in channels), **SOON)
        for _ in range(3):
            for created, records in channels:
                await write(way, created, records, 0, 10)
            for created, records in channels:
                own = part_of(reading, created)
                await reading.until(lambda o=own, r=records: r.are_all_in(o()))  # type: ignore[misc]
            way.road.cut()
        for created, records in channels:
            assert not records.faults_of_life(part_of(reading, created)())
        await client.stop(reading)


def part_of(reading: Reading, created: Created) -> Any:
    """Return a function that returns the events of one channel of a read of several."""

    def own() -> Reading:
        mine = [event for event in reading.events if event.consumer == created.consumer]
        return Reading(reading.name, [*mine])

    return own


async def test_subscriptions_go_on_after_cuts(driver: Driver, kind: Kind) -> None:
    streams = {"a": Records(), "b": Records()}
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.subscribe(created.consumer, list(streams), **SOON)
        for _ in range(3):
            for name, records in streams.items():
                await write(way, created, records, 0, 10, stream=name)
            expected = sum(len(records.writes) for records in streams.values())
            await reading.has(expected)
            way.road.cut()
        for name, records in streams.items():
            mine = [event for event in reading.events if event.stream == name]
            assert not records.faults_of_life(Reading(name, [*mine]))
        await client.stop(reading)


async def test_the_first_event_of_a_stream_comes_after_a_cut(driver: Driver, kind: Kind) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        waiting = asyncio.create_task(client.first(created.consumer, "answer", timeout_s=20))
        await until(lambda: bool(way.plan.times_of("read")))
        way.road.cut()
        await way.face.write(created.producer, "other", b"1")
        await way.face.write(created.producer, "answer", b"42")
        assert await waiting == 42


async def test_a_display_loses_nothing_when_the_answer_to_its_first_read_is_lost(
    driver: Driver, kind: Kind
) -> None:
    """The broker takes the events for delivered that it sent in a read which ended in order."""
    records = Records()
    async with stage(kind, poll_duration_millis=300) as way, driver.client(way.url) as client:
        created = await way.face.create()
        await write(way, created, records, 0, 0)
        way.weather.is_silent = True
        reading = client.read(created.consumer, ack="none", heartbeat_s=0.5)
        await until(lambda: bool(way.plan.times_of("read")) or kind.scheme == "grpc")
        await asyncio.sleep(0.5)
        way.weather.clear()
        await shows_all(records, reading)
        await client.stop(reading)


# -- Refusals


async def test_refusals_that_pass_do_not_end_a_read(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, **SOON)
        for refusal in (*PASSING, Refusal.by(ReaderBusy())):
            way.plan.next("read", refusal)
            way.road.cut()
            await write(way, created, records, 0)
            await shows_all(records, reading)
            assert way.plan.happened.pop() == ("read", refusal)
        await client.stop(reading)


async def test_a_first_read_may_be_refused_for_a_time(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        way.plan.next("read", Refusal.by(ReaderBusy()), PASSING[0], BAD_GATEWAY)
        reading = client.read(created.consumer, **SOON)
        await write(way, created, records, 0)
        await shows_all(records, reading)
        assert len(way.plan.happened) == 3
        await client.stop(reading)


async def test_a_client_waits_as_long_as_a_refusal_says(driver: Driver, kind: Kind) -> None:
    refusal = Refusal("SHUTTING_DOWN", 503, "UNAVAILABLE", retry_after_s=1)
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        calls = ["read", "write"] if kind.may_write else ["read"]
        for call in calls:
            way.plan.next(call, refusal)
        reading = client.read(created.consumer, **SOON)
        if kind.may_write:
            await client.write(created.producer, STREAM, 1)
        else:
            await way.face.write(created.producer, STREAM, b"1")
        await reading.has(1)
        for call in calls:
            first, second, *_ = way.plan.times_of(call)
            assert second - first >= 1
        await client.stop(reading)


async def test_a_first_read_waits_for_another_reader_to_leave(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        async with way.face.read(created.consumer):
            reading = client.read(created.consumer, **SOON)
            await until(lambda: len(way.plan.times_of("read")) >= 2)
        await write(way, created, records, 0)
        await shows_all(records, reading)
        await client.stop(reading)


@pytest.mark.skipif(not IS_LONG, reason="takes 30 s: MEGAPHONE_TESTED_LONG=1")
async def test_a_reader_that_stays_makes_another_fail(driver: Driver, kind: Kind) -> None:
    async with stage(kind, poll_duration_millis=60_000) as way, driver.client(way.url) as client:
        created = await way.face.create()
        async with way.face.read(created.consumer):
            error = await client.read(created.consumer, **SOON).fails()
        assert (error.name, error.code) == ("ReaderBusy", "BUSY")


async def test_a_refusal_that_no_other_try_heals_ends_a_read(driver: Driver, kind: Kind) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        for refused in (ChannelNotFound(), BadRequest("bad"), PermissionDenied("no")):
            way.plan.next("read", Refusal.by(refused))
            error = await client.read(created.consumer, **SOON).fails()
            assert (error.name, error.code) == (type(refused).__name__, refused.code)
        assert len(way.plan.times_of("read")) == 3


# -- Slow answers, and garbage


async def test_answers_may_be_slow(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind, poll_duration_millis=300) as way, driver.client(way.url) as client:
        way.weather.longest_pause_s = 0.05
        created = await way.face.create()
        way.plan.next("read", Late(0.3), Late(0.3))
        reading = client.read(created.consumer, **SOON)
        await write(way, created, records, *[100] * 10)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_a_read_without_an_answer_is_asked_again(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        way.plan.next("read", Late(3600), LostAnswer())
        reading = client.read(created.consumer, **SOON)
        await write(way, created, records, 0)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_garbage_ends_a_read_with_an_error_that_does_not_repeat_it(
    driver: Driver, kind: Kind
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        for garbage in (NO_EVENT, WEB_PAGE):
            way.plan.next("read", garbage)
            error = await client.read(created.consumer, **SOON).fails()
            assert error.name == "ProtocolError"
            assert not {"garbage", "secret", "html", "hotel"} & set(words_of(error.message))


def words_of(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


async def test_a_read_outlasts_servers_that_are_no_broker(driver: Driver, kind: Kind) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, **SOON)
        right = way.road.to_port
        for says in (b"220 mail.example.com ESMTP\r\n", b"\x16\x03\x01\x02", b"HTTP/1.1 200"):
            async with Babbler(says) as babbler:
                way.road.to_port = babbler.port
                way.road.cut()
                await until(lambda it=babbler: it.connections >= 1)  # type: ignore[misc]
            way.road.to_port = right
            await write(way, created, records, 0)
            await shows_all(records, reading)
        await client.stop(reading)


# -- Gaps


@pytest.mark.parametrize("gaps", ["raise", "call"])
async def test_a_gap_is_reported_before_the_next_event(
    driver: Driver, kind: Kind, gaps: str
) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        await write(way, created, records, 0, 0)
        reading = client.read(created.consumer, after="A" * 23, gaps=gaps, **SOON)
        await reading.has(2)
        await write(way, created, records, 0)
        await reading.has(3)
        assert reading.gaps == 1
        assert not hasattr(reading.items[0], "id")
        assert not records.faults_of_life(reading)
        await client.stop(reading)


# -- Acknowledging


@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_events_are_acknowledged_when_they_are_dealt_with(
    driver: Driver, kind: Kind, ack: str
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        ids = await write(way, created, Records(), 0, 0, 0)
        reading = client.read(created.consumer, ack=ack, **SOON)
        await reading.has(3)
        await client.stop(reading)
        assert reading.cursor == ids[-1]
        options = ReadOptions(acknowledge=True, take_over=True, wait_s=0)
        async with way.face.read(created.consumer, options) as rest:
            assert not [event async for event in rest]


async def test_a_slow_application_holds_writers_back_and_loses_nothing(
    driver: Driver, kind: Kind
) -> None:
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, pauses={"1": 1.0}, **SOON)
        await write(way, created, records, *[0] * 250)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_an_application_may_acknowledge_many_events_at_once(
    driver: Driver, kind: Kind
) -> None:
    """Those that it has, and that are not acknowledged, hold no later event back."""
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, ack="manual", ack_every=7)
        await write(way, created, records, 0)
        await reading.has(1)
        await write(way, created, records, 0)
        await reading.has(2, within_s=5)
        await write(way, created, records, *[0] * 250)
        await shows_all(records, reading)
        await client.stop(reading)


async def test_an_application_may_acknowledge_many_events_of_many_channels_at_once(
    driver: Driver, kind: Kind
) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        channels = [await way.face.create() for _ in range(3)]
        consumers = [created.consumer for created in channels]
        reading = client.read(*consumers, ack="manual", ack_every=100)
        for number in range(12):
            await way.face.write(channels[number % 3].producer, STREAM, b"%d" % number)
            await reading.has(number + 1, within_s=5)
        assert reading.bodies == list(range(12))
        await client.stop(reading)


@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_while_an_application_is_busy_its_client_is_quiet(
    driver: Driver, kind: Kind, ack: str
) -> None:
    """Neither with one event, nor with so many that the broker sends no more."""
    records = Records()
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        await write(way, created, records, 0)
        reading = client.read(created.consumer, ack=ack, pauses={"1": 2.0, "2": 2.0})
        for events in (1, 2):
            await reading.has(events)
            asked = len(way.plan.times_of("read"))
            await asyncio.sleep(1.5)
            assert len(way.plan.times_of("read")) - asked <= 4
            await write(way, created, records, *[0] * 99)
        await shows_all(records, reading)
        await client.stop(reading)


# -- The channel ends


async def test_a_channel_that_is_disposed_of_ends_its_read(driver: Driver, kind: Kind) -> None:
    async with stage(kind) as way, driver.client(way.url) as client:
        created = await way.face.create()
        reading = client.read(created.consumer, **SOON)
        ids = await write(way, created, Records(), 0)
        await reading.has(1)
        await way.app.admin.dispose(created.consumer)
        error = await reading.fails()
        assert (error.name, error.code) == ("ChannelNotFound", "NOT_FOUND")
        assert reading.cursor == ids[-1]
