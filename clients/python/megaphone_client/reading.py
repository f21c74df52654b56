"""Reads of channels: each has a task that reads, into an inbox that the app empties.

So the app's slowness never shows outside: heartbeats are read and acknowledgements sent while it is
busy. The rules are in `state`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar, cast

from megaphone_client.errors import ConnectionFailed, EventsLost, MegaphoneError
from megaphone_client.events import Arrived, Event
from megaphone_client.state import Ask, Backoff, ReadState
from megaphone_client.transport import OpenRead, Transport

log = logging.getLogger("megaphone_client")

T = TypeVar("T")
Ack = Literal["auto", "manual", "none"]
OnGap = Callable[[], Awaitable[None] | None]
"""Is called before the first event after a gap."""
INBOX_EVENTS: Final = 1_000
INBOX_BYTES: Final = 8 * 1_024 * 1_024
LAST_ACK_S: Final = 1.0
LEVELS: Final = {1: logging.INFO, 5: logging.WARNING}
"""How loudly the log says why a read broke, by the number of failures without an event or a
heartbeat between them. A read that is soon mended is nothing to warn of."""


class Sink(Protocol):
    """Where a pump puts what it reads."""

    def put(self, events: Sequence[Event[Any]]) -> None: ...

    def gap(self) -> None:
        """Note that events are missing here."""

    @property
    def is_full(self) -> bool:
        """Whether the pump must call `room` before it reads on."""

    async def room(self) -> None:
        """Wait until the sink is not full."""


class Silence(ConnectionFailed):
    """Nothing came for longer than a live broker is silent."""


async def patiently(coming: Awaitable[T], silence_s: float) -> T:
    """Return what comes. Raises: Silence, if nothing comes for so long."""
    try:
        async with asyncio.timeout(silence_s):
            return await coming
    except TimeoutError:
        raise Silence(f"nothing came for {silence_s:.3g} s") from None


class Pump:
    """Reads one channel into a sink until the read has ended for good, and acknowledges.

    It is the owner of the events: they report to it that the app has dealt with them.
    """

    def __init__(
        self,
        transport: Callable[[], Awaitable[Transport]],
        state: ReadState,
        sink: Sink,
        decode: Callable[[bytes], Any],
        timeout_s: float,
    ) -> None:
        self.state = state
        self._transport = transport
        self._sink = sink
        self._decode = decode
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._asked_at = 0.0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._ack_timer_at = 0.0
        self._acking: asyncio.Task[None] | None = None
        self._ack_backoff = Backoff()
        self._ack_error: Exception | None = None
        self._is_closed = False

    # -- Reading

    async def run(self) -> MegaphoneError | None:
        """Read until the end. Returns: the error that ended the read; None, if as many events came
        as were wanted."""
        while not self.state.is_finished:
            try:
                await self._read_once()
                wait_s: float | None = self.ended()
            except MegaphoneError as error:
                wait_s = self.wait_s(error)
                if wait_s is None:
                    return error
            if wait_s:
                await asyncio.sleep(wait_s)
        return None

    def ask(self) -> Ask:
        """Return what to ask for now."""
        self._asked_at = self._loop.time()
        return self.state.ask()

    def ended(self) -> float:
        """Note that the read ended cleanly. Returns: how long to wait before the next one."""
        return self.state.ended(self._loop.time() - self._asked_at)

    def wait_s(self, error: MegaphoneError) -> float | None:
        """Return how long to wait before the next try; None if the error ends the read."""
        wait_s = self.state.wait_s(error, self._loop.time())
        if wait_s is not None:
            level = LEVELS.get(self.state.failures, logging.DEBUG)
            log.log(level, "the read broke, and is tried again in %.1f s: %s", wait_s, error)
        return wait_s

    async def _read_once(self) -> None:
        """Read until the broker ends the read. Raises: MegaphoneError."""
        transport = await self._transport()
        asked = self.ask()
        connection = transport.connection
        try:
            read = await patiently(transport.read(asked), self.state.silence_s)
            try:
                self.opened(read.recovered, read.position)
                while await self._read_batch(read):
                    if self._sink.is_full:
                        await self._sink.room()
            finally:
                read.close()
        except Silence:
            transport.distrust(connection)
            raise

    async def _read_batch(self, read: OpenRead) -> bool:
        """Returns: whether the read goes on."""
        arrived = await patiently(read.next(), self.state.silence_s)
        if arrived is None:
            return False
        self.state.alive()
        if arrived:
            self.take(arrived)
        return True

    def opened(self, recovered: bool | None, position: str | None) -> None:
        """Note that a read has begun."""
        if self.state.failures:
            log.info("the read goes on")
        if self.state.opened(recovered, position):
            self._sink.gap()

    def take(self, arrived: Sequence[Arrived]) -> None:
        """Put into the sink what came."""
        events = self.state.received(arrived, self._decode, self, self._loop.time())
        if events:
            self._sink.put(events)
        self._plan_ack()  # because unwanted events may be dealt with already

    # -- Acknowledging

    def dealt(self, event: Event[Any]) -> None:
        self.state.dealt(event, self._loop.time())
        self._plan_ack()

    async def acknowledge(self, event: Event[Any]) -> None:
        self.state.dealt(event, self._loop.time())
        if not self.state.acknowledges:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self.state.is_known(event):
                    await self._next_ack()
        except TimeoutError:
            raise ConnectionFailed("no answer to an acknowledgement in time") from None

    async def _next_ack(self) -> None:
        """Wait for the end of a request. Raises: its error, if it is not repeated."""
        if self._is_closed:
            raise RuntimeError("the reader is closed")
        self._begin_ack()
        await asyncio.wait([cast("asyncio.Task[None]", self._acking)])
        error = self._ack_error
        if error is not None and not (isinstance(error, MegaphoneError) and error.may_heal):
            raise error.with_traceback(None)

    def _plan_ack(self) -> None:
        if self._acking is not None or self._is_closed:
            return
        at = self.state.ack_at()
        if at is None or (self._ack_timer is not None and self._ack_timer_at <= at):
            return
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        self._ack_timer_at = at
        self._ack_timer = self._loop.call_at(at, self._begin_ack)

    def _begin_ack(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._acking is None and self.state.ack_at() is not None:
            self._acking = self._loop.create_task(self._ack())

    async def _ack(self) -> None:
        """Acknowledge once. A failure is repeated after a pause: nothing else depends on it. It is
        not repeated if it is one of the app, such as of its function for headers."""
        event_id, number = self.state.begin_ack(self._loop.time())
        is_known = False
        try:
            transport = await self._transport()
            await transport.acknowledge(self.state.consumer, event_id, self._timeout_s)
            is_known = True
            self._ack_error = None
            self._ack_backoff.reset()
        except MegaphoneError as error:
            self._ack_error = error
            log.debug("an acknowledgement failed: %s", error)
            await asyncio.sleep(self._ack_backoff.next_s(error.retry_after_s))
        except Exception as error:
            self._ack_error = error
        finally:
            self.state.end_ack(number, is_known=is_known)
            self._acking = None
        if self._ack_error is None or isinstance(self._ack_error, MegaphoneError):
            self._plan_ack()

    async def finish(self) -> None:
        """Acknowledge what is dealt with, in `LAST_ACK_S` at most. The reading has ended."""
        self._is_closed = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        with suppress(Exception):  # also of the app's function for headers
            async with asyncio.timeout(LAST_ACK_S):
                if self._acking is not None:
                    await asyncio.wait([self._acking])
                if self.state.ack_at() is not None:
                    event_id, number = self.state.begin_ack(self._loop.time())
                    transport = await self._transport()
                    await transport.acknowledge(self.state.consumer, event_id, LAST_ACK_S)
                    self.state.end_ack(number, is_known=True)
        if self._acking is not None:
            self._acking.cancel()
            await asyncio.wait([self._acking])


class Gap:
    """Stands in an inbox where events are missing."""


class Inbox:
    """What was read and not taken yet. One task takes from it."""

    def __init__(self, most_events: int | None = None, most_bytes: int | None = None) -> None:
        """Without limits, the window of the broker limits what may be here."""
        self.items: deque[Any] = deque()
        """Each is an event, a `Gap` or an error."""
        self.is_over = False
        """Whether no more items will come."""
        self.error: BaseException | None = None
        """Why, if it is not that all that was wanted has come."""
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._bytes = 0
        self._others = 0  # how many items are no events
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # -- The side of the pump

    def put(self, events: Sequence[Event[Any]]) -> None:
        self.items += events
        if self._most_bytes is not None:
            self._bytes += sum([len(event.raw) for event in events])
        self._wake()

    def gap(self) -> None:
        self._others += 1
        self.items.append(Gap())
        self._wake()

    def report(self, error: MegaphoneError) -> None:
        """Let the app get an error in its place among the events."""
        self._others += 1
        self.items.append(error)
        self._wake()

    def end(self, error: BaseException | None) -> None:
        """Let nothing more come. The app still gets what is here, and then the error."""
        if not self.is_over:
            self.is_over = True
            self.error = error
            self._wake()

    @property
    def is_full(self) -> bool:
        return (self._most_events is not None and len(self.items) >= self._most_events) or (
            self._most_bytes is not None and self._bytes >= self._most_bytes
        )

    async def room(self) -> None:
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- The side of the app

    async def wait(self) -> None:
        """Wait until there is an item or the end. Raises: RuntimeError, if another task waits."""
        if self._waiter is not None:
            raise RuntimeError("two tasks cannot take events from one reader at a time")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self, limit: int) -> list[Event[Any]]:
        """Return the events that are here, up to the next item that is no event."""
        items = self.items
        count = min(limit, len(items))
        if self._others:
            count = next((at for at in range(count) if items[at].__class__ is not Event), count)
        events = [items.popleft() for _ in range(count)]
        if self._most_bytes is not None:
            self._bytes -= sum([len(event.raw) for event in events])
        self._make_room()
        return events

    def clear(self) -> list[Any]:
        """Return all items."""
        items = list(self.items)
        self.items.clear()
        self._others = self._bytes = 0
        self._make_room()
        return items

    def drop(self, other: Gap | MegaphoneError) -> None:
        """Take away an item that is no event, if it is still the next one."""
        if self.items and self.items[0] is other:
            self._others -= 1
            self.items.popleft()
            self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)


class Source(Protocol):
    """Where a reader gets its events from."""

    inbox: Inbox
    is_cumulative: bool
    """Whether to deal with an event is to deal with all events that were given before it."""

    def begin(self) -> None:
        """Begin to read, unless it has begun."""

    @property
    def cursor(self) -> str | None: ...

    @property
    def has_begun(self) -> bool: ...

    async def aclose(self, undealt: Sequence[Event[Any]] = ()) -> None:
        """Stop reading. `undealt` was given to the app, which has not dealt with it."""

    def abandon(self, undealt: Sequence[Event[Any]] = ()) -> None:
        """Stop reading at once. May be called in any thread."""


class Reader(Generic[T]):
    """The events of a read, in order.

    Reading begins at the first use. It ends only with the channel, which raises ChannelNotFound, or
    when as many events came as were wanted. In between it reconnects by itself. Where events are
    missing, the reader raises EventsLost (or calls `on_gap`), and goes on if it is asked again.

    Use it as a context manager. With `ack="auto"` an event counts as dealt with when the next one
    is asked for; the last one when the block ends without an exception. A cancelled call loses
    nothing. One task at a time may ask for events.
    """

    def __init__(self, source: Source, *, deals: bool, on_gap: OnGap | None) -> None:
        self._source = source
        self._inbox = source.inbox
        self._deals = deals
        self._on_gap = on_gap
        self._handed: list[Event[Any]] = []
        self._is_closed = False

    @property
    def cursor(self) -> str | None:
        """The id of the last event dealt with; before that, where the read began: an id, or "-".
        Keep it, and pass it as `after` to go on later. It is None until the broker has answered,
        and for a reader of many channels."""
        return self._source.cursor

    @property
    def has_begun(self) -> bool:
        """Whether the broker has answered for each channel: then events that it has are on their
        way."""
        return self._source.has_begun

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        self._source.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._deal()
        await self.aclose()

    async def __anext__(self) -> Event[T]:
        """Raises: ChannelNotFound and other errors that end the read; EventsLost."""
        events = await self._take(1)
        if not events:
            raise StopAsyncIteration
        return events[0]

    async def batch(self, limit: int = 100, *, wait_s: float | None = None) -> list[Event[T]]:
        """Return the next events, at least one and at most `limit` of them.

        Waits for the first one, for `wait_s` seconds at most, and then returns an empty list. All
        events of the batch count as dealt with when the next one is asked for. After as many events
        as were wanted, the list is empty. Raises: as iterating does.
        """
        try:
            async with asyncio.timeout(wait_s):
                return await self._take(limit)
        except TimeoutError:
            return []

    async def _take(self, limit: int) -> list[Event[Any]]:
        """Return events; none if no more will come."""
        self._deal()
        self._source.begin()
        inbox = self._inbox
        while True:
            events = inbox.take(limit)
            if events:
                self._handed = events
                return events
            if inbox.items:
                await self._pass(inbox.items[0])
            elif not inbox.is_over:
                await inbox.wait()
            elif inbox.error is not None:
                raise inbox.error.with_traceback(None)
            else:
                return []

    async def _pass(self, item: Gap | MegaphoneError) -> None:
        """Let the app know of an item that is no event."""
        if isinstance(item, Gap) and self._on_gap is not None:
            result = self._on_gap()
            if isawaitable(result):
                await result
            self._inbox.drop(item)  # not before, because this call may be cancelled
            return
        self._inbox.drop(item)
        raise EventsLost if isinstance(item, Gap) else item

    def _deal(self) -> None:
        """Count as dealt with what the app was given."""
        handed, self._handed = self._handed, []
        if self._deals:
            for event in handed[-1:] if self._source.is_cumulative else handed:
                event._owner.dealt(event)

    async def aclose(self) -> None:
        """End the read, after a last acknowledgement that takes a second at most."""
        self._is_closed = True
        handed, self._handed = self._handed, []
        await self._source.aclose(handed if self._deals else ())

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self._source.abandon(self._handed if self._deals else ())


RunPumps = Callable[
    [Sequence[Pump], Callable[[MegaphoneError | None], None]], Coroutine[Any, Any, None]
]
"""Reads channels until each has ended for good, and reports why each ended."""


async def run_alone(pumps: Sequence[Pump], ended: Callable[[MegaphoneError | None], None]) -> None:
    """Read one channel."""
    [pump] = pumps
    ended(await pump.run())


class Reads:
    """The reads of one channel or more into one inbox."""

    def __init__(
        self,
        states: Sequence[ReadState],
        pump: Callable[[ReadState, Sink], Pump],
        run_pumps: RunPumps,
        inbox: Inbox,
        opened: Callable[["Reads"], None],
        closed: Callable[["Reads"], None],
    ) -> None:
        self.inbox = inbox
        self.is_cumulative = len(states) == 1
        self._states = states
        self._pump = pump
        self._run_pumps = run_pumps
        self._opened = opened
        self._closed = closed
        self._pumps: list[Pump] = []
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = 0  # how many channels have not ended for good

    def begin(self) -> None:
        if self._loop is not None or self.inbox.is_over:
            return
        self._loop = asyncio.get_running_loop()
        self._pumps = [self._pump(state, self.inbox) for state in self._states]
        self._running = len(self._pumps)
        self._task = self._loop.create_task(self._run())
        self._opened(self)

    async def _run(self) -> None:
        try:
            await self._run_pumps(self._pumps, self._ended)
        except Exception as failure:  # of a function of the app, such as that for headers
            self.inbox.end(failure)

    def _ended(self, error: MegaphoneError | None) -> None:
        """Note that one channel has ended for good."""
        self._running -= 1
        if not self._running:
            self.inbox.end(error)
        elif error is not None:
            self.inbox.report(error)

    @property
    def cursor(self) -> str | None:
        return self._states[0].cursor if self.is_cumulative else None

    @property
    def has_begun(self) -> bool:
        return all(state.has_begun or state.has_ended for state in self._states)

    async def aclose(self, undealt: Sequence[Event[Any]] = ()) -> None:
        self.inbox.end(None)
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])
            await asyncio.gather(*(pump.finish() for pump in self._pumps))
        self._closed(self)

    def abandon(self, undealt: Sequence[Event[Any]] = ()) -> None:
        if self._loop is None or self._loop.is_closed():
            return

        def stop() -> None:
            if self._task is not None:
                self._task.cancel()
            self._closed(self)

        self._loop.call_soon_threadsafe(stop)
