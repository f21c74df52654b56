"""How much memory of the server channels take."""

import asyncio

import pytest

from megaphone.core.addresses import ConsumerAddress
from megaphone.store.redis.store import RedisStore
from tests.support.redis_server import RedisServer, redis_server
from tests.support.settings import IS_LONG, limits

CHANNELS, MOST_BYTES = (20_000, 600) if IS_LONG else (5_000, 500)
"""100,000 channels shall need at most 60 MB. Fewer have smaller tables. Only Debian's Redis has the
allocator that servers in use have."""
AT_ONCE = 500


@pytest.mark.parametrize("agent", ["node-1-3f9a1c", "a-node-with-a-name-as-long-as-32"])
async def test_an_idle_channel_takes_no_more_memory_than_it_may(agent: str) -> None:
    with redis_server("redis") as server:
        store = RedisStore(
            server.url,
            prefix="megaphone",
            limits=limits(ttl_s=3600),
            max_channels=CHANNELS,
            write_timeout_s=1,
            on_removed=lambda *_: None,
        )
        await store.start()
        before = used(server)
        made: set[str] = set()
        for _ in range(CHANNELS // AT_ONCE):
            some = [ConsumerAddress.mint(agent) for _ in range(AT_ONCE)]
            await asyncio.gather(*(store.create(one.channel_id, str(one)) for one in some))
            made.update(map(str, some))
        weight = (used(server) - before) / CHANNELS
        listed = await store.list(None, CHANNELS - 2, 5)
        await store.aclose()
    assert weight < MOST_BYTES
    assert len(listed) == 2
    assert made.issuperset(listed)


def used(server: RedisServer) -> int:
    return int(server.info("memory")["used_memory"])
