"""Wakes open reads at their times, by one timer of the event loop for all of them.

A timer of the event loop takes half a kilobyte, and keeps the context of the request that began it.
A node has a time for each open read: when its next heartbeat is due, or when it ends.
"""

import asyncio
import math
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

TICKS_PER_S: Final = 100
"""Times are counted in ticks, so that many sleepers share one."""
NO_TICK: Final = -1
SPARE_TICKS: Final = 100
"""So many ticks without a sleeper are kept, or as many as there are with one."""


class Sleeper(Protocol):
    """What is woken."""

    def on_alarm(self) -> None:
        """The time has come. It may be slightly early. Must not raise."""


class Alarms:
    """When which sleepers are woken. Each has one alarm at most. Belongs to one event loop."""

    __slots__ = ("_sleepers", "_ticks", "_timer", "_timer_tick")

    def __init__(self) -> None:
        self._sleepers: dict[int, dict[Sleeper, None]] = {}
        """Those of each tick, in the order in which their alarms were set."""
        self._ticks: list[int] = []
        """A heap of these ticks, and of some that have no sleeper any more."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = NO_TICK
        """The tick for which `_timer` is set."""

    def set(self, due: float, sleeper: Sleeper) -> int:
        """Wake a sleeper at a time of the event loop, or up to a tick later. Those of one tick are
        woken in the order of these calls.

        Returns: the tick, by which `cancel` finds the alarm.
        """
        tick = tick_of(due)
        sleepers = self._sleepers.get(tick)
        if sleepers is not None:
            sleepers[sleeper] = None
            return tick
        self._sleepers[tick] = {sleeper: None}
        heappush(self._ticks, tick)
        self._set_timer()
        return tick

    def cancel(self, tick: int, sleeper: Sleeper) -> None:
        """Forget a sleeper whose alarm was set for a tick."""
        sleepers = self._sleepers.get(tick)
        if sleepers is None:
            return
        sleepers.pop(sleeper, None)
        if not sleepers:
            del self._sleepers[tick]
            if len(self._ticks) > 2 * len(self._sleepers) + SPARE_TICKS:
                self._ticks = list(self._sleepers)
                heapify(self._ticks)

    def _set_timer(self) -> None:
        """Set the timer for the first tick, unless it is."""
        first = self._ticks[0]
        if self._timer is not None:
            if self._timer_tick <= first:
                return
            self._timer.cancel()
        self._timer_tick = first
        self._timer = asyncio.get_running_loop().call_at(first / TICKS_PER_S, self._ring)

    def _ring(self) -> None:
        """Wake all whose time has come: those of the tick of the timer, and of later ones if the
        event loop is late."""
        self._timer = None
        now = max(self._timer_tick, math.floor(asyncio.get_running_loop().time() * TICKS_PER_S))
        while self._ticks and (self._ticks[0] <= now or self._ticks[0] not in self._sleepers):
            for sleeper in self._sleepers.pop(heappop(self._ticks), ()):
                sleeper.on_alarm()
        if self._ticks:
            self._set_timer()


def tick_of(due: float) -> int:
    """Return the first tick that is not before a time of the event loop."""
    return math.ceil(due * TICKS_PER_S)
