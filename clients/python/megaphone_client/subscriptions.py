"""The streams of one channel, each with a reader of its own, over one read.

Acknowledged is the longest prefix of the channel that the readers of all its streams have dealt
with.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, overload

from megaphone_client.bodies import decoder
from megaphone_client.errors import ChannelNotFound
from megaphone_client.events import UNDECODED, Event
from megaphone_client.reading import Gap, Inbox, OnGap, Pump, Reader, Sink
from megaphone_client.state import Backoff, Prefix

log = logging.getLogger("megaphone_client")

T = TypeVar("T")
KEPT_EVENTS: Final = 100
LEFT_EVENTS: Final = 50
"""How many events may wait for an acknowledgement behind one that a reader left. It is less than
the broker holds, so that such an event does not hold back the channel."""
LEFT_S: Final = 1.0
"""How long more of them may wait, so that an app that ends has time to close the subscription."""
FULL_WARNING_S: Final = 5.0
Renew = Callable[[str], Awaitable[str]]
"""Gets the consumer address of a channel that has gone; returns that of a new one."""


class Stream:
    """One stream of the channel, as its reader sees it."""

    is_cumulative = False

    def __init__(
        self, switchboard: "Subscriptions", name: str, buffer: int, decode: Callable[[bytes], Any]
    ) -> None:
        self.inbox = Inbox(most_events=buffer)
        self.decode = decode
        self._switchboard = switchboard
        self._name = name

    def begin(self) -> None:
        """The read of the channel has begun already."""

    @property
    def cursor(self) -> str | None:
        return self._switchboard.cursor

    @property
    def has_begun(self) -> bool:
        return self._switchboard.has_begun

    async def aclose(self, undealt: Sequence[Event[Any]] = ()) -> None:
        self._switchboard.unsubscribe(self._name, self, undealt)

    def abandon(self, undealt: Sequence[Event[Any]] = ()) -> None:
        self._switchboard.abandon(self._name, self, undealt)


class Subscriptions:
    """The streams of a channel.

    An event of a stream that nobody reads counts as dealt with. The last 100 of them are kept for
    readers that come later. What a reader leaves is kept too, and counts as dealt with only when
    more than 50 events wait behind it for a second, or when it is among the last 100 no more.
    """

    def __init__(
        self,
        consumer: str,
        pump: Callable[[str, Sink], Pump],
        *,
        deals: bool,
        on_gap: OnGap | None,
        renew: Renew | None,
    ) -> None:
        self._consumer = consumer
        self._make_pump = pump
        self._deals = deals
        self._on_gap = on_gap
        self._renew = renew
        self._streams: dict[str, Stream] = {}
        self._kept: deque[Event[Any] | Gap] = deque()
        """For readers that come later; one gap at most, which the next reader gets."""
        self._left: set[Event[Any]] = set()
        """What is kept and not dealt with."""
        self._leaving: asyncio.TimerHandle | None = None
        self._prefix = Prefix()
        self._pump: Pump | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff()

    # -- The side of the app

    @overload
    def stream(
        self, stream: str, *, decode: Callable[[bytes], T], buffer: int = 100
    ) -> Reader[T]: ...
    @overload
    def stream(self, stream: str, *, type: type[T], buffer: int = 100) -> Reader[T]: ...
    @overload
    def stream(self, stream: str, *, buffer: int = 100) -> Reader[Any]: ...
    def stream(
        self,
        stream: str,
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        buffer: int = 100,
    ) -> Reader[Any]:
        """Return the events of one stream, beginning with those that were kept for it.

        If `buffer` events wait here for the app, the other streams wait too. Raises: ValueError, if
        the stream has a reader already.
        """
        return self._reader(stream, decoder(type, decode), buffer)

    def _reader(self, stream: str, decode: Callable[[bytes], Any], buffer: int) -> Reader[Any]:
        if stream in self._streams:
            raise ValueError(f"the stream {stream!r} has a reader already")
        one = Stream(self, stream, buffer, decode)
        self._streams[stream] = one
        self._give_kept(one, stream)
        if self._is_over:
            one.inbox.end(self._error)
        return Reader(one, deals=self._deals, on_gap=self._on_gap)

    def _give_kept(self, to: Stream, name: str) -> None:
        """Give a new reader what was kept for it."""
        others: deque[Event[Any] | Gap] = deque()
        for item in self._kept:
            if isinstance(item, Gap):
                to.inbox.gap()
            elif item.stream == name:
                item._decode, item._body = to.decode, UNDECODED
                self._left.discard(item)
                to.inbox.put((item,))
            else:
                others.append(item)
        self._kept = others

    @overload
    async def first(
        self, stream: str, *, decode: Callable[[bytes], T], timeout_s: float | None = None
    ) -> T: ...
    @overload
    async def first(self, stream: str, *, type: type[T], timeout_s: float | None = None) -> T: ...
    @overload
    async def first(self, stream: str, *, timeout_s: float | None = None) -> Any: ...
    async def first(
        self,
        stream: str,
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the body of the next event of a stream, which may have come already.

        Raises: TimeoutError, if none comes in time; otherwise as reading does.
        """
        async with (
            asyncio.timeout(timeout_s),
            self._reader(stream, decoder(type, decode), KEPT_EVENTS) as reader,
        ):
            async for event in reader:
                return event.body
        raise ChannelNotFound("NOT_FOUND", "the subscription is closed")

    @property
    def cursor(self) -> str | None:
        """The id of the last event of those that are all dealt with."""
        return None if self._pump is None else self._pump.state.cursor

    @property
    def has_begun(self) -> bool:
        """Whether the broker has answered."""
        return self._pump is not None and self._pump.state.has_begun

    # -- The side of the pump

    def put(self, events: Sequence[Event[Any]]) -> None:
        self._backoff.reset()
        for event in events:
            self._prefix.add(event)
            event._owner = self
            stream = self._streams.get(event.stream)
            if stream is None:
                self._keep(event)
                self.dealt(event)
            else:
                event._decode = stream.decode
                stream.inbox.put((event,))
        self._watch_left()

    def gap(self) -> None:
        for stream in self._streams.values():
            stream.inbox.gap()
        if not self._streams:
            self._keep_gap()

    @property
    def is_full(self) -> bool:
        return any(stream.inbox.is_full for stream in self._streams.values())

    async def room(self) -> None:
        for name, stream in list(self._streams.items()):
            if stream.inbox.is_full:
                await self._room_in(name, stream)

    async def _room_in(self, name: str, stream: Stream) -> None:
        warning = self._loop.call_later(
            FULL_WARNING_S,
            log.warning,
            "the reader of stream %r is slow, and holds back the other streams of its channel",
            name,
        )
        try:
            await stream.inbox.room()
        finally:
            warning.cancel()

    # -- Keeping events

    def _keep(self, event: Event[Any]) -> None:
        self._kept.append(event)
        if len(self._kept) > KEPT_EVENTS:
            self._forget_oldest()

    def _keep_gap(self) -> None:
        if not any(isinstance(item, Gap) for item in self._kept):
            self._kept.append(Gap())

    def _forget_oldest(self) -> None:
        oldest = self._kept.popleft()
        if isinstance(oldest, Gap):  # which is never forgotten
            gap, oldest = oldest, self._kept.popleft()
            self._kept.appendleft(gap)
        assert isinstance(oldest, Event)
        self._deal_left(oldest)

    def _deal_left(self, event: Event[Any]) -> None:
        if event in self._left:
            self._left.discard(event)
            self.dealt(event)

    def _watch_left(self) -> None:
        """See to it that what readers left does not hold back the channel for long."""
        if self._leaving is None and not self._is_over and self._left_too_long() is not None:
            self._leaving = self._loop.call_later(LEFT_S, self._let_go)

    def _left_too_long(self) -> Event[Any] | None:
        first = self._prefix.first
        return first if len(self._prefix) > LEFT_EVENTS and first in self._left else None

    def _let_go(self) -> None:
        self._leaving = None
        while not self._is_over and (event := self._left_too_long()) is not None:
            self._deal_left(event)

    # -- Dealing with events

    def dealt(self, event: Event[Any]) -> None:
        last = self._prefix.deal(event)
        if last is not None and self._pump is not None:
            self._pump.dealt(last)
            self._watch_left()

    async def acknowledge(self, event: Event[Any]) -> None:
        """Acknowledge an event and all before it in its stream. Returns when the broker knows, if
        all before it in the other streams are dealt with too."""
        last = None
        for one in self._prefix.up_to(event):
            last = self._prefix.deal(one) or last
        if last is not None and self._pump is not None:
            await self._pump.acknowledge(last)

    # -- Streams that end

    def unsubscribe(self, name: str, stream: Stream, undealt: Sequence[Event[Any]] = ()) -> None:
        """Let nobody read a stream any more. What the app has not dealt with is kept for others."""
        if self._streams.get(name) is not stream:
            return
        del self._streams[name]
        for item in (*undealt, *stream.inbox.clear()):
            if isinstance(item, Event):
                if item in self._prefix:
                    self._left.add(item)
                self._keep(item)
            else:
                self._keep_gap()
        stream.inbox.end(None)
        self._watch_left()

    def abandon(self, name: str, stream: Stream, undealt: Sequence[Event[Any]] = ()) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.unsubscribe, name, stream, undealt)

    # -- The read

    def begin(self) -> None:
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._read_all()
        except Exception as error:  # also of `renew`, which is the app's
            self._error = error
        self._is_over = True
        for stream in self._streams.values():
            stream.inbox.end(self._error)

    async def _read_all(self) -> None:
        """Read the channel, and those that `renew` brings after it."""
        while True:
            self._pump = self._make_pump(self._consumer, self)
            self._prefix = Prefix()
            self._left.clear()
            error = await self._pump.run()
            if error is None:
                return
            if self._renew is None or not isinstance(error, ChannelNotFound):
                raise error
            await self._pump.finish()
            await asyncio.sleep(self._backoff.next_s())
            self._consumer = await self._renew(self._consumer)

    async def aclose(self) -> None:
        """End the read. Acknowledged is only what the app has dealt with."""
        self._is_over = True
        if self._leaving is not None:
            self._leaving.cancel()
        for stream in self._streams.values():
            stream.inbox.end(None)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._pump is not None:
            await self._pump.finish()
