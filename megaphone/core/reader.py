"""An open read of a channel, which both faces iterate over."""

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
"""The largest number of events in a batch. A face sends a batch before it asks for the next one, so
this is also the largest number of events that a read has in this process."""
LOOK_S = 1.0
"""How often a reader checks how many bytes its client has taken, while it waits for the client."""


class Reader:
    """A read: an asynchronous context manager, and an iterator of batches within its context.

    Entering the context takes the lease of the channel. A batch has all events that are ready, in
    order, up to a size that fits the speed of the client. An empty batch means that a heartbeat is
    due. By asking for the next batch, the caller says that the connection has all bytes of the
    batch before; only then do its events count as sent.

    The iteration ends when the read time is over, when `limit` events were returned, when the
    channel is removed, when another reader takes over, and after `end`. Leaving the context
    releases the lease at once. The read ends cleanly if no exception leaves the context. It is
    broken if one does, also a cancellation; the next reader may then get events of this read again.

    A client stalls when it takes no bytes for `STALL_S` although a batch waits for it. After a
    stall, and after `abort`, the reader cancels the code in its context, and the context raises.

    Raises: on entering, BadRequest, ChannelNotFound, ReaderBusy, AgentMoved and ShuttingDown; on
        leaving, TooSlow, when the client has stalled; AgentMoved, after `abort`.
    """

    __slots__ = (
        "_heartbeat_s",
        "_is_aborted",
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
        """`opening` takes the lease of the channel; `time_s` is the read time in seconds."""
        self._opening: Callable[[Reader], Awaitable[Lease]] | None = opening
        """None after the read was opened, to save memory, because a node may have many reads."""
        self._lease: Lease
        self._left = sys.maxsize if options.limit is None else options.limit
        self._heartbeat_s = options.heartbeat_s
        self._ready = 0
        """How many events were ready when the read began and were not returned yet. They are
        returned even if the read time is over."""
        self.agent = agent
        """The agent of the channel."""
        self._time_s = time_s
        self._until = 0.0
        self._observer = observer
        self._on_exit = on_exit
        self._progress = Progress(is_seen=False)
        self._stalled = asyncio.timeout(None)
        self._is_aborted = False
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
            if self._is_aborted:
                raise self._moved() from None
            raise TooSlow(f"the client took nothing for {STALL_S:g} s") from None

    @property
    def cursor(self) -> str:
        """The cursor before the first event of this read: an event id, or START."""
        return self._lease.cursor

    @property
    def recovered(self) -> bool | None:
        """Whether the cursor that the reader named was still known. If the reader named none: False
        if the channel has a gap, else None."""
        return self._lease.recovered

    def watch(self, taken: Callable[[], int]) -> None:
        """Measure the client by `taken`, which returns how many bytes the client has taken so far.

        Without this call the reader notices only when a client has taken a whole batch, and so
        gives it more time for a large batch. The caller must call it before the first batch.
        """
        self._taken = taken
        self._progress = Progress(is_seen=True)

    def end(self) -> None:
        """End the iteration after the present batch, so that the read can end cleanly."""
        self._lease.interrupt()

    def abort(self) -> None:
        """Abort the read: end it now, as broken, although bytes may still wait for the client.

        The iteration and the context raise AgentMoved, so that the client does not see a clean end.
        """
        self._is_aborted = True
        self._lease.interrupt()
        self._lease.release(clean=False)
        self._stalled.reschedule(self._now())

    # -- The iteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        self._progress.finish(self._now())
        if self._is_aborted:
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
            if self._is_aborted:
                raise self._moved()
        self._hand_over([])  # the end of the response, which the client must take like a batch
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
        """Check the client later. One timer serves many batches, because the client takes most of
        them before the timer is due."""
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
        """Return whether the read may return more events."""
        return self._ready > 0 or self._now() < self._until

    def _next_stop(self) -> float:
        if self._heartbeat_s is None:
            return self._until
        return min(self._until, self._now() + self._heartbeat_s)

    def _heartbeat_is_due(self) -> bool:
        """Return whether a `take` without events ended because of a heartbeat, not with the
        read."""
        return (
            self._heartbeat_s is not None and not self._lease.is_over and self._now() < self._until
        )


def bytes_of(events: list[Event]) -> int:
    return sum(len(event.body) + EVENT_OVERHEAD_BYTES for event in events)
