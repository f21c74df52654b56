"""The one reader of a channel, as both faces use it."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from megaphone.core.ports import ChannelLease, Observer
from megaphone.model import Event

BATCH_EVENTS = 100
"""The most events handed over at once. A face sends a batch before it asks for the next, so this
also bounds what is in flight within the process."""


class Reader:
    """An open read: an asynchronous context manager, and an iterator of batches within it.

    Each batch is everything that is ready, at least one event, in order. The iteration ends when
    the read window is over, when the channel goes, and on `end`. Leaving the context releases the
    channel at once: as cleanly ended without an exception, as broken with any (cancellation
    too), so that what a broken read had sent is sent again to the next reader.
    """

    __slots__ = ("_lease", "_observer", "_on_exit", "until")

    def __init__(
        self,
        lease: ChannelLease,
        *,
        until: float,
        observer: Observer,
        on_exit: Callable[["Reader"], None],
    ) -> None:
        self._lease = lease
        self.until = until
        """The loop time at which the read window is over."""
        self._observer = observer
        self._on_exit = on_exit

    @property
    def recovered(self) -> bool | None:
        """Whether the event to resume after was still known; None when none was named."""
        return self._lease.recovered

    def end(self) -> None:
        """End the iteration cleanly after the batch in hand."""
        self._lease.interrupt()

    async def __aenter__(self) -> Self:
        self._observer.read_started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lease.release(clean=kind is None)
        self._observer.read_ended()
        self._on_exit(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        if events := await self._lease.take(BATCH_EVENTS, self.until):
            return events
        raise StopAsyncIteration
