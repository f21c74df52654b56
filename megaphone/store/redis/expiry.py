"""Removes the channels that have expired. The nodes of a store share the work."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

from megaphone.core.ports import OnRemoved
from megaphone.errors import StoreUnavailable
from megaphone.model import agent_of
from megaphone.store.redis.calls import Functions
from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.errors import OutOfMemory, ReplyError
from megaphone.store.redis.keys import SHARDS, Names, id_of, tag_of
from megaphone.store.redis.membership import Membership

log = logging.getLogger(__name__)

SWEEP_S = 1.0
AT_ONCE = 100
"""How many channels are looked at in one go."""
CLAIM_MS = 30_000
"""For how long no other node looks at a channel that one node has begun to remove."""
LIVES = 2


class Sweeper:
    """Looks at each channel when its deadline may have come."""

    def __init__(
        self,
        link: AnyLink,
        functions: Functions,
        names: Names,
        membership: Membership,
        on_removed: OnRemoved,
    ) -> None:
        self._link = link
        self._functions = functions
        self._names = names
        self._membership = membership
        self._on_removed = on_removed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_sweeping())

    async def aclose(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                for shard in self._shards():
                    await self._sweep(shard)
            except StoreUnavailable:
                pass  # the link tells about it
            except ReplyError as error:
                log.warning("cannot look for channels that have expired: %s", error)

    def _shards(self) -> Iterator[int]:
        """Return the shards of this node: each shard belongs to the living node that a hash ranks
        highest for it. Two nodes that disagree on who lives do some work twice, which is harmless.
        """
        nodes = self._membership.living
        for shard in range(SHARDS):
            if self._membership.node == max(
                nodes, key=lambda one: crc32(f"{shard} {one}".encode())
            ):
                yield shard

    async def _sweep(self, shard: int) -> None:
        due, now = self._names.due(shard), self._membership.store_time_ms()
        tags = await self._link.call("ZRANGEBYSCORE", due, 0, now, "LIMIT", 0, AT_ONCE)
        if not tags:
            return
        claims = [part for tag in tags for part in (now + CLAIM_MS, tag)]
        claimed = self._link.call("ZADD", due, "XX", *claims)
        looks = (self._look(id_of(tag.decode())) for tag in tags)
        for done in await asyncio.gather(claimed, *looks, return_exceptions=True):
            # A full store refuses claims, and must be swept all the more.
            if isinstance(done, BaseException) and not isinstance(done, OutOfMemory):
                raise done

    async def _look(self, channel_id: bytes) -> None:
        """See whether a channel has expired, and remove it then. A channel is not read any more
        if the node that serves its read is dead."""
        result = await self._functions.start("expire", channel_id, "", 0)
        if result is not None and result[0] == LIVES and (inbox := result[2].decode()):
            died_at = await self._membership.death_of(inbox)
            if died_at is not None:
                result = await self._functions.start("expire", channel_id, inbox, died_at)
        if result is None:  # a node died while it removed the channel, or made it
            names, call = self._names, self._link.call
            agents = await call("SMEMBERS", names.agents_with_channels)
            tenants = await call("SMEMBERS", names.tenants)
            await self._forget(channel_id, map(bytes.decode, agents), map(bytes.decode, tenants))
        elif result[0] == LIVES:
            due = self._names.due(self._names.shard_of(channel_id))
            await self._link.call("ZADD", due, "XX", result[1], tag_of(channel_id))
        else:
            await self.removed(channel_id, result)

    async def removed(self, channel_id: bytes, result: Sequence[Any]) -> None:
        """Tell that a channel is gone, and forget it. `result` is the answer of the function."""
        _, address, age_ms, lost, tenant = result
        self._on_removed(address.decode(), age_ms / 1000, lost)
        await self._forget(channel_id, [agent_of(address.decode())], [tenant.decode()])

    async def _forget(
        self, channel_id: bytes, agents: Iterable[str], tenants: Iterable[str]
    ) -> None:
        """Remove a channel from the lists. One of the agents has it, or none; likewise one of the
        tenants."""
        names, tag = self._names, tag_of(channel_id)
        lists = [*map(names.of_agent, agents), *(names.of_tenant(one)[0] for one in tenants)]
        await asyncio.gather(*(self._link.call("ZREM", one, tag) for one in lists))
        # Last, because without it no node looks for the channel any more.
        await self._link.call("ZREM", names.due(names.shard_of(channel_id)), tag)
