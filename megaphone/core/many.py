"""A read of many channels over one connection: it merges the readers of the channels.

Each channel keeps its own lease, and with it its cursor, its window and its end. The channels share
what belongs to the connection: the speed of the client, the heartbeats and the limit.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from megaphone.core.alarms import Alarms
from megaphone.core.open_read import BATCH_EVENTS, Client, OpenRead
from megaphone.core.ports import Observer
from megaphone.core.reader import Reader, bytes_of
from megaphone.errors import MegaphoneError, StoreUnavailable
from megaphone.model import (
    ChannelBegun,
    ChannelDone,
    ChannelEvents,
    Part,
    ReadEnd,
    ReadOptions,
)

if TYPE_CHECKING:
    from asyncio import Future

PART_BYTES = 100
"""How many bytes a part counts that has no events."""


class ManyReader(OpenRead[Part]):
    """A read of many channels, which are named by their indexes in the request.

    The first part of a channel is its `ChannelBegun`, and its last one is its `ChannelDone`. A
    channel that is refused has only the latter. The read is over when all channels are done.
    """

    __slots__ = (
        "_left",
        "_news",
        "_on_ready",
        "_queue",
        "_queued",
        "_readers",
        "_settling",
    )

    def __init__(
        self,
        opened: Sequence[Reader | MegaphoneError],
        options: ReadOptions,
        observer: Observer,
        alarms: Alarms,
    ) -> None:
        """`opened` has for each channel its reader, or the reason for which it is refused."""
        super().__init__(options.heartbeat_s, observer, alarms)
        self._left = sys.maxsize if options.limit is None else options.limit
        self._readers: dict[int, Reader] = {}
        """The readers that are not over, by the indexes of their channels."""
        self._settling: dict[int, Reader] = {}
        """The readers that are over, while the store ends them."""
        self._news: list[Part] = []
        """What the client has to learn before further events."""
        for index, one in enumerate(opened):
            if isinstance(one, Reader):
                self._readers[index] = one
                self._news.append(ChannelBegun(index, one.cursor, one.recovered))
            else:
                self._news.append(ChannelDone(index, one))
        self._queue = deque(self._readers)
        """The channels for which something may be ready, and those whose last events are to be
        confirmed, in the order in which they get their turns."""
        self._queued = set(self._readers)
        self._on_ready: Callable[[], None] | None = None

    def attach(self, client: Client | None, on_ready: Callable[[], None]) -> None:
        self._client = client
        self._on_ready = on_ready
        for index, reader in self._readers.items():
            reader.attach(self, partial(self._on_channel_ready, index))

    def _on_channel_ready(self, index: int) -> None:
        self._enqueue(index)
        self._wake()

    def _enqueue(self, index: int) -> None:
        if index not in self._queued:
            self._queued.add(index)
            self._queue.append(index)

    def _wake(self) -> None:
        if self._on_ready is not None:
            self._on_ready()

    # -- Batches

    def next(self) -> list[Part] | None:
        """Do what `OpenRead.next` says. Each channel has at most one `ChannelEvents` in a batch,
        and the channels take turns."""
        now = self._loop.time()
        if self._is_waiting or self._more_is_ready:
            self._note_taken(now)
        parts = self._with_news([])
        events_left, bytes_left = min(BATCH_EVENTS, self._left), self._batch_bytes
        for _ in range(len(self._queue)):
            if bytes_left <= 0 or events_left <= 0 < self._left:
                break
            index = self._queue.popleft()
            self._queued.discard(index)
            reader = self._readers.get(index)
            if reader is None:
                continue
            # A reader that has ended has no event more, whatever its limit is.
            events = reader.next_within(max(1, events_left), bytes_left)
            if events:
                parts.append(ChannelEvents(index, events))
                events_left -= len(events)
                bytes_left -= bytes_of(events)
                self._left -= len(events)
                self._enqueue(index)  # its next turn confirms these events
                if self._left <= 0:
                    self.end(ReadEnd.LIMIT)
            elif reader.is_over:
                self._finish(index, reader)
        parts = self._with_news(parts)
        self._more_is_ready = events_left <= 0 or bytes_left <= 0
        if parts:
            self._heartbeat_at = now + self._heartbeat_s
            return parts
        if not self._readers and not self._settling:
            self.is_over = True
            return None
        if (heartbeat := self._heartbeat(now)) is None and self._heartbeat_at < math.inf:
            self._wake_at(self._heartbeat_at)
        return heartbeat

    def _with_news(self, parts: list[Part]) -> list[Part]:
        news, self._news = self._news, []
        return parts + news

    def size_of(self, batch: list[Part]) -> int:
        return sum(
            bytes_of(part.events) if isinstance(part, ChannelEvents) else PART_BYTES
            for part in batch
        )

    # -- The ends of channels

    def _finish(self, index: int, reader: Reader) -> None:
        """End the read of one channel, of which the connection has all events."""
        del self._readers[index]
        settled = reader.settle()
        if settled is None:
            self._close_one(index, reader, clean=True)
        else:
            self._settling[index] = reader
            settled.add_done_callback(partial(self._on_settled, index))

    def _on_settled(self, index: int, settled: "Future[bool]") -> None:
        reader = self._settling.pop(index, None)
        if reader is not None:
            clean = not settled.cancelled() and settled.result()
            self._close_one(index, reader, clean=clean)
            self._wake()

    def _close_one(self, index: int, reader: Reader, *, clean: bool) -> None:
        error = reader.refusal
        if not clean:
            reader.ended_by = ReadEnd.STORE_LOST
            error = StoreUnavailable("the store has not ended the read; read again")
        reader.close(clean=clean)
        self._news.append(ChannelDone(index, error))

    # -- What the readers call

    def taken(self) -> int | None:
        """Return None: this object watches the client for all its readers."""
        return None

    def broken(self, error: MegaphoneError) -> None:
        """The agent of a channel moves, and the client does not take what it was sent."""
        self.note_end(ReadEnd.MOVED)
        self._break(error)

    # -- The end

    def end(self, why: ReadEnd) -> None:
        for reader in list(self._readers.values()):
            reader.end(why)

    def settle(self) -> None:
        """Return None, because each reader was settled before the client learned of its end."""

    def close(self, *, clean: bool) -> None:
        self._forget_client()
        self._on_ready = None
        closing = [*self._readers.values(), *self._settling.values()]
        self._readers.clear()
        self._settling.clear()
        for reader in closing:
            if self.ended_by is not None:
                reader.note_end(self.ended_by)
            reader.close(clean=clean)
