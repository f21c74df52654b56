"""Writers that wait for room in a channel, and who makes it for them if readers do not."""

import asyncio
from collections.abc import Callable, Iterable

from megaphone.core.channel import Waiter
from megaphone.core.ports import Stored
from megaphone.errors import AgentMoved, ChannelNotFound, ShuttingDown, WriteTimeout
from megaphone.store.memory.index import AgentChannels, StoredChannel

UNREAD_S = 5.0
"""A channel that is only forwarded and that nobody has read here for this long does not make its
writers wait: its oldest event that all followers have taken is evicted."""
WOKEN_AT_ONCE = 20
"""How many writers are woken before other tasks get their turn."""


class Room:
    """Room for the events of writers. Belongs to one store."""

    def __init__(self, write_timeout_s: float, on_evicted: Callable[[int], None]) -> None:
        self._write_timeout_s = write_timeout_s
        self._on_evicted = on_evicted
        self._loop = asyncio.get_running_loop()
        self._dismissed: set[asyncio.Future[None]] = set()
        self._is_quiet = False

    def make(self, channel: StoredChannel) -> None:
        """Evict an event that other nodes have, if the channel is full and nobody reads it here."""
        if channel.has_room or not channel.home.may_evict:
            return
        now = self._loop.time()
        if not channel.is_unread_for(UNREAD_S, now):
            return
        if not channel.home.is_taken_by_all(channel, channel.log.freed + 1):
            return
        if lost := channel.evict_oldest(now):
            self._on_evicted(lost)

    async def wait(self, channel: StoredChannel, waiter: Waiter) -> Stored:
        """Wait until the event of a waiter is in the channel.

        Raises: WriteTimeout; ChannelNotFound, when the channel goes; AgentMoved, when the writers
            of its agent are dismissed; ShuttingDown.
        """
        home = channel.home
        woken = self._loop.create_future()
        timers = (
            self._loop.call_later(self._write_timeout_s, wake, woken),
            self._loop.call_later(UNREAD_S, self.make, channel),
        )

        def on_resolved() -> None:
            wake(woken)

        waiter.join(on_resolved)
        home.waiting[woken] = channel
        home.blocked[channel] = None
        try:
            if not self._is_quiet:
                await woken
        except asyncio.CancelledError:
            if not waiter.accepted:
                raise
        finally:
            for timer in timers:
                timer.cancel()
            channel.withdraw(waiter, on_resolved)
            del home.waiting[woken]
            if not channel.waiting_writers:
                home.blocked.pop(channel, None)
            is_dismissed = woken in self._dismissed
            self._dismissed.discard(woken)
        if waiter.accepted:
            return Stored(waiter.event.id, waiter.is_first(on_resolved))
        if waiter.accepted is False:
            raise ChannelNotFound
        if is_dismissed:
            raise AgentMoved(f"agent {home.name} moves to another node")
        raise ShuttingDown if self._is_quiet else WriteTimeout

    async def dismiss(self, home: AgentChannels) -> None:
        """Answer those who wait at the channels of an agent with AgentMoved."""
        await self._wake_all(home, self._dismissed.add)

    async def quiesce(self, homes: Iterable[AgentChannels]) -> None:
        """From now on answer writers that wait, or would, with ShuttingDown."""
        self._is_quiet = True
        for home in homes:
            await self._wake_all(home, lambda woken: None)

    async def _wake_all(
        self, home: AgentChannels, note: Callable[[asyncio.Future[None]], None]
    ) -> None:
        """Wake those who wait now, in slices."""
        waiting = home.waiting
        for number in range(len(waiting)):
            if number and number % WOKEN_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not waiting:
                break
            woken = next(iter(waiting))
            waiting.move_to_end(woken)
            note(woken)
            wake(woken)


def wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
