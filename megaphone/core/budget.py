"""How much memory clients may make this node use: one count in bytes, and its limit.

Counted are the channels, the events that they hold and the keys of repeated writes; the events of
writers that wait for room; and, by the faces, what is being received and what is under way to
readers. The figures are estimates from above of what CPython takes for each.

When the budget runs short, events that are kept only for replay are evicted, those of the channel
that is written to first. A reader that comes back with an older cursor is answered
`Recovered: false`. When nothing is left to evict, writes are refused with LIMIT_EXCEEDED. Reads
never are, because they free memory.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from megaphone.errors import LimitExceeded
from megaphone.model import LINE_BODY_BYTES, Event

CHANNEL_BYTES = 700
"""A channel without events."""
EVENT_BYTES = 350
"""An event without its body."""
ENTRY_BYTES = 100
"""An event's place in the log of one channel."""
KEY_BYTES = 350
"""What a channel remembers of an idempotency key, without its characters."""
RECEIVED_SHARE = 0.2
"""The part of the limit that unfinished requests may take, so that clients which send slowly, or
stop in the middle, leave room for others."""
UNCOUNTED_BYTES = 4_096
"""How much of an unfinished request is not counted, because its connection takes more."""
SHORT_FROM = 0.9
"""The part of the limit beyond which replay is evicted."""
RETRY_AFTER_S = 1.0


class KeepsReplay(Protocol):
    """A channel, as the budget sees it."""

    def drop_replay(self, now: float) -> None:
        """Drop the events that no reader is owed."""


class Budget:
    """The bytes in use, and the most there may be. Belongs to one event loop."""

    __slots__ = ("_received", "_short_from", "_with_replay", "limit", "used")

    def __init__(self, limit: int = sys.maxsize) -> None:
        self.limit = limit
        self.used = 0
        self._received = 0
        self._short_from = int(limit * SHORT_FROM)
        self._with_replay: dict[KeepsReplay, None] = {}
        """The channels that keep events for replay, in the order in which they began to."""

    @property
    def limit_of_requests(self) -> int:
        """The most that unfinished requests may take."""
        return int(self.limit * RECEIVED_SHARE)

    def ensure(self, size: int, now: float, first: KeepsReplay | None = None) -> None:
        """Make sure that `size` more bytes may be used, evicting replay if need be.

        The replay of the channel `first` goes before that of others.

        Raises: LimitExceeded.
        """
        if self.used + size <= self._short_from:
            return
        if first is not None and first in self._with_replay:
            self._evict(first, now)
        while self._with_replay and self.used + size > self._short_from:
            self._evict(next(iter(self._with_replay)), now)
        self.check(size)

    def check(self, size: int) -> None:
        """Raises: LimitExceeded, when `size` more bytes are more than may be used."""
        if self.used + size > self.limit:
            raise self._is_full()

    def _is_full(self) -> LimitExceeded:
        return LimitExceeded(
            f"this node has reached its limit of {self.limit} bytes for clients"
            " (max_buffered_bytes); it accepts more when readers have read",
            retry_after_s=RETRY_AFTER_S,
        )

    def _evict(self, channel: KeepsReplay, now: float) -> None:
        del self._with_replay[channel]
        channel.drop_replay(now)

    def keeps_replay(self, channel: KeepsReplay) -> None:
        """Note that a channel has events to evict."""
        self._with_replay[channel] = None

    def forget(self, channel: KeepsReplay) -> None:
        """Note that a channel has none, because it is gone."""
        self._with_replay.pop(channel, None)

    # -- Bytes

    def add(self, size: int) -> None:
        self.used += size

    def subtract(self, size: int) -> None:
        self.used -= size

    def receive(self, size: int, more: int, now: float) -> None:
        """Count `more` bytes of a request of which `size` bytes were received before.

        Raises: LimitExceeded; then they are not counted.
        """
        counted = uncounted_left_out(size + more) - uncounted_left_out(size)
        if counted == 0:
            return
        self.ensure(counted, now)
        if self._received + counted > self.limit_of_requests:
            raise self._is_full()
        self._received += counted
        self.used += counted

    def received(self, size: int) -> None:
        """Count a request of `size` bytes no more, because it is complete or given up."""
        counted = uncounted_left_out(size)
        self._received -= counted
        self.used -= counted

    @contextmanager
    def reserved(self, size: int, now: float) -> Iterator[None]:
        """Count `size` bytes within this context. Raises: LimitExceeded, on entering it."""
        self.ensure(size, now)
        with self.lent(size):
            yield

    @contextmanager
    def lent(self, size: int) -> Iterator[None]:
        """Count `size` bytes within this context, whether there is room for them or not."""
        self.used += size
        try:
            yield
        finally:
            self.used -= size

    # -- Events: each counts once, however many channels share it

    def hold(self, event: Event) -> None:
        """Count an event for one more holder: the log of a channel, or a writer that waits."""
        event.holders += 1
        self.used += ENTRY_BYTES
        if event.holders == 1:
            self.used += EVENT_BYTES + len(event.body)

    def drop(self, event: Event) -> None:
        """Undo a `hold`."""
        event.holders -= 1
        self.used -= ENTRY_BYTES
        if event.holders == 0:
            self.used -= EVENT_BYTES + len(event.body)

    def expect(self, event: Event) -> None:
        """Note that one more channel has an event that its reader is yet to get.

        While two channels or more have, its rendered line is kept, which is as long as its body.
        """
        event.awaited += 1
        if event.awaited == 2 and len(event.body) <= LINE_BODY_BYTES:
            self.used += len(event.body)

    def deliver(self, event: Event) -> None:
        """Undo an `expect`."""
        event.awaited -= 1
        if event.awaited == 1 and len(event.body) <= LINE_BODY_BYTES:
            self.used -= len(event.body)
            event.rendered = None


def uncounted_left_out(size: int) -> int:
    return max(0, size - UNCOUNTED_BYTES)


def cost(event: Event) -> int:
    """Return how many bytes one more holder of an event costs."""
    return ENTRY_BYTES if event.holders else ENTRY_BYTES + EVENT_BYTES + len(event.body)
