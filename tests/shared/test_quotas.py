"""The limits of tenants, with two nodes that share a store in Redis."""

import asyncio

import pytest

from megaphone.errors import LimitExceeded, RateLimited
from megaphone.settings import TenantLimits
from tests.parity.test_quotas import BEARER, SELDOM, shop
from tests.shared.conftest import Nodes
from tests.support.faces import FACES, Face
from tests.support.scenes import eventually

pytestmark = pytest.mark.timeout(60)


@shop(TenantLimits(creates_per_s=SELDOM))
async def test_a_rate_of_creations_is_one_for_all_nodes(app: Nodes, face: Face) -> None:
    owner = face.authorized(BEARER)
    await owner.create()
    for name, node in zip(FACES, app.apps, strict=True):
        async with FACES[name](node) as there:
            with pytest.raises(RateLimited, match=r"tenant shop may create 0.01 channels a second"):
                await there.authorized(BEARER).create()
            await there.create()  # by another tenant


@shop(TenantLimits(channels=3), channel_ttl_secs=1.0)
async def test_the_channels_of_all_nodes_count_together(app: Nodes, face: Face) -> None:
    owner = face.authorized(BEARER)

    async def created() -> bool:
        try:
            await owner.create()
        except LimitExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*(created() for _ in range(20)))) == 3
    with pytest.raises(LimitExceeded, match=r"as many channels as it may: 3 \(channels\)"):
        await owner.create()
    await face.create()
    await eventually(created, within_s=10)  # when the first three have expired


@shop(TenantLimits(channels=1))
async def test_a_channel_that_is_removed_makes_room_for_another(app: Nodes, face: Face) -> None:
    owner = face.authorized(BEARER)
    channel = await owner.create()
    with pytest.raises(LimitExceeded):
        await owner.create()
    await app.admin.dispose(channel.consumer)
    await owner.create()


@shop(TenantLimits(writes_per_s=SELDOM, reads=1))
async def test_writes_and_reads_count_on_each_node(app: Nodes) -> None:
    async with FACES["http"](app.apps[0]) as one, FACES["http"](app.apps[1]) as other:
        channel = await one.create()
        for node in (one, other):
            owner = node.authorized(BEARER)
            await owner.write(channel.producer, "s", b"1")
            with pytest.raises(RateLimited):
                await owner.write(channel.producer, "s", b"1")
