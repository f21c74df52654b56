"""The idempotency keys of one channel, so that a repeated write stores its event only once.

A channel remembers a key while the writer of its event waits for a free place, and then for the
idempotency window after the event was accepted.
"""

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from megaphone.core.budget import KEY_BYTES, Budget

Pending = TypeVar("Pending")
"""The type of the object that stands for an event whose writer waits. It must not be a string."""

MOST_KEYS = 10_000
"""How many keys a channel remembers. Beyond that it forgets the oldest one."""


class Key(NamedTuple, Generic[Pending]):
    """What a channel remembers of one idempotency key."""

    answer: str | Pending
    """The id of the accepted event; a `Pending` while its writer waits for a free place."""
    at: float
    """When the event was accepted. While its writer waits: when the writer began to wait."""
    offset: int
    """The offset of the event. If the key was replicated without the event: the offset of the
    last event of the log at that time."""

    @property
    def is_accepted(self) -> bool:
        return isinstance(self.answer, str)


class Keys(Generic[Pending]):
    """The idempotency keys of a channel, in the order in which the channel remembered them.

    Their memory counts against a budget.
    """

    __slots__ = ("_budget", "_keys", "_window_s")

    def __init__(self, window_s: float, budget: Budget) -> None:
        """`window_s` is how long a key is remembered after its event was accepted, in seconds."""
        self._window_s = window_s
        self._budget = budget
        self._keys: OrderedDict[str, Key[Pending]] = OrderedDict()

    def answer(self, request_id: str, now: float) -> str | Pending | None:
        """Return the event id, or the `Pending`, with which to answer a write that has this key.

        Returns None if the key is unknown or too old. Forgets keys that are too old.
        """
        before = now - self._window_s
        while self._keys:
            oldest, key = next(iter(self._keys.items()))
            if key.at >= before or not key.is_accepted:
                break
            self.forget(oldest)
        known = self._keys.get(request_id)
        if known is None:
            return None
        if known.at < before and known.is_accepted:  # the loop stopped at an older, waiting key
            self.forget(request_id)
            return None
        return known.answer

    def remember(self, request_id: str, answer: str | Pending, *, at: float, offset: int) -> None:
        """Remember a key as the newest one. This replaces what was remembered of the same key."""
        if request_id in self._keys:
            self._keys.move_to_end(request_id)
        else:
            self._budget.add(KEY_BYTES + len(request_id))
        self._keys[request_id] = Key(answer, at, offset)
        if len(self._keys) > MOST_KEYS:
            self.forget(next(iter(self._keys)))

    def learn(self, request_id: str, event_id: str, *, at: float, offset: int, now: float) -> None:
        """Remember the key of an event that another node accepted at the time `at`.

        Does nothing if the key is known already or too old.
        """
        if self.answer(request_id, now) is None and at >= now - self._window_s:
            self.remember(request_id, event_id, at=at, offset=offset)

    def forget(self, request_id: str) -> None:
        """Forget a key, if the channel remembers it."""
        if self._keys.pop(request_id, None) is not None:
            self._budget.subtract(KEY_BYTES + len(request_id))

    def clear(self) -> None:
        while self._keys:
            self.forget(next(iter(self._keys)))

    def after(self, offset: int, now: float) -> list[tuple[str, Key[Pending]]]:
        """Return the keys of the accepted events after an offset, in the order of the events."""
        keys: list[tuple[str, Key[Pending]]] = []
        before = now - self._window_s
        for request_id, key in reversed(self._keys.items()):
            if not key.is_accepted:
                continue
            if key.offset <= offset:
                break
            if key.at >= before:
                keys.append((request_id, key))
        return keys[::-1]
