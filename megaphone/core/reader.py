"""The one reader of a channel, as both faces use it."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from megaphone.core.log import EVENT_OVERHEAD_BYTES
from megaphone.core.ports import Lease, Observer
from megaphone.core.progress import STALL_S, Progress
from megaphone.errors import AgentMoved, TooSlow
from megaphone.model import Event, ReadOptions

BATCH_EVENTS = 100
"""The most events handed over at once. A face sends a batch before it asks for the next, so this
also bounds what is in flight within the process."""
LOOK_S = 1.0
"""How often a reader looks at how much its client has taken, while it waits for the client."""


class Reader:
    """A read: an asynchronous context manager, and an iterator of batches within its context.

    Entering the context opens the read. Each batch is everything that is ready, in order, up to as
    many bytes as suit how fast the client takes them; it is empty when the caller asked for
    heartbeats and one is due. A call for the next batch says that the connection has taken all of
    the one before: only then it counts as sent. The iteration ends when the time of the read is
    over, when as many events were sent as were asked for, when the channel goes or another reader
    takes over, and on `end`. Leaving the context releases the channel at once: as cleanly ended
    without an exception, as broken with any (cancellation too), so that the next reader gets again
    what a broken read had sent.

    A client has stalled when it takes nothing for `STALL_S` while a batch waits for it. Then, as
    after `break_off`, whatever waits in the context is cancelled, and the context raises.

    Raises: on entering, BadRequest, ChannelNotFound, ReaderBusy, AgentMoved and ShuttingDown; on
        leaving, TooSlow, when the client has stalled; AgentMoved, after `break_off`.
    """

    __slots__ = (
        "_heartbeat_s",
        "_is_broken_off",
        "_lease",
        "_left",
        "_look_timer",
        "_observer",
        "_on_exit",
        "_opening",
        "_progress",
        "_ready",
        "_stalled",
        "_taken",
        "_time_s",
        "_until",
        "agent",
    )

    def __init__(
        self,
        opening: Callable[["Reader"], Awaitable[Lease]],
        options: ReadOptions,
        *,
        agent: str,
        time_s: float,
        observer: Observer,
        on_exit: Callable[["Reader"], None],
    ) -> None:
        """`opening` returns the lease of the channel; `time_s` is how long the read lasts."""
        self._opening: Callable[[Reader], Awaitable[Lease]] | None = opening
        """None once it was called: there are many open reads, and memory counts."""
        self._lease: Lease
        self._left = sys.maxsize if options.limit is None else options.limit
        self._heartbeat_s = options.heartbeat_s
        self._ready = 0
        """Events that were ready when the read began, and were not returned yet. They are returned
        even if the time is already up."""
        self.agent = agent
        """The agent of the channel."""
        self._time_s = time_s
        self._until = 0.0
        self._observer = observer
        self._on_exit = on_exit
        self._progress = Progress(is_seen=False)
        self._stalled = asyncio.timeout(None)
        self._is_broken_off = False
        self._taken: Callable[[], int] | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    # -- The context

    async def __aenter__(self) -> Self:
        assert self._opening is not None, "a read is opened once"
        self._lease = await self._opening(self)
        self._opening = None
        self._ready = self._lease.ready
        self._until = self._now() + self._time_s
        self._observer.read_started()
        await self._stalled.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._lease.release(clean=kind is None)
        self._observer.read_ended()
        self._on_exit(self)
        try:
            await self._stalled.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._is_broken_off:
                raise self._moved() from None
            raise TooSlow(f"the client took nothing for {STALL_S:g} s") from None

    @property
    def cursor(self) -> str:
        """The event before the first one of this read, or START: what to resume after."""
        return self._lease.cursor

    @property
    def recovered(self) -> bool | None:
        """Whether the event to resume after was still known; None when none was named."""
        return self._lease.recovered

    def watch(self, taken: Callable[[], int]) -> None:
        """Judge the client by how many bytes `taken` returns that it has taken so far.

        Without it the reader sees only that a whole batch was taken, and so gives the client more
        time for large ones. To be called before the first batch.
        """
        self._taken = taken
        self._progress = Progress(is_seen=True)

    def end(self) -> None:
        """End the iteration cleanly after the batch in hand."""
        self._lease.interrupt()

    def break_off(self) -> None:
        """End the read at once, as a broken one, whatever its client has yet to take.

        Its iteration and its context raise AgentMoved, so that the client does not take the end
        for a clean one.
        """
        self._is_broken_off = True
        self._lease.interrupt()
        self._lease.release(clean=False)
        self._stalled.reschedule(self._now())

    # -- The iteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        self._progress.finish(self._now())
        if self._is_broken_off:
            raise self._moved()
        if self._left > 0 and self._is_in_time():
            batch = await self._lease.take(
                min(BATCH_EVENTS, self._left), self._progress.batch_bytes, self._next_stop()
            )
            events = [] if batch is None else batch.events
            if batch is not None:
                self._observer.events_read(len(events), batch.redelivered)
            self._left -= len(events)
            self._ready -= len(events)
            if events or self._heartbeat_is_due():
                self._hand_over(events)
                return events
            if self._is_broken_off:
                raise self._moved()
        self._hand_over([])  # the end, which the client must take as well
        raise StopAsyncIteration

    def _moved(self) -> AgentMoved:
        return AgentMoved(f"agent {self.agent} moves to another node")

    # -- Stalling

    def _hand_over(self, events: list[Event]) -> None:
        now = self._now()
        size = 0 if self._progress.is_seen else bytes_of(events)
        self._progress.hand_over(size, now, more_is_ready=self._lease.ready > 0)
        if self._look_timer is None:
            self._look_again(now)

    def _look_again(self, now: float) -> None:
        """Look at the client later. One timer lasts over many batches: most are taken before."""
        due = min(self._progress.stalls_at, now + LOOK_S)
        self._look_timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._look_timer = None
        if not self._progress.is_waiting:
            return
        now = self._now()
        if self._taken is not None:
            self._progress.look(self._taken(), now)
        if now >= self._progress.stalls_at:
            self._stalled.reschedule(now)
        else:
            self._look_again(now)

    # -- Time

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _is_in_time(self) -> bool:
        """Whether there is more to take, or to wait for."""
        return self._ready > 0 or self._now() < self._until

    def _next_stop(self) -> float:
        if self._heartbeat_s is None:
            return self._until
        return min(self._until, self._now() + self._heartbeat_s)

    def _heartbeat_is_due(self) -> bool:
        """Whether a `take` without events ended for a heartbeat, and not with the read."""
        return (
            self._heartbeat_s is not None and not self._lease.is_over and self._now() < self._until
        )


def bytes_of(events: list[Event]) -> int:
    return sum(len(event.body) + EVENT_OVERHEAD_BYTES for event in events)
