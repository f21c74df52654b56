"""A channel: a log of events with one reader at a time, writers that wait, and a deadline.

The module is a state machine without an event loop. No call waits, and time is an argument (seconds
on any clock that does not run backwards), so that tests need neither a loop nor a clock. A caller
that must wait leaves a callback: the channel resolves the `Waiter` of a writer that found the
channel full, and calls `on_ready` of a lease that found no event.

A reader does not remove events: it takes them under a *lease*, and the log (see `core.log`) keeps
them while a reader may need them again. An event that an acknowledging reader takes is in flight,
and occupies its place, until the reader acknowledges it. An event that a plain reader takes is
delivered at once. The lease remembers when the event was sent; if the read breaks, the next read
starts with the first event that may not have arrived.

An event that a lease took counts as sent once the reader *confirms* it, that is, once the
connection has all its bytes. Each take confirms the events of the takes before it.
"""

from collections import OrderedDict
from collections.abc import Callable

from megaphone.core.budget import CHANNEL_BYTES, Budget, cost
from megaphone.core.idempotency import Key, Keys
from megaphone.core.log import Batch, Log
from megaphone.core.sendings import Sendings
from megaphone.errors import LimitExceeded, ReaderBusy, TakenOver
from megaphone.model import ChannelLimits, Event, Progress, ReadEnd, ReadOptions

REPLICA_SURPLUS = 1_000
"""How many more events than its source a replicated channel holds before it is full. A source sends
new events before it can report that older ones were delivered."""
BUSY_RETRY_AFTER_S = 1.0
"""How long a writer should wait before it tries again, if too many writers wait already."""


class Waiter:
    """The writers that wait for a free place for one event. There are several writers only if they
    repeat the same idempotency key."""

    __slots__ = ("_callbacks", "accepted", "event", "request_id", "since")

    def __init__(self, event: Event, request_id: str | None, since: float) -> None:
        self.since = since
        """When the first of these writers began to wait."""
        self.event = event
        self.request_id = request_id
        self.accepted: bool | None = None
        """None while the writers wait; True once the event is in the log; False if the channel was
        closed before."""
        self._callbacks: list[Callable[[], None]] = []

    def join(self, on_resolved: Callable[[], None]) -> None:
        """Add a writer. The waiter calls `on_resolved` once `accepted` is known."""
        self._callbacks.append(on_resolved)

    def leave(self, on_resolved: Callable[[], None]) -> bool:
        """Remove the writer that joined with this callback. Returns: whether no writer is left."""
        self._callbacks.remove(on_resolved)
        return not self._callbacks

    def is_first(self, on_resolved: Callable[[], None]) -> bool:
        """Return whether the writer that joined with this callback joined before all others."""
        return self._callbacks[0] is on_resolved

    def resolve(self, accepted: bool) -> None:
        """Set whether the event was accepted, and call the callback of each writer."""
        self.accepted = accepted
        for on_resolved in self._callbacks:
            on_resolved()


class Lease:
    """The right to read a channel. It lasts until its reader releases it, another reader takes
    over, or the channel is closed. Fulfils `core.ports.Lease`."""

    __slots__ = (
        "_channel",
        "_confirmed",
        "_first_taken",
        "_last_taken",
        "_sendings",
        "acknowledging",
        "began_at",
        "cursor",
        "ended_by",
        "face",
        "floor",
        "in_flight",
        "is_open",
        "is_over",
        "knows_gaps",
        "on_ready",
        "reader",
        "recovered",
        "taken_at",
    )

    def __init__(
        self, channel: "Channel", options: ReadOptions, recovered: bool | None, now: float
    ) -> None:
        self._channel = channel
        self.began_at = now
        self.taken_at: float | None = None
        """When the reader took events last; None before the first ones."""
        self.face = options.face
        self.acknowledging = options.acknowledge
        self.in_flight = options.in_flight
        self.reader = options.reader
        self.on_ready: Callable[[], None] | None = None
        """The channel calls this when `take` may return something new, and sometimes in vain.

        It is called in the middle of a change, possibly several times. It must not use the channel
        in this call; it may only note that something is ready."""
        self.is_over = False
        """Whether `take` will return no more events."""
        self.is_open = True
        """False once the reader has released the lease, another reader has taken over, or the
        channel is closed."""
        self.ended_by: ReadEnd | None = None
        """Why the channel has ended the read, if it has."""
        self.cursor = channel.cursor
        """The cursor before the first event of this read: an event id, or START. A read that
        resumes after it misses no event of this read."""
        self.recovered = recovered
        """Whether the cursor that the reader named was still known. If the reader named none: False
        if the channel has a gap, else None."""
        self.knows_gaps = True
        """Whether the reader has learned of every gap. False after an eviction during the read."""
        self.floor = channel.log.sent
        """For a plain lease: even after a broken end, events up to this offset are not sent again,
        because the read started after them or the reader has acknowledged them."""
        self._confirmed = self.floor
        """The offset up to which every event is confirmed, or lies before the start of the read.
        The bytes of later events may still be in this process."""
        self._first_taken = self._last_taken = 0
        """The first and the last offset of the latest take."""
        self._sendings: Sendings | None = None
        """What a broken end of a plain lease needs. None until first needed, because memory is
        scarce."""

    @property
    def channel_id(self) -> bytes:
        return self._channel.log.channel_id

    @property
    def is_fetching(self) -> bool:
        """Never: what is ready can be taken at once."""
        return False

    @property
    def ready(self) -> int:
        """The length of the backlog. A `take` may return fewer events, because of its limits and
        the window."""
        log = self._channel.log
        return log.end - log.sent

    def take(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        """Confirm the events taken before, and return the next events of the backlog in order.

        Returns at most `limit` events and at most `max_bytes` of bodies and overhead, but at least
        one event, however large it is. Returns None if no event is ready or the lease is over.

        For an acknowledging lease the events are in flight from now on, at most `in_flight` of
        them. For a plain lease they are delivered; one take returns at most the capacity.
        """
        if self.is_over:
            return None
        channel = self._channel
        log = channel.log
        if self._confirmed != log.sent:
            self.confirm(now)
        if log.sent == log.end:
            return None
        is_plain = not self.acknowledging
        # If a plain lease took more, the log would drop events before they are sent.
        most = log.limits.capacity if is_plain else self.in_flight - (log.sent - log.delivered)
        batch = log.take(min(most, limit), max_bytes, is_plain)
        if batch is not None:
            self._first_taken, self._last_taken = batch.first_offset, log.sent
            self.taken_at = now
            channel._on_taken(is_plain, now)
        return batch

    def pass_over(self, after: int, last: int, now: float) -> None:
        """Deliver the events behind an offset, up to another one that was taken, if all events up
        to the first offset are delivered. A plain lease ignores it."""
        channel = self._channel
        if self.acknowledging and self.is_open and channel.log.delivered >= after:
            channel.log.deliver(last)
            channel._use_free_places(now)

    def confirm(self, now: float) -> None:
        """Count the events taken so far as sent now, because the connection has all their bytes.

        If a read breaks, its unconfirmed events are sent again, however long ago it took them.
        """
        if not self.is_open:
            return
        if self._last_taken > self._confirmed and not self.acknowledging:
            log = self._channel.log
            if self._sendings is None:
                self._sendings = Sendings(log.limits.redelivery_window_s)
            self._sendings.confirm(
                self._first_taken, self._last_taken, now, max(self.floor, log.dropped)
            )
        self._confirmed = self._channel.log.sent

    def interrupt(self) -> None:
        """Make each later `take` return None."""
        self.is_over = True
        self.notify()

    def _end(self) -> None:
        """Take the right to read away."""
        self.is_open = False
        self.is_over = True

    def notify(self) -> None:
        """Call `on_ready`, if it is set."""
        if self.on_ready is not None:
            self.on_ready()

    def settle(self, now: float) -> None:
        """Return None, because `release` ends the read at once."""

    def release(self, *, clean: bool, now: float) -> None:
        """End the read. A clean end confirms the events taken. A second call changes nothing.

        After an acknowledging lease, the next read starts with the events in flight. After a plain
        lease with a broken end, the next read starts with the first event that was not confirmed,
        or that was confirmed within the redelivery window.
        """
        self.on_ready = None
        if self.is_open:
            self._channel._release(self, clean=clean, now=now)

    def resend_after(self, now: float) -> int:
        """Return the offset after which the next read starts if this plain read breaks now."""
        floor = max(self.floor, self._channel.log.dropped)
        if self._sendings is None:
            return max(floor, self._confirmed)
        return self._sendings.resend_after(floor, self._confirmed, now)


class Channel:
    """One channel, without an event loop. Each method takes effect at once and completely, or
    raises and changes nothing. The docstring of the module explains the rules."""

    __slots__ = (
        "_keys",
        "_lease",
        "_waiters",
        "_was_used",
        "_was_written",
        "created_at",
        "deadline",
        "log",
    )

    def __init__(
        self,
        limits: ChannelLimits,
        now: float,
        budget: Budget,
        *,
        epoch: int = 0,
        channel_id: bytes = b"",
    ) -> None:
        """Make an empty channel. It and its events count against `budget` until it is closed.

        `epoch` is the epoch of the store that makes the channel. The log calls its listener with
        `channel_id`.
        """
        budget.add(CHANNEL_BYTES)
        self.created_at = now
        self.deadline: float | None = now + limits.ttl_s
        """When the channel expires; None while it is read."""
        self.log = Log(limits, epoch, budget, channel_id)
        """Other objects may read the log and set its listener. Only the channel changes it."""
        self._was_used = False
        self._was_written = False
        self._lease: Lease | None = None
        # Made when first needed, because most channels need neither and memory is scarce.
        self._waiters: OrderedDict[Waiter, None] | None = None
        self._keys: Keys[Waiter] | None = None

    # -- Writing

    def offer(self, event: Event, *, now: float, request_id: str | None = None) -> str | Waiter:
        """Accept an event, or queue it behind the waiting writers if the channel is full.

        `request_id` is the idempotency key. If the channel accepted an event with this key within
        the idempotency window, or such an event waits, the new event is dropped, and the result is
        the id or the waiter of the earlier event.

        Returns: the id of the accepted event, or the waiter that the writer must join.
        Raises: LimitExceeded, when the budget has no memory for the event, or when
            `max_waiting_writers` writers wait already.
        """
        if (accepted := self.accept(event, now=now, request_id=request_id)) is not None:
            return accepted
        if request_id is not None and self._keys is not None:
            earlier = self._keys.answer(request_id, now)
            if earlier is not None:
                return earlier
        self.log.budget.ensure(cost(event), now, self)
        self._was_written = True
        waiter = self._queue(Waiter(event, request_id, now))
        if request_id is not None:
            self._remember(request_id, waiter, now)
        return waiter

    def accept(self, event: Event, *, now: float, request_id: str | None = None) -> str | None:
        """Do the same as `offer`, but do not queue the event if the channel is full.

        Returns: the id of the accepted event, or of an earlier one with the same key; None if the
            event, or an earlier one with its key, must wait. Then nothing has changed.
        Raises: LimitExceeded, when the budget has no memory for the event.
        """
        if request_id is not None and self._keys is not None:
            earlier = self._keys.answer(request_id, now)
            if earlier is not None:
                return earlier if isinstance(earlier, str) else None
        log = self.log
        if self._waiters or log.end - log.freed >= log.limits.capacity:
            return None
        log.budget.ensure(cost(event), now, self)
        self._was_written = True
        self._append(event)
        if request_id is not None:
            self._remember(request_id, event.id, now)
        return event.id

    def accept_run(self, events: list[Event], now: float) -> int:
        """Accept the first of some events that have no keys, as many as get a place at once.

        Returns: how many; 0 if writers wait, or if the budget has no memory for them.
        """
        log = self.log
        room = log.limits.capacity - log.end + log.freed
        if self._waiters or room <= 0:
            return 0
        if room < len(events):
            events = events[:room]
        try:
            log.budget.ensure(log.budget.cost(events), now, self)
        except LimitExceeded:
            return 0  # one by one, some of them may have room
        self._was_written = True
        log.extend(events)
        if self._lease is not None:
            self._lease.notify()
        return len(events)

    def withdraw(self, waiter: Waiter, on_resolved: Callable[[], None]) -> None:
        """Withdraw a writer from its waiter, if the waiter is not resolved yet.

        With the last of its writers, the channel drops the waiter, its event and its key.
        """
        if waiter.accepted is None and waiter.leave(on_resolved):
            assert self._waiters is not None
            del self._waiters[waiter]
            self.log.budget.drop([waiter.event])
            if waiter.request_id is not None and self._keys is not None:
                self._keys.forget(waiter.request_id)

    @property
    def waiting_writers(self) -> int:
        return len(self._waiters) if self._waiters else 0

    @property
    def waiting_since(self) -> float | None:
        """Since when the first waiting writer waits; None without one."""
        for waiter in self._waiters or ():
            return waiter.since
        return None

    # -- Reading

    def lease(self, options: ReadOptions, now: float) -> Lease:
        """Start to read. The channel does not expire until the lease is released.

        With `options.cursor` the read starts after that event, and the event and all before it
        count as delivered. If the event is not known any more, the read starts with the oldest
        event in the log. Without a cursor, `recovered` is False if the channel has a gap; the
        gap is reported to every reader until a read ends cleanly.
        If `options.ends_read_of` the reader of an open lease, that ends first, as if its read had
        broken just now.

        Raises: when another lease stays open, TakenOver, if the reader is `returning`, and else
            ReaderBusy.
        """
        if self._lease is not None:
            if not options.ends_read_of(self._lease.reader):
                raise TakenOver if options.returning else ReaderBusy
            self._lose_lease(self._lease, now)
        recovered = False if self.log.has_gap else None
        if options.cursor is not None:
            recovered = self._resume(options.cursor, now)
        lease = self._lease = Lease(self, options, recovered, now)
        self.deadline = None
        return lease

    def acknowledge(self, event_id: str, now: float) -> int:
        """Deliver an event and all events before it, if the event was ever sent to a reader.

        Returns: how many events were not delivered before; 0 if the log does not have the event.
        """
        offset = self.log.find(event_id)
        if offset is None or not self.log.was_sent(offset):
            return 0
        self._was_used = True
        lease, delivered = self._lease, self.log.delivered
        if lease is not None and not lease.acknowledging:
            delivered = max(lease.floor, self.log.dropped)
            lease.floor = max(lease.floor, offset)
        self.log.deliver(offset)
        self._use_free_places(now)
        if lease is not None:
            lease.notify()
        return max(0, offset - delivered)

    @property
    def is_read(self) -> bool:
        return self._lease is not None

    @property
    def open_lease(self) -> Lease | None:
        """The lease of the open read."""
        return self._lease

    def read_until(self, now: float) -> float | None:
        """Return when the last read ended: now, if it is still open; None if there was none."""
        if self.deadline is None:
            return now
        if self.deadline == self.created_at + self.log.limits.ttl_s:
            return None
        return self.deadline - self.log.limits.ttl_s

    @property
    def last_event(self) -> Event | None:
        """The last event that was accepted; None without one, or if the log has dropped it."""
        _, events = self.log.after(self.log.end - 1, 1)
        return events[0] if events else None

    @property
    def was_used(self) -> bool:
        """Whether a reader of this node has taken or acknowledged events."""
        return self._was_used

    @property
    def is_copy(self) -> bool:
        """Whether all events were replicated to this node: no client has read or written here."""
        return not (self._was_used or self._was_written or self._lease is not None)

    @property
    def unsent(self) -> int:
        """The length of the backlog: how many events the next reader would get now."""
        return self.log.end - self.log.sent

    # -- Replication to other nodes, and from one

    @property
    def cursor(self) -> str:
        """The cursor at which the next read would start: an event id, or START."""
        return self.log.id_at(self.log.delivered)

    @property
    def has_free_place(self) -> bool:
        return self.log.held < self.log.limits.capacity

    @property
    def capacity(self) -> int:
        return self.log.limits.capacity

    def is_unread_for(self, seconds: float, now: float) -> bool:
        """Return whether the channel has not been read for this long, and is not read now."""
        return self.deadline is not None and self.deadline - self.log.limits.ttl_s <= now - seconds

    def keys_after(self, offset: int, now: float) -> list[tuple[str, Key[Waiter]]]:
        """Return the keys of the events accepted after an offset, in the order of the events."""
        return [] if self._keys is None else self._keys.after(offset, now)

    def apply(self, event: Event, now: float, *, knows_progress: bool = False) -> int:
        """Append a replicated event, and evict the oldest event if the channel is full.

        An event that is in the log already is not appended again. If the source reports the
        progress of its readers (`knows_progress`), the channel is full only when it holds far more
        events than the source may, because each event that the source accepted has a place there.

        Returns: how many events were lost by the eviction: 0 or 1.
        """
        if self.log.has(event.id):
            return 0
        capacity = self.log.limits.capacity
        # After a broken read a source holds the events to be sent again beside a full backlog.
        most = 2 * capacity + REPLICA_SURPLUS if knows_progress else capacity
        is_full = self.log.held >= most
        self._append(event)  # before the eviction, or else a waiting writer would get the place
        return self.evict_oldest(now) if is_full else 0

    def evict_oldest(self, now: float) -> int:
        """Take the place from the oldest event that has one. The log keeps the event for replay.

        If the event was in the backlog, the next read starts after it, and its reader learns of
        the gap.

        Returns: how many events were lost: 1 if the event was never sent to a reader, else 0.
        """
        sent = self.log.sent
        lost = self.log.evict_oldest()
        if self._lease is not None and self.log.sent != sent:
            self._lease.knows_gaps = False
        self._use_free_places(now)
        return int(lost)

    def learn_key(self, request_id: str, event_id: str, accepted_at: float, now: float) -> None:
        """Remember the idempotency key with which another node accepted an event."""
        self._known_keys().learn(request_id, event_id, at=accepted_at, offset=self.log.end, now=now)

    def apply_progress(self, progress: Progress, now: float) -> None:
        """Set the cuts of the log to where the readers of the source are.

        The cuts may also move back. Once a reader of this node has taken or acknowledged events,
        they move forward only. They do not move while the channel is read here, nor to an event
        that the log does not have.
        """
        log, is_used = self.log, self._was_used or self._lease is not None
        for event_id in (progress.sent, progress.cursor):
            if (offset := log.find(event_id)) is not None:
                log.count_as_sent(offset)
        log.set_gap(progress.has_gap or (log.has_gap and self._was_used))
        if is_used:
            self.advance(progress.cursor, now)
        elif log.end == log.dropped:
            log.skip_to(progress.cursor)
        elif (offset := log.find_cursor(progress.cursor)) is not None:
            log.rewind(offset)
            self._use_free_places(now)

    def skip_to(self, event_id: str, now: float) -> None:
        """Drop all events, because the source has dropped all events up to this one.

        Does nothing once a reader of this node has taken or acknowledged events.
        """
        if not (self._was_used or self._lease is not None):
            self.log.skip_to(event_id)
            self._use_free_places(now)

    def advance(self, event_id: str, now: float) -> None:
        """Deliver all events up to this one, because a reader got them on another node.

        Does nothing if the log does not have the event, or while the channel is read here.
        """
        offset = self.log.find(event_id)
        if self._lease is None and offset is not None and offset > self.log.sent:
            self.log.count_as_sent(offset)
            self.log.rewind(offset)
            self._use_free_places(now)

    def drop_replay(self, now: float) -> None:
        """Drop the events that are kept for replay only, because memory is short.

        Events that would be sent again after a broken read stay: the events in flight of an
        acknowledging lease, and the events that a plain lease did not confirm, or confirmed within
        the redelivery window.
        """
        lease = self._lease
        if lease is None or lease.acknowledging:
            self.log.drop_to(self.log.delivered)
        else:
            self.log.drop_to(lease.resend_after(now))

    # -- The end

    def is_in_use(self, now: float) -> bool:
        """Return whether the channel is read, or its last read ended less than a TTL ago."""
        if self.deadline is None:
            return True
        return now < self.deadline != self.created_at + self.log.limits.ttl_s

    def close(self) -> int:
        """Close the channel: end its lease, wake the reader, and refuse the waiting writers.

        Returns: how many events were lost: events of the backlog that were never sent to a reader.
        """
        if (lease := self._lease) is not None:
            self._lease = None
            lease.ended_by = ReadEnd.CHANNEL_GONE
            lease._end()
            lease.notify()
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            self.log.budget.drop([waiter.event])
            waiter.resolve(accepted=False)
        if self._keys is not None:
            self._keys.clear()
        self.log.budget.forget(self)
        self.log.budget.subtract(CHANNEL_BYTES)
        return self.log.clear()

    # -- Inside: writers

    def _append(self, event: Event) -> None:
        self.log.extend([event])
        lease = self._lease
        if lease is not None and lease.on_ready is not None:
            lease.on_ready()

    def _queue(self, waiter: Waiter) -> Waiter:
        if self._waiters is None:
            self._waiters = OrderedDict()
        if len(self._waiters) >= self.log.limits.max_waiting_writers:
            raise LimitExceeded(
                f"{len(self._waiters)} writers already wait for a place in this channel;"
                " no more are allowed (max_waiting_writers)",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        self._waiters[waiter] = None
        self.log.budget.hold(waiter.event)
        return waiter

    def _admit_waiters(self, now: float) -> None:
        while self._waiters and self.has_free_place:
            waiter, _ = self._waiters.popitem(last=False)
            self._append(waiter.event)
            self.log.budget.drop([waiter.event])
            if waiter.request_id is not None:
                self._remember(waiter.request_id, waiter.event.id, now)
            waiter.resolve(accepted=True)
        if not self._waiters:
            self._waiters = None

    def _remember(self, request_id: str, answer: str | Waiter, now: float) -> None:
        self._known_keys().remember(request_id, answer, at=now, offset=self.log.end)

    def _known_keys(self) -> Keys[Waiter]:
        if self._keys is None:
            self._keys = Keys(self.log.limits.idempotency_window_s, self.log.budget)
        return self._keys

    def _use_free_places(self, now: float) -> None:
        """Accept the events of waiting writers in the places that have become free."""
        if self.log.freed > self.log.dropped:
            self.log.budget.keeps_replay(self)
        if self._waiters is not None:
            self._admit_waiters(now)

    # -- Inside: readers

    def _resume(self, cursor: str, now: float) -> bool:
        """Make the next take start after a cursor. Returns: whether the cursor was known."""
        offset = self.log.find_cursor(cursor)
        self.log.rewind(self.log.dropped if offset is None else offset)
        self._use_free_places(now)
        return offset is not None

    def _on_taken(self, is_plain: bool, now: float) -> None:
        """Note that the lease has taken events."""
        self._was_used = True
        if is_plain:
            self._use_free_places(now)

    def _release(self, lease: Lease, *, clean: bool, now: float) -> None:
        if lease.acknowledging:
            self.log.take_back()
        elif not clean:
            self.log.rewind(lease.resend_after(now))
        if clean and lease.knows_gaps:
            self.log.set_gap(False)
        lease._end()
        self._lease = None
        self.deadline = now + self.log.limits.ttl_s
        if self.log.freed > self.log.dropped:
            self.log.budget.keeps_replay(self)

    def _lose_lease(self, lease: Lease, now: float) -> None:
        lease.ended_by = ReadEnd.TAKEN_OVER
        self._release(lease, clean=False, now=now)
        lease.notify()
