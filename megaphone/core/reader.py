"""An open read of a channel: its batches, its end, and the speed of its client.

A `Reader` never waits. The face that has the connection of the client calls `next` when something
may be ready, sends what it gets, and calls `next` again when the connection has all the bytes.
`megaphone.core.reading` is for a face that waits.
"""

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Final, Protocol

from megaphone.core.log import EVENT_OVERHEAD_BYTES
from megaphone.core.ports import Lease, Observer
from megaphone.core.progress import FIRST_BATCH_BYTES, STALL_S, Progress
from megaphone.errors import AgentMoved, MegaphoneError, TooSlow
from megaphone.model import Event, ReadOptions

BATCH_EVENTS: Final = 100
"""The largest number of events in a batch. A face sends a batch before it asks for the next one, so
this is also the largest number of events that a read has in this process."""
PASSED_AT_ONCE: Final = 20
"""How many batches without a wanted event a reader passes over before other tasks get a turn."""
FETCH_S: Final = 5.0
"""How long after its read time a read waits for events that were ready when it began, and that a
remote store still fetches."""
LOOK_S = 1.0
"""How often a reader checks how many bytes its client has taken, while it waits for the client."""


class Client(Protocol):
    """What a reader needs of the connection of its client."""

    def taken(self) -> int | None:
        """Return how many bytes the client has taken so far; None if nobody can count them.

        The number has an arbitrary starting point: only differences mean something. Without it the
        reader notices only when the client has taken a whole batch, and so gives it more time for a
        large batch.
        """

    def broken(self, error: MegaphoneError) -> None:
        """End the connection at once, so that the client does not see a clean end of the read, and
        close the reader.

        The error is TooSlow, when the client has stalled, or AgentMoved, after `Reader.abort`.
        """


class Reader:
    """A read that has the lease of a channel, until `close` releases it.

    The owner of the connection must call `attach` before it first calls `next`, and must call
    `close` in the end. Belongs to the event loop in which it is made.
    """

    __slots__ = (
        "_client",
        "_heartbeat_at",
        "_heartbeat_s",
        "_is_closed",
        "_is_waiting",
        "_last_wanted",
        "_lease",
        "_left",
        "_look_timer",
        "_loop",
        "_more_is_ready",
        "_observer",
        "_on_close",
        "_progress",
        "_ready",
        "_streams",
        "_timer",
        "_timer_due",
        "_until",
        "agent",
        "is_over",
    )

    def __init__(
        self,
        lease: Lease,
        options: ReadOptions,
        *,
        agent: str,
        time_s: float,
        observer: Observer,
        on_close: Callable[["Reader"], None],
    ) -> None:
        """`time_s` is the read time in seconds."""
        self._loop = asyncio.get_running_loop()
        self._lease = lease
        self._left = sys.maxsize if options.limit is None else options.limit
        self._ready = lease.ready
        """How many events were ready when the read began and were not returned yet. They are
        returned even if the read time is over."""
        self._streams = options.streams
        """The streams whose events the client wants; None if it wants all."""
        self._last_wanted = 0
        """The offset of the last wanted event."""
        self.agent = agent
        """The agent of the channel."""
        now = self._loop.time()
        self._until = now + time_s
        self._heartbeat_s = math.inf if options.heartbeat_s is None else options.heartbeat_s
        self._heartbeat_at = now + self._heartbeat_s
        self._observer = observer
        self._on_close = on_close
        self._client: Client | None = None
        self.is_over = False
        """Whether the last `next` found that the read is over, so that it can end cleanly."""
        self._is_closed = False
        self._progress: Progress | None = None
        """Made when the client does not take a batch at once, because most clients do."""
        self._is_waiting = False
        """Whether a batch waits for the client."""
        self._more_is_ready = False
        """Whether more events were ready than the last batch could hold."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        """When `_timer` is due. No heartbeat is due before it, and the end of the read only if the
        read waited for a store that had nothing more."""
        self._look_timer: asyncio.TimerHandle | None = None
        observer.read_started()

    def attach(self, client: Client | None, on_ready: Callable[[], None]) -> None:
        """Say who takes the batches.

        `on_ready` is called when `next` may return something else than None, or the read may be
        over; and sometimes in vain. It is called in the middle of other calls, so it must only note
        that something is ready.
        """
        self._client = client
        self._lease.on_ready = on_ready

    @property
    def cursor(self) -> str:
        """The cursor before the first event of this read: an event id, or START."""
        return self._lease.cursor

    @property
    def recovered(self) -> bool | None:
        """Whether the cursor that the reader named was still known. If the reader named none: False
        if the channel has a gap, else None."""
        return self._lease.recovered

    # -- Batches

    def next(self) -> list[Event] | None:
        """Return the next batch: all events that are ready, in order, up to a size that fits the
        speed of the client. Events of streams that the client does not want are left out.

        By this call the caller says that the connection has all bytes of the batches before; only
        then do their events count as sent.

        Returns an empty list if a heartbeat is due. Returns None if nothing is ready, or if the
        read is over (`is_over`): when the read time is over, when `limit` events were returned,
        when the channel was removed, when another reader has taken over, and after `end`.
        """
        now = self._loop.time()
        if self._is_waiting or self._more_is_ready:
            self._note_taken(now)
        lease, progress, left = self._lease, self._progress, self._left
        for _ in range(PASSED_AT_ONCE):
            if left <= 0 or (self._ready <= 0 and now >= self._until):
                self.is_over = True
                return None
            batch = lease.take(
                min(BATCH_EVENTS, left),
                FIRST_BATCH_BYTES if progress is None else progress.batch_bytes,
                now,
            )
            if batch is None:
                is_due = self._timer is None or now >= self._timer_due or now >= self._until
                if not (is_due or lease.is_over):
                    return None  # the rule
                return self._nothing(now)
            _, first_offset, events, redelivered = batch
            count = len(events)
            self._observer.events_read(count, redelivered)
            self._ready -= count
            self._more_is_ready = lease.ready > 0
            if self._streams is not None:
                events = self._wanted(first_offset, events, now)
            if events:
                self._left = left - len(events)
                self._heartbeat_at = now + self._heartbeat_s
                return events
        self._loop.call_soon(self._wake)
        return self._heartbeat(now)

    def _wanted(self, first_offset: int, events: list[Event], now: float) -> list[Event]:
        """Return those of the events taken that the client wants.

        An acknowledging client cannot acknowledge an event that it does not get. So once all that
        it got is acknowledged, the unwanted events behind it must not keep their places.
        """
        assert self._streams is not None
        wanted: list[Event] = []
        for offset, event in enumerate(events, first_offset):
            if event.stream_id in self._streams:
                wanted.append(event)
                self._last_wanted = offset
        last = first_offset + len(events) - 1
        if last > self._last_wanted:
            self._lease.pass_over(self._last_wanted, last, now)
        return wanted

    def _nothing(self, now: float) -> list[Event] | None:
        """Return a heartbeat, if one is due; otherwise see to it that `on_ready` is called in
        time."""
        until = self._until
        if self._ready > 0 and self._lease.is_fetching:
            until += FETCH_S
        if now >= until or self._lease.is_over:
            self.is_over = True
            return None
        if (heartbeat := self._heartbeat(now)) is None:
            self._set_timer(min(until, self._heartbeat_at))
        return heartbeat

    def _heartbeat(self, now: float) -> list[Event] | None:
        if now < self._heartbeat_at:
            return None
        self._heartbeat_at = now + self._heartbeat_s
        return []

    def _set_timer(self, due: float) -> None:
        """Call `on_ready` at a time. A timer that is earlier stays: it calls in vain once, which
        costs less than a new timer for each batch."""
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None  # The event loop may call this slightly early; then a new timer starts.
        self._wake()

    def _wake(self) -> None:
        if self._lease.on_ready is not None:
            self._lease.on_ready()

    # -- The client

    def wait_for_client(self, size: int) -> None:
        """Note that the client has not taken a batch of `size` bytes at once. The next call of
        `next` or `close` says that it has.

        A client stalls when it takes no bytes for `STALL_S` although a batch waits for it. The
        reader then breaks the read: see `Client.broken`.
        """
        now = self._loop.time()
        self._is_waiting = True
        progress = self._known_progress()
        size = 0 if progress.is_seen else size
        progress.hand_over(size, now, more_is_ready=self._more_is_ready)
        if self._look_timer is None:
            self._look_again(now)

    def _note_taken(self, now: float) -> None:
        progress = self._known_progress()
        if self._is_waiting:
            progress.finish(now)
        else:
            progress.grow()
        self._is_waiting = self._more_is_ready = False

    def _known_progress(self) -> Progress:
        if self._progress is None:
            is_seen = self._client is not None and self._client.taken() is not None
            self._progress = Progress(is_seen=is_seen)
        return self._progress

    def _look_again(self, now: float) -> None:
        """Check the client later. One timer serves many batches, because the client takes most of
        them before the timer is due."""
        due = min(self._known_progress().stalls_at, now + LOOK_S)
        self._look_timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._look_timer = None
        if not self._is_waiting:
            return
        now, progress = self._loop.time(), self._known_progress()
        taken = None if self._client is None else self._client.taken()
        if taken is not None:
            progress.look(taken, now)
        if now >= progress.stalls_at:
            self._break(TooSlow(f"the client took nothing for {STALL_S:g} s"))
        else:
            self._look_again(now)

    # -- The end

    def end(self) -> None:
        """End the read after the present batch, so that it can end cleanly."""
        self._lease.interrupt()

    def abort(self) -> None:
        """End the read now, as broken, although bytes may still wait for the client."""
        self._lease.interrupt()
        self._lease.release(clean=False, now=self._loop.time())
        self._break(AgentMoved(f"agent {self.agent} moves to another node"))

    def _break(self, error: MegaphoneError) -> None:
        if self._client is not None:
            self._client.broken(error)

    def settle(self) -> "asyncio.Future[bool] | None":
        """End the read cleanly in the store before its client learns of the end.

        The owner of the connection calls this once `is_over` is set. Returns: None, if `close` does
        it at once. Otherwise a future, which says whether the client may see a clean end.
        """
        return self._lease.settle(self._loop.time())

    def close(self, *, clean: bool) -> None:
        """Release the lease now. A second call changes nothing.

        After a clean end all events of the read count as sent. After another end the next reader
        may get events of this read again.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        # The client refers to this object: without the cycle both are freed at once.
        self._client = self._timer = self._look_timer = None
        self._lease.release(clean=clean, now=self._loop.time())
        self._observer.read_ended()
        self._on_close(self)


def bytes_of(events: list[Event]) -> int:
    """Return how many bytes a batch counts: its bodies, and an overhead for each event."""
    return sum(len(event.body) + EVENT_OVERHEAD_BYTES for event in events)
