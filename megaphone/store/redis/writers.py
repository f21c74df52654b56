"""The writers of this node that wait in the store for a place in a full channel."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from megaphone.core.channel import BUSY_RETRY_AFTER_S
from megaphone.core.ports import Append, AppendResult, Stored
from megaphone.errors import (
    ChannelNotFound,
    LimitExceeded,
    MegaphoneError,
    ShuttingDown,
    StoreUnavailable,
    WriteTimeout,
)
from megaphone.store.redis.calls import Functions
from megaphone.store.redis.encoding import encoded, name_of
from megaphone.store.redis.errors import FAILURES

AGAIN_S = 1.0
LOST = (
    "the event may be stored, but the store may have lost it while it waited for a place;"
    " repeat the write with the same Idempotency-Key"
)
CHANNEL_IS_GONE = -1
"""What a message says then of an event. Else it says that the event is accepted: 1, or 0 if another
writer with its key counts it."""
WITHDRAWN = -1
"""What the function says of an event that it has withdrawn. Else it says the same as a message."""


class Writers:
    """Writers that wait, by their tokens. Belongs to one event loop."""

    def __init__(
        self,
        functions: Functions,
        node: str,
        epoch: Callable[[], int],
        timeout_s: float,
        max_waiting: int,
    ) -> None:
        self._functions = functions
        self._node = node
        self._epoch = epoch
        """Returns the epoch that the store is in, as far as this node knows."""
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[int]] = {}
        """Resolved with what a message says of the event; cancelled if nobody waits any more."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_quiet = False

    def told(self, token: str, result: int) -> None:
        """Note a message about the event of a writer."""
        future = self._waiting.get(token)
        if future is not None and not future.done():
            future.set_result(result)

    def quiesce(self) -> None:
        """From now on refuse those that wait, and those that would."""
        self._is_quiet = True
        for future in self._waiting.values():
            future.cancel()

    async def settled(self, timeout_s: float) -> None:
        """Wait until those that `quiesce` refuses know whether their events were accepted."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def append(
        self, inbox: str, write: Append, on_handed: Callable[[Append, object], None]
    ) -> AppendResult:
        """Append one event. Waits for a place in its channel, first come, first served.

        `on_handed` is called with what the reader of this node must be told. If the call is
        cancelled, it withdraws the event; if that is too late, it returns as if it was not
        cancelled.
        """
        if self._is_quiet:
            return ShuttingDown()
        token = f"{self._node}.{next(self._numbers)}"
        told = self._waiting[token] = asyncio.get_running_loop().create_future()
        # A task of its own, because a command that has left cannot be cancelled.
        appending = asyncio.create_task(self._append(inbox, write, token, told, on_handed))
        self._tasks.add(appending)
        appending.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            told.cancel()
            result = await asyncio.shield(appending)
            if isinstance(result, Stored):
                return result
            raise

    async def _append(
        self,
        inbox: str,
        write: Append,
        token: str,
        told: "asyncio.Future[int]",
        on_handed: Callable[[Append, object], None],
    ) -> AppendResult:
        epoch = self._epoch()
        try:
            storing = self._functions.store(
                "wait",
                write.channel_id,
                epoch,
                inbox,
                token,
                round(self._timeout_s * 1000),
                self._max_waiting,
                write.event.id,
                write.request_id or "",
                encoded(write.event),
                name_of(write.tenant),
            )
            answer = await storing.reply
            if answer is None:
                return ChannelNotFound()
            [result, *more], *handed = answer
            if result == b"W":
                return await self._wait(write, token, told, epoch, more[0].decode())
            if result == b"L":
                return _too_many(int(more[0]))
            if result == b"A":
                if handed:
                    on_handed(write, handed[0])
                await storing.confirmed()
                return Stored(write.event.id, is_new=True)
            await storing.confirmed()
            return Stored(result[1:].decode(), is_new=False)
        except StoreUnavailable as error:
            self._withdraw_behind(write, token)
            return error.with_traceback(None)
        except MegaphoneError as error:
            return error.with_traceback(None)
        finally:
            del self._waiting[token]

    async def _wait(
        self, write: Append, token: str, told: "asyncio.Future[int]", epoch: int, event_id: str
    ) -> AppendResult:
        """Wait for the message about an event, and withdraw the event if there is none in time."""
        await asyncio.wait([told], timeout=self._timeout_s)
        if told.done() and not told.cancelled():
            result = told.result()
            if result == CHANNEL_IS_GONE:
                return ChannelNotFound()
        else:
            answer = await self._withdraw(write, token)
            if answer is None:
                return ChannelNotFound()
            if answer == WITHDRAWN:
                return ShuttingDown() if self._is_quiet else WriteTimeout()
            if self._epoch() != epoch:  # the store may have lost the event while it waited
                return StoreUnavailable(LOST, may_have_happened=True)
            result = answer
        return await self._confirmed(write.channel_id, Stored(event_id, is_new=result == 1))

    async def _confirmed(self, channel_id: bytes, stored: Stored) -> AppendResult:
        """Wait until enough replicas have an event that was accepted by the call of a reader."""
        if (confirmed := self._functions.confirmed(channel_id)) is not None:
            await asyncio.shield(confirmed)
        return stored

    def _withdraw_behind(self, write: Append, token: str) -> None:
        """Withdraw an event that may be waiting, although this node has no answer that says so."""
        task = asyncio.create_task(self._withdraw_until_done(write, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _withdraw_until_done(self, write: Append, token: str) -> None:
        while not self._is_quiet:
            try:
                await self._withdraw(write, token)
            except FAILURES:
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _withdraw(self, write: Append, token: str) -> int | None:
        answer: int | None = await self._functions.start(
            "withdraw", write.channel_id, token, write.request_id or ""
        )
        return answer


def _too_many(count: int) -> LimitExceeded:
    return LimitExceeded(
        f"{count} writers already wait for a place in this channel;"
        " no more are allowed (max_waiting_writers)",
        retry_after_s=BUSY_RETRY_AFTER_S,
    )
