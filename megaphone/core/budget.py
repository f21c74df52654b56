"""The budget: how many bytes clients may make this node use, and how many they use now.

Channels, their events, their idempotency keys and the events of waiting writers count. The faces
also count the requests that are being received and the data that is on its way to readers. Each
figure is an upper estimate of the memory that CPython needs.

When memory is short, the channels drop events that they keep only for replay: first the channel
that is being written to, then the others. A reader with a cursor before a dropped event gets
`Megaphone-Recovered: false`. When no such event is left, writes are refused with LIMIT_EXCEEDED.
Reads are never refused, because they free memory.

A tenant may have a share of the budget, which is a budget within it. An event that channels of
several tenants hold counts for the tenant of its first holder, until nobody holds it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from megaphone.errors import LimitExceeded
from megaphone.model import LINE_BODY_BYTES, Account, Event

CHANNEL_BYTES: Final = 700
"""The cost of a channel without events."""
EVENT_BYTES: Final = 350
"""The cost of an event without its body."""
TRACE_BYTES: Final = 112
"""The cost of the trace context of an event."""
ENTRY_BYTES: Final = 100
"""The cost of an entry for an event in the log of one channel."""
KEY_BYTES = 350
"""The cost of an idempotency key, in addition to one byte for each character."""
RECEIVED_SHARE = 0.2
"""The part of the limit that unfinished requests may use, so that clients which send slowly, or
stop in the middle of a request, leave memory for other clients."""
UNCOUNTED_BYTES = 4_096
"""How many bytes of an unfinished request are free, because every connection needs more anyway."""
SHORT_FROM = 0.9
"""The part of the limit from which memory is short, so that channels drop their replay."""
RETRY_AFTER_S = 1.0
"""How long a client should wait before it repeats a request that the budget refused."""
NOTHING: Final[list[Event]] = []
"""Stands for no events. It never changes."""


class KeepsReplay(Protocol):
    """What the budget needs of a channel."""

    def drop_replay(self, now: float) -> None:
        """Drop the events that are kept for replay only."""


class Budget:
    """Counts the bytes in use, and refuses more than the limit. Belongs to one event loop."""

    __slots__ = (
        "_account",
        "_delivered",
        "_dropped",
        "_entered",
        "_events",
        "_received",
        "_shares",
        "_short_from",
        "_used",
        "_with_replay",
        "limit",
    )

    def __init__(self, limit: int = sys.maxsize) -> None:
        self.limit = limit
        self._used = 0
        """How many bytes are in use, and those that repeated steps have freed since `_settle`."""
        self._entered, self._delivered, self._dropped = Repeated(), Repeated(), Repeated()
        self._events = 0
        self._received = 0
        self._short_from = int(limit * SHORT_FROM)
        self._with_replay: dict[KeepsReplay, None] = {}
        """The channels that have events for replay, without those of shares; the first one has had
        them longest."""
        self._account = Account()
        """What channels use that belong to no share."""
        self._shares: dict[Share, None] = {}
        """Those with channels that have events for replay."""

    @property
    def used(self) -> int:
        """How many bytes are in use."""
        self._settle()
        return self._used

    @property
    def events(self) -> int:
        """How many events are held, each counted once."""
        self._settle()
        return self._events

    @property
    def limit_of_requests(self) -> int:
        """How many bytes all unfinished requests together may use."""
        return int(self.limit * RECEIVED_SHARE)

    def ensure(self, size: int, now: float, first: KeepsReplay | None = None) -> None:
        """Make sure that `size` more bytes are free. If not, channels drop their replay.

        The channel `first` drops its replay before the other channels do. They follow in the order
        in which they have had events for replay, first those of the tenant that uses most.

        Raises: LimitExceeded, when the bytes are not free even then.
        """
        if self._used + size <= self._short_from or self.used + size <= self._short_from:
            return
        if first is not None:
            self._drop_replay(first, now)
        while self.used + size > self._short_from:
            largest = self._largest_with_replay()
            if largest is None:
                break
            largest._drop_replay(next(iter(largest._with_replay)), now)
        self.check(size)

    def _largest_with_replay(self) -> "Budget | None":
        """Return the share that uses most among those whose channels have events for replay, or
        this budget, if channels without a share use more."""
        largest: Budget | None = self if self._with_replay else None
        for share in self._shares:
            if largest is None or share._account.used > largest._account.used:
                largest = share
        return largest

    def check(self, size: int) -> None:
        """Raises: LimitExceeded, when fewer than `size` bytes are free."""
        if self.used + size > self.limit:
            raise self._is_full()

    def _is_full(self) -> LimitExceeded:
        return LimitExceeded(
            f"this node has reached its limit of {self.limit} bytes for clients"
            " (max_buffered_bytes); it accepts more when readers have read",
            retry_after_s=RETRY_AFTER_S,
        )

    def _drop_replay(self, channel: KeepsReplay, now: float) -> None:
        """Let a channel drop its replay, if it is known to have one."""
        if channel in self._with_replay:
            self.forget(channel)
            channel.drop_replay(now)

    def keeps_replay(self, channel: KeepsReplay) -> None:
        """Note that a channel has events that `drop_replay` would drop."""
        self._with_replay[channel] = None

    def forget(self, channel: KeepsReplay) -> None:
        """Forget a channel, because it was closed."""
        self._with_replay.pop(channel, None)

    # -- Bytes

    def add(self, size: int) -> None:
        """Count bytes of a channel."""
        self._add(size, self._account)

    def subtract(self, size: int) -> None:
        """Count bytes of a channel less."""
        self._add(-size, self._account)

    def _add(self, size: int, account: Account) -> None:
        self._used += size
        account.used += size

    def receive(self, size: int, more: int, now: float) -> None:
        """Count `more` received bytes of a request that had `size` bytes before.

        Raises: LimitExceeded. The bytes then do not count.
        """
        counted = counted_bytes(size + more) - counted_bytes(size)
        if counted == 0:
            return
        self.ensure(counted, now)
        if self._received + counted > self.limit_of_requests:
            raise self._is_full()
        self._received += counted
        self._used += counted

    def received(self, size: int) -> None:
        """Stop counting a request of `size` bytes, because it is complete or was aborted."""
        counted = counted_bytes(size)
        self._received -= counted
        self._used -= counted

    @contextmanager
    def reserved(self, size: int, now: float) -> Iterator[None]:
        """Count `size` bytes within this context.

        Raises: LimitExceeded, on entry, when the bytes are not free.
        """
        self.ensure(size, now)
        with self.lent(size):
            yield

    @contextmanager
    def lent(self, size: int) -> Iterator[None]:
        """Count `size` bytes within this context, even if they exceed the limit."""
        self._used += size
        try:
            yield
        finally:
            self._used -= size

    # -- Events: each counts once, however many channels share it

    def cost(self, events: list[Event]) -> int:
        """Return how many bytes `enter` would add for these events."""
        if events is self._entered.events:
            return ENTRY_BYTES * len(events)
        size = 0
        for event in events:
            size += cost(event)
        return size

    def hold(self, event: Event) -> None:
        """Count one more waiting writer that holds an event."""
        self._hold(event, self._account)

    def _hold(self, event: Event, account: Account) -> None:
        event.holders += 1
        size = ENTRY_BYTES
        if event.holders == 1:
            self._events += 1
            size += size_of(event)
            event.payer = account
        self._add(size, account)

    def drop(self, events: list[Event]) -> None:
        """Count one holder of each of these events less: the opposite of `hold`."""
        self._drop(events, self._account)

    def _drop(self, events: list[Event], account: Account) -> None:
        self._add(-ENTRY_BYTES * len(events), account)
        if self._entered.events:
            self._settle_entries()
        again = self._dropped
        if again.events:
            if events == again.events:
                again.times += 1
                return
            self._settle_drops()
        if self._let_go(events, 1):
            again.events = events

    def enter(self, events: list[Event]) -> None:
        """Count one more channel that holds these events, and in which they have a place. The
        sequence must not change any more.

        While an event has a place in two channels or more, it keeps its rendered line for them. The
        line is as long as the body, so the body counts twice.
        """
        self._enter(events, self._account)

    def _enter(self, events: list[Event], account: Account) -> None:
        # In place of `_add`, because each write comes here.
        used = ENTRY_BYTES * len(events)
        again = self._entered
        if events is again.events:
            self._used += used
            account.used += used
            again.times += 1
            return
        if again.events:
            self._settle_entries()
        are_shared = len(events) > 1
        for event in events:
            event.holders += 1
            event.awaited += 1
            if event.holders == 1:
                self._events += 1
                used += EVENT_BYTES + len(event.body)
                if event.trace is not None:
                    used += TRACE_BYTES
                event.payer = account
            if event.awaited == 1:
                are_shared = False
            elif event.awaited == 2 and len(event.body) <= LINE_BODY_BYTES:
                self._pay(event, len(event.body))
        self._used += used
        account.used += used
        if are_shared:
            again.events = events

    def deliver(self, events: list[Event]) -> None:
        """Count one channel less in which each of these events has a place. The sequence must not
        change any more."""
        if self._entered.events:
            self._settle_entries()
        again = self._delivered
        if again.events:
            if events == again.events:
                again.times += 1
                return
            self._settle_deliveries()
        if self._vacate(events, 1):
            again.events = events

    # -- Repeated steps
    #
    # A batch goes to many channels, and each of them enters, delivers and drops the same events.
    # From the second time on such a step is only noted, and counted for all channels together.

    def _settle(self) -> None:
        self._settle_entries()
        self._settle_deliveries()
        self._settle_drops()

    def _settle_entries(self) -> None:
        # The events have two holders and two places at least, so that nothing else changes.
        events, times = self._entered.settled()
        for event in events:
            event.holders += times
            event.awaited += times

    def _settle_deliveries(self) -> None:
        events, times = self._delivered.settled()
        if times:
            self._vacate(events, times)

    def _settle_drops(self) -> None:
        events, times = self._dropped.settled()
        if times:
            self._let_go(events, times)

    def _vacate(self, events: list[Event], places: int) -> bool:
        """Count so many places of each event less. Returns: whether others may do the same."""
        are_shared = len(events) > 1
        for event in events:
            before = event.awaited
            event.awaited = before - places
            if event.awaited <= 1:
                are_shared = False
                if before > 1 and len(event.body) <= LINE_BODY_BYTES:
                    self._pay(event, -len(event.body))
                    event.rendered = None
        return are_shared

    def _let_go(self, events: list[Event], holders: int) -> bool:
        """Count so many holders of each event less. Returns: whether others may do the same."""
        are_shared = len(events) > 1
        for event in events:
            event.holders -= holders
            if event.holders == 0:
                are_shared = False
                self._events -= 1
                # In place of `size_of` and `_pay`, because each write comes here.
                size = EVENT_BYTES + len(event.body)
                if event.trace is not None:
                    size += TRACE_BYTES
                payer = event.payer
                assert payer is not None
                self._add(-size, payer)
        return are_shared

    def _pay(self, event: Event, size: int) -> None:
        """Count bytes of an event that somebody holds."""
        assert event.payer is not None
        self._add(size, event.payer)


class Share(Budget):
    """The part of a budget that one tenant may use for channels and events. What it counts, the
    budget counts too."""

    __slots__ = ("_label", "_tenant", "_whole")

    def __init__(self, whole: Budget, tenant: str, label: str, limit: int | None) -> None:
        """`tenant` is the name of the tenant, and `label` its name in metrics. Without `limit`, it
        may use all of the budget."""
        super().__init__()
        self._whole = whole
        self._tenant = tenant
        self.change(label, limit)

    def change(self, label: str, limit: int | None) -> None:
        """Set another limit. The use so far goes on to count."""
        self._label = label
        self.limit = sys.maxsize if limit is None else limit
        self._short_from = int(self.limit * SHORT_FROM)

    @property
    def used(self) -> int:
        self._whole._settle()
        return self._account.used

    def ensure(self, size: int, now: float, first: KeepsReplay | None = None) -> None:
        account, short_from = self._account, self._short_from
        if account.used + size > short_from and self.used + size > short_from:
            if first is not None:
                self._drop_replay(first, now)
            while self._with_replay and self.used + size > short_from:
                self._drop_replay(next(iter(self._with_replay)), now)
            self.check(size)
        whole = self._whole
        if whole._used + size > whole._short_from and whole.used + size > whole._short_from:
            if first is not None:
                self._drop_replay(first, now)
            whole.ensure(size, now)

    def _is_full(self) -> LimitExceeded:
        return LimitExceeded(
            f"tenant {self._tenant} has reached its limit of {self.limit} bytes (buffered_bytes);"
            " it may write more when its readers have read",
            retry_after_s=RETRY_AFTER_S,
            limit="buffered_bytes",
            tenant=self._label,
        )

    def keeps_replay(self, channel: KeepsReplay) -> None:
        self._with_replay[channel] = None
        self._whole._shares[self] = None

    def forget(self, channel: KeepsReplay) -> None:
        self._with_replay.pop(channel, None)
        if not self._with_replay:
            self._whole._shares.pop(self, None)

    def _add(self, size: int, account: Account) -> None:
        self._whole._add(size, account)

    def cost(self, events: list[Event]) -> int:
        return self._whole.cost(events)

    def hold(self, event: Event) -> None:
        self._whole._hold(event, self._account)

    def drop(self, events: list[Event]) -> None:
        self._whole._drop(events, self._account)

    def enter(self, events: list[Event]) -> None:
        self._whole._enter(events, self._account)

    def deliver(self, events: list[Event]) -> None:
        self._whole.deliver(events)


class Repeated:
    """A step that was done for some events, and how often it was repeated for the same events."""

    __slots__ = ("events", "times")

    def __init__(self) -> None:
        self.events = NOTHING
        self.times = 0

    def settled(self) -> tuple[list[Event], int]:
        """Return both, and forget them."""
        events, times = self.events, self.times
        self.events, self.times = NOTHING, 0
        return events, times


def counted_bytes(size: int) -> int:
    """Return how many of the `size` bytes of an unfinished request count."""
    return max(0, size - UNCOUNTED_BYTES)


def cost(event: Event) -> int:
    """Return how many bytes one more `hold` of an event would add."""
    return ENTRY_BYTES if event.holders else ENTRY_BYTES + size_of(event)


def size_of(event: Event) -> int:
    """Return how many bytes an event needs that somebody holds, without its entries in logs."""
    size = EVENT_BYTES + len(event.body)
    return size if event.trace is None else size + TRACE_BYTES
