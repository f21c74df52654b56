"""A channel: a log of events with one reader at a time, writers that wait, and a deadline.

This is a state machine without an event loop. Nothing here waits, and time is an argument (seconds
on any clock that does not go back), so that every rule can be tested without one. A caller that
must wait leaves a callback: a writer that found the channel full has its `Waiter` settled, a reader
that found nothing is woken.

Reading is a *lease*, not a pop: what was sent stays in the log (see `core.log`) until it is safely
out of reach. An event that an acknowledging reader takes is in flight, and holds its place, until
the reader acknowledges it. An event that a plain reader takes is delivered at once; the lease
remembers when it was sent, and a broken end goes back to the first event that the reader is owed.

What a lease took counts as sent once it is *confirmed*, which says that the connection has all its
bytes. The next take confirms what was taken before it.
"""

from collections import OrderedDict
from collections.abc import Callable

from megaphone.core.budget import CHANNEL_BYTES, Budget, cost
from megaphone.core.idempotency import Key, Keys
from megaphone.core.log import Batch, Log
from megaphone.errors import LimitExceeded, ReaderBusy
from megaphone.model import ChannelLimits, Event, Progress, ReadOptions

REPLICA_SURPLUS = 1_000
"""Events beyond what its source may hold that a replica takes: those that were sent before the
source could say that older ones were read."""
BUSY_RETRY_AFTER_S = 1.0
"""When a writer may come back that found too many others waiting."""
SENDINGS_KEPT = 64
"""How many takes a plain lease remembers before it drops those that nobody is owed any more."""


class Waiter:
    """Writers of one event that wait for room. Several only if they repeat one request id."""

    __slots__ = ("_callbacks", "event", "request_id", "taken")

    def __init__(self, event: Event, request_id: str | None) -> None:
        self.event = event
        self.request_id = request_id
        self.taken: bool | None = None
        """None while waiting; True once the event is in the channel; False if the channel went."""
        self._callbacks: list[Callable[[], None]] = []

    def join(self, settled: Callable[[], None]) -> None:
        """Have `settled` called once `taken` is known."""
        self._callbacks.append(settled)

    def leave(self, settled: Callable[[], None]) -> bool:
        """Stop waiting. Returns: whether nobody waits any more."""
        self._callbacks.remove(settled)
        return not self._callbacks

    def is_first(self, settled: Callable[[], None]) -> bool:
        """Tell whether, of the writers of this event that wait, this one came first."""
        return self._callbacks[0] is settled

    def settle(self, taken: bool) -> None:
        self.taken = taken
        for settled in self._callbacks:
            settled()


class Lease:
    """The right to read a channel, until it is released or lost."""

    __slots__ = (
        "_channel",
        "_confirmed",
        "_first_taken",
        "_last_taken",
        "_sendings",
        "_sendings_kept",
        "acknowledging",
        "floor",
        "in_flight",
        "is_open",
        "position",
        "recovered",
        "tells_gap",
        "wake",
    )

    def __init__(
        self,
        channel: "Channel",
        options: ReadOptions,
        wake: Callable[[], None],
        recovered: bool | None,
    ) -> None:
        self._channel = channel
        self.acknowledging = options.acknowledge
        self.in_flight = options.in_flight
        self.wake = wake
        """Called when `take` may have something new to say. May be called too often."""
        self.is_open = True
        """False once released, once taken over, and once the channel went."""
        self.position = channel.position
        """The event before the first one of this read, or START. A reader that resumes after it
        misses nothing of this read."""
        self.recovered = recovered
        """Whether the event to resume after was still known. When none was named: False if events
        were evicted before any reader had them, else None."""
        self.tells_gap = True
        """Whether the reader has learned of all evictions so far. Not of those during the read."""
        self.floor = channel.log.sent
        """Of a plain lease: the offset up to which its reader is owed nothing, however the read
        ends, because it began later, or because the reader has acknowledged so much."""
        self._confirmed = self.floor
        """The offset up to which all is confirmed, or was passed over when the read began. What
        was taken after it may not have left this process."""
        self._first_taken = self._last_taken = 0
        """The offsets at both ends of the latest take."""
        self._sendings: list[tuple[int, int, float]] = []
        """Of a plain lease: the first and the last offset of each take that was confirmed, and
        when it was. A broken end needs them; they are dropped in bulk once it does no more."""
        self._sendings_kept = SENDINGS_KEPT

    def take(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        """Confirm what was taken before, and return the next events in order.

        As many as are ready, up to `limit`, and up to `max_bytes` of bodies and overhead; but one
        at least, however large. None if no event is ready or the lease is not open.

        They are in flight from now on. An acknowledging lease has at most its window in flight; a
        plain one takes at most the capacity at once.
        """
        if not self.is_open:
            return None
        self.confirm(now)
        batch = self._channel._take(self, limit, max_bytes, now)
        if batch is not None:
            self._first_taken = batch.first_offset
            self._last_taken = self._channel.log.sent
        return batch

    def confirm(self, now: float) -> None:
        """Count what was taken as sent, as of now: the connection has taken all its bytes.

        Until then a broken read sends it again, however long ago it was taken.
        """
        if not self.is_open:
            return
        if self._last_taken > self._confirmed and not self.acknowledging:
            self._sendings.append((self._first_taken, self._last_taken, now))
            if len(self._sendings) > self._sendings_kept:
                self._drop_sendings(now)
        self._confirmed = self._channel.log.sent

    def release(self, *, clean: bool, now: float) -> None:
        """End the read; a clean end confirms what was taken. Repeating it changes nothing.

        What an acknowledging lease had in flight is read again first, in order. Unless the read
        ended clean, so is what a plain lease did not confirm, or confirmed within the redelivery
        window.
        """
        if self.is_open:
            self._channel._release(self, clean=clean, now=now)

    def owed_after(self, now: float) -> int:
        """Return the offset after which a reader gets events again if this plain read breaks."""
        floor = max(self.floor, self._channel.log.dropped)
        for first, last, sent_at in self._sendings:
            if self._is_owed(last, sent_at, now):
                return max(floor, first - 1)
        return max(floor, self._confirmed)

    def _is_owed(self, last: int, sent_at: float, now: float) -> bool:
        is_recent = sent_at > now - self._channel.log.limits.redelivery_window_s
        return is_recent and last > self.floor and last > self._channel.log.dropped

    def _drop_sendings(self, now: float) -> None:
        """Drop the sendings of which no event is owed: all of them are at the front."""
        count = 0
        for _, last, sent_at in self._sendings:
            if self._is_owed(last, sent_at, now):
                break
            count += 1
        del self._sendings[:count]
        self._sendings_kept = max(SENDINGS_KEPT, 2 * len(self._sendings))


class Channel:
    """See the module. All methods take effect at once and wholly, or raise and change nothing."""

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
        """What the channel holds counts against `budget`, until it is closed.

        `epoch` is that of the store that makes the channel; the listener is called with
        `channel_id`: see `core.log.Log`.
        """
        budget.add(CHANNEL_BYTES)
        self.created_at = now
        self.deadline: float | None = now + limits.ttl_s
        """When the channel dies; None while it is read."""
        self.log = Log(limits, epoch, budget, channel_id)
        """Others may look at it, and set its listener. Only the channel changes it."""
        self._was_used = False
        self._was_written = False
        self._lease: Lease | None = None
        # Most channels never need these two; they are made when they do, since memory counts.
        self._waiters: OrderedDict[Waiter, None] | None = None
        self._keys: Keys[Waiter] | None = None

    # -- Writing

    def offer(self, event: Event, *, now: float, request_id: str | None = None) -> str | Waiter:
        """Take an event, or queue it behind those that wait already if there is no room.

        A `request_id` whose event was taken within the idempotency window, or waits for room, is
        answered as it was the first time, and the new event is dropped: with the id of the event,
        or with its waiter.

        Returns: the id under which the event is in the channel, or the waiter to join.
        Raises: LimitExceeded, when the budget has no room for the event, or as many writers wait
            as may.
        """
        if request_id is not None and self._keys is not None:
            earlier = self._keys.answer(request_id, now)
            if earlier is not None:
                return earlier
        self.log.budget.ensure(cost(event), now, self)
        self._was_written = True
        answer: str | Waiter
        log = self.log
        if not self._waiters and log.end - log.freed < log.limits.capacity:
            self._append(event)
            answer = event.id
        else:
            answer = self._queue(Waiter(event, request_id))
        if request_id is not None:
            self._remember(request_id, answer, now)
        return answer

    def withdraw(self, waiter: Waiter, settled: Callable[[], None]) -> None:
        """Leave a waiter that is not settled; with its last writer it leaves no trace."""
        if waiter.taken is None and waiter.leave(settled):
            assert self._waiters is not None
            del self._waiters[waiter]
            self.log.budget.drop(waiter.event)
            if waiter.request_id is not None and self._keys is not None:
                self._keys.forget(waiter.request_id)

    @property
    def waiting_writers(self) -> int:
        return len(self._waiters) if self._waiters else 0

    # -- Reading

    def lease(self, options: ReadOptions, wake: Callable[[], None], now: float) -> Lease:
        """Start to read. The channel cannot die until the lease is released.

        With `cursor` the read starts after that event, which counts as acknowledged with
        all before it; if the event is not known any more it starts at the oldest one kept. Without
        it, `recovered` is False if events were evicted that no reader had; this is repeated until
        a read has ended clean.
        With `take_over` an open lease is lost to this one, as if its read had broken just now.

        Raises: ReaderBusy, when another lease is open and not to be taken over.
        """
        if self._lease is not None:
            if not options.take_over:
                raise ReaderBusy
            self._lose_lease(self._lease, now)
        recovered = False if self.log.has_gap else None
        if options.cursor is not None:
            recovered = self._resume(options.cursor, now)
        lease = self._lease = Lease(self, options, wake, recovered)
        self.deadline = None
        return lease

    def acknowledge(self, event_id: str, now: float) -> int:
        """Count an event that was sent, here or elsewhere, and all before it, as delivered.

        Returns: how many that were not yet; 0 for an event that is not known (any more).
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
        self._use_room(now)
        self._wake_reader()
        return max(0, offset - delivered)

    @property
    def is_read(self) -> bool:
        return self._lease is not None

    @property
    def was_used(self) -> bool:
        """Whether events were read or acknowledged here, and not only elsewhere."""
        return self._was_used

    @property
    def is_copy(self) -> bool:
        """Whether it holds only what other nodes fed, and nobody has read or written it here."""
        return not (self._was_used or self._was_written or self._lease is not None)

    @property
    def unsent(self) -> int:
        """How many events the next reader would get now."""
        return self.log.end - self.log.sent

    # -- Replication to other nodes, and from one

    @property
    def position(self) -> str:
        """The event after which the next read would start, or START."""
        return self.log.id_at(self.log.delivered)

    @property
    def has_room(self) -> bool:
        return self.log.held < self.log.limits.capacity

    @property
    def capacity(self) -> int:
        return self.log.limits.capacity

    def is_unread_for(self, seconds: float, now: float) -> bool:
        """Whether nobody reads, or has read for so long."""
        return self.deadline is not None and self.deadline - self.log.limits.ttl_s <= now - seconds

    def keys_after(self, offset: int, now: float) -> list[tuple[str, Key[Waiter]]]:
        """Return the keys of the events accepted after an offset, in the order of the events."""
        return [] if self._keys is None else self._keys.after(offset, now)

    def apply(self, event: Event, now: float, *, knows_progress: bool = False) -> int:
        """Append a replicated event, and evict the oldest one if the channel is full.

        An event that is in the log already stays where it is. A channel whose source reports its
        progress (`knows_progress`) is full only when it holds far more than its source may: what
        the source has accepted has its place there.

        Returns: how many events were lost by it.
        """
        if self.log.has(event.id):
            return 0
        capacity = self.log.limits.capacity
        # After a broken read a source may hold what it was sent besides a full buffer.
        most = 2 * capacity + REPLICA_SURPLUS if knows_progress else capacity
        is_full = self.log.held >= most
        self._append(event)  # first, for a writer that waits not to get the room
        return self.evict_oldest(now) if is_full else 0

    def evict_oldest(self, now: float) -> int:
        """Take the place from the oldest event that holds one. The log keeps it for replay.

        If the event was in the backlog, the next read starts after it, and its reader gets to know
        of the gap.

        Returns: how many events were lost by it: 1 if no reader was ever sent the event.
        """
        sent = self.log.sent
        lost = self.log.evict_oldest()
        if self._lease is not None and self.log.sent != sent:
            self._lease.tells_gap = False
        self._use_room(now)
        return int(lost)

    def learn_key(self, request_id: str, event_id: str, taken_at: float, now: float) -> None:
        """Remember the idempotency key under which another node has accepted an event."""
        self._known_keys().learn(request_id, event_id, at=taken_at, offset=self.log.end, now=now)

    def apply_progress(self, progress: Progress, now: float) -> None:
        """Take over how far the channel was read on the source.

        The cuts move back, too. They move only forward once events were read or acknowledged here,
        and not at all while the channel is read here, or if the events are not known here.
        """
        log, is_used = self.log, self._was_used or self._lease is not None
        for event_id in (progress.sent, progress.position):
            if (offset := log.find(event_id)) is not None:
                log.count_as_sent(offset)
        log.set_gap(progress.has_gap or (log.has_gap and self._was_used))
        if is_used:
            self.advance(progress.position, now)
        elif log.end == log.dropped:
            log.skip_to(progress.position)
        elif (offset := log.find_cursor(progress.position)) is not None:
            log.rewind(offset)
            self._use_room(now)

    def skip_to(self, event_id: str, now: float) -> None:
        """Drop all events, because the source has dropped all up to this one.

        Without effect once events were read or acknowledged here.
        """
        if not (self._was_used or self._lease is not None):
            self.log.skip_to(event_id)
            self._use_room(now)

    def advance(self, event_id: str, now: float) -> None:
        """Count all events up to this one as delivered, because a reader got them elsewhere.

        Without effect if the event is not known, and while the channel is read here.
        """
        offset = self.log.find(event_id)
        if self._lease is None and offset is not None and offset > self.log.sent:
            self.log.count_as_sent(offset)
            self.log.rewind(offset)
            self._use_room(now)

    def evict_replay(self, now: float) -> None:
        """Drop what is kept for replay only, because memory is short.

        Events that a broken read would be sent again stay: those that an acknowledging reader has
        in flight, and those that a plain one did not confirm or was sent within the redelivery
        window.
        """
        lease = self._lease
        if lease is None or lease.acknowledging:
            self.log.drop_to(self.log.delivered)
        else:
            self.log.drop_to(lease.owed_after(now))

    # -- The end

    def is_in_use(self, now: float) -> bool:
        """Whether it is read, or was until less than its life ago."""
        if self.deadline is None:
            return True
        return now < self.deadline != self.created_at + self.log.limits.ttl_s

    def close(self) -> int:
        """End the channel: its reader is woken, its writers are refused.

        Returns: how many events were lost, that is, are yet to be read and were never sent.
        """
        if (lease := self._lease) is not None:
            self._lease = None
            lease.is_open = False
            lease.wake()
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            self.log.budget.drop(waiter.event)
            waiter.settle(taken=False)
        if self._keys is not None:
            self._keys.clear()
        self.log.budget.forget(self)
        self.log.budget.subtract(CHANNEL_BYTES)
        return self.log.clear()

    # -- Inside: writers

    def _append(self, event: Event) -> None:
        self.log.append(event)
        if self._lease is not None:
            self._lease.wake()

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
        while self._waiters and self.has_room:
            waiter, _ = self._waiters.popitem(last=False)
            self._append(waiter.event)
            self.log.budget.drop(waiter.event)
            if waiter.request_id is not None:
                self._remember(waiter.request_id, waiter.event.id, now)
            waiter.settle(taken=True)
        if not self._waiters:
            self._waiters = None

    def _remember(self, request_id: str, answer: str | Waiter, now: float) -> None:
        self._known_keys().remember(request_id, answer, at=now, offset=self.log.end)

    def _known_keys(self) -> Keys[Waiter]:
        if self._keys is None:
            self._keys = Keys(self.log.limits.idempotency_window_s, self.log.budget)
        return self._keys

    def _use_room(self, now: float) -> None:
        """Let waiting writers in, where events were delivered or evicted."""
        if self.log.freed > self.log.dropped:
            self.log.budget.keeps_replay(self)
        if self._waiters is not None:
            self._admit_waiters(now)

    # -- Inside: readers

    def _resume(self, cursor: str, now: float) -> bool:
        """Have the next take start after a cursor. Returns: whether the cursor was known."""
        offset = self.log.find_cursor(cursor)
        self.log.rewind(self.log.dropped if offset is None else offset)
        self._use_room(now)
        return offset is not None

    def _take(self, lease: Lease, limit: int, max_bytes: int, now: float) -> Batch | None:
        log, is_plain = self.log, not lease.acknowledging
        # A plain lease that took more would have events dropped before they are sent.
        most = log.limits.capacity if is_plain else lease.in_flight - (log.sent - log.delivered)
        batch = log.take(min(most, limit), max_bytes, deliver=is_plain)
        if batch is not None:
            self._was_used = True
            if is_plain:
                self._use_room(now)
        return batch

    def _release(self, lease: Lease, *, clean: bool, now: float) -> None:
        if lease.acknowledging:
            self.log.take_back()
        elif not clean:
            self.log.rewind(lease.owed_after(now))
        if clean and lease.tells_gap:
            self.log.set_gap(False)
        lease.is_open = False
        self._lease = None
        self.deadline = now + self.log.limits.ttl_s
        if self.log.freed > self.log.dropped:
            self.log.budget.keeps_replay(self)

    def _lose_lease(self, lease: Lease, now: float) -> None:
        self._release(lease, clean=False, now=now)
        lease.wake()

    def _wake_reader(self) -> None:
        if self._lease is not None:
            self._lease.wake()
