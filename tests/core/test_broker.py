"""The broker's rules about time and order, with a store in memory, under virtual time."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.addresses import MALFORMED
from megaphone.core.broker import DEFAULT_PROTOCOL
from megaphone.core.ports import WouldBlock
from megaphone.core.writing import Write
from megaphone.errors import (
    AgentMoved,
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    LimitExceeded,
    NoAgentAvailable,
    PayloadTooLarge,
    PermissionDenied,
    ReaderBusy,
    ShuttingDown,
    WriteTimeout,
    WrongMode,
)
from megaphone.model import (
    AgentMode,
    BatchWritten,
    NewChannel,
    NewEvent,
    ReadOptions,
    ReadProtocol,
    WriteFailure,
)
from megaphone.settings import Settings
from tests.core.directory import MemoryDirectory
from tests.core.node import WARM, Node, now

pytestmark = pytest.mark.looptime


@pytest.fixture
def node() -> Node:
    return Node(WARM)


async def test_a_read_that_does_not_wait_takes_all_that_is_ready() -> None:
    node = Node(replace(WARM, buffer_capacity=250))
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(250))
    assert await node.read(channel, ReadOptions(wait_s=0)) == list(range(250))


async def test_a_read_that_does_not_wait_does_not_follow_a_writer() -> None:
    node = Node(WARM)
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 0)
    async with node.open(channel, ReadOptions(wait_s=0)) as reader:
        taken = 0
        async for batch in reader:
            taken += len(batch)
            await node.write(channel, taken)
    assert taken == 1


async def test_a_read_lasts_20_seconds(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    started = now()
    assert await node.read(channel) == []
    assert now() - started == pytest.approx(20)


async def test_a_read_ends_at_its_time_in_the_middle_of_traffic(node: Node) -> None:
    channel = await node.broker.create(ANYONE)

    async def write_forever() -> None:
        for number in range(10_000):
            await node.write(channel, number)
            await asyncio.sleep(0.05)

    writer = asyncio.create_task(write_forever())
    started = now()
    first = await node.read(channel)
    assert now() - started == pytest.approx(20, abs=0.02)
    second = await node.read(channel)
    writer.cancel()
    assert first + second == list(range(len(first + second)))
    assert len(first) == pytest.approx(400, abs=2)


async def test_a_channel_dies_60_seconds_after_its_last_read_and_no_sooner(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await asyncio.sleep(59)
    await node.read(channel)
    await asyncio.sleep(59.999)
    assert await node.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: True
    }
    await asyncio.sleep(0.001)
    assert await node.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: False
    }
    with pytest.raises(ChannelNotFound):
        await node.read(channel)
    with pytest.raises(ChannelNotFound):
        await node.write(channel, 1)
    assert node.metrics.messages_unroutable == 1
    assert node.metrics.channels_disposed == 1


async def test_100_events_fit_and_the_101st_waits_for_a_reader(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    started = now()
    await node.write(channel, *range(100))
    assert now() == started
    waiting = asyncio.create_task(node.write(channel, 100))
    await asyncio.sleep(9.9)
    assert not waiting.done()
    async with node.open(channel) as reader:
        assert len(await anext(reader)) == 100
        await waiting
        assert [int(event.body) for event in await anext(reader)] == [100]
    assert node.metrics.messages_received == 101


async def test_the_101st_event_is_refused_after_10_seconds(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(100))
    started = now()
    with pytest.raises(WriteTimeout):
        await node.write(channel, 100)
    assert now() - started == pytest.approx(10)
    assert await node.read(channel, ReadOptions(wait_s=0)) == list(range(100))
    assert node.metrics.messages_received == 100


async def test_a_batch_skips_what_follows_a_timeout_and_serves_other_channels(node: Node) -> None:
    full, free = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.write(full, *range(99))
    messages = [NewEvent("s", b"1"), NewEvent("s", b"2"), NewEvent("s", b"3")]
    written = await node.broker.write_batch(
        ANYONE, [full.producer_address, free.producer_address, "nonsense"], messages
    )
    failures = [(failure.channel, failure.index, failure.reason) for failure in written.failures]
    assert failures == [
        (full.producer_address, 1, "TIMEOUT"),
        (full.producer_address, 2, "SKIPPED"),
        ("nonsense", 0, "BAD_REQUEST"),
        ("nonsense", 1, "BAD_REQUEST"),
        ("nonsense", 2, "BAD_REQUEST"),
    ]
    assert await node.read(free, ReadOptions(wait_s=0)) == [1, 2, 3]


async def test_a_batch_with_a_wrong_message_writes_nothing_and_names_it(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    messages = [NewEvent("s", b"1"), NewEvent("s", b"{")]
    with pytest.raises(BadRequest, match="message 1: the body is not JSON"):
        await node.broker.write_batch(ANYONE, [channel.producer_address], messages)
    assert await node.read(channel, ReadOptions(wait_s=0)) == []


@pytest.mark.parametrize("waits", [False, True])
async def test_a_batch_says_what_found_no_memory(waits: bool) -> None:
    bounds = Settings(
        agent_warmup_secs=0,
        max_buffered_bytes=1_048_576,
        buffer_capacity=1 if waits else 100,
    )
    node = Node(bounds)
    channel = await node.broker.create(ANYONE)
    if waits:
        await node.write(channel, 0)
    messages = [NewEvent("s", b'"' + b"x" * 300_000 + b'"')] * 5
    written = await node.broker.write_batch(ANYONE, [channel.producer_address], messages)
    reasons = [failure.reason for failure in written.failures]
    assert reasons == (["TIMEOUT", *["SKIPPED"] * 4] if waits else ["LIMIT_EXCEEDED"] * 2)


async def test_the_request_id_of_a_batch_is_never_mistaken_for_that_of_a_write(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    messages = [NewEvent("s", b"1"), NewEvent("s", b"2")]
    for _ in range(2):
        written = await node.broker.write_batch(ANYONE, [channel.producer_address], messages, "a")
        assert written.failures == []
    for request_id in ("a", "a/0", "a-0", "a0", "0"):
        await node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"3", request_id))
    assert await node.read(channel, ReadOptions(wait_s=0)) == [1, 2, 3, 3, 3, 3, 3]


async def test_a_batch_that_is_too_large_says_how_large_it_may_be(node: Node) -> None:
    with pytest.raises(PayloadTooLarge, match=r"100001 events .* at most 100000"):
        await node.broker.write_batch(
            ANYONE, [str(n) for n in range(11)], [NewEvent("s", b"1")] * 9_091
        )


async def test_write_each_answers_each_and_keeps_the_order_of_a_channel(node: Node) -> None:
    one, other = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    targets = [one, other, one, one]
    writes = [
        (channel.producer_address, NewEvent("s", str(number).encode()))
        for number, channel in enumerate(targets)
    ]
    results = await node.broker.write_each(ANYONE, [*writes, ("nonsense", NewEvent("s", b"1"))])
    assert [type(result) for result in results] == [str, str, str, str, WriteFailure]
    assert results[4] == WriteFailure("BAD_REQUEST", MALFORMED)
    assert await node.read(one, ReadOptions(wait_s=0)) == [0, 2, 3]
    assert await node.read(other, ReadOptions(wait_s=0)) == [1]


async def test_write_each_waits_once_for_a_channel_that_stays_full(node: Node) -> None:
    full, free = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.write(full, *range(99))
    targets = [full, free, full, full, full, free]
    writes = [(channel.producer_address, NewEvent("s", b"7")) for channel in targets]
    started = now()
    results = await node.broker.write_each(ANYONE, writes)
    assert now() - started == pytest.approx(10)
    reasons = [one.reason if isinstance(one, WriteFailure) else "" for one in results]
    assert reasons == ["", "", "TIMEOUT", "SKIPPED", "SKIPPED", ""]
    assert await node.read(full, ReadOptions(wait_s=0)) == [*range(99), 7]
    assert await node.read(free, ReadOptions(wait_s=0)) == [7, 7]


@pytest.mark.parametrize("waits", [False, True])
async def test_write_each_lets_no_event_overtake_one_that_found_no_memory(waits: bool) -> None:
    bounds = Settings(
        agent_warmup_secs=0, max_buffered_bytes=1_048_576, buffer_capacity=4 if waits else 100
    )
    node = Node(bounds)
    channel, other = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    large = NewEvent("s", b'"' + b"x" * 300_000 + b'"')
    small = NewEvent("s", b"1")
    await node.write(channel, *range(4))
    for _ in range(3):
        await node.broker.write(ANYONE, other.producer_address, large)
    results = await node.broker.write_each(
        ANYONE,
        [(channel.producer_address, new) for new in (large, small, small)]
        + [(other.producer_address, small)],
    )
    reasons = [one.reason if isinstance(one, WriteFailure) else "" for one in results]
    assert reasons == ["LIMIT_EXCEEDED", "SKIPPED", "SKIPPED", ""]
    assert await node.read(channel, ReadOptions(wait_s=0)) == [0, 1, 2, 3]


async def test_write_each_passes_over_an_event_that_is_wrong(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    bodies = (b"1", b"{", b"2")
    results = await node.broker.write_each(
        ANYONE, [(channel.producer_address, NewEvent("s", body)) for body in bodies]
    )
    reasons = [one.reason if isinstance(one, WriteFailure) else "" for one in results]
    assert reasons == ["", "BAD_REQUEST", ""]
    assert await node.read(channel, ReadOptions(wait_s=0)) == [1, 2]


async def test_a_read_with_a_limit_ends_after_as_many_events(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1, 2, 3)
    started = now()
    assert await node.read(channel, ReadOptions(limit=2)) == [1, 2]
    assert await node.read(channel, ReadOptions(limit=1)) == [3]
    assert now() == started


async def test_wait_shortens_a_read_or_lengthens_it_up_to_the_longest_read(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    started = now()
    await node.read(channel, ReadOptions(wait_s=3))
    assert now() - started == pytest.approx(3)
    await node.read(channel, ReadOptions(wait_s=300))
    assert now() - started == pytest.approx(303)
    await node.read(channel, ReadOptions(wait_s=10_000))
    assert now() - started == pytest.approx(303 + WARM.max_read_secs)


async def test_it_is_counted_who_waits_and_what_was_written(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(100))
    calls = [asyncio.create_task(node.write(channel, number)) for number in (100, 101, 102)]
    gets_in, leaves, times_out = calls
    await asyncio.sleep(1)
    assert node.metrics.writers_waiting == 3
    leaves.cancel()
    await asyncio.wait([leaves])
    assert await node.read(channel, ReadOptions(acknowledge=True, wait_s=0)) == list(range(100))
    assert node.metrics.writers_waiting == 2
    async with node.open(channel, ReadOptions(limit=1, wait_s=0)) as reader:
        assert len(await anext(reader)) == 1
        await gets_in
    assert (node.metrics.writers_waiting, node.metrics.messages_received) == (1, 101)
    with pytest.raises(WriteTimeout):
        await times_out
    assert (node.metrics.writers_waiting, node.metrics.messages_received) == (0, 101)


async def test_an_event_whose_writer_is_cancelled_as_it_gets_in_counts_once(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(100))
    waiting = asyncio.create_task(node.write(channel, 100))
    await asyncio.sleep(1)
    async with node.open(channel) as reader:
        assert len(await anext(reader)) == 100
        assert waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert [int(event.body) for event in await anext(reader)] == [100]
    assert (node.metrics.messages_received, node.metrics.messages_read) == (101, 101)
    assert node.metrics.writers_waiting == 0


async def test_a_write_that_would_wait_changes_nothing(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    for number in range(100):
        node.broker.write_nowait(ANYONE, channel.producer_address, NewEvent("s", b"%d" % number))
    with pytest.raises(WouldBlock):
        node.broker.write_nowait(ANYONE, channel.producer_address, NewEvent("s", b"100"))
    assert (node.metrics.messages_received, node.metrics.writers_waiting) == (100, 0)
    assert await node.read(channel, ReadOptions(wait_s=0)) == list(range(100))


async def test_a_write_that_does_not_wait_is_refused_as_others_are(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    for address, body, kind in [
        ("nonsense", b"1", BadRequest),
        (channel.consumer_address, b"1", PermissionDenied),
        (channel.producer_address, b"{", BadRequest),
    ]:
        with pytest.raises(kind):
            node.broker.write_nowait(ANYONE, address, NewEvent("s", body))
    first = node.broker.write_nowait(ANYONE, channel.producer_address, NewEvent("s", b"1", "key"))
    assert first == await node.broker.write(
        ANYONE, channel.producer_address, NewEvent("s", b"2", "key")
    )
    large = NewEvent("s", b"[" + b"1," * 20_000 + b"1]")
    with pytest.raises(WouldBlock):
        node.broker.write_nowait(ANYONE, channel.producer_address, large)
    await node.broker.write(ANYONE, channel.producer_address, large)
    assert node.metrics.messages_received == 2


async def begun(node: Node, address: str, new: NewEvent) -> str | Exception:
    """Begin a write. Returns: its result."""
    result = asyncio.get_running_loop().create_future()
    node.broker.begin_write(ANYONE, address, new, result.set_result)
    assert not result.done()
    ended: str | Exception = await result
    return ended


async def test_a_write_that_takes_only_a_place_that_is_free_now(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    address = channel.producer_address
    first = await begun(node, address, NewEvent("s", b"0", "key"))
    assert await begun(node, address, NewEvent("s", b"1", "key")) == first
    for wrong, body, kind in [
        ("nonsense", b"1", BadRequest),
        (channel.consumer_address, b"1", PermissionDenied),
        (address, b"{", BadRequest),
        (address, b"[" + b"1," * 20_000 + b"1]", WouldBlock),
    ]:
        with pytest.raises(kind):
            await begun(node, wrong, NewEvent("s", body))
    await node.write(channel, *range(1, 100))
    assert isinstance(await begun(node, address, NewEvent("s", b"100")), WouldBlock)
    assert await node.read(channel, ReadOptions(wait_s=0)) == list(range(100))
    await node.admin.dispose(channel.consumer_address)
    assert isinstance(await begun(node, address, NewEvent("s", b"100")), ChannelNotFound)
    assert (node.metrics.messages_received, node.metrics.messages_unroutable) == (100, 0)
    await node.broker.begin_shutdown()
    with pytest.raises(ShuttingDown):
        await begun(node, address, NewEvent("s", b"100"))


async def test_each_of_some_writes_has_a_result_of_its_own(node: Node) -> None:
    one, full = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.write(full, *range(100))
    results = node.broker.write_all_nowait(
        [
            Write(ANYONE, one.producer_address, NewEvent("s", b"1", "key")),
            Write(ANYONE, one.producer_address, NewEvent("s", b"{")),
            Write(ANYONE, full.producer_address, NewEvent("s", b"100")),
            Write(ANYONE, one.producer_address, NewEvent("s", b"2", "key")),
            Write(ANYONE, "nonsense", NewEvent("s", b"3")),
            Write(ANYONE, one.producer_address, NewEvent("s", b"4")),
        ]
    )
    kinds = [type(result) for result in results]
    assert kinds == [str, BadRequest, WouldBlock, str, BadRequest, str]
    assert results[0] == results[3]
    assert await node.read(one, ReadOptions(wait_s=0)) == [1, 4]
    assert node.metrics.messages_received == 102


@pytest.mark.parametrize(
    "wrong",
    [NewEvent("", b"3"), NewEvent("s", b"3", " "), NewEvent("s", b"3 4"), NewEvent("s", b"")],
)
async def test_a_wrong_write_does_not_harm_others_of_its_turn(node: Node, wrong: NewEvent) -> None:
    channel = await node.broker.create(ANYONE)
    address = channel.producer_address
    results = node.broker.write_all_nowait(
        [
            Write(ANYONE, address, NewEvent("s", b"0")),
            Write(ANYONE, address, wrong),
            Write(ANYONE, address, NewEvent("s", b"1")),
        ]
    )
    assert [type(one) for one in results] == [str, BadRequest, str]
    assert await node.read(channel, ReadOptions(wait_s=0)) == [0, 1]


async def test_a_batch_that_has_places_is_written_at_once(node: Node) -> None:
    one, other = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    addresses = [one.producer_address, other.producer_address, one.producer_address]
    written = node.broker.begin_batch(ANYONE, addresses, [NewEvent("s", b"1"), NewEvent("s", b"2")])
    assert isinstance(written, BatchWritten)
    assert not written.failures
    assert all(written.event_ids(0, 2))
    assert node.metrics.messages_received == 4
    for channel in (one, other):
        assert await node.read(channel, ReadOptions(wait_s=0)) == [1, 2]


async def test_a_batch_that_was_begun_goes_on_when_there_is_a_place(node: Node) -> None:
    full, free = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.write(full, *range(99))
    addresses = [full.producer_address, free.producer_address, "nonsense"]
    rest = node.broker.begin_batch(ANYONE, addresses, [NewEvent("s", b"99"), NewEvent("s", b"100")])
    assert not isinstance(rest, BatchWritten)
    assert await node.read(free, ReadOptions(wait_s=0)) == [99, 100]
    writing = asyncio.create_task(rest)
    assert await node.read(full, ReadOptions(limit=101)) == list(range(101))
    failures = [(failure.channel, failure.index) for failure in (await writing).failures]
    assert failures == [("nonsense", 0), ("nonsense", 1)]
    assert node.metrics.messages_received == 103


@pytest.mark.parametrize(
    "messages",
    [[NewEvent("s", b"1")] * 1_000, [NewEvent("s", b"[" + b"1," * 20_000 + b"1]")]],
    ids=["many", "large"],
)
async def test_a_batch_that_takes_long_is_not_begun(node: Node, messages: list[NewEvent]) -> None:
    channel = await node.broker.create(ANYONE)
    with pytest.raises(WouldBlock):
        node.broker.begin_batch(ANYONE, [channel.producer_address], messages)
    with node.agents.moving("node"), pytest.raises(WouldBlock):
        node.broker.begin_batch(ANYONE, [channel.producer_address], [NewEvent("s", b"1")])
    assert await node.read(channel, ReadOptions(wait_s=0)) == []


async def test_heartbeats_come_only_while_nothing_else_does(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    started = now()
    asyncio.get_running_loop().call_later(7, lambda: asyncio.ensure_future(node.write(channel, 1)))
    async with node.open(channel, ReadOptions(heartbeat_s=5)) as reader:
        batches = [(round(now() - started, 3), len(batch)) async for batch in reader]
    assert batches == [(5, 0), (7, 1), (12, 0), (17, 0)]
    assert now() - started == pytest.approx(20)


@pytest.mark.parametrize(
    "options",
    [
        ReadOptions(limit=0),
        ReadOptions(heartbeat_s=0.01),
        ReadOptions(in_flight=0),
        ReadOptions(in_flight=1_000_000),
        ReadOptions(cursor=""),
        ReadOptions(cursor="x" * 201),
    ],
)
async def test_what_cannot_be_asked_of_a_read_is_refused_before_it_begins(
    node: Node, options: ReadOptions
) -> None:
    channel = await node.broker.create(ANYONE)
    with pytest.raises(BadRequest):
        await node.read(channel, options)
    async with node.open(channel):
        pass


async def test_a_read_that_is_taken_over_ends_and_what_it_had_comes_again(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1, 2)
    async with node.open(channel) as old:
        await anext(old)
        with pytest.raises(ReaderBusy):
            await node.read(channel)
        async with node.open(channel, ReadOptions(take_over=True)) as new:
            with pytest.raises(StopAsyncIteration):
                await anext(old)
            assert [int(event.body) for event in await anext(new)] == [1, 2]
            assert node.metrics.messages_redelivered == 2
    assert node.metrics.reads_open == 0


async def test_leaving_a_read_that_was_taken_over_leaves_the_new_one_alone(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    async with AsyncExitStack() as stack:
        async with node.open(channel):
            await stack.enter_async_context(node.open(channel, ReadOptions(take_over=True)))
        with pytest.raises(ReaderBusy):
            await node.read(channel)


async def channel_being_read(node: Node) -> tuple[NewChannel, asyncio.Task[list[int]]]:
    channel = await node.broker.create(ANYONE)
    task = asyncio.create_task(node.read(channel))
    await asyncio.sleep(0)
    return channel, task


async def test_a_shutdown_ends_reads_cleanly_and_refuses_what_is_new(node: Node) -> None:
    channel, task = await channel_being_read(node)
    full = await node.broker.create(ANYONE)
    await node.write(full, *range(100))
    writer = asyncio.create_task(node.write(full, 100))
    await asyncio.sleep(1)
    started = now()
    await node.broker.begin_shutdown()
    assert await task == []
    with pytest.raises(ShuttingDown):
        await writer
    assert now() == started
    for call in (node.broker.create(ANYONE), node.write(channel, 1), node.read(channel)):
        with pytest.raises(ShuttingDown):
            await call


async def test_a_node_that_stops_still_says_which_channels_have_moved(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    reads, writes = channel.consumer_address, channel.producer_address
    node.agents.mark_moved("node")
    await node.broker.begin_shutdown()
    event = NewEvent("s", b"1")
    for call in (
        node.write(channel, 1),
        node.read(channel),
        node.broker.open_many(ANYONE, [(reads, None)], ReadOptions()),
        node.broker.write_batch(ANYONE, [writes], [event]),
        node.broker.acknowledge(ANYONE, reads, "e"),
    ):
        with pytest.raises(AgentMoved):
            await call
    with pytest.raises(AgentMoved):
        node.broker.open_read_nowait(ANYONE, reads, ReadOptions())
    with pytest.raises(AgentMoved):
        await begun(node, writes, event)
    [result] = await node.broker.write_each(ANYONE, [(writes, event)])
    assert reason_of(result) == "MOVED"
    with pytest.raises(ShuttingDown):  # a proxy could not find one node for both
        await node.broker.write_batch(ANYONE, [writes, "other.abc"], [event])
    with pytest.raises(ShuttingDown):
        await node.broker.create(ANYONE)


async def test_disposing_of_a_channel_ends_its_read_and_counts_what_was_lost(
    node: Node,
) -> None:
    channel, task = await channel_being_read(node)
    unread = await node.broker.create(ANYONE)
    await node.write(unread, 1, 2, 3)
    await node.admin.dispose(channel.consumer_address)
    assert await task == []
    await node.admin.dispose(unread.consumer_address)
    assert node.metrics.messages_lost == 3
    with pytest.raises(ChannelNotFound):
        await node.admin.dispose(unread.consumer_address)


async def test_channels_are_listed_oldest_first_in_pages(node: Node) -> None:
    made = [(await node.broker.create(ANYONE)).consumer_address for _ in range(5)]
    assert list(await node.admin.list_channels(0, 50)) == made
    assert list(await node.admin.list_channels(1, 2)) == made[1:3]
    assert list(await node.admin.list_channels(9, 2)) == []


async def test_channels_are_listed_by_agent(node: Node) -> None:
    mine = (await node.broker.create(ANYONE)).consumer_address
    await node.admin.add_agent("second")
    assert list(await node.admin.list_channels(agent="node")) == [mine]
    assert list(await node.admin.list_channels(agent="second")) == []
    with pytest.raises(AgentNotFound):
        await node.admin.list_channels(agent="third")


async def test_a_replica_that_is_promoted_takes_channels_at_once() -> None:
    node = Node(Settings(agent_warmup_secs=60), AgentMode.REPLICA)
    node.admin.promote_agent("node")
    [info] = await node.admin.list_agents()
    assert (info.mode, info.warming_up) == (AgentMode.MASTER, False)
    await node.broker.create(ANYONE)
    with pytest.raises(WrongMode):
        node.admin.promote_agent("node")
    with pytest.raises(AgentNotFound):
        node.admin.promote_agent("second")


async def test_an_agent_takes_channels_once_it_is_warm() -> None:
    node = Node(Settings(agent_warmup_secs=60))
    assert not node.broker.is_shutting_down
    await asyncio.sleep(59.9)
    with pytest.raises(NoAgentAvailable):
        await node.broker.create(ANYONE)
    [info] = await node.admin.list_agents()
    assert info.warming_up
    await asyncio.sleep(0.1)
    await node.broker.create(ANYONE)
    [info] = await node.admin.list_agents()
    assert (info.warming_up, info.channels) == (False, 1)


async def test_a_replica_takes_no_new_channels() -> None:
    with pytest.raises(NoAgentAvailable, match="no MASTER"):
        await Node(WARM, AgentMode.REPLICA).broker.create(ANYONE)


async def test_an_address_of_another_node_is_answered_with_its_agent(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    elsewhere = channel.producer_address.replace("node.", "other-node.")
    with pytest.raises(ChannelNotFound, match="agent other-node is not on this node"):
        await node.broker.write(ANYONE, elsewhere, NewEvent("s", b"1"))


# Channels that go


async def test_a_writer_whose_channel_goes_while_it_waits_is_told_and_counted(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(100))
    waiting = asyncio.create_task(node.write(channel, 100))
    await asyncio.sleep(1)
    await node.admin.dispose(channel.consumer_address)
    with pytest.raises(ChannelNotFound):
        await waiting
    assert now() == 1
    assert (node.metrics.messages_unroutable, node.metrics.writers_waiting) == (1, 0)


async def test_a_large_event_for_a_channel_that_is_gone_counts_as_a_small_one_does(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    elsewhere = channel.producer_address.replace("node.", "other-node.")
    await node.admin.dispose(channel.consumer_address)
    large = NewEvent("s", b"[" + b"1," * 20_000 + b"1]")
    for address in (channel.producer_address, elsewhere):
        with pytest.raises(ChannelNotFound):
            await node.broker.write(ANYONE, address, large)
    assert node.metrics.messages_unroutable == 2


async def test_published_events_for_a_channel_that_is_gone_count_each(node: Node) -> None:
    gone, lives = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.admin.dispose(gone.consumer_address)
    writes = [(one.producer_address, NewEvent("s", b"1")) for one in (gone, lives, gone)]
    results = await node.broker.write_each(ANYONE, writes)
    assert [reason_of(one) for one in results] == ["NOT_FOUND", "", "NOT_FOUND"]
    assert (node.metrics.messages_unroutable, node.metrics.messages_received) == (2, 1)


async def test_published_events_whose_channel_goes_while_they_wait_are_all_told(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(99))
    writes = [(channel.producer_address, NewEvent("s", b"1"))] * 4
    publishing = asyncio.create_task(node.broker.write_each(ANYONE, writes))
    await asyncio.sleep(1)
    await node.admin.dispose(channel.consumer_address)
    results = await publishing
    assert [reason_of(one) for one in results] == ["", *["NOT_FOUND"] * 3]
    assert now() == 1
    assert node.metrics.messages_unroutable == 3


@pytest.mark.parametrize("waits", [False, True])
async def test_the_events_of_a_batch_for_a_channel_that_goes_count_each(
    node: Node, waits: bool
) -> None:
    channel = await node.broker.create(ANYONE)
    if waits:
        await node.write(channel, *range(100))
    else:
        await node.admin.dispose(channel.consumer_address)
    batch = [NewEvent("s", b"1")] * 3
    writing = asyncio.create_task(
        node.broker.write_batch(ANYONE, [channel.producer_address], batch)
    )
    if waits:
        await asyncio.sleep(1)
        await node.admin.dispose(channel.consumer_address)
    failures = (await writing).failures
    assert [(one.index, one.reason) for one in failures] == [(n, "NOT_FOUND") for n in range(3)]
    assert node.metrics.messages_unroutable == 3


# Published events


def reason_of(result: str | WriteFailure) -> str:
    return result.reason if isinstance(result, WriteFailure) else ""


async def test_a_published_event_that_is_wrong_leaves_the_others_alone(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    events = [
        NewEvent("s", b"1"),
        NewEvent("s", b"{"),
        NewEvent("", b"2"),
        NewEvent("s", b"3", request_id=""),
        NewEvent("s", b"4"),
    ]
    results = await node.broker.write_each(
        ANYONE, [(channel.producer_address, one) for one in events]
    )
    assert [reason_of(one) for one in results] == ["", *["BAD_REQUEST"] * 3, ""]
    assert await node.read(channel, ReadOptions(wait_s=0)) == [1, 4]


async def test_many_published_events_keep_their_order_behind_one_that_waits(node: Node) -> None:
    full, free = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    writes = [
        (channel.producer_address, NewEvent("s", b"%d" % number))
        for number in range(300)
        for channel in (full, free)
        if channel is full or number < 100
    ]
    publishing = asyncio.create_task(node.broker.write_each(ANYONE, writes))
    await asyncio.sleep(1)
    assert await node.read(free, ReadOptions(wait_s=0)) == list(range(100))
    assert await node.read(full, ReadOptions(limit=300)) == list(range(300))
    assert {reason_of(one) for one in await publishing} == {""}
    assert now() == 1


async def test_events_that_are_published_as_the_node_stops_are_refused(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.broker.begin_shutdown()
    results = await node.broker.write_each(
        ANYONE, [(channel.producer_address, NewEvent("s", b"1"))]
    )
    assert [reason_of(one) for one in results] == ["SHUTTING_DOWN"]


# Acknowledgements


async def test_an_acknowledgement_counts_all_events_up_to_it_once(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1, 2, 3)
    async with node.open(channel, ReadOptions(acknowledge=True)) as reader:
        _, second, _ = await anext(reader)
    address = channel.consumer_address
    assert [await node.broker.acknowledge(ANYONE, address, second.id) for _ in range(2)] == [2, 0]
    assert await node.broker.acknowledge(ANYONE, address, "unknown") == 0
    with pytest.raises(BadRequest):
        await node.broker.acknowledge(ANYONE, address, "not an id")
    with pytest.raises(BadRequest):
        await node.broker.acknowledge(ANYONE, channel.producer_address, second.id)
    assert await node.read(channel, ReadOptions(wait_s=0)) == [3]
    await node.admin.dispose(address)
    with pytest.raises(ChannelNotFound):
        await node.broker.acknowledge(ANYONE, address, second.id)


# Agents that move


async def test_a_node_owns_the_agents_that_are_here_and_not_replicas(node: Node) -> None:
    node.agents.add("replica", AgentMode.REPLICA, 0)
    owned = [await node.broker.owns(name) for name in ("node", "replica", "unknown")]
    assert owned == [True, False, False]


async def test_it_is_known_who_owns_an_agent_once_its_move_is_over(node: Node) -> None:
    with node.agents.moving("node"):
        asking = asyncio.create_task(node.broker.owns("node"))
        await asyncio.sleep(1)
        assert not asking.done()
        node.agents.mark_moved("node")
    assert not await asking


async def test_calls_for_an_agent_that_moves_wait_and_others_do_not(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    with node.agents.moving("other"):
        await node.write(channel, 1)
    with node.agents.moving("node"):
        calls = [
            asyncio.create_task(node.write(channel, 2)),
            asyncio.create_task(node.read(channel, ReadOptions(wait_s=0))),
            asyncio.create_task(
                node.broker.acknowledge(ANYONE, channel.consumer_address, "unknown")
            ),
        ]
        await asyncio.sleep(1)
        assert not any(call.done() for call in calls)
    assert await asyncio.gather(*calls) == [None, [1, 2], 0]
    assert now() == 1


# Agents of other nodes


async def test_a_channel_of_another_node_that_shares_the_store_is_written_and_read() -> None:
    """Calls that do not wait leave it to the others to look up an agent."""
    directory = MemoryDirectory(answers_in_s=0.1)
    one, other = Node(WARM, directory=directory), Node(WARM, directory=directory)
    await one.agents.introduce("one", AgentMode.MASTER, now())
    channel = await one.broker.create(ANYONE)
    address, new = channel.consumer_address, NewEvent("s", b"1")
    other.store = one.store
    for call in (
        lambda: other.broker.write_nowait(ANYONE, channel.producer_address, new),
        lambda: other.broker.begin_batch(ANYONE, [channel.producer_address], [new]),
        lambda: other.broker.exists_nowait(ANYONE, [address]),
        lambda: other.broker.open_read_nowait(ANYONE, address, ReadOptions()),
        lambda: other.broker.acknowledge_nowait(ANYONE, address, "unknown"),
    ):
        with pytest.raises(WouldBlock):
            call()
    assert directory.asked == []
    assert await other.broker.exists(ANYONE, [address]) == {address: True}
    assert await other.broker.write_each(ANYONE, [(channel.producer_address, new)] * 2)
    assert await other.read(channel, ReadOptions(wait_s=0)) == [1, 1]
    assert directory.asked == ["one"]


async def test_unknown_agents_are_looked_up_together_in_a_slow_store() -> None:
    """One after the other, the first could be asked for anew before the last is known."""
    directory = MemoryDirectory(answers_in_s=0.3)
    node = Node(WARM, directory=directory)
    addresses = [f"agent{number % 5}.{number}.x" for number in range(10)]
    begun = now()
    assert await node.broker.exists(ANYONE, addresses) == dict.fromkeys(addresses, False)
    assert now() - begun == pytest.approx(0.3)
    assert sorted(directory.asked) == [f"agent{number}" for number in range(5)]


# New channels


async def test_a_node_says_whether_it_takes_channels_and_makes_none() -> None:
    node = Node(Settings(agent_warmup_secs=60, max_channels=1))
    _ = node.broker
    with pytest.raises(NoAgentAvailable):
        await node.broker.check_takes_channels()
    await asyncio.sleep(60)
    await node.broker.check_takes_channels()
    assert node.metrics.channels_created == 0
    await node.broker.create(ANYONE)
    with pytest.raises(LimitExceeded):
        await node.broker.check_takes_channels()
    await node.broker.begin_shutdown()
    with pytest.raises(ShuttingDown):
        await node.broker.check_takes_channels()


async def test_the_protocols_of_a_channel_are_those_that_are_supported_in_the_order_asked_for(
    node: Node,
) -> None:
    known = [protocol.name for protocol in reversed(ReadProtocol)]
    channel = await node.broker.create(ANYONE, ["unknown", *known, "unknown"])
    assert [protocol.name for protocol in channel.protocols] == known
    assert (await node.broker.create(ANYONE)).protocols == (DEFAULT_PROTOCOL,)


async def test_a_channel_without_a_supported_protocol_is_not_made(node: Node) -> None:
    with pytest.raises(BadRequest, match=f"supported are {DEFAULT_PROTOCOL.name}"):
        await node.broker.create(ANYONE, ["unknown"])
    with pytest.raises(PayloadTooLarge, match="at most 100"):
        await node.broker.create(ANYONE, [DEFAULT_PROTOCOL.name] * 101)
    assert node.metrics.channels_created == 0
