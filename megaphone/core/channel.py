"""A channel: an ordered, bounded list of events with one reader at a time and a deadline.

This is a state machine without an event loop. Nothing here waits, and time is an argument (seconds
on any clock that does not go back), so that every rule can be tested without one. Whoever waits
leaves a callback: a writer that found the channel full has its `Waiter` settled, a reader that
found nothing is woken. A *listener* is called whenever the events, or how far they were read, have
changed; nobody else needs to say so.

Reading is a *lease*, not a pop: what was sent stays known until it is safely out of reach. The
log is one list in the order of writing, cut by two positions:

    ┌───── done ─────┬── in flight ──┬──── unsent ────┐
    │ kept for       │ sent by the   │ what the next  │
    │ replay         │ current lease │ take returns   │
    0               done            sent             len

An entry *holds a place*, and so counts against the capacity, from the moment it is taken. A plain
reader frees the place when it takes the entry; an acknowledging one when it acknowledges it. At
most `capacity` sent entries that hold no place are kept for replay; older ones are forgotten.

What a lease took counts as sent once it is *confirmed*, which says that the connection has all its
bytes. The next take confirms what was taken before it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from megaphone.core.budget import CHANNEL_BYTES, Budget, cost
from megaphone.core.idempotency import Key, Keys
from megaphone.errors import LimitExceeded, ReaderBusy
from megaphone.model import START, ChannelLimits, Event, Progress, ReadOptions

EVENT_OVERHEAD_BYTES = 200
"""What an event costs in a batch beside its body: its ids, its time, and names of fields."""
REPLICA_SURPLUS = 1_000
"""Events beyond what its source may hold that a replica takes: those that were sent before the
source could say that older ones were read."""
ELSEWHERE = -math.inf
"""In place of the time at which an event was sent: a reader got it on another node."""
BUSY_RETRY_AFTER_S = 1.0
"""When a writer may come back that found too many others waiting."""


class Waiter:
    """Writers of one event that wait for room. Several only if they repeat one request id."""

    __slots__ = ("_callbacks", "event", "reported", "request_id", "taken")

    def __init__(self, event: Event, request_id: str | None) -> None:
        self.event = event
        self.request_id = request_id
        self.taken: bool | None = None
        """None while waiting; True once the event is in the channel; False if the channel went."""
        self.reported = False
        """For the use of whoever counts events: whether this one was counted."""
        self._callbacks: list[Callable[[], None]] = []

    def join(self, settled: Callable[[], None]) -> None:
        """Have `settled` called once `taken` is known."""
        self._callbacks.append(settled)

    def leave(self, settled: Callable[[], None]) -> bool:
        """Stop waiting. Returns: whether nobody waits any more."""
        self._callbacks.remove(settled)
        return not self._callbacks

    def settle(self, taken: bool) -> None:
        self.taken = taken
        for settled in self._callbacks:
            settled()


class Entry:
    """An event in the log of one channel."""

    __slots__ = ("event", "holds_place", "sent_at")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.holds_place = True
        self.sent_at: float | None = None
        """When it was last handed to a reader; once that is confirmed, when it was confirmed."""


class Lease:
    """The right to read a channel, until it is released or lost."""

    __slots__ = (
        "_channel",
        "acknowledging",
        "confirmed",
        "is_open",
        "position",
        "recovered",
        "resent",
        "tells_gap",
        "wake",
        "window",
    )

    def __init__(self, channel: "Channel", options: ReadOptions, wake: Callable[[], None]) -> None:
        self._channel = channel
        self.acknowledging = options.acknowledge
        self.window = options.window
        self.wake = wake
        """Called when `take` may have something new to say. May be called too often."""
        self.is_open = True
        """False once released, once taken over, and once the channel went."""
        self.position = START
        """The event before the first one of this read, or START. Who resumes after it misses
        nothing of this read."""
        self.recovered: bool | None = None
        """Whether the event to resume after was still known. When none was named: False if events
        were evicted before any reader had them, else None."""
        self.tells_gap = True
        """Whether the reader has learned of all evictions so far. Not of those during the read."""
        self.resent = 0
        """How many of the events taken so far had been sent before."""
        self.confirmed = 0
        """The number of the last event of the channel that was confirmed, or was passed over when
        the read began. What was taken after it may not have left this process."""

    def take(self, limit: int, max_bytes: int, now: float) -> list[Event]:
        """Confirm what was taken before, and return the next events in order.

        As many as are ready, up to `limit`, and up to `max_bytes` of bodies and overhead; but one
        at least, however large. None if none is ready or the lease is not open.

        They are in flight from now on. An acknowledging lease has at most its window in flight; a
        plain one takes at most the capacity at once.
        """
        if not self.is_open:
            return []
        self.confirm(now)
        return self._channel._take(self, limit, max_bytes, now)

    def confirm(self, now: float) -> None:
        """Count what was taken as sent, as of now: the connection has taken all its bytes.

        Until then a broken read sends it again, however long ago it was taken.
        """
        if self.is_open:
            self._channel._confirm(self, now)

    def release(self, *, clean: bool, now: float) -> None:
        """End the read; a clean end confirms what was taken. Repeating it changes nothing.

        What an acknowledging lease had in flight is read again first, in order. Unless the read
        ended clean, so is what a plain lease did not confirm, or confirmed within the redelivery
        window.
        """
        if self.is_open:
            self._channel._release(self, clean=clean, now=now)


class Channel:
    """See the module. All methods take effect at once and wholly, or raise and change nothing."""

    __slots__ = (
        "_budget",
        "_done",
        "_forgotten",
        "_forgotten_id",
        "_has_gap",
        "_held",
        "_keys",
        "_lease",
        "_limits",
        "_log",
        "_sent",
        "_sent_up_to",
        "_waiters",
        "_was_used",
        "_was_written",
        "created_at",
        "deadline",
        "listener",
    )

    def __init__(self, limits: ChannelLimits, now: float, budget: Budget) -> None:
        """What the channel holds counts against `budget`, until it is closed."""
        self._budget = budget
        budget.add(CHANNEL_BYTES)
        self.created_at = now
        self.deadline: float | None = now + limits.ttl_s
        """When the channel dies; None while it is read."""
        self.listener: Callable[[Channel], None] | None = None
        """Called with this channel whenever `progress` or `events_after` would answer
        otherwise than before.

        The call comes in the middle of the change, and maybe several times: the listener must only
        take note, and look later. The channel calls nobody any more once it is closed."""
        self._limits = limits
        self._log: list[Entry] = []
        self._done = 0
        self._sent = 0
        self._held = 0
        """How many entries hold a place."""
        self._forgotten = 0
        """How many events fell out of the log."""
        self._forgotten_id: str | None = None
        """The last event that fell out of the log: who resumes after it misses nothing."""
        self._sent_up_to = 0
        """The highest number of an event that a reader was sent, here or elsewhere."""
        self._was_used = False
        self._was_written = False
        self._has_gap = False
        """Whether events were evicted, and no reader has learned of it."""
        self._lease: Lease | None = None
        # Most channels never need these two; they are made when they do, since memory counts.
        self._waiters: OrderedDict[Waiter, None] | None = None
        self._keys: Keys | None = None

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
        self._budget.ensure(cost(event), now, self)
        self._was_written = True
        answer: str | Waiter
        if self._held < self._limits.capacity and not self._waiters:
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
            self._budget.drop(waiter.event)
            if waiter.request_id is not None and self._keys is not None:
                self._keys.forget(waiter.request_id)

    @property
    def waiting_writers(self) -> int:
        return len(self._waiters) if self._waiters else 0

    # -- Reading

    def lease(self, options: ReadOptions, wake: Callable[[], None], now: float) -> Lease:
        """Start to read. The channel cannot die until the lease is released.

        With `after_event_id` the read starts after that event, which counts as acknowledged with
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
        lease = Lease(self, options, wake)
        if options.after_event_id is not None:
            lease.recovered = self._rewind_to(options.after_event_id, now)
        elif self._has_gap:
            lease.recovered = False
        lease.position = self.position
        lease.confirmed = self._forgotten + self._sent
        self._lease = lease
        self.deadline = None
        return lease

    def acknowledge(self, event_id: str, now: float) -> int:
        """Count an event that was sent, here or elsewhere, and all before it, as delivered.

        Returns: how many that were not yet; 0 for an event that is not known (any more).
        """
        position = self._find(event_id)
        if position is None or self._log[position].sent_at is None:
            return 0
        self._was_used = True
        newly = max(0, position + 1 - self._done)
        self._finish(position + 1, now)
        self._wake_reader()
        return newly

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
        return len(self._log) - self._sent

    # -- Forwarding to other nodes, and being fed by one

    @property
    def before_first(self) -> str:
        """The event before the first one that is kept, or START."""
        return self._forgotten_id or START

    @property
    def position(self) -> str:
        """The event after which the next read would start, or START."""
        read = self._read_so_far()
        return self._log[read - 1].event.id if read else self.before_first

    @property
    def read_number(self) -> int:
        """The number of that event. An event's number is its place in the channel, from 1."""
        return self._forgotten + self._read_so_far()

    def events_after(self, number: int, limit: int) -> tuple[int, list[Event]]:
        """Return the number of the first event kept after a number, and up to `limit` from it."""
        first = max(0, number - self._forgotten)
        events = [entry.event for entry in self._log[first : first + limit]]
        return self._forgotten + first + 1, events

    @property
    def has_room(self) -> bool:
        return self._held < self._limits.capacity

    @property
    def capacity(self) -> int:
        return self._limits.capacity

    def is_unread_for(self, seconds: float, now: float) -> bool:
        """Whether nobody reads, or has read for so long."""
        return self.deadline is not None and self.deadline - self._limits.ttl_s <= now - seconds

    @property
    def oldest_held_number(self) -> int:
        """The number of the oldest event that holds a place. There must be one."""
        return self._forgotten + self._first_held() + 1

    def progress(self, number: int) -> Progress:
        """Return how far it was read, in terms of the events up to a number."""
        read, sent = min(self.read_number, number), min(self._sent_up_to, number)
        return Progress(self._id_at(read), self._id_at(sent), self._has_gap)

    def keys_after(self, number: int, now: float) -> list[tuple[str, Key]]:
        """Return the request ids of events taken after a number, in the order of their events."""
        return [] if self._keys is None else self._keys.after(number, now)

    def push(self, event: Event, now: float, *, is_followed: bool = False) -> int:
        """Take an event that another node has taken already; in a full channel, evict the oldest.

        Taken once only: an event that is in the log stays where it is. A channel whose source says
        how far it was read (`follow`) is full only when it holds far more than its source may: what
        the source has taken has its place there.

        Returns: how many events were lost by it.
        """
        if self._find(event.id) is not None:
            return 0
        capacity = self._limits.capacity
        # After a broken read a source may hold what it was sent besides a full buffer.
        most = 2 * capacity + REPLICA_SURPLUS if is_followed else capacity
        is_full = self._held >= most
        self._append(event)  # first, for a writer that waits not to get the room
        return self.push_out(now) if is_full else 0

    def push_out(self, now: float) -> int:
        """Take its place from the oldest event that holds one. It is still kept for replay.

        If it was yet to be read, the next read starts after it, and that reader learns of it.

        Returns: how many events were lost by it: 1 if no reader was ever sent it.
        """
        first = self._first_held()
        entry, lost = self._log[first], 0
        if first >= self._sent:
            lost = int(entry.sent_at is None)
            self._set_gap(True)
            if self._lease is not None:
                self._lease.tells_gap = False
            self._sent = first + 1
            self._changed()
            if self._lease is None or self._lease.acknowledging:
                self._done = self._sent  # what was never sent would never be acknowledged
        self._free([entry], now)
        return lost

    def learn_key(self, request_id: str, event_id: str, taken_at: float, now: float) -> None:
        """Remember a request id under which another node has taken an event."""
        number = self._forgotten + len(self._log)
        self._known_keys().learn(request_id, event_id, at=taken_at, number=number, now=now)

    def follow(self, progress: Progress, now: float) -> None:
        """Take over how far the channel was read on the node that feeds this one.

        Positions move back too, but only forward once events were read or acknowledged here, and
        not while it is read here. Events that are not known here move nothing.
        """
        self._mark_sent(progress.sent)
        self._mark_sent(progress.position)
        self._set_gap(progress.has_gap or (self._has_gap and self._was_used))
        if self._was_used or self._lease is not None:
            self.advance(progress.position, now)
        elif not self._log:
            self._set_forgotten(progress.position)
        elif progress.position == self.before_first or self._find(progress.position) is not None:
            self._rewind_to(progress.position, now)

    def skip_to(self, event_id: str, now: float) -> None:
        """Forget all events: they were read, up to this one, on the node that feeds this one.

        Without effect once events were read or acknowledged here.
        """
        if self._was_used or self._lease is not None:
            return
        number = self._forgotten + len(self._log)
        self._move_to(len(self._log))
        self._free(self._log.copy(), now)
        if number > self._forgotten:
            self._drop_first(number - self._forgotten)
        self._set_forgotten(event_id)

    def advance(self, event_id: str, now: float) -> None:
        """Count all up to an event as delivered, because a reader got them on another node.

        Without effect if the event is not known, and while the channel is read here.
        """
        position = self._find(event_id)
        if self._lease is None and position is not None and position >= self._sent:
            self._mark_sent(event_id)
            self._rewind_to(event_id, now)

    def _mark_sent(self, event_id: str) -> None:
        position = self._find(event_id)
        if position is None:
            return
        self._count_as_sent(position + 1)
        while position >= 0 and self._log[position].sent_at is None:
            self._log[position].sent_at = ELSEWHERE
            position -= 1

    def _count_as_sent(self, position: int) -> None:
        number = self._forgotten + position
        if number > self._sent_up_to:
            self._sent_up_to = number
            self._changed()

    def _id_at(self, number: int) -> str:
        position = number - self._forgotten - 1
        return self._log[position].event.id if position >= 0 else self.before_first

    def postpone(self, deadline: float) -> None:
        """Let the channel live until then at least, if nobody reads it before."""
        if self.deadline is not None:
            self.deadline = max(self.deadline, deadline)

    # -- The end

    def is_expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def is_in_use(self, now: float) -> bool:
        """Whether it is read, or was until less than its life ago."""
        if self.deadline is None:
            return True
        return now < self.deadline != self.created_at + self._limits.ttl_s

    def close(self) -> int:
        """End the channel: its reader is woken, its writers are refused.

        Returns: how many events were lost, that is, are yet to be read and were never sent.
        """
        self.listener = None
        lost = sum(entry.sent_at is None for entry in self._log[self._sent :])
        if (lease := self._lease) is not None:
            self._lease = None
            lease.is_open = False
            lease.wake()
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            self._budget.drop(waiter.event)
            waiter.settle(taken=False)
        self._give_back_all()
        self._log = []
        self._done = self._sent = self._held = 0
        return lost

    def _give_back_all(self) -> None:
        """Let nothing of the channel count any more."""
        for entry in self._log:
            if entry.holds_place:
                self._budget.deliver(entry.event)
            self._budget.drop(entry.event)
        if self._keys is not None:
            self._keys.clear()
        self._budget.forget(self)
        self._budget.subtract(CHANNEL_BYTES)

    # -- Inside: writers

    def _append(self, event: Event) -> None:
        self._budget.hold(event)
        self._budget.expect(event)
        self._log.append(Entry(event))
        self._held += 1
        self._wake_reader()
        self._changed()

    def _queue(self, waiter: Waiter) -> Waiter:
        if self._waiters is None:
            self._waiters = OrderedDict()
        if len(self._waiters) >= self._limits.max_waiting_writers:
            raise LimitExceeded(
                f"{len(self._waiters)} writers wait for room in this channel already;"
                " no more may (max_waiting_writers)",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        self._waiters[waiter] = None
        self._budget.hold(waiter.event)
        return waiter

    def _admit_waiters(self, now: float) -> None:
        while self._waiters and self._held < self._limits.capacity:
            waiter, _ = self._waiters.popitem(last=False)
            self._append(waiter.event)
            self._budget.drop(waiter.event)
            if waiter.request_id is not None:
                self._remember(waiter.request_id, waiter.event.id, now)
            waiter.settle(taken=True)
        if not self._waiters:
            self._waiters = None

    def _remember(self, request_id: str, answer: str | Waiter, now: float) -> None:
        number = self._forgotten + len(self._log)
        self._known_keys().remember(request_id, answer, at=now, number=number)

    def _known_keys(self) -> Keys:
        if self._keys is None:
            self._keys = Keys(self._limits.idempotency_window_s, self._budget)
        return self._keys

    # -- Inside: readers

    def _take(self, lease: Lease, limit: int, max_bytes: int, now: float) -> list[Event]:
        first = self._sent
        if first == len(self._log):
            return []
        if lease.acknowledging:
            limit = min(limit, lease.window - (first - self._done))
        else:
            limit = min(limit, self._limits.capacity)  # or it would be forgotten before it is sent
        events: list[Event] = []
        for entry in self._log[first : first + max(0, limit)]:
            max_bytes -= len(entry.event.body) + EVENT_OVERHEAD_BYTES
            if max_bytes < 0 and events:
                break
            if entry.sent_at is not None:
                lease.resent += 1
            entry.sent_at = now
            events.append(entry.event)
        self._sent = first + len(events)
        self._count_as_sent(self._sent)
        self._was_used = self._was_used or bool(events)
        if not lease.acknowledging:
            if events:
                self._changed()
            self._free(self._log[first : self._sent], now)
        return events

    def _confirm(self, lease: Lease, now: float) -> None:
        taken = self._log[self._first_unconfirmed(lease) : self._sent]
        if not taken:
            return
        lease.confirmed = self._forgotten + self._sent
        if taken[-1].sent_at != now:
            for entry in taken:
                if entry.sent_at is not None:  # and was not pushed out before it was sent
                    entry.sent_at = now

    def _first_unconfirmed(self, lease: Lease) -> int:
        return max(0, lease.confirmed - self._forgotten)

    def _release(self, lease: Lease, *, clean: bool, now: float) -> None:
        if lease.acknowledging:
            self._sent = self._done
        elif clean:
            self._confirm(lease, now)
            self._done = self._sent
        else:
            self._move_to(self._first_owed(now))
        if clean and lease.tells_gap:
            self._set_gap(False)
        lease.is_open = False
        self._lease = None
        self.deadline = now + self._limits.ttl_s
        self._note_replay()

    def _lose_lease(self, lease: Lease, now: float) -> None:
        self._release(lease, clean=False, now=now)
        lease.wake()

    def _first_owed(self, now: float) -> int:
        """Where the entries begin that come again if a plain read breaks now; all in order."""
        since = now - self._limits.redelivery_window_s
        end = self._sent
        if self._lease is not None:
            end = max(self._done, min(end, self._first_unconfirmed(self._lease)))
        for position in range(self._done, end):
            sent_at = self._log[position].sent_at
            if sent_at is not None and sent_at > since:
                return position
        return end

    def _rewind_to(self, event_id: str, now: float) -> bool:
        """Have the next take start after an event. Returns: whether the event was known."""
        position = self._find(event_id)
        known = position is not None or event_id == (self._forgotten_id or START)
        start = 0 if position is None else position + 1
        self._move_to(start)
        self._free(self._log[:start], now)
        return known

    def _move_to(self, start: int) -> None:
        """Have the next take start at a position, with nothing in flight."""
        if not self._done == self._sent == start:
            self._sent = self._done = start
            self._changed()

    def _finish(self, done: int, now: float) -> None:
        """Count all entries before `done` as delivered: they are sent again only if asked for."""
        if done > self._done:
            finished, read = self._log[self._done : done], self._read_so_far()
            self._done = done
            self._sent = max(self._sent, done)
            if self._read_so_far() != read:
                self._changed()
            self._free(finished, now)

    def _free(self, entries: list[Entry], now: float) -> None:
        """Take their places from entries, for writers that wait, and forget what is too old."""
        for entry in entries:
            if entry.holds_place:
                entry.holds_place = False
                self._held -= 1
                self._budget.deliver(entry.event)
        self._forget()
        self._note_replay()
        self._admit_waiters(now)

    def _forget(self) -> None:
        """Keep no more than `capacity` entries for replay."""
        excess = self._read_so_far() - self._limits.capacity
        if excess > 0:
            self._drop_first(excess)

    def _drop_first(self, count: int) -> None:
        """Drop entries that hold no place from the beginning of the log."""
        dropped = self._log[:count]
        del self._log[:count]
        for entry in dropped:
            self._budget.drop(entry.event)
        self._forgotten += count
        self._done = max(0, self._done - count)
        self._sent -= count
        self._set_forgotten(dropped[-1].event.id)

    def _note_replay(self) -> None:
        if self._log and not self._log[0].holds_place:
            self._budget.keeps_replay(self)

    def evict_replay(self, now: float) -> None:
        """Drop what is kept for replay only, because memory is short.

        Events that a broken read would be sent again stay: those that an acknowledging reader has
        in flight, and those that a plain one did not confirm or was sent within the redelivery
        window.
        """
        acknowledging = self._lease is not None and self._lease.acknowledging
        count = self._done if acknowledging else self._first_owed(now)
        if count:
            self._drop_first(count)

    def _read_so_far(self) -> int:
        """How many entries the next read would not get, if the present one ended clean now."""
        holds_in_flight = self._lease is not None and self._lease.acknowledging
        return self._done if holds_in_flight else self._sent

    def _first_held(self) -> int:
        return next(i for i in range(self._done, len(self._log)) if self._log[i].holds_place)

    def _find(self, event_id: str) -> int | None:
        for position, entry in enumerate(self._log):
            if entry.event.id == event_id:
                return position
        return None

    def _set_forgotten(self, event_id: str) -> None:
        if event_id != self.before_first:
            self._forgotten_id = None if event_id == START else event_id
            self._changed()

    def _set_gap(self, has_gap: bool) -> None:
        if has_gap != self._has_gap:
            self._has_gap = has_gap
            self._changed()

    def _changed(self) -> None:
        if self.listener is not None:
            self.listener(self)

    def _wake_reader(self) -> None:
        if self._lease is not None:
            self._lease.wake()
