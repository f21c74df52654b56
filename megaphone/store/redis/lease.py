"""A read of a channel that is in Redis. Fulfils `core.ports.Lease`."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from megaphone.core.log import Batch, cut_off, new_tuple
from megaphone.core.sendings import Sendings
from megaphone.model import START, Event, ReadEnd, ReadOptions

NOT_OPEN = -1
"""The number of a lease that Redis has not answered for yet."""
ASK_AGAIN_S = 0.5
"""How long a lease waits before it asks again, if the store was unavailable."""


class Taken:
    """What a take in Redis returns."""

    __slots__ = ("backlog", "events", "first_offset")

    def __init__(self, first_offset: int, backlog: int, events: Sequence[Event]) -> None:
        self.first_offset = first_offset
        self.backlog = backlog
        """How many events the channel has after these."""
        self.events = events


class Calls(Protocol):
    """What a lease needs of the store."""

    def take(self, lease: "RemoteLease", resend_after: int) -> None:
        """Take more events, and give them to the lease later: see `RemoteLease.taken`."""

    def pass_over(self, lease: "RemoteLease", after: int, last: int) -> None:
        """Deliver the events behind the offset `after`, up to `last`, if all before are delivered.
        If the store is away, this does not happen."""

    def release(
        self, lease: "RemoteLease", *, clean: bool, resend_after: int
    ) -> "asyncio.Future[bool]":
        """Release the lease, however long it takes until the store is there.

        Returns: a future that says soon whether the store has ended the read like that.
        """


class RemoteLease:
    """The right to read a channel that is in Redis. Belongs to one event loop.

    Events arrive in one of two ways: in the answer to a take, or unasked, from whoever wrote them,
    for as long as the lease has credit. The offsets tell whether one is missing, because a message
    was lost. The lease then takes again, and Redis goes back to the last event that arrived.

    The lease asks for more only when it has handed out all that it has. So this node never has more
    events that the client may lack than the channel keeps for the next reader.
    """

    __slots__ = (
        "_arrived",
        "_backlog",
        "_calls",
        "_confirmed",
        "_first_handed",
        "_handed",
        "_have",
        "_is_interrupted",
        "_must_ask",
        "_sendings",
        "_sent_before",
        "acknowledging",
        "began_at",
        "channel_id",
        "cursor",
        "ended_by",
        "epoch",
        "face",
        "handle",
        "is_fetching",
        "is_open",
        "number",
        "on_ready",
        "reader",
        "recovered",
        "taken_at",
    )

    def __init__(
        self,
        calls: Calls,
        channel_id: bytes,
        handle: str,
        options: ReadOptions,
        redelivery_window_s: float,
        *,
        now: float,
    ) -> None:
        self._calls = calls
        self.channel_id = channel_id
        self.handle = handle
        """The name of this lease on this node."""
        self.number = NOT_OPEN
        self.epoch = 0
        self.acknowledging = options.acknowledge
        self.reader = options.reader
        self.face = options.face
        self.began_at = now
        self.taken_at: float | None = None
        self.on_ready: Callable[[], None] | None = None
        self.cursor = START
        self.recovered: bool | None = None
        self.is_open = True
        self.ended_by: ReadEnd | None = None
        self.is_fetching = False
        self._is_interrupted = False
        self._arrived: deque[Event] = deque()
        """Events that arrived and were not handed out yet."""
        self._have = self._handed = self._first_handed = self._confirmed = 0
        """The offsets of the last event that arrived; of the last and first that the latest take
        handed out; and of the last one of which the connection has all bytes."""
        self._sent_before = 0
        """The highest offset that was sent to earlier readers. This one is sent each event once,
        even if Redis has sent it to this node several times."""
        self._backlog = 0
        """How many events Redis had after those that arrived, when it last said so."""
        self._must_ask = False
        self._sendings = Sendings(redelivery_window_s)

    def opened(
        self,
        number: int,
        epoch: int,
        recovered: bool | None,
        cursor: str,
        position: int,
        sent_before: int,
    ) -> None:
        """Note what Redis has answered to the opening. The read starts after `position`, and
        earlier readers were sent events up to `sent_before`."""
        self.number, self.epoch = number, epoch
        self.recovered, self.cursor = recovered, cursor
        self._have = self._handed = self._confirmed = position
        self._sent_before = sent_before

    # -- What the reader calls

    @property
    def is_over(self) -> bool:
        return self._is_interrupted or not self.is_open

    @property
    def ready(self) -> int:
        return len(self._arrived) + self._backlog

    def take(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        if self._is_interrupted or not self.is_open:
            return None
        if self._handed > self._confirmed:
            self._confirm(now)
        if not self._arrived:
            if self._must_ask and not self.is_fetching:
                # What a message says from now on may not be in the answer.
                self.is_fetching, self._must_ask = True, False
                self._calls.take(self, self.resend_after(now))
            return None
        events = self._next(min(limit, len(self._arrived)), max_bytes)
        self.taken_at = now
        first = self._handed + 1
        self._first_handed, self._handed = first, self._handed + len(events)
        redelivered = max(0, min(self._handed, self._sent_before) - first + 1)
        return new_tuple(Batch, (self.epoch, first, events, redelivered))

    def pass_over(self, after: int, last: int, now: float) -> None:
        if self.acknowledging and self.is_open:
            self._calls.pass_over(self, after, last)

    def _next(self, count: int, max_bytes: int) -> list[Event]:
        """Remove and return the first events that arrived, at most `count`, but at least one."""
        if count == 1:
            return [self._arrived.popleft()]
        events = [self._arrived.popleft() for _ in range(count)]
        kept = events.copy()
        cut_off(kept, max_bytes)
        self._arrived.extendleft(reversed(events[len(kept) :]))
        return kept

    def _confirm(self, now: float) -> None:
        """Note that the connection has all bytes of the events handed out."""
        if not self.acknowledging:
            self._sendings.confirm(self._first_handed, self._handed, now)
        self._confirmed = self._handed

    def resend_after(self, now: float) -> int:
        """Return the offset after which the next read starts if this plain read breaks now."""
        return self._sendings.resend_after(0, self._confirmed, now)

    def interrupt(self) -> None:
        self._is_interrupted = True
        self.notify()

    def settle(self, now: float) -> "asyncio.Future[bool] | None":
        self.on_ready = None
        if not self.is_open:
            return None
        self.is_open = False
        return self._calls.release(self, clean=True, resend_after=self._handed)

    def release(self, *, clean: bool, now: float) -> None:
        self.on_ready = None
        if self.is_open:
            self.is_open = False
            upto = self._handed if clean else self.resend_after(now)
            self._calls.release(self, clean=clean, resend_after=upto)

    # -- What the store calls

    @property
    def have(self) -> int:
        """The offset of the last event that arrived."""
        return self._have

    @property
    def given(self) -> int:
        """The highest offset that this reader or an earlier one was given."""
        return self._sent_before if self.taken_at is None else max(self._sent_before, self._handed)

    def taken(self, taken: Taken) -> None:
        """Note the answer to a take. Events that have arrived meanwhile are left out."""
        self.is_fetching = False
        # If there are events and none was sent, the window is full: Redis says when it is open.
        self._must_ask = self._must_ask or (taken.backlog > 0 and bool(taken.events))
        self._backlog = taken.backlog
        first = taken.first_offset
        if first > self._have + 1:  # the reader acknowledged events that did not arrive
            self._arrived.clear()
            self._have = self._handed = self._confirmed = first - 1
        new = taken.events[self._have + 1 - first :]
        self._arrived.extend(new)
        self._have += len(new)
        self.notify()

    def not_taken(self) -> None:
        """Note that a take failed. The lease asks again soon."""
        self.is_fetching = False
        self._must_ask = True
        asyncio.get_running_loop().call_later(ASK_AGAIN_S, self.notify)

    def sent(self, first_offset: int, events: Sequence[Event]) -> None:
        """Note events that came unasked."""
        if self.number == NOT_OPEN or first_offset > self._have + 1:  # an earlier message is lost
            self._must_ask = True
        else:
            new = events[self._have + 1 - first_offset :]
            self._arrived.extend(new)
            self._have += len(new)
        self.notify()

    def ask(self) -> None:
        """Note that a take may return something new."""
        self._must_ask = True
        self.notify()

    def end(self, why: ReadEnd) -> None:
        """Note that the lease is over in Redis."""
        self.is_open = False
        self.ended_by = why
        self.notify()

    def lose(self) -> None:
        """Make each later `take` return None, because the store may have lost events."""
        self.ended_by = ReadEnd.STORE_LOST
        self.interrupt()

    def notify(self) -> None:
        """Call `on_ready`, if it is set."""
        if self.on_ready is not None:
            self.on_ready()
