"""An open read, as a connection sees it: batches, at the speed of the client, and heartbeats.

It never waits. The face that has the connection of the client calls `next` when something may be
ready, sends what it gets, and calls `next` again when the connection has all the bytes.
`megaphone.core.reading` is for a face that waits.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from megaphone.core.alarms import NO_TICK, TICKS_PER_S, Alarms, tick_of
from megaphone.core.ports import Observer
from megaphone.core.progress import FIRST_BATCH_BYTES, STALL_S, Progress
from megaphone.errors import MegaphoneError, TooSlow
from megaphone.model import ReadEnd

BATCH_EVENTS: Final = 100
"""The largest number of events in a batch. A face sends a batch before it asks for the next one, so
this is also the largest number of events that a read has in this process."""
LOOK_S = 1.0
"""How often a read checks how many bytes its client has taken, while it waits for the client."""

T = TypeVar("T")


class Client(Protocol):
    """What an open read needs of the connection of its client."""

    def taken(self) -> int | None:
        """Return how many bytes the client has taken so far; None if nobody can count them.

        The number has an arbitrary starting point: only differences mean something. Without it the
        read notices only when the client has taken a whole batch, and so gives it more time for a
        large batch.
        """

    def broken(self, error: MegaphoneError) -> None:
        """End the connection at once, so that the client does not see a clean end of the read, and
        close the read.

        The error is TooSlow, when the client has stalled, or AgentMoved, after `Reader.abort`.
        """


class OpenRead(ABC, Generic[T]):
    """Batches for one client. A subclass says where they come from.

    The owner of the connection must call `attach` before it first calls `next`, and must call
    `close` in the end. Belongs to the event loop in which it is made.
    """

    __slots__ = (
        "_alarm",
        "_alarms",
        "_batch_bytes",
        "_client",
        "_heartbeat_at",
        "_heartbeat_s",
        "_is_waiting",
        "_look_timer",
        "_loop",
        "_more_is_ready",
        "_observer",
        "_progress",
        "ended_by",
        "is_over",
        "refusal",
    )

    def __init__(self, heartbeat_s: float | None, observer: Observer, alarms: Alarms) -> None:
        self._observer = observer
        self._alarms = alarms
        self._alarm = NO_TICK
        """The tick at which the read wakes. No heartbeat is due before it, and the end of the read
        only if the read waited for a store that had nothing more."""
        self._loop = asyncio.get_running_loop()
        self._heartbeat_s = math.inf if heartbeat_s is None else heartbeat_s
        self._heartbeat_at = self._loop.time() + self._heartbeat_s
        self._client: Client | None = None
        self.is_over = False
        """Whether the last `next` found that the read is over, so that it can end cleanly."""
        self.ended_by: ReadEnd | None = None
        """Why the read ends, once something ends it. Without that its client has gone."""
        self.refusal: MegaphoneError | None = None
        """Why the caller may not read any more, if that has ended the read. The end is a clean one
        all the same. A read of many channels says so of each channel instead."""
        self._progress: Progress | None = None
        """Made when the client does not take a batch at once, because most clients do."""
        self._batch_bytes = FIRST_BATCH_BYTES
        """The size limit of the next batch."""
        self._is_waiting = False
        """Whether a batch waits for the client."""
        self._more_is_ready = False
        """Whether more events were ready than the last batch could hold."""
        self._look_timer: asyncio.TimerHandle | None = None

    @abstractmethod
    def attach(self, client: Client | None, on_ready: Callable[[], None]) -> None:
        """Say who takes the batches.

        `on_ready` is called when `next` may return something else than None, or the read may be
        over; and sometimes in vain. It is called in the middle of other calls, so it must only note
        that something is ready.
        """

    @abstractmethod
    def next(self) -> list[T] | None:
        """Return the next batch: all that is ready, in order, up to a size that fits the speed of
        the client.

        By this call the caller says that the connection has all bytes of the batches before; only
        then do their events count as sent.

        Returns an empty list if a heartbeat is due. Returns None if nothing is ready, or if the
        read is over (`is_over`).
        """

    @abstractmethod
    def size_of(self, batch: list[T]) -> int:
        """Return how many bytes a batch counts: bodies, and an overhead for each event."""

    @abstractmethod
    def end(self, why: ReadEnd) -> None:
        """End the read after the present batch, so that it can end cleanly."""

    @abstractmethod
    def settle(self) -> "asyncio.Future[bool] | None":
        """End the read cleanly in the store before its client learns of the end.

        The owner of the connection calls this once `is_over` is set. Returns: None, if `close` does
        it at once. Otherwise a future, which says whether the client may see a clean end.
        """

    @abstractmethod
    def close(self, *, clean: bool) -> None:
        """Release what the read has. A second call changes nothing.

        After a clean end all events of the read count as sent. After another end the next reader
        may get events of this read again.
        """

    # -- Inside: heartbeats

    @abstractmethod
    def _wake(self) -> None:
        """Call `on_ready`."""

    def _heartbeat(self, now: float) -> list[T] | None:
        if now < self._heartbeat_at:
            return None
        self._heartbeat_at = now + self._heartbeat_s
        return []

    def _wake_at(self, due: float) -> None:
        """Call `on_ready` at a time. An alarm that is earlier stays: it wakes the read in vain
        once, which costs less than a new alarm for each batch."""
        if self._alarm != NO_TICK:
            if self._alarm <= tick_of(due):
                return
            self._alarms.cancel(self._alarm, self)
        self._alarm = self._alarms.set(due, self)

    def _may_be_due(self, now: float) -> bool:
        """Return whether a heartbeat may be due, or nothing wakes the read when it will be."""
        return self._alarm == NO_TICK or now * TICKS_PER_S >= self._alarm

    def on_alarm(self) -> None:
        """Look again; if this is slightly early, a new alarm is set."""
        self._alarm = NO_TICK
        self._wake()

    # -- The client

    def wait_for_client(self, size: int) -> None:
        """Note that the client has not taken a batch of `size` bytes at once. The next call of
        `next` or `close` says that it has.

        A client stalls when it takes no bytes for `STALL_S` although a batch waits for it. Then the
        read breaks: see `Client.broken`.
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
        self._batch_bytes = progress.batch_bytes
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
            self._observer.read_cut_off()
            self.note_end(ReadEnd.STALLED)
            self._break(TooSlow(f"the client took nothing for {STALL_S:g} s"))
        else:
            self._look_again(now)

    def note_end(self, end: ReadEnd) -> None:
        """Note why the read ends, unless it ends for another reason already."""
        if self.ended_by is None:
            self.ended_by = end

    def _break(self, error: MegaphoneError) -> None:
        if self._client is not None:
            self._client.broken(error)

    def _forget_client(self) -> None:
        """Stop all timers. The client refers to this object: without the cycle both are freed at
        once."""
        if self._alarm != NO_TICK:
            self._alarms.cancel(self._alarm, self)
            self._alarm = NO_TICK
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._client = self._look_timer = None
