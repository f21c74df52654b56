"""Which channel dies next.

Deadlines move with every read, but only ever forward. So each channel has one entry, made when it
is created and looked at when it falls due: whoever still lives then is entered again under its
present deadline. Reads cost nothing here, and finding the dead costs no scan.
"""

import heapq
import sys


class Deadlines:
    """A queue of channel ids in order of the time at which each must be looked at."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: list[tuple[float, bytes]] = []

    def add(self, channel_id: bytes, time: float) -> None:
        heapq.heappush(self._queue, (time, channel_id))

    def pop_due(self, now: float, most: int = sys.maxsize) -> list[bytes]:
        """Remove and return the ids whose time has come, the earliest first, `most` at most."""
        due: list[bytes] = []
        while self._queue and self._queue[0][0] <= now and len(due) < most:
            due.append(heapq.heappop(self._queue)[1])
        return due

    @property
    def next(self) -> float | None:
        """The earliest time at which `pop_due` returns something; None when there is none."""
        return self._queue[0][0] if self._queue else None
