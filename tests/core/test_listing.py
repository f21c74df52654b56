"""The list of channels for operators."""

import asyncio
from typing import Any

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.listing import SHOWN_AT_ONCE, Asked, Listing
from megaphone.model import ChannelInfo
from megaphone.store.memory import MemoryStore
from tests.core.node import WARM, Node, now

ANSWER_S = 0.5


class SlowStore:
    """A store that waits for other nodes before it describes a channel."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.survey = store.survey

    async def info(self, channel_id: bytes) -> ChannelInfo:
        await asyncio.sleep(ANSWER_S)
        return await self._store.info(channel_id)


@pytest.mark.looptime
async def test_channels_are_described_together_in_their_order() -> None:
    node = Node(WARM)
    store: Any = SlowStore(node.store)
    channels = [await node.broker.create(ANYONE) for _ in range(2 * SHOWN_AT_ONCE)]
    began_at = now()
    listing = asyncio.create_task(Listing(store).first(Asked(limit=len(channels))))
    await asyncio.sleep(ANSWER_S / 2)
    await node.admin.dispose(channels[1].consumer_address)
    shown = [one.address for one in await listing]
    assert now() <= began_at + 3 * ANSWER_S
    del channels[1]
    assert shown == [one.consumer_address for one in channels]
