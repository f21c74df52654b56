"""Rates: how often something may happen. Time is an argument, so that tests need no clock.

A rate is a token bucket that fills steadily. It holds what may happen in one second, and at least
one single thing. In place of the bucket, `Rate` stores the time at which the bucket will be full
again (the "generic cell rate algorithm"), so that nothing has to happen while nobody calls.
"""

from math import inf
from typing import Final, final

BURST_S: Final = 1.0
"""The bucket holds what may happen in this many seconds, so that it may also happen at once."""
TOLERANCE_S: Final = 1e-6
"""Sums of fractions are not exact."""


@final
class Rate:
    """How often something may happen in a second.

    A cost above what the bucket holds passes when the bucket is full, and is paid off afterwards.
    Otherwise a large batch could never pass.
    """

    __slots__ = ("_burst_s", "_full_at", "_spacing_s", "per_s")

    def __init__(self, per_s: float) -> None:
        self._full_at = -inf
        """When the bucket is full again."""
        self.change(per_s)

    def change(self, per_s: float) -> None:
        """Set another rate. The debt so far stays."""
        self.per_s = per_s
        self._spacing_s = 1.0 / per_s
        self._burst_s = max(BURST_S, self._spacing_s)

    def wait_s(self, cost: float, now: float) -> float:
        """Return after how many seconds this cost passes, if nothing else passes until then; 0 if
        it passes now. Changes nothing."""
        owed_s = self._full_at - now
        if owed_s <= TOLERANCE_S:
            return 0.0
        allowed_s = max(0.0, self._burst_s - cost * self._spacing_s)
        return owed_s - allowed_s if owed_s > allowed_s + TOLERANCE_S else 0.0

    def pass_or_wait_s(self, cost: float, now: float) -> float:
        """Count this cost if it passes now, and return 0; otherwise do what `wait_s` does."""
        if self._full_at - now <= TOLERANCE_S:
            self._full_at = now + cost * self._spacing_s
            return 0.0
        if wait_s := self.wait_s(cost, now):
            return wait_s
        self._full_at += cost * self._spacing_s
        return 0.0

    def take(self, cost: float, now: float) -> None:
        """Count this cost, whether it passes or not."""
        self._full_at = max(self._full_at, now) + cost * self._spacing_s

    def give_back(self, cost: float) -> None:
        """Take back this cost, because it was counted for something that has not happened."""
        self._full_at -= cost * self._spacing_s


@final
class Rates:
    """The same rate for each of many keys, such as network addresses. If there are too many keys,
    the key that was counted longest ago is forgotten, so its bucket is full again."""

    __slots__ = ("_full_at", "_most", "_rate")

    def __init__(self, per_s: float, most: int = 10_000) -> None:
        """`most` is how many keys are remembered."""
        self._rate = Rate(per_s)
        self._most = most
        self._full_at: dict[str, float] = {}
        """As in `Rate`, by key; the key that was counted longest ago comes first."""

    @property
    def per_s(self) -> float:
        return self._rate.per_s

    def change(self, per_s: float) -> None:
        """Do the same as `Rate.change` for all keys."""
        self._rate.change(per_s)

    def wait_s(self, key: str, cost: float, now: float) -> float:
        """Do the same as `Rate.wait_s` for a key."""
        rate = self._rate
        rate._full_at = self._full_at.get(key, -inf)
        return rate.wait_s(cost, now)

    def take(self, key: str, cost: float, now: float) -> None:
        """Do the same as `Rate.take` for a key."""
        rate = self._rate
        rate._full_at = self._full_at.pop(key, -inf)
        rate.take(cost, now)
        if len(self._full_at) >= self._most:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[key] = rate._full_at

    def give_back(self, key: str, cost: float) -> None:
        """Do the same as `Rate.give_back` for a key."""
        if key in self._full_at:
            self._full_at[key] -= cost / self._rate.per_s
