"""The messages of some channels of the store, whatever happens to the connection."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.connection import CALL_S, Connection, Place
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import UnusableStore
from megaphone.store.redis.keeper import Keeper


class Subscription:
    """A second connection to a master of a link, for the messages of some channels.

    It is made again whenever it ends, and leaves a server that is no master any more. Messages that
    are published while there is no connection are lost; `on_subscribed` is called after each gap.
    """

    def __init__(
        self,
        link: AnyLink,
        channels: Sequence[str],
        *,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """The callbacks must not wait.

        `on_message` is called with the payload of each message, in their order. `on_subscribed` is
        called whenever the server has confirmed all channels on a new connection, and before its
        first message. `on_lost` is called when a connection has ended.
        """
        self._link = link
        self._channels = channels
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._place: Place | None = None
        self._has_connected = False
        self._missing = 0
        """How many channels the server has not confirmed yet."""
        self._confirmed: asyncio.Future[None] | None = None
        self._keeper = Keeper(
            f"the messages of the store {link.url}",
            self._connect,
            on_up=self._on_up,
            on_down=on_lost,
        )

    async def start(self) -> None:
        """Subscribe for the first time. The link must have started.

        Raises: StoreUnavailable; UnusableStore.
        """
        self._link.add_follower(self._follow)
        await self._keeper.start()

    @property
    def is_up(self) -> bool:
        return self._keeper.down_since is None

    async def aclose(self) -> None:
        self._link.remove_follower(self._follow)
        await self._keeper.aclose()

    async def _connect(self) -> Connection:
        self._confirmed = asyncio.get_running_loop().create_future()
        self._missing = len(self._channels)
        connection, self._place = await self._link.connect_to_master(StoreCounts(), self._take)
        try:
            connection.tell("SUBSCRIBE", *self._channels)
            await asyncio.wait(
                (self._confirmed, connection.ended),
                timeout=CALL_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if connection.ended.done() and "NOPERM" in (reason := connection.ended.result()):
                raise UnusableStore(f"the store's user may not subscribe: {reason}")
            if not self._confirmed.done():
                raise StoreUnavailable("the store of channels did not confirm a subscription")
        except BaseException:
            connection.end("this node cannot use it")
            raise
        return connection

    def _on_up(self, connection: Connection) -> None:
        if self._has_connected:
            self._link.counts.reconnects += 1
        self._has_connected = True

    def _take(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"message":
            self._on_message(push[2])
        elif kind == b"subscribe":
            self._missing -= 1
            if not self._missing and self._confirmed is not None and not self._confirmed.done():
                self._confirmed.set_result(None)
                self._on_subscribed()

    def _follow(self, place: Place) -> None:
        """End the connection if it is not to the server that the link uses now."""
        connection = self._keeper.connection
        if place != self._place and connection is not None:
            connection.end("there is another master")
            self._keeper.hurry()
