"""A read for a face that waits: a context, and an iterator of batches within it."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from megaphone.core.open_read import OpenRead
from megaphone.errors import MegaphoneError, StoreUnavailable
from megaphone.model import ReadEnd

R = TypeVar("R", bound=OpenRead[Any])


class Reading(Generic[R]):
    """Iterates over the batches of an open read. See `OpenRead.next` for what a batch is.

    Entering the context takes the lease of the channel. By asking for the next batch, the caller
    says that the connection has all bytes of the batch before. The iteration ends when the read is
    over. Leaving the context releases the lease at once. The read ends cleanly if no exception
    leaves the context. It is broken if one does, also a cancellation; the next reader may then get
    events of this read again.

    When the client has stalled, and after `Reader.abort`, the code in the context is cancelled, and
    the context raises.

    Raises: on entering, the errors of `Broker.open_read`; on leaving, TooSlow, when the client has
        stalled; AgentMoved, after `Reader.abort`; StoreUnavailable, when the store may send events
        of the read again.
    """

    def __init__(self, opening: Callable[[], Awaitable[R]]) -> None:
        """`opening` takes the lease of the channel, or of many channels."""
        self._opening = opening
        self.reader: R
        """Known once the context is entered."""
        self._is_ready = asyncio.Event()
        self._broken = asyncio.timeout(None)
        self._error: MegaphoneError | None = None

    async def __aenter__(self) -> Self:
        self.reader = await self._opening()
        self.reader.attach(self, self._is_ready.set)
        await self._broken.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, (asyncio.CancelledError, MegaphoneError)):
            self.reader.note_end(ReadEnd.FAILED)
        self.reader.close(clean=kind is None)
        try:
            await self._broken.__aexit__(kind, error, traceback)
        except TimeoutError:
            assert self._error is not None
            raise self._error from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Any]:
        while self._error is None:
            self._is_ready.clear()
            events = self.reader.next()
            if events is not None:
                self.reader.wait_for_client(self.reader.size_of(events))
                return events
            if self.reader.is_over:
                settled = self.reader.settle()
                if settled is not None and not await settled:
                    self.reader.ended_by = ReadEnd.STORE_LOST
                    raise StoreUnavailable("the store has not ended the read; read again")
                self.reader.wait_for_client(0)  # for the end, which the client must take too
                raise StopAsyncIteration
            await self._is_ready.wait()
        raise self._error

    # -- What the reader calls

    def taken(self) -> int | None:
        """Return None, because a face that waits knows only that a client has taken a batch."""
        return None

    def broken(self, error: MegaphoneError) -> None:
        """Cancel the code in the context."""
        self._error = error
        self._broken.reschedule(asyncio.get_running_loop().time())
