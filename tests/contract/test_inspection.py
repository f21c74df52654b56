"""What operators see of channels, in any store."""

import asyncio
import time

import pytest

from megaphone.core.ports import Append
from megaphone.core.tenants import Tenant
from megaphone.errors import ChannelNotFound
from megaphone.model import HTTP, ChannelInfo, ChannelOptions, Event
from megaphone.settings import TenantLimits
from tests.contract.conftest import CAPACITY, Client, eventually, now
from tests.support.leases import release

AN_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
A_LIKE_ID = bytes.fromhex("00112233ffffffffffffffffffffffff")
ANOTHER_ID = bytes.fromhex("ffeeddccbbaa99887766554433221100")


LONG = ChannelOptions(ttl_s=50.0)
"""A test on a busy machine must not outlive its channels."""


async def create(client: Client, *channels: str) -> None:
    for channel in channels:
        await client.store.create(channel.encode(), client.address(channel), LONG)


async def info(client: Client, channel: str = "c") -> ChannelInfo:
    return await client.store.info(channel.encode())


async def test_a_channel_says_what_it_was_made_with(client: Client) -> None:
    options = ChannelOptions(capacity=7, ttl_s=50.0, label="orders")
    tenant = Tenant("shop", TenantLimits())
    await client.store.create(b"c", client.address("c"), options, tenant)
    shown = await info(client)
    assert (shown.address, shown.channel_id) == (client.address("c"), b"c")
    assert (shown.label, shown.tenant, shown.capacity, shown.ttl_s) == ("orders", "shop", 7, 50.0)
    assert 0 <= shown.age_s < 40
    assert shown.expires_s is not None
    assert 10 < shown.expires_s <= 50
    assert (shown.unsent, shown.in_flight, shown.kept, shown.waiting_writers) == (0, 0, 0, 0)
    assert (shown.reader, shown.read_s, shown.written_s, shown.waiting_s) == (None,) * 4
    assert shown.bytes is not None
    assert shown.bytes > 0


async def test_a_channel_says_what_is_in_it(client: Client) -> None:
    await create(client, "c")
    small = (await info(client)).bytes
    lease = await client.open(acknowledge=True, reader="phone", face=HTTP)
    await client.append("ab")
    await client.take(lease, 2)
    await client.append("d")
    await client.store.acknowledge(b"c", client.address("c"), "a")
    shown = await info(client)
    assert shown.unsent + shown.in_flight == 2
    assert shown.kept == 1
    assert shown.expires_s is None
    assert shown.bytes is not None
    assert small is not None
    assert shown.bytes > small
    assert shown.reader is not None
    assert (shown.reader.acknowledges, shown.reader.name) == (True, "phone")
    assert (shown.reader.face, shown.reader.node) == (HTTP, None)
    assert shown.reader.age_s is not None
    assert shown.reader.taken_s is not None
    assert 0 <= shown.reader.taken_s <= shown.reader.age_s < 20
    assert shown.read_s == 0


async def test_a_channel_says_when_it_was_used_last(client: Client) -> None:
    await create(client, "c")
    written = Event("a", "s" * 1_000, timestamp_of_now() - 30_000_000, b"[" + b"1," * 5_000 + b"1]")
    await client.store.append([Append(b"c", written)], wait=False)
    await asyncio.sleep(0.01)
    lease = await client.open()
    reader = (await info(client)).reader
    assert reader is not None
    assert reader.acknowledges is False
    release(lease, clean=True)
    await eventually(lambda: is_unread(client))
    await asyncio.sleep(0.1)
    shown = await info(client)
    assert shown.written_s == pytest.approx(30, abs=20)
    assert shown.read_s is not None
    assert 0.05 < shown.read_s < 40


async def is_unread(client: Client) -> bool:
    return (await info(client)).reader is None


def timestamp_of_now() -> int:
    return int(time.time() * 1_000_000)


async def test_a_full_channel_says_for_how_long_writers_wait(client: Client) -> None:
    await create(client, "c", "d")
    await client.append("abd"[:CAPACITY])
    writing = [asyncio.create_task(write_again_and_again(client, one)) for one in "xy"]

    async def both_wait() -> bool:
        shown = await info(client)
        return shown.waiting_writers == 2 and shown.waiting_s is not None and shown.waiting_s >= 0

    async def is_seen() -> bool:
        seen = [one async for some in client.store.survey() for one in some]
        return [one.channel_id for one in seen if one.waiting_writers] == [b"c"]

    await eventually(both_wait)
    await eventually(is_seen)
    for one in writing:
        one.cancel()
    await asyncio.gather(*writing, return_exceptions=True)

    async def nobody_waits() -> bool:
        return (await info(client)).waiting_s is None

    await eventually(nobody_waits)


async def write_again_and_again(client: Client, event_id: str) -> None:
    """Write an event to a full channel: whenever the writer has waited long enough, again."""
    while True:
        event = Event(event_id, "s", timestamp_of_now(), b"{}")
        await client.store.append([Append(b"c", event)], wait=True)


async def test_a_channel_that_is_not_there_is_not_shown(client: Client) -> None:
    with pytest.raises(ChannelNotFound):
        await info(client)
    await client.create("c")
    await client.gone()
    with pytest.raises(ChannelNotFound):
        await info(client)


async def test_a_survey_sees_every_channel_as_it_is(client: Client) -> None:
    await create(client, "c")
    labelled = ChannelOptions(ttl_s=50.0, label="orders")
    await client.store.create(b"d", client.address("d"), labelled)
    await client.store.create(b"e", client.address("e", "other"), LONG)
    await client.append("ab", channel="d")
    began = now()
    seen = {
        one.channel_id: one async for some in client.store.survey(with_size=True) for one in some
    }
    assert set(seen) == {b"c", b"d", b"e"}
    one = seen[b"d"]
    assert (one.consumer_address, one.label) == (client.address("d"), "orders")
    assert (one.depth, one.unsent, one.in_flight, one.accepted) == (2, 2, 0, 2)
    assert (one.waiting_writers, one.is_read, one.tenant_name) == (0, False, "default")
    assert one.created_at <= began + 0.1
    assert one.size > seen[b"c"].size > 0
    of_agent = [one.channel_id async for some in client.store.survey("other") for one in some]
    assert of_agent == [b"e"]
    await client.append("f", channel="d")
    await client.store.remove(b"c")
    again = await client.store.look_again(list(seen.values()))
    assert {one.channel_id: one.depth for one in again} == {b"d": 3, b"e": 0}


async def test_channels_are_found_by_the_beginning_of_their_id(client: Client) -> None:
    for channel_id in (AN_ID, A_LIKE_ID, ANOTHER_ID):
        await client.store.create(channel_id, client.address(channel_id.hex()), LONG)
    for digits, found in {
        "00112233": {AN_ID, A_LIKE_ID},
        "001122334": {AN_ID},
        AN_ID.hex(): {AN_ID},
        "ffeeddccb": {ANOTHER_ID},
        "00112234": set(),
    }.items():
        assert set(await client.store.find(digits)) == found


async def test_the_oldest_event_says_when_it_came(client: Client) -> None:
    await create(client, "c")
    for event_id, time_us in (("a", 100), ("b", 70_000), ("d", 5_000_000_000)):
        event = Event(event_id, "s", time_us, b"{}")
        await client.store.append([Append(b"c", event)], wait=False)
    lease = await client.open(acknowledge=True)
    await client.take(lease, 3)
    for event_id, oldest in (("", 100), ("a", 70_000), ("b", 5_000_000_000), ("d", None)):
        if event_id:
            await client.store.acknowledge(b"c", client.address("c"), event_id)
        [one] = [one async for some in client.store.survey() for one in some]
        assert one.oldest_us == oldest
