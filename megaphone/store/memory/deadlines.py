"""Finds the channels that expire next, without a scan of all channels.

A read changes the deadline of its channel, but never to an earlier time. So each channel has one
entry in the queue, from its creation on, and a read need not change the queue. At the time of the
entry, the store checks the channel: if it has not expired, it gets a new entry.
"""

import heapq
import sys


class Deadlines:
    """A queue of channel ids, ordered by the time at which the store must check each channel."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: list[tuple[float, bytes]] = []

    def add(self, channel_id: bytes, time: float) -> None:
        heapq.heappush(self._queue, (time, channel_id))

    def pop_due(self, now: float, most: int = sys.maxsize) -> list[bytes]:
        """Remove and return the ids whose time is `now` or before: the earliest `most` of them."""
        due: list[bytes] = []
        while self._queue and self._queue[0][0] <= now and len(due) < most:
            due.append(heapq.heappop(self._queue)[1])
        return due

    @property
    def next(self) -> float | None:
        """The earliest time at which the store must check a channel; None if the queue is empty."""
        return self._queue[0][0] if self._queue else None
