"""Writers that wait for a free place in a channel, and evictions that free one for them."""

import asyncio
from collections.abc import Callable, Iterable

from megaphone.core.channel import Waiter
from megaphone.core.ports import Stored
from megaphone.errors import AgentMoved, ChannelNotFound, ShuttingDown, WriteTimeout
from megaphone.store.memory.index import AgentChannels, StoredChannel

UNREAD_S = 5.0
"""If a replicated channel was not read here for this long, and no target tells this node what its
readers got, then writers do not wait in the full channel: the store evicts the oldest event, once
all followers have taken it."""
WOKEN_AT_ONCE = 20
"""How many writers are woken before other tasks get a turn."""


class WaitingWriters:
    """The waiting writers of all channels of one store."""

    def __init__(self, write_timeout_s: float, on_evicted: Callable[[int], None]) -> None:
        self._write_timeout_s = write_timeout_s
        self._on_evicted = on_evicted
        self._loop = asyncio.get_running_loop()
        self._refused: set[asyncio.Future[None]] = set()
        """The futures of writers that `refuse` has woken."""
        self._is_quiesced = False

    def evict_if_unread(self, channel: StoredChannel) -> None:
        """Evict the oldest event of a full channel that was not read here for `UNREAD_S`.

        Does nothing if a follower has not taken the event yet, or if a target tells this node what
        its readers got.
        """
        if channel.has_free_place or not channel.home.may_evict:
            return
        now = self._loop.time()
        if not channel.is_unread_for(UNREAD_S, now):
            return
        if not channel.home.is_taken_by_all(channel, channel.log.freed + 1):
            return
        if lost := channel.evict_oldest(now):
            self._on_evicted(lost)

    async def wait(self, channel: StoredChannel, waiter: Waiter) -> Stored:
        """Wait until the channel accepts the event of a waiter.

        Raises: WriteTimeout; ChannelNotFound, when the channel is removed; AgentMoved, when
            `refuse` is called for its agent; ShuttingDown, when `quiesce` is called.
        """
        home = channel.home
        woken = self._loop.create_future()
        timers = (
            self._loop.call_later(self._write_timeout_s, wake, woken),
            self._loop.call_later(UNREAD_S, self.evict_if_unread, channel),
        )

        def on_resolved() -> None:
            wake(woken)

        waiter.join(on_resolved)
        home.waiting[woken] = channel
        home.blocked[channel] = None
        try:
            if not self._is_quiesced:
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
            is_refused = woken in self._refused
            self._refused.discard(woken)
        if waiter.accepted:
            return Stored(waiter.event.id, waiter.is_first(on_resolved))
        if waiter.accepted is False:
            raise ChannelNotFound
        if is_refused:
            raise AgentMoved(f"agent {home.name} moves to another node")
        raise ShuttingDown if self._is_quiesced else WriteTimeout

    async def refuse(self, home: AgentChannels) -> None:
        """Refuse the waiting writers of all channels of an agent, with AgentMoved."""
        await self._wake_all(home, self._refused.add)

    async def quiesce(self, homes: Iterable[AgentChannels]) -> None:
        """From now on refuse waiting writers, and writers that would wait, with ShuttingDown."""
        self._is_quiesced = True
        for home in homes:
            await self._wake_all(home, lambda woken: None)

    async def _wake_all(
        self, home: AgentChannels, note: Callable[[asyncio.Future[None]], None]
    ) -> None:
        """Call `note` for each writer that waits now, and wake it, in slices."""
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
    """Resolve a future, if it is not done yet."""
    if not waiting.done():
        waiting.set_result(None)
