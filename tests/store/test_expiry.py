"""Expiry in the store in memory while an agent is kept alive: its source decides.

A channel has 60 seconds to live here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from megaphone.errors import ChannelNotFound
from tests.support.leases import release

if TYPE_CHECKING:
    from tests.store.conftest import Bench

virtual_time = pytest.mark.looptime


async def expired(bench: Bench, limit: int = 100) -> list[str]:
    return [one.split(".")[1] for one in await bench.replication.expired_but_kept("agent", limit)]


@virtual_time
async def test_only_channels_past_their_deadline_are_kept_from_expiring(bench: Bench) -> None:
    assert await expired(bench) == []
    for channel in "abc":
        await bench.create(channel)
    with bench.replication.keep_alive("agent"):
        lease = await bench.read(channel="b")
        await bench.at(59.0)
        assert await expired(bench) == []
        await bench.at(61.0)
        assert sorted(await expired(bench)) == ["a", "c"]
        release(lease, clean=True)
    assert await expired(bench) == []


@virtual_time
async def test_channels_that_are_kept_from_expiring_are_told_bit_by_bit_once_in_their_time_to_live(
    bench: Bench,
) -> None:
    for channel in "abc":
        await bench.create(channel)
    with bench.replication.keep_alive("agent"):
        await bench.at(61.0)
        first = await expired(bench, 2)
        assert (len(first), sorted(first + await expired(bench, 2))) == (2, ["a", "b", "c"])
        assert await expired(bench) == []
        await bench.at(121.0)
        assert sorted(await expired(bench)) == ["a", "b", "c"]


@virtual_time
async def test_a_channel_that_is_read_again_is_not_told_to_be_kept_from_expiring(
    bench: Bench,
) -> None:
    await bench.create("a")
    await bench.create("b")
    with bench.replication.keep_alive("agent"):
        await bench.at(61.0)
        release(await bench.read(channel="a"), clean=True)
        assert await expired(bench) == ["b"]


@virtual_time
async def test_the_source_lets_only_channels_expire_that_are_past_their_deadline(
    bench: Bench,
) -> None:
    await bench.create("a")
    with bench.replication.keep_alive("agent"):
        await bench.at(30.0)
        await bench.create("b")
        await bench.append_all("xy", channel="a")
        await bench.at(61.0)
        for channel in (b"a", b"b", b"never was"):
            await bench.replication.expire(channel)
        assert (await bench.exists("a"), await bench.exists("b")) == (False, True)
    assert [(r.address, r.lost, r.at) for r in bench.removed] == [(bench.address("a"), 2, 61.0)]


@virtual_time
async def test_a_channel_that_may_expire_dies_although_its_agent_is_kept_alive(
    bench: Bench,
) -> None:
    await bench.create("a")
    await bench.create("b")
    with bench.replication.keep_alive("agent"):
        await bench.replication.allow_expiry(b"a")
        await bench.at(59.9)
        assert await bench.exists("a")
        await bench.at(61.0)
        assert [(r.address, r.at) for r in bench.removed] == [(bench.address("a"), 60.0)]
        with pytest.raises(ChannelNotFound):
            await bench.replication.allow_expiry(b"a")
        assert await bench.exists("b")
