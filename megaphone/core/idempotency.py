"""The idempotency keys of one channel: how a write that repeats one is answered.

A key is remembered for a time after its event was taken, and while the writer of its event waits
for room.
"""

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from megaphone.core.budget import KEY_BYTES, Budget

Pending = TypeVar("Pending")
"""What stands for an event that waits for room. Not a string."""

MOST_KEYS = 10_000
"""Keys that a channel remembers; the oldest are forgotten first."""


class Key(NamedTuple, Generic[Pending]):
    """What is remembered of a key."""

    answer: str | Pending
    """The id of the event taken for it, or what stands for it while it waits for room."""
    at: float
    """When the event was taken. While it waits: when it was offered."""
    offset: int
    """The offset of the event; at most that of the last event, when the event came without it."""

    @property
    def is_taken(self) -> bool:
        return isinstance(self.answer, str)


class Keys(Generic[Pending]):
    """The keys of a channel, in the order in which their events were taken.

    What they take counts against a budget.
    """

    __slots__ = ("_budget", "_keys", "_window_s")

    def __init__(self, window_s: float, budget: Budget) -> None:
        """A key is remembered for `window_s` after its event was taken."""
        self._window_s = window_s
        self._budget = budget
        self._keys: OrderedDict[str, Key[Pending]] = OrderedDict()

    def answer(self, request_id: str, now: float) -> str | Pending | None:
        """Return what a write with this key is answered; None for one that is not known (any more).

        Forgets what is too old.
        """
        before = now - self._window_s
        while self._keys:
            oldest, key = next(iter(self._keys.items()))
            if key.at >= before or not key.is_taken:
                break
            self.forget(oldest)
        known = self._keys.get(request_id)
        if known is None:
            return None
        if known.at < before and known.is_taken:  # it stands behind one that waits
            self.forget(request_id)
            return None
        return known.answer

    def remember(self, request_id: str, answer: str | Pending, *, at: float, offset: int) -> None:
        """Remember a key, as the latest; what was remembered of it before is replaced."""
        if request_id in self._keys:
            self._keys.move_to_end(request_id)
        else:
            self._budget.add(KEY_BYTES + len(request_id))
        self._keys[request_id] = Key(answer, at, offset)
        if len(self._keys) > MOST_KEYS:
            self.forget(next(iter(self._keys)))

    def learn(self, request_id: str, event_id: str, *, at: float, offset: int, now: float) -> None:
        """Remember a key under which another node took an event, unless it is known or too old."""
        if self.answer(request_id, now) is None and at >= now - self._window_s:
            self.remember(request_id, event_id, at=at, offset=offset)

    def forget(self, request_id: str) -> None:
        """Forget a key, if it is known."""
        if self._keys.pop(request_id, None) is not None:
            self._budget.subtract(KEY_BYTES + len(request_id))

    def clear(self) -> None:
        """Forget all keys."""
        while self._keys:
            self.forget(next(iter(self._keys)))

    def after(self, offset: int, now: float) -> list[tuple[str, Key[Pending]]]:
        """Return the keys of events taken after an offset, in the order of their events."""
        keys: list[tuple[str, Key[Pending]]] = []
        before = now - self._window_s
        for request_id, key in reversed(self._keys.items()):
            if not key.is_taken:
                continue
            if key.offset <= offset:
                break
            if key.at >= before:
                keys.append((request_id, key))
        return keys[::-1]
