"""Counts the calls of clients: by face, method and code, and how long they took.

Both faces count here. The most frequent calls cost an addition and a search in a short list, so the
lane counts all its answers too.
"""

from time import monotonic
from typing import TYPE_CHECKING, Final

from megaphone.core.histogram import Histogram
from megaphone.core.waits import measure

if TYPE_CHECKING:
    from collections.abc import Callable

FACES: Final = ("http", "grpc")
TIMED_METHODS: Final = (
    "create",
    "write",
    "write_batch",
    "publish",
    "read",
    "read_many",
    "ack",
    "exists",
    "dispose",
)
"""The calls of clients, by the names that both faces share."""
OTHER: Final = "other"
METHODS: Final = (*TIMED_METHODS, OTHER)
OK: Final = "OK"
CANCELLED: Final = "CANCELLED"
"""The client went before it had its answer."""
INTERNAL: Final = "INTERNAL_SERVER_ERROR"
TIMEOUT: Final = "TIMEOUT"
WAITING: Final = ("write", "write_batch", "publish")


class Calls:
    """The calls of one method over one face."""

    __slots__ = ("_seconds", "failed", "method", "ok")

    def __init__(self, method: str, seconds: Histogram | None) -> None:
        """`seconds` is that of the method, which both faces share; None if its calls are not
        timed."""
        self.method = method
        self._seconds = seconds
        self.ok = 0
        # These are 0 from the start, because Prometheus would miss the first of each.
        self.failed: dict[str, int] = {INTERNAL: 0}
        """How many calls have failed, by their codes."""
        if method in WAITING:
            self.failed[TIMEOUT] = 0

    def succeeded(self, seconds: float, times: int = 1) -> None:
        """Count calls that were answered in a time, each of them."""
        self.ok += times
        if self._seconds is not None:
            self._seconds.add_equal(seconds, times)

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that has ended with a code."""
        if code == OK:
            self.succeeded(seconds)
            return
        self.failed[code] = self.failed.get(code, 0) + 1
        if self._seconds is not None:
            self._seconds.add(seconds)


class FaceCalls:
    """The calls over one face, by their methods."""

    def __init__(self, seconds: dict[str, Histogram] | None = None) -> None:
        """`seconds` has the histogram of each method that is timed."""
        timed: dict[str, Histogram] = {} if seconds is None else seconds
        self.by_method: dict[str, Calls] = {name: Calls(name, timed.get(name)) for name in METHODS}
        # As attributes for the lane, which must not search.
        self.create = self.by_method["create"]
        self.write = self.by_method["write"]
        self.write_batch = self.by_method["write_batch"]
        self.read = self.by_method["read"]
        self.ack = self.by_method["ack"]
        self.exists = self.by_method["exists"]
        self.other = self.by_method[OTHER]


class Call:
    """One call while it is served. It counts once, when its answer is known."""

    __slots__ = ("_began_at", "_is_counted", "_waits", "calls", "on_end")

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.on_end: Callable[[str, str, float, float], None] | None = None
        """Called once the call has counted: with its method, its code, how long it took, and for
        how long its writers waited for places besides."""
        self.begin()

    def begin(self) -> None:
        """The call begins, or another message of it does, which counts for itself. The task of the
        call must call this."""
        self._waits = measure()
        self._began_at = monotonic()
        self._is_counted = False

    def leave_to_messages(self) -> None:
        """Count only the messages of the call, and not the call itself: see `begin`."""
        self._is_counted = True

    def end_as(self, calls: Calls, code: str = OK) -> None:
        """Count the call as one of a method that was not known at its beginning."""
        self.calls = calls
        self.end(code)

    def end(self, code: str = OK) -> None:
        """Count the call, unless it was counted before."""
        if not self._is_counted:
            self._is_counted = True
            seconds = max(0.0, monotonic() - self._began_at - self._waits.seconds)
            self.calls.ended(code, seconds)
            if self.on_end is not None:
                self.on_end(self.calls.method, code, seconds, self._waits.seconds)
