"""What a plain reader was sent and when, which decides where the next read starts if its read
breaks."""

import math
from typing import Final

KEPT: Final = 64
"""How many confirmed takes are remembered before those are dropped that no broken read needs any
more."""
JOINED: Final = 0.005
"""Takes that are confirmed within this part of the redelivery window count as one, so that a fast
read does not need memory for each."""


class Sendings:
    """The confirmed takes of one plain lease, oldest first.

    A take is *confirmed* once the connection has all its bytes. If the read breaks, the events that
    were confirmed within the redelivery window are sent again, and perhaps some that were confirmed
    less than `JOINED` of the window before it.
    """

    __slots__ = ("_at", "_began_at", "_first", "_joined_s", "_kept", "_last", "_takes", "_window_s")

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._joined_s = window_s * JOINED
        self._takes: list[tuple[int, int, float]] = []
        """The first and the last offset of each take but the latest, and when it was confirmed."""
        self._first = self._last = 0
        """The same of the latest take; 0 without one."""
        self._at = self._began_at = -math.inf
        """When the latest take was confirmed: the last and the first of those that it consists
        of."""
        self._kept = KEPT

    def __len__(self) -> int:
        return len(self._takes) + (self._last > 0)

    def confirm(self, first: int, last: int, now: float, floor: int = 0) -> None:
        """Note that the connection has all bytes of the events at these offsets.

        Events up to `floor` will never be sent again.
        """
        if now - self._began_at >= self._joined_s:
            if self._last:
                self._takes.append((self._first, self._last, self._at))
                if len(self._takes) > self._kept:
                    self._drop_old(now, floor)
            self._first, self._began_at = first, now
        self._last, self._at = last, now

    def resend_after(self, floor: int, confirmed: int, now: float) -> int:
        """Return the offset after which the next read starts if the read breaks now.

        Events up to `floor` are not sent again, and events after `confirmed` always are.
        """
        for first, last, at in (*self._takes, (self._first, self._last, self._at)):
            if at > now - self._window_s and last > floor:
                return max(floor, first - 1)
        return max(floor, confirmed)

    def _drop_old(self, now: float, floor: int) -> None:
        count = 0
        for _, last, at in self._takes:
            if at > now - self._window_s and last > floor:
                break
            count += 1
        del self._takes[:count]
        self._kept = max(KEPT, 2 * len(self._takes))
