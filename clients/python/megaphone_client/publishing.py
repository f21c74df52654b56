"""Writing many events: gathered into batches, in order within each channel.

Events of one lane go out in one batch at a time; lanes go side by side. Over HTTP each channel is a
lane, over gRPC each agent; but a channel that is full gets a lane of its own there, because the
broker answers a batch only when it has waited for each channel in it.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from megaphone_client.bodies import encode
from megaphone_client.errors import (
    BadRequest,
    MegaphoneError,
    OutcomeUnknown,
    PayloadTooLarge,
    ProtocolError,
    WriteTimeout,
    may_be_done,
)
from megaphone_client.state import Backoff
from megaphone_client.tracing import current_traceparent
from megaphone_client.transport import Message, Transport

LANES_AT_ONCE: Final = 64
FULL_AT_ONCE: Final = 32
"""How many channels that are full are tried at the same time, beside the others."""


@dataclass(slots=True, eq=False)
class Sent(Awaitable[str | None]):
    """An event on its way. Awaiting it gives its id (None, if the broker does not name it), or
    raises why it was not taken."""

    message: Message
    done: asyncio.Future[str | None]
    is_observed: bool = False
    deadline: float | None = None
    """Until when it may be tried, once it was tried first."""
    last: MegaphoneError | None = None
    """Why the last try failed."""
    is_unknown: bool = False
    """Whether a try may have had its effect."""

    def __await__(self) -> Generator[Any, Any, str | None]:
        self.is_observed = True
        return asyncio.shield(self.done).__await__()


@dataclass(slots=True)
class Lane:
    """The events that wait for one stream of batches."""

    waiting: deque[Sent] = field(default_factory=deque)
    bytes: int = 0
    in_hand: Sequence[Sent] = ()
    """The events of the batch that is sent now, or that waits for its next try."""
    is_full: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether a batch is full, so that it need not linger."""
    task: asyncio.Task[None] | None = None
    is_apart: bool = False
    """Whether it is that of one channel, which was full."""


class Publisher:
    """Writes many events, in batches.

    Events of one channel are written in the order of `send`. Use it as a context manager: leaving
    the block sends what is left.
    """

    def __init__(
        self,
        transport: Callable[[], Awaitable[Transport]],
        *,
        linger_s: float,
        max_batch: int,
        max_bytes: int,
        max_pending: int,
        timeout_s: float,
        idempotent: bool,
    ) -> None:
        self._transport = transport
        self._linger_s = linger_s
        self._max_batch = max_batch
        self._max_bytes = max_bytes
        self._max_pending = max_pending
        self._timeout_s = timeout_s
        self._idempotent = idempotent
        self._lanes: dict[str, Lane] = {}
        self._pending = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_flushing = False
        self._failed: list[Sent] = []
        self._at_once = asyncio.Semaphore(LANES_AT_ONCE)
        self._full: set[str] = set()
        """The channels that have a lane of their own, which has their name, until it is empty."""
        self._full_at_once = asyncio.Semaphore(FULL_AT_ONCE)
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                await self._sent_all()
        finally:
            await self._close()
        if kind is None:
            self._raise_unobserved()

    async def send(self, producer: str, stream: str, body: object) -> Awaitable[str | None]:
        """Hand over an event. Waits while `max_pending` events are on their way.

        Returns what can be awaited for the event's id. Nobody needs to await it: `flush` raises the
        first error that nobody saw. Raises: TypeError, if the body cannot be JSON.
        """
        encoded = encode(body)
        transport = await self._transport()
        while not self._is_closed and self._pending >= self._max_pending:
            await self._any_room()
        if self._is_closed:
            raise RuntimeError("the publisher is closed")
        self._pending += 1
        self._idle.clear()
        key = os.urandom(16).hex() if self._idempotent else None
        sent = Sent(
            Message(producer, stream, encoded, key, current_traceparent()),
            asyncio.get_running_loop().create_future(),
        )
        self._add(transport, sent)
        return sent

    async def _any_room(self) -> None:
        """Wait until an event is settled, or the publisher is closed."""
        room = asyncio.get_running_loop().create_future()
        self._room.append(room)
        try:
            await room
        except asyncio.CancelledError:
            self._wake_one()  # because this one may have been woken already, and does not use it
            raise

    async def flush(self) -> None:
        """Send everything, and wait for all answers. Raises: the first error of an event whose
        result nobody has awaited."""
        await self._sent_all()
        self._raise_unobserved()

    async def _sent_all(self) -> None:
        self._is_flushing = True
        try:
            for lane in self._lanes.values():
                lane.is_full.set()
            await self._idle.wait()
        finally:
            self._is_flushing = False

    def _raise_unobserved(self) -> None:
        failed, self._failed = self._failed, []
        for sent in failed:
            if not sent.is_observed:
                error = sent.done.exception()
                assert error is not None
                raise error

    async def _close(self) -> None:
        self._is_closed = True
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        for name in list(self._lanes):  # here, because a task that has not begun never ends its own
            self._end_lane(name)
        while self._room:
            self._wake_one()
        if tasks:
            await asyncio.wait(tasks)

    # -- Lanes

    def _add(self, transport: Transport, sent: Sent) -> None:
        producer = sent.message.producer
        is_apart = producer in self._full
        name = producer if is_apart else transport.lane_of(producer)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(is_apart=is_apart)
        lane.waiting.append(sent)
        lane.bytes += len(sent.message.body)
        if (
            self._is_flushing
            or len(lane.waiting) >= self._max_batch
            or lane.bytes >= self._max_bytes
        ):
            lane.is_full.set()
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(name, lane, transport))

    async def _run(self, name: str, lane: Lane, transport: Transport) -> None:
        """Send the events of a lane, until there are none."""
        backoff = Backoff()
        try:
            while lane.waiting:
                if not lane.is_full.is_set():
                    await self._linger(lane)
                batch = self._next_batch(lane, has_one_trace=transport.batch_has_one_trace)
                wait_s = await self._send(transport, lane, batch, backoff)
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
        finally:
            self._end_lane(name)

    def _end_lane(self, name: str) -> None:
        """Forget a lane. Settles what is still in it, because nobody will send that."""
        self._full.discard(name)
        if (lane := self._lanes.pop(name, None)) is not None:
            for sent in (*lane.in_hand, *lane.waiting):
                self._settle(sent, OutcomeUnknown("the publisher was closed"))

    async def _linger(self, lane: Lane) -> None:
        try:
            async with asyncio.timeout(self._linger_s):
                await lane.is_full.wait()
        except TimeoutError:
            pass

    def _next_batch(self, lane: Lane, *, has_one_trace: bool) -> list[Sent]:
        """Return the next events to send. With `has_one_trace` all have the same trace context. The
        events behind them have waited as long, so the next batch has them at once."""
        batch: list[Sent] = []
        size = 0
        is_cut = False
        while lane.waiting and len(batch) < self._max_batch:
            message = lane.waiting[0].message
            size += len(message.body)
            is_cut = has_one_trace and bool(batch) and message.trace != batch[0].message.trace
            if batch and (is_cut or size > self._max_bytes):
                break
            batch.append(self._next(lane))
        if is_cut:
            lane.is_full.set()
        elif not self._is_flushing and len(lane.waiting) < self._max_batch:
            lane.is_full.clear()
        return batch

    @staticmethod
    def _next(lane: Lane) -> Sent:
        sent = lane.waiting.popleft()
        lane.bytes -= len(sent.message.body)
        return sent

    @staticmethod
    def _put_back(lane: Lane, batch: Sequence[Sent]) -> None:
        """Let events be the next ones of their lane, in their order."""
        lane.waiting.extendleft(reversed(batch))
        lane.bytes += sum(len(sent.message.body) for sent in batch)

    async def _send(
        self, transport: Transport, lane: Lane, batch: list[Sent], backoff: Backoff
    ) -> float | None:
        """Send a batch until it is answered. Returns: how long its lane should rest."""
        lane.in_hand = batch
        now = asyncio.get_running_loop().time
        begun = now()
        while True:
            try:
                async with self._full_at_once if lane.is_apart else self._at_once:
                    begun = now()
                    if (left_s := self._left_s(batch, begun)) <= 0:
                        self._refuse_late(lane, batch, begun)
                        return None
                    results = await transport.publish(
                        [sent.message for sent in batch], left_s, is_apart=lane.is_apart
                    )
                if len(results) != len(batch):
                    raise ProtocolError(f"{len(results)} results came for {len(batch)} events")
                break
            except MegaphoneError as error:
                for sent in batch:
                    sent.last = error
                if len(batch) > 1 and isinstance(error, BadRequest | PayloadTooLarge):
                    return await self._send_one_by_one(transport, lane, batch, backoff)
                if (wait_s := self._pause_s(batch, error, backoff, now() - begun)) is None:
                    for sent in batch:
                        self._refuse(sent, error)
                    return None
                await asyncio.sleep(wait_s)
            except Exception as error:  # of a function of the app, such as that for headers
                for sent in batch:
                    self._settle(sent, error)
                return None
        return self._answered(transport, lane, batch, results, backoff, now() - begun)

    def _left_s(self, batch: Sequence[Sent], now: float) -> float:
        """Return how long the next try of a batch may take. The first one of an event begins its
        time."""
        deadlines = []
        for sent in batch:
            if sent.deadline is None:
                sent.deadline = now + self._timeout_s
            deadlines.append(sent.deadline)
        return min(deadlines) - now

    def _refuse_late(self, lane: Lane, batch: Sequence[Sent], now: float) -> None:
        """Refuse the events whose time was up before it was their turn. The others go on in another
        batch, unless they may be taken already: the broker knows those by their place in this."""
        for sent in batch:
            is_late = sent.deadline is not None and sent.deadline <= now
            if sent.last is not None and (is_late or sent.is_unknown):
                self._refuse(sent, sent.last)
        self._put_back(lane, [sent for sent in batch if not sent.done.done()])

    async def _send_one_by_one(
        self, transport: Transport, lane: Lane, batch: list[Sent], backoff: Backoff
    ) -> float | None:
        """Find out which event of a refused batch is wrong. The broker took none of them."""
        self._put_back(lane, batch)
        for _ in batch:
            if not lane.waiting:  # some may have got a lane of their own
                break
            wait_s = await self._send(transport, lane, [self._next(lane)], backoff)
            if wait_s is not None:
                return wait_s
        return None

    def _answered(
        self,
        transport: Transport,
        lane: Lane,
        batch: Sequence[Sent],
        results: Sequence[str | MegaphoneError | None],
        backoff: Backoff,
        took_s: float,
    ) -> float | None:
        """Settle the events of a batch, or put them back to be tried again in the same order."""
        if not all(isinstance(result, MegaphoneError) for result in results):
            backoff.reset()
        again: list[Sent] = []
        wait_s = None
        for sent, result in zip(batch, results, strict=True):
            if not isinstance(result, MegaphoneError):
                self._settle(sent, result)
                continue
            pause_s = self._pause_s([sent], result, backoff, took_s) if wait_s is None else wait_s
            if pause_s is None or not result.may_heal:
                self._refuse(sent, result)
            else:
                wait_s = pause_s
                sent.is_unknown = sent.is_unknown or may_be_done(result)
                sent.last = result
                again.append(sent)
        if again and not lane.is_apart:
            again = self._set_apart(transport, lane, again)
        if not again:
            return None
        self._put_back(lane, again)
        lane.is_full.set()
        return wait_s

    def _set_apart(self, transport: Transport, lane: Lane, again: list[Sent]) -> list[Sent]:
        """Give each channel that was full a lane of its own, with all its events, in their order.
        Returns: the events of the others."""
        full = {
            producer
            for producer in {one.message.producer for one in again if is_of_full_channel(one)}
            if transport.lane_of(producer) != producer
        }
        if not full:
            return again
        self._full |= full
        lane.in_hand = ()
        events = [*again, *lane.waiting]
        stay = [one for one in lane.waiting if one.message.producer not in full]
        lane.waiting = deque(stay)
        lane.bytes = sum(len(one.message.body) for one in stay)
        for one in events:
            if one.message.producer in full:
                self._add(transport, one)
        return [one for one in again if one.message.producer not in full]

    def _pause_s(
        self, batch: Sequence[Sent], error: MegaphoneError, backoff: Backoff, took_s: float
    ) -> float | None:
        """Return how long to wait before the next try; None if there is none.

        A try that is likely to get no answer in time would only make the outcome unknown.
        `took_s` is how long the last one took.
        """
        is_unknown = may_be_done(error)
        for sent in batch:
            sent.is_unknown = sent.is_unknown or is_unknown
        if not error.may_heal or (is_unknown and not self._idempotent):
            return None
        wait_s = backoff.next_s(error.retry_after_s)
        deadline = min(sent.deadline or 0.0 for sent in batch)
        next_answer = asyncio.get_running_loop().time() + wait_s + took_s
        return wait_s if next_answer < deadline else None

    # -- Results

    def _refuse(self, sent: Sent, error: MegaphoneError) -> None:
        if sent.is_unknown:
            unknown = OutcomeUnknown(f"the event may have been taken: {error}")
            unknown.__cause__ = error
            error = unknown
        self._settle(sent, error)

    def _settle(self, sent: Sent, result: str | Exception | None) -> None:
        if sent.done.done():
            return
        if isinstance(result, Exception):
            sent.done.set_exception(result)
            sent.done.exception()  # `flush` raises what nobody awaited
            self._failed.append(sent)
        else:
            sent.done.set_result(result)
        self._pending -= 1
        if self._pending < self._max_pending:
            self._wake_one()
        if not self._pending:
            self._idle.set()

    def _wake_one(self) -> None:
        """Let one `send` go on that waits for room, if one does."""
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                break


def is_of_full_channel(sent: Sent) -> bool:
    return isinstance(sent.last, WriteTimeout)
