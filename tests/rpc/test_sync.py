"""What becomes of feeds: streams of other nodes, good ones, broken ones and hostile ones.

The tests speak the wire of the broker before this one, and that with our extensions. Whatever
comes, the outcome is defined, nothing that lives here is overwritten, no secret is told, and the
broker serves on.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from megaphone.app import App, running
from megaphone.core.access import ANYONE
from megaphone.core.addresses import AddressKey, ConsumerAddress
from megaphone.model import AgentMode, NewChannel, NewEvent, ReadOptions
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceStub
from tests.support.settings import fast_settings

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
FED = ConsumerAddress("fed", "x" * 50, "1")
ADDRESS = str(FED)
UNKNOWN = str(ConsumerAddress("fed", "y" * 50, "1"))
PRODUCER = f"fed.{AddressKey(KEY).seal(FED.channel_id)}"
CAPACITY = 5
WITHIN_S = 10.0
READY = ReadOptions(wait_s=0.0)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
async def node() -> AsyncIterator[App]:
    async with started() as app:
        yield app


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[App]:
    agents = {"own": AgentMode.MASTER}
    defaults: dict[str, Any] = {"agent": agents, "buffer_capacity": CAPACITY, "max_channels": 10}
    async with running(fast_settings(**defaults | settings)) as app:
        yield app


# -- A source


class Source:
    """A node that feeds, message by message."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, *messages: pb.SyncRequest) -> None:
        for message in messages:
            await self._call.write(message)

    async def half_close(self) -> grpc.StatusCode:
        await self._call.done_writing()
        return await self.status()

    async def break_off(self) -> None:
        self._call.cancel()
        await self._call.code()

    async def status(self) -> grpc.StatusCode:
        """Wait for the end of the stream."""
        async with asyncio.timeout(WITHIN_S):
            code: grpc.StatusCode = await self._call.code()
            return code

    async def details(self) -> str:
        return await self._call.details() or ""


@asynccontextmanager
async def source(node: App) -> AsyncIterator[Source]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection:
        yield Source(SyncServiceStub(connection).ForwardEvents())


@asynccontextmanager
async def feeding(
    node: App, source_id: str = "", key: bytes = KEY, agent: str = "fed"
) -> AsyncIterator[Source]:
    """A source whose first message was accepted."""
    async with source(node) as one:
        await one.send(start(agent, key, source_id))
        await one._call.initial_metadata()
        yield one


def start(agent: str = "fed", key: bytes = KEY, source_id: str = "") -> pb.SyncRequest:
    message = pb.PipeAgentStart(agent_id=agent, key=key, source_id=source_id)
    return pb.SyncRequest(pipe_agent_start=message)


def end(agent: str = "fed") -> pb.SyncRequest:
    return pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id=agent))


def created(address: str = ADDRESS, capacity: int = 0) -> pb.SyncRequest:
    message = pb.ChannelCreated(channel_id=address, capacity=capacity)
    return pb.SyncRequest(channel_created=message)


def disposed(address: str = ADDRESS) -> pb.SyncRequest:
    return pb.SyncRequest(channel_disposed=pb.ChannelDisposed(channel_id=address))


def key_taken(request_id: str, number: int, age_ms: int = 0) -> pb.SyncRequest:
    message = pb.KeyTaken(
        channel_id=ADDRESS, request_id=request_id, event_id=id_of(number), age_ms=age_ms
    )
    return pb.SyncRequest(key_taken=message)


def forgotten(number: int) -> pb.SyncRequest:
    message = pb.EventsForgotten(channel_id=ADDRESS, event_id=id_of(number), sequence=number)
    return pb.SyncRequest(events_forgotten=message)


def position(event_id: str, address: str = ADDRESS, sent: str = "") -> pb.SyncRequest:
    message = pb.ChannelPosition(channel_id=address, event_id=event_id, sent_event_id=sent)
    return pb.SyncRequest(channel_position=message)


def event(number: int, sequence: int = 0, **changes: Any) -> pb.SyncRequest:
    """Return an event whose id and body are its number; some of its fields may be changed."""
    fields: dict[str, Any] = {
        "channel_id": ADDRESS,
        "stream_id": "s",
        "event_id": id_of(number),
        "timestamp": Timestamp(seconds=1_700_000_000 + number),
        "json_payload": str(number),
        "sequence": sequence,
    }
    return pb.SyncRequest(event_received=pb.EventReceived(**fields | changes))


def id_of(number: int) -> str:
    return f"{number:023d}"


# -- What there is on the node


async def read(node: App, address: str = ADDRESS, options: ReadOptions = READY) -> list[int]:
    async with node.broker.read(ANYONE, address, options) as reader:
        return [int(event.body) async for batch in reader for event in batch]


async def exists(node: App, address: str = ADDRESS) -> bool:
    return (await node.broker.exists(ANYONE, [address]))[address]


async def until_fed(node: App, count: int) -> None:
    """Wait until so many events have come, applied or refused."""
    async with asyncio.timeout(WITHIN_S):
        while node.metrics.messages_fed < count:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.002)


def mode(node: App) -> AgentMode | None:
    agent = node.agents.get("fed")
    return None if agent is None else agent.mode


async def own_channel(node: App) -> NewChannel:
    """Make a channel of the node's own agent, with an event in it."""
    channel = await node.broker.create(ANYONE)
    await node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"7"))
    return channel


async def serves_on(node: App, channel: NewChannel) -> None:
    """Check that the node's own agent and channel are as they were."""
    assert node.agents.named("own").mode is AgentMode.MASTER
    assert await read(node, channel.consumer_address) == [7]


# -- A source of the version before this one


async def test_an_old_source_feeds_channels_and_events_and_its_end_makes_a_master(
    node: App,
) -> None:
    async with feeding(node) as old:
        await old.send(created(), event(1, channel_id=PRODUCER), event(2), end())
        assert await old.status() is grpc.StatusCode.OK
    assert mode(node) is AgentMode.MASTER
    assert await read(node) == [1, 2]
    await node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"3"))


async def test_a_source_that_breaks_off_leaves_a_replica_with_all_that_it_sent(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), event(1), event(2))
        await until_fed(node, 2)
        await old.break_off()
    assert mode(node) is AgentMode.REPLICA
    assert await read(node) == [1, 2]


async def test_a_source_that_says_no_more_without_an_end_leaves_a_replica(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), event(1))
        assert await old.half_close() is grpc.StatusCode.OK
    assert mode(node) is AgentMode.REPLICA
    assert await read(node) == [1]


async def test_a_stream_without_a_message_changes_nothing(node: App) -> None:
    async with source(node) as old:
        assert await old.half_close() is grpc.StatusCode.OK
    assert [agent.name for agent in node.agents] == ["own"]


async def test_after_its_end_a_stream_is_over(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), end())
        assert await old.status() is grpc.StatusCode.OK
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await old.send(event(1))
    assert await read(node) == []


# -- What comes again


async def test_an_event_that_comes_twice_is_stored_once(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), event(1), event(1), event(2), event(1))
        assert await old.half_close() is grpc.StatusCode.OK
    assert await read(node) == [1, 2]


async def test_a_source_that_comes_back_sends_again_and_nothing_comes_twice(node: App) -> None:
    async with feeding(node, "s1") as first:
        await first.send(created(), event(1, 1), event(2, 2))
        await until_fed(node, 2)
        await first.break_off()
    assert await read(node) == [1, 2]
    async with feeding(node, "s1") as second:
        await second.send(created(), event(1, 1), event(2, 2), event(3, 3), event(2, 2))
        assert await second.half_close() is grpc.StatusCode.OK
    assert await read(node) == [3]
    assert node.metrics.messages_fed == 3


async def test_a_source_that_comes_back_while_its_old_stream_is_open_goes_on_with_the_new_one(
    node: App,
) -> None:
    async with feeding(node, "s1") as first, feeding(node, "s1") as second:
        await second.send(created(), event(1, 1))
        await until_fed(node, 1)
        await first.send(event(2, 2))
        assert await first.status() is INVALID
        await second.send(end())
        assert await second.status() is grpc.StatusCode.OK
    assert mode(node) is AgentMode.MASTER
    assert await read(node) == [1]


async def test_another_source_with_the_same_events_adds_only_what_is_new(node: App) -> None:
    for name in ("s1", "s2"):
        async with feeding(node, name) as one:
            await one.send(created(), event(1, 1), event(2, 2))
            assert await one.half_close() is grpc.StatusCode.OK
    assert await read(node) == [1, 2]


# -- Nothing is overwritten


async def test_a_channel_that_lives_is_not_made_anew(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), event(1))
        await until_fed(node, 1)
        async with node.broker.read(ANYONE, ADDRESS) as reader:
            await old.send(created(), event(2))
            got: list[int] = []
            async with asyncio.timeout(WITHIN_S):
                while len(got) < 2:
                    got += [int(one.body) for one in await anext(reader)]
    assert got == [1, 2]
    assert node.metrics.channels_fed == 1


RUST_CAPACITY = 100


async def test_of_an_old_source_a_full_channel_evicts_the_oldest_and_its_reader_learns_of_it(
    node: App,
) -> None:
    async with feeding(node) as old:
        await old.send(created(), *(event(number) for number in range(RUST_CAPACITY + 2)))
        assert await old.half_close() is grpc.StatusCode.OK
    assert node.metrics.messages_lost == 2
    async with node.broker.read(ANYONE, ADDRESS, READY) as reader:
        assert reader.reader.recovered is False
        assert [int(one.body) async for batch in reader for one in batch] == list(range(2, 102))


async def test_evicted_events_are_there_for_a_reader_that_resumes(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), *(event(number) for number in range(RUST_CAPACITY + 2)))
        assert await old.half_close() is grpc.StatusCode.OK
    from_the_start = ReadOptions(wait_s=0.0, cursor="-")
    assert await read(node, options=from_the_start) == list(range(102))


async def test_a_channel_holds_what_it_holds_on_its_source_and_more_until_it_is_read_there(
    node: App,
) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(capacity=7), *(event(number, number) for number in range(1, 31)))
        await until_fed(node, 30)
        await new.send(position(id_of(25)), end())
        assert await new.status() is grpc.StatusCode.OK
    assert node.metrics.messages_lost == 0
    writing = asyncio.gather(
        *(node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"%d" % n)) for n in (31, 32, 33))
    )
    await asyncio.sleep(0)
    assert node.metrics.writers_waiting == 1
    assert await read(node) == list(range(26, 33))
    await writing
    assert await read(node) == [33]


async def test_a_copy_that_another_source_left_is_replaced(node: App) -> None:
    async with feeding(node, "s1") as first:
        await first.send(created(), *(event(number, number) for number in (2, 3)))
        await until_fed(node, 2)
    async with feeding(node, "s2") as second:  # it keeps an event that the first one did not
        await second.send(created(), *(event(number, number) for number in (1, 2, 3)), end())
        assert await second.status() is grpc.StatusCode.OK
    assert await read(node) == [1, 2, 3]


async def test_a_copy_that_was_used_here_is_not_replaced(node: App) -> None:
    async with feeding(node, "s1") as first:
        await first.send(created(), event(2, 2))
        await until_fed(node, 1)
    await node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"9"))
    async with feeding(node, "s2") as second:
        await second.send(created(), *(event(number, number) for number in (2, 3)), end())
        assert await second.status() is grpc.StatusCode.OK
    assert await read(node) == [2, 9, 3]


async def test_two_sources_of_an_agent_at_once_replace_nothing(node: App) -> None:
    async with feeding(node, "s1") as first, feeding(node, "s2") as second:
        await first.send(created(), event(1, 1))
        await until_fed(node, 1)
        await second.send(created(), event(1, 1), event(2, 2))
        await until_fed(node, 3)
        assert await read(node) == [1, 2]


async def test_a_capacity_that_no_channel_can_have_is_refused(node: App) -> None:
    async with feeding(node) as new:
        await new.send(created(capacity=100_001))
        assert await new.status() is INVALID
        assert "at most 100000 events" in await new.details()


async def test_keys_come_with_their_events_and_without(node: App) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(), key_taken("old", 7), event(1, 1, request_id="k", age_ms=5))
        await new.send(event(2, 2, request_id="batch 0", age_ms=60_001), end())
        assert await new.status() is grpc.StatusCode.OK
    assert await node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"9", "k")) == id_of(1)
    assert await node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"9", "old")) == id_of(7)
    assert await read(node) == [1, 2]


@pytest.mark.parametrize("key", ["a\nb", "k x", "k 1 2", " ", "x" * 201, "k " + "1" * 9])
async def test_an_event_with_a_key_that_none_can_be_is_refused(node: App, key: str) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(), event(1, 1, request_id=key), event(2, 2), end())
        assert await new.status() is grpc.StatusCode.OK
    assert await read(node) == [2]
    assert node.metrics.messages_lost == 1


async def test_only_what_the_source_has_sent_can_be_acknowledged(node: App) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(), event(1, 1), event(2, 2), position("-", sent=id_of(1)))
        await new.send(end())
        assert await new.status() is grpc.StatusCode.OK
    assert await node.broker.acknowledge(ANYONE, ADDRESS, id_of(2)) == 0
    assert await node.broker.acknowledge(ANYONE, ADDRESS, id_of(1)) == 1


async def test_events_that_the_source_has_dropped_are_not_read_here_and_are_no_cursors(
    node: App,
) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(), event(1, 1), forgotten(5), event(6, 6))
        await new.send(forgotten(5), end())  # again, as after a broken connection
        assert await new.status() is grpc.StatusCode.OK
    for cursor, recovered in ((1, False), (5, True)):
        options = ReadOptions(wait_s=0.0, cursor=id_of(cursor))
        async with node.broker.read(ANYONE, ADDRESS, options) as reader:
            assert reader.reader.recovered is recovered
            assert [int(one.body) async for batch in reader for one in batch] == [6]


async def test_the_source_can_ask_how_far_a_channel_was_read_here(node: App) -> None:
    async with feeding(node, "s1") as new:
        await new.send(created(), created(UNKNOWN), event(1, 1), event(2, 2))
        await until_fed(node, 2)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection:
            stub = SyncServiceStub(connection)
            request = pb.FindChannelsInUseRequest(channel_ids=[ADDRESS, UNKNOWN])
            assert not (await stub.FindChannelsInUse(request)).positions
            assert await read(node) == [1, 2]
            [told] = (await stub.FindChannelsInUse(request)).positions
            assert (told.channel_id, told.event_id) == (ADDRESS, id_of(2))


async def test_a_channel_that_is_disposed_of_goes_unless_it_is_read(node: App) -> None:
    async with feeding(node) as old:
        await old.send(created(), disposed(UNKNOWN), disposed())
        assert await old.half_close() is grpc.StatusCode.OK
    assert not await exists(node)
    async with feeding(node) as old:
        await old.send(created(), event(1))
        await until_fed(node, 1)
        async with node.broker.read(ANYONE, ADDRESS) as reader:
            await old.send(disposed(), event(2))
            await until_fed(node, 2)
            assert [int(one.body) for one in await anext(reader)] == [1, 2]
    assert await exists(node)


async def test_a_position_moves_where_the_next_read_begins_until_somebody_reads_here(
    node: App,
) -> None:
    async with feeding(node) as new:
        await new.send(created(), event(1), event(2), event(3))
        await new.send(position(id_of(1)), position(id_of(99)), position("nobody-knows-it"))
        await new.send(event(4))
        await until_fed(node, 4)
        assert await read(node) == [2, 3, 4]
        await new.send(position("-"), position(id_of(1)), event(5))
        await until_fed(node, 5)
        assert await read(node) == [5]


@pytest.mark.parametrize("mode_here", [AgentMode.MASTER, AgentMode.PIPED])
async def test_an_agent_that_is_at_home_here_has_no_incoming_pipe(mode_here: AgentMode) -> None:
    async with started() as target, started(agent={"fed": AgentMode.MASTER}) as node:
        channel = await node.broker.create(ANYONE)
        await node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"7"))
        if mode_here is AgentMode.PIPED:
            await node.pipes.pipe("fed", f"http://127.0.0.1:{target.grpc_port}")
        async with source(node) as old:
            await old.send(start(key=node.agents.keys.of("fed").secret))
            assert await old.status() is REFUSED
        assert mode(node) is mode_here
        assert await read(node, channel.consumer_address) == [7]


async def test_a_second_source_needs_the_same_key_and_does_not_disturb_the_first(
    node: App,
) -> None:
    async with feeding(node) as first:
        await first.send(created(), event(1))
        async with source(node) as second:
            await second.send(start(key=OTHER_KEY))
            assert await second.status() is REFUSED
            assert "another key" in await second.details()
        async with feeding(node) as third:
            await third.send(event(2), end())
            assert await third.status() is grpc.StatusCode.OK
        assert mode(node) is AgentMode.REPLICA  # the first may have more
        await first.send(event(3), end())
        assert await first.status() is grpc.StatusCode.OK
    assert mode(node) is AgentMode.MASTER
    assert sorted(await read(node)) == [1, 2, 3]
    await node.broker.write(ANYONE, PRODUCER, NewEvent("s", b"4"))  # under the first key


# -- What is refused


@pytest.mark.parametrize(
    ("first", "what"),
    [
        pytest.param(start(key=b""), "32 bytes", id="no key"),
        pytest.param(start(key=bytes(31)), "32 bytes", id="short key"),
        pytest.param(start(key=bytes(33)), "32 bytes", id="long key"),
        pytest.param(start(agent=""), "an agent's name", id="no name"),
        pytest.param(start(agent="a.b"), "an agent's name", id="name with a dot"),
        pytest.param(start(agent="x" * 101), "an agent's name", id="long name"),
        pytest.param(start(source_id="a\nb"), "source id", id="source id with a line break"),
        pytest.param(start(source_id="x" * 2000), "source id", id="long source id"),
        pytest.param(created(), "PipeAgentStart", id="a channel first"),
        pytest.param(event(1), "PipeAgentStart", id="an event first"),
        pytest.param(end(), "PipeAgentStart", id="an end first"),
        pytest.param(pb.SyncRequest(), "PipeAgentStart", id="nothing"),
    ],
)
async def test_a_stream_that_begins_wrong_is_refused(
    node: App, first: pb.SyncRequest, what: str
) -> None:
    channel = await own_channel(node)
    async with source(node) as hostile:
        await hostile.send(first)
        assert await hostile.status() is INVALID
        assert what in await hostile.details()
    assert [agent.name for agent in node.agents] == ["own"]
    await serves_on(node, channel)


OWN = str(ConsumerAddress("own", "z" * 50, "1"))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(start(), id="a second start"),
        pytest.param(pb.SyncRequest(), id="nothing"),
        pytest.param(created("own"), id="channel: no address"),
        pytest.param(created(""), id="channel: empty address"),
        pytest.param(created(OWN), id="channel: of another agent"),
        pytest.param(created(PRODUCER), id="channel: address of a producer"),
        pytest.param(created(f"fed.{'x' * 49}é.1"), id="channel: not ASCII"),
        pytest.param(disposed(OWN), id="disposal: of another agent"),
        pytest.param(disposed("\0"), id="disposal: no address"),
        pytest.param(position("x", OWN), id="position: of another agent"),
        pytest.param(position("a\nb"), id="position: an id with a line break"),
        pytest.param(position(""), id="position: no id"),
        pytest.param(event(1, channel_id=OWN), id="event: of another agent"),
        pytest.param(event(1, channel_id=""), id="event: no address"),
        pytest.param(
            event(1, channel_id=f"fed.{AddressKey(OTHER_KEY).seal(FED.channel_id)}"),
            id="event: sealed with another key",
        ),
        pytest.param(
            event(1, channel_id=f"own.{AddressKey(KEY).seal(FED.channel_id)}"),
            id="event: a producer's address of another agent",
        ),
    ],
)
async def test_a_message_that_cannot_be_right_ends_the_stream(
    node: App, message: pb.SyncRequest, caplog: pytest.LogCaptureFixture
) -> None:
    channel = await own_channel(node)
    async with feeding(node) as hostile:
        await hostile.send(created(), event(0), message)
        assert await hostile.status() is INVALID
        check_has_no_secret(await hostile.details())
    check_has_no_secret(caplog.text)
    assert mode(node) is AgentMode.REPLICA
    assert await read(node) == [0]
    await serves_on(node, channel)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(event(1, channel_id=UNKNOWN), id="unknown channel"),
        pytest.param(event(1, json_payload=""), id="no body"),
        pytest.param(event(1, json_payload="{"), id="not JSON"),
        pytest.param(event(1, json_payload="1 2"), id="two values"),
        pytest.param(event(1, json_payload="[" * 200 + "]" * 200), id="too deep"),
        pytest.param(event(1, json_payload='"' + "x" * 2000 + '"'), id="too large"),
        pytest.param(event(1, stream_id=""), id="no stream id"),
        pytest.param(event(1, stream_id="a\nb"), id="stream id with a line break"),
        pytest.param(event(1, stream_id="x" * 2000), id="long stream id"),
        pytest.param(event(1, event_id=""), id="no event id"),
        pytest.param(event(1, event_id="a\0b"), id="event id with a control character"),
        pytest.param(event(1, event_id="x" * 2000), id="long event id"),
        pytest.param(event(1, timestamp=Timestamp(seconds=-1)), id="before 1970"),
        pytest.param(event(1, timestamp=Timestamp(seconds=10**12)), id="after 9999"),
        pytest.param(event(1, timestamp=Timestamp(seconds=2**63 - 1)), id="the last second"),
        pytest.param(event(1, timestamp=Timestamp(seconds=-(2**63))), id="the first second"),
        pytest.param(event(1, timestamp=Timestamp(nanos=-1)), id="negative nanoseconds"),
    ],
)
async def test_an_event_that_cannot_be_applied_is_counted_and_the_pipe_stays_open(
    message: pb.SyncRequest, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(max_body_bytes=1000) as node:
        channel = await own_channel(node)
        async with feeding(node) as hostile:
            await hostile.send(created(), event(0), message, event(2))
            assert await hostile.half_close() is grpc.StatusCode.OK
        assert node.metrics.messages_lost == 1
        assert await read(node) == [0, 2]
        check_has_no_secret(caplog.text)
        await serves_on(node, channel)


async def test_refused_events_are_logged_when_they_begin_and_when_the_pipe_ends(
    node: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "megaphone")
    async with feeding(node) as hostile:
        await hostile.send(created(), *(event(n, json_payload="{") for n in range(500)))
        assert await hostile.half_close() is grpc.StatusCode.OK
    assert node.metrics.messages_lost == 500
    first, last = (record for record in caplog.records if record.levelname == "WARNING")
    assert first.getMessage().startswith("a replicated event was refused: ")
    assert last.getMessage() == "replicated events were refused"
    assert (last.__dict__["agent"], last.__dict__["events"]) == ("fed", 500)


async def test_a_message_over_the_limit_of_grpc_ends_the_stream(node: App) -> None:
    channel = await own_channel(node)
    async with feeding(node) as hostile:
        await hostile.send(created(), event(0))
        await until_fed(node, 1)
        await hostile.send(event(1, json_payload="x" * 2_000_000))
        assert await hostile.status() is FULL
    assert await read(node) == [0]
    await serves_on(node, channel)


async def test_bytes_that_are_no_message_end_the_stream(node: App) -> None:
    channel = await own_channel(node)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection:
        for junk in (b"\xff\xff\xff", b"\x0a\x7f", b"\0" * 100):
            raw: Any = connection.stream_unary("/megaphone.SyncService/ForwardEvents")
            call = raw(iter([junk]))
            assert await call.code() is INVALID
    await serves_on(node, channel)


async def test_more_channels_than_the_node_may_hold_end_the_stream(node: App) -> None:
    channel = await own_channel(node)
    async with feeding(node) as greedy:
        addresses = [str(ConsumerAddress("fed", f"{n:050d}", "1")) for n in range(10)]
        await greedy.send(*map(created, addresses))
        assert await greedy.status() is FULL
    assert await node.broker.exists(ANYONE, addresses) == dict.fromkeys(addresses[:9], True) | {
        addresses[9]: False
    }
    await serves_on(node, channel)


async def test_more_agents_than_other_nodes_may_bring_are_refused() -> None:
    async with (
        started(max_replicas=2) as node,
        feeding(node, agent="a"),
        feeding(node, agent="b"),
        source(node) as greedy,
    ):
        await greedy.send(start(agent="c"))
        assert await greedy.status() is FULL
        assert "have brought 2 agents" in await greedy.details()
        assert [agent.name for agent in node.agents] == ["own", "a", "b"]


async def test_a_source_can_ask_which_channels_are_in_use_here(node: App) -> None:
    async with (
        feeding(node) as old,
        grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection,
    ):
        await old.send(created(), event(1))
        await until_fed(node, 1)
        stub = SyncServiceStub(connection)
        question = pb.FindChannelsInUseRequest(channel_ids=[ADDRESS, UNKNOWN, OWN])
        assert list((await stub.FindChannelsInUse(question)).channel_ids) == []
        assert await read(node) == [1]
        assert list((await stub.FindChannelsInUse(question)).channel_ids) == [ADDRESS]
        wrong = stub.FindChannelsInUse(pb.FindChannelsInUseRequest(channel_ids=["x"]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await wrong
        assert refused.value.code() is INVALID


def check_has_no_secret(text: str) -> None:
    secrets = (
        FED.secret,
        PRODUCER.partition(".")[2],
        "z" * 50,
        KEY.hex(),
        base64.b64encode(KEY).decode(),
        repr(KEY),
    )
    for secret in secrets:
        assert secret not in text


@pytest.mark.settings(max_buffered_bytes=1_048_576)
async def test_a_pipe_for_which_there_is_no_memory_ends_and_loses_nothing(app: App) -> None:
    large = '"' + 400_000 * "x" + '"'
    async with feeding(app) as one:
        await one.send(created(), *(event(n, json_payload=large) for n in range(3)))
        assert await one.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_buffered_bytes" in await one.details()
    assert app.metrics.messages_lost == 0
    assert app.metrics.messages_fed == 2
