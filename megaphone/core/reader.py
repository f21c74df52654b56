"""The one reader of a channel, as both faces use it."""

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from megaphone.core.ports import ChannelLease, Observer
from megaphone.model import Event, ReadOptions

BATCH_EVENTS = 100
"""The most events handed over at once. A face sends a batch before it asks for the next, so this
also bounds what is in flight within the process."""
BATCH_BYTES = 1_048_576
"""The most bytes handed over at once, unless a single event has more."""


class Reader:
    """An open read: an asynchronous context manager, and an iterator of batches within it.

    Each batch is everything that is ready, in order; it is empty when the reader asked for
    heartbeats and one is due. The iteration ends when the read window is over, when as many
    events were sent as were asked for, when the channel goes or another reader takes over, and on
    `end`. Leaving the context releases the channel at once: as cleanly ended without an
    exception, as broken with any (cancellation too), so that what a broken read had sent is sent
    again to the next reader.
    """

    __slots__ = (
        "_heartbeat_s",
        "_lease",
        "_left",
        "_observer",
        "_on_exit",
        "_ready",
        "agent",
        "until",
    )

    def __init__(
        self,
        lease: ChannelLease,
        options: ReadOptions,
        *,
        agent: str,
        until: float,
        observer: Observer,
        on_exit: Callable[["Reader"], None],
    ) -> None:
        self._lease = lease
        self._left = sys.maxsize if options.limit is None else options.limit
        self._heartbeat_s = options.heartbeat_s
        self._ready = lease.ready
        """How many of the events that were ready at the beginning are yet to be taken: they are,
        however short the window is."""
        self.agent = agent
        """The agent of the channel."""
        self.until = until
        """The loop time at which the read window is over."""
        self._observer = observer
        self._on_exit = on_exit

    @property
    def position(self) -> str:
        """The event before the first one of this read, or START: what to resume after."""
        return self._lease.position

    @property
    def recovered(self) -> bool | None:
        """Whether the event to resume after was still known; None when none was named."""
        return self._lease.recovered

    def end(self) -> None:
        """End the iteration cleanly after the batch in hand."""
        self._lease.interrupt()

    def break_off(self) -> None:
        """End it at once, as a broken read, whatever its client takes of it yet."""
        self._lease.interrupt()
        self._lease.release(clean=False)

    async def __aenter__(self) -> Self:
        self._observer.read_started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lease.release(clean=kind is None)
        self._observer.read_ended()
        self._on_exit(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        if self._left > 0 and self._is_in_time():
            events = await self._lease.take(
                min(BATCH_EVENTS, self._left), BATCH_BYTES, self._next_stop()
            )
            self._left -= len(events)
            self._ready -= len(events)
            if events or self._heartbeat_is_due():
                return events
        raise StopAsyncIteration

    def _is_in_time(self) -> bool:
        """Whether there is more to take, or to wait for."""
        return self._ready > 0 or asyncio.get_running_loop().time() < self.until

    def _next_stop(self) -> float:
        if self._heartbeat_s is None:
            return self.until
        return min(self.until, asyncio.get_running_loop().time() + self._heartbeat_s)

    def _heartbeat_is_due(self) -> bool:
        """Whether a `take` without events ended for a heartbeat, and not with the read."""
        return (
            self._heartbeat_s is not None
            and not self._lease.is_over
            and asyncio.get_running_loop().time() < self.until
        )
