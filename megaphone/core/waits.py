"""How long the writers of one request wait for places.

A face that measures requests subtracts this time, because it says how fast readers are, and not how
fast the broker is. The writers of a request may wait in tasks of their own: what they share is the
object that was current when the tasks began.
"""

from contextvars import ContextVar


class Waits:
    """The time in which at least one writer of a request waits. `now` is any clock, in seconds."""

    __slots__ = ("_since", "_waiting", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        """How long they have waited, without the wait that is under way."""
        self._since = 0.0
        self._waiting = 0

    def begin(self, now: float) -> None:
        """A writer begins to wait."""
        if not self._waiting:
            self._since = now
        self._waiting += 1

    def end(self, now: float) -> None:
        """A writer waits no more."""
        self._waiting -= 1
        if not self._waiting:
            self.seconds += now - self._since


_CURRENT: ContextVar[Waits | None] = ContextVar("waits", default=None)


def measure() -> Waits:
    """Return the waits of the request that this task, and the tasks that it begins, serve from now
    on."""
    waits = Waits()
    _CURRENT.set(waits)
    return waits


def current() -> Waits | None:
    """Return the waits of the request that is being served; None if nobody measures it."""
    return _CURRENT.get()
