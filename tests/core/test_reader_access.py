"""A read ends when its caller may not read any more: cleanly, and with the reason."""

import asyncio

import pytest

from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.broker import EARLY_S
from megaphone.core.tenants import DEFAULT
from megaphone.errors import MegaphoneError, PermissionDenied, TokenExpired, Unauthenticated
from megaphone.model import ChannelDone, NewChannel, ReadOptions
from tests.core.node import WARM, Node, now

pytestmark = pytest.mark.looptime

READS = frozenset({Action.READ})
LONG = ReadOptions(wait_s=1_000)


@pytest.fixture
def node() -> Node:
    return Node(WARM)


def caller(*, expires_in_s: float) -> Caller:
    grants = [Grant(READS)]
    return Caller("issuer", DEFAULT, grants, required=READS, expires_at=now() + expires_in_s)


async def read_to_the_end(
    node: Node, who: Caller, channel: NewChannel, options: ReadOptions = LONG
) -> tuple[list[int], MegaphoneError | None]:
    async with node.broker.read(who, channel.consumer_address, options) as reading:
        got = [int(event.body) async for batch in reading for event in batch]
        assert reading.reader.is_over
        return got, reading.reader.refusal


async def test_a_read_ends_shortly_before_its_token_expires(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    lasted = set()
    for _ in range(20):
        started = now()
        _, refusal = await read_to_the_end(node, caller(expires_in_s=100), channel)
        assert isinstance(refusal, TokenExpired)
        lasted.add(now() - started)
    assert min(lasted) >= 100 - EARLY_S - 0.1
    assert max(lasted) <= 100
    assert max(lasted) - min(lasted) > 1  # not all at the same time


async def test_a_token_that_lasts_longer_than_the_read_changes_nothing(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    started = now()
    assert await read_to_the_end(
        node, caller(expires_in_s=100), channel, ReadOptions(wait_s=50)
    ) == ([], None)
    assert now() - started == pytest.approx(50, abs=0.1)


async def test_a_token_that_expires_soon_still_reads_what_is_ready(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(100))
    got, refusal = await read_to_the_end(node, caller(expires_in_s=0.001), channel)
    assert got == list(range(100))
    assert isinstance(refusal, TokenExpired)
    assert await node.read(channel, ReadOptions(wait_s=0)) == []  # so the end was a clean one


async def test_a_read_that_ends_for_another_reason_does_not_say_that_a_token_expired(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    who = caller(expires_in_s=100)
    assert await read_to_the_end(node, who, channel, ReadOptions(wait_s=1_000, limit=1)) == (
        [1],
        None,
    )
    reading = asyncio.create_task(read_to_the_end(node, who, channel))
    await asyncio.sleep(1)
    await node.broker.dispose(ANYONE, channel.producer_address)
    assert await reading == ([], None)


async def test_a_read_of_many_channels_says_so_of_each(node: Node) -> None:
    channels = [await node.broker.create(ANYONE) for _ in range(3)]
    named = [(channel.consumer_address, None) for channel in channels]
    async with node.broker.read_many(caller(expires_in_s=100), named, LONG) as reading:
        parts = [part async for batch in reading for part in batch]
    done = [part for part in parts if isinstance(part, ChannelDone)]
    assert sorted(part.channel for part in done) == [0, 1, 2]
    assert all(isinstance(part.error, TokenExpired) for part in done)


async def test_reads_of_callers_who_lose_their_rights_end_and_others_stay(node: Node) -> None:
    channel, other = [await node.broker.create(ANYONE) for _ in range(2)]
    loses, keeps = caller(expires_in_s=1e9), caller(expires_in_s=1e9)
    lost = asyncio.create_task(read_to_the_end(node, loses, channel))
    kept = asyncio.create_task(read_to_the_end(node, keeps, other))
    await asyncio.sleep(1)
    loses.change((), READS)
    node.broker.end_refused_reads(ANYONE)
    got, refusal = await lost
    assert isinstance(refusal, PermissionDenied)
    await asyncio.sleep(1)
    assert not kept.done()
    keeps.revoke()
    node.broker.end_refused_reads(ANYONE)
    got, refusal = await kept
    assert got == []
    assert isinstance(refusal, Unauthenticated)


async def test_reads_without_a_token_end_once_they_need_one(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    reading = asyncio.create_task(read_to_the_end(node, ANYONE, channel))
    await asyncio.sleep(1)
    node.broker.end_refused_reads(ANYONE)
    await asyncio.sleep(1)
    assert not reading.done()
    nobody = Caller("anyone", DEFAULT, required=READS, has_proof=False)
    node.broker.end_refused_reads(nobody)
    _, refusal = await reading
    assert isinstance(refusal, Unauthenticated)


async def test_a_caller_with_other_streams_ends_its_read(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    who = caller(expires_in_s=1e9)
    options = ReadOptions(wait_s=1_000, streams=frozenset({"news"}))
    reading = asyncio.create_task(read_to_the_end(node, who, channel, options))
    await asyncio.sleep(1)
    who.change([Grant(READS, ("orders", "news"))], READS)
    node.broker.end_refused_reads(ANYONE)
    await asyncio.sleep(1)
    assert not reading.done()
    who.change([Grant(READS, ("orders",))], READS)
    node.broker.end_refused_reads(ANYONE)
    _, refusal = await reading
    assert isinstance(refusal, PermissionDenied)


NOBODY = Caller("anyone", DEFAULT, required=READS, has_proof=False)


@pytest.mark.parametrize("has_token", [True, False])
async def test_a_read_that_waits_to_open_while_its_caller_loses_the_right_is_refused(
    node: Node, has_token: bool
) -> None:
    channel = await node.broker.create(ANYONE)
    who = caller(expires_in_s=1e9) if has_token else ANYONE
    address = channel.consumer_address
    with node.agents.moving("node"):
        opening = asyncio.create_task(node.broker.open_read(who, address, LONG))
        opening_many = asyncio.create_task(node.broker.open_many(who, [(address, None)], LONG))
        await asyncio.sleep(1)
        if has_token:
            who.revoke()
        node.broker.end_refused_reads(NOBODY)
    with pytest.raises(Unauthenticated):
        await opening
    many = await opening_many
    parts = many.next()
    assert parts is not None
    assert [type(getattr(part, "error", None)) for part in parts] == [Unauthenticated]
    many.close(clean=True)
    assert node.metrics.reads_open == 0
    other = caller(expires_in_s=1e9)
    (await node.broker.open_read(other, address, LONG)).close(clean=True)  # the lease is free
