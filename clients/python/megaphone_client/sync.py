"""The client for programs without asyncio: the same names, and each call waits.

All clients of a process share one thread with an event loop, in which the client of
`megaphone_client` does the work. So there is one set of rules, and reads are watched and
acknowledged while the app is busy. A reader crosses between the threads by batches.

Ctrl-C wakes a call that waits. Clients may be used in any thread and, after a fork, in the child;
an open reader stays with the parent.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from ssl import SSLContext
from typing import Any, Final, Generic, Self, TypeVar, cast, overload

import megaphone_client as aio
from megaphone_client.encryption import AnyPath, Certificate
from megaphone_client.errors import EventsLost
from megaphone_client.events import Channel, Failure
from megaphone_client.reading import Ack

T = TypeVar("T")
Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
Token = str | Callable[[], str]
OnGap = Callable[[], None]
Renew = Callable[[str], str]
AHEAD: Final = 100
"""How many events cross at a time."""
DEALT_S: Final = 0.5
"""How old the news may be, in the other thread, of what the app has dealt with."""


class LoopThread:
    """A thread that runs an event loop for as long as the process lives."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="megaphone", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work in the loop. If the wait is interrupted, the work is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_lock = threading.Lock()
_thread: LoopThread | None = None
_of_parents: list[object] = []
"""What a child has of its parent. To close any of it could disturb the parent."""


def loop_thread() -> LoopThread:
    global _thread
    with _lock:
        if _thread is None:
            _thread = LoopThread()
        return _thread


def _begin_anew() -> None:
    """Forget the thread, which does not exist in the child of a fork."""
    global _lock, _thread
    _of_parents.append(_thread)
    _lock = threading.Lock()
    _thread = None


os.register_at_fork(after_in_child=_begin_anew)


class Event(Generic[T]):
    """An event that was read: `megaphone_client.Event`, whose `ack` waits."""

    __slots__ = ("_event", "_thread", "consumer", "id", "raw", "stream", "traceparent")

    def __init__(self, event: aio.Event[T], thread: LoopThread) -> None:
        self._event = event
        self._thread = thread
        self.consumer = event.consumer
        self.id = event.id
        self.stream = event.stream
        self.raw = event.raw
        self.traceparent = event.traceparent

    @property
    def time(self) -> datetime:
        """When the broker accepted the event, in UTC."""
        return self._event.time

    @property
    def body(self) -> T:
        """The value, decoded at the first call. Raises: the error of the decoder."""
        return self._event.body

    def ack(self) -> None:
        """Acknowledge this event and every event before it. Returns when the broker knows."""
        self._thread.run(self._event.ack())

    def __repr__(self) -> str:
        return repr(self._event)


class Reader(Generic[T]):
    """The events of a read, in order. `megaphone_client.Reader` has the promises.

    One thread at a time may ask for events.
    """

    def __init__(
        self, reader: aio.Reader[T], thread: LoopThread, on_gap: OnGap | None = None
    ) -> None:
        self._reader = reader
        self._thread = thread
        self._on_gap = on_gap
        self._ahead: deque[aio.Event[T]] = deque()
        self._given: list[aio.Event[T]] = []  # what the app was given at its last call
        self._dealt: list[aio.Event[T]] = []  # what it has dealt with, and the loop must hear of
        self._told_at = 0.0

    @property
    def cursor(self) -> str | None:
        """The id of the last event dealt with; before that, where the read began."""
        last = self._dealt[-1:]
        if last and self._reader._source.is_cumulative:
            return last[0]._up_to
        return self._reader.cursor

    @property
    def has_begun(self) -> bool:
        """Whether the broker has answered for each channel: then events that it has are on their
        way."""
        return self._reader.has_begun

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        self._thread.run(self._reader.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._deal()
        self.close()

    def __next__(self) -> Event[T]:
        events = self._take(1, AHEAD, None)
        if not events:
            raise StopIteration
        return events[0]

    def batch(self, limit: int = 100, *, wait_s: float | None = None) -> list[Event[T]]:
        """Return the next events, at least one and at most `limit` of them; none if the first one
        does not come in `wait_s` seconds, or no more will come."""
        return self._take(limit, limit, wait_s)

    def close(self) -> None:
        """End the read, after a last acknowledgement that takes a second at most."""
        self._thread.run(self._close())

    def _take(self, limit: int, ahead: int, wait_s: float | None) -> list[Event[T]]:
        self._deal()
        while not self._ahead:
            try:
                if not self._thread.run(self._fetch(ahead, wait_s)):
                    return []
            except EventsLost:
                if self._on_gap is None:
                    raise
                self._on_gap()
        self._given = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        return [Event(event, self._thread) for event in self._given]

    async def _fetch(self, limit: int, wait_s: float | None) -> bool:
        """Get events into `_ahead`, from where an interrupted call cannot lose them."""
        _tell(self._reader, self._dealt)
        try:
            async with asyncio.timeout(wait_s):
                events = await self._reader._take(limit)
        except TimeoutError:
            return False
        self._reader._handed = []  # because only this object knows what is dealt with
        self._ahead += events
        return bool(events)

    def _deal(self) -> None:
        """Count as dealt with what the app was given. The loop hears of it now and then."""
        self._dealt += self._given
        self._given = []
        now = time.monotonic()
        if self._dealt and now - self._told_at >= DEALT_S:
            self._told_at = now
            self._thread.loop.call_soon_threadsafe(_tell, self._reader, self._dealt)

    async def _close(self) -> None:
        _tell(self._reader, self._dealt)
        self._reader._handed = [*self._given, *self._ahead]
        self._given, self._ahead = [], deque()
        await self._reader.aclose()

    def __del__(self) -> None:
        if not self._reader._is_closed:
            undealt = [*self._given, *self._ahead]
            self._thread.loop.call_soon_threadsafe(_leave, self._reader, self._dealt, undealt)


def _tell(reader: aio.Reader[Any], dealt: list[aio.Event[Any]]) -> None:
    """Runs in the loop. It has no reference to the reader of the app, so that this one leaves its
    stream at the moment when the app forgets it."""
    reader._handed = dealt.copy()
    del dealt[: len(reader._handed)]
    reader._deal()


def _leave(
    reader: aio.Reader[Any], dealt: list[aio.Event[Any]], undealt: list[aio.Event[Any]]
) -> None:
    """Runs in the loop, when the app has forgotten a reader. Then the loop forgets it too."""
    reader._handed = dealt
    reader._deal()
    reader._handed = undealt


class Subscriptions:
    """The streams of a channel, as in `megaphone_client.Subscriptions`."""

    def __init__(
        self, subscriptions: aio.Subscriptions, thread: LoopThread, on_gap: OnGap | None
    ) -> None:
        self._subscriptions = subscriptions
        self._thread = thread
        self._on_gap = on_gap

    @overload
    def stream(
        self, stream: str, *, decode: Callable[[bytes], T], buffer: int = 100
    ) -> Reader[T]: ...
    @overload
    def stream(self, stream: str, *, type: type[T], buffer: int = 100) -> Reader[T]: ...
    @overload
    def stream(self, stream: str, *, buffer: int = 100) -> Reader[Any]: ...
    def stream(self, stream: str, **options: Any) -> Reader[Any]:
        """Return the events of one stream, beginning with those that were kept for it."""

        async def subscribe() -> aio.Reader[Any]:
            return self._subscriptions.stream(stream, **options)

        return Reader(self._thread.run(subscribe()), self._thread, self._on_gap)

    @overload
    def first(
        self, stream: str, *, decode: Callable[[bytes], T], timeout_s: float | None = None
    ) -> T: ...
    @overload
    def first(self, stream: str, *, type: type[T], timeout_s: float | None = None) -> T: ...
    @overload
    def first(self, stream: str, *, timeout_s: float | None = None) -> Any: ...
    def first(self, stream: str, **options: Any) -> Any:
        """Return the body of the next event of a stream. Raises: TimeoutError, if none comes in
        `timeout_s`, which begins anew after a gap."""
        while True:
            try:
                return self._thread.run(self._subscriptions.first(stream, **options))
            except EventsLost:
                if self._on_gap is None:
                    raise
                self._on_gap()

    @property
    def cursor(self) -> str | None:
        """The id of the last event of those that are all dealt with."""
        return self._subscriptions.cursor

    @property
    def has_begun(self) -> bool:
        """Whether the broker has answered."""
        return self._subscriptions.has_begun


class Publisher:
    """Writes many events, in batches, as `megaphone_client.Publisher` does."""

    def __init__(self, publisher: aio.Publisher, thread: LoopThread) -> None:
        self._publisher = publisher
        self._thread = thread

    def send(self, producer: str, stream: str, body: object) -> "Future[str | None]":
        """Hand over an event. The `result` of what it returns is the event's id, or raises why it
        was not taken; `flush` raises the first error that nobody asked for."""

        async def hand_over() -> "Future[str | None]":
            sent = await self._publisher.send(producer, stream, body)
            return Sent(cast("aio.publishing.Sent", sent), self._thread)

        return self._thread.run(hand_over())

    def flush(self) -> None:
        """Send everything, and wait for all answers."""
        self._thread.run(self._publisher.flush())


class Sent(Future[str | None]):
    """An event on its way."""

    def __init__(self, sent: "aio.publishing.Sent", thread: LoopThread) -> None:
        super().__init__()
        self._sent = sent
        self._thread = thread
        sent.done.add_done_callback(self._settle)

    def _settle(self, done: "asyncio.Future[str | None]") -> None:
        error = done.exception()
        if error is None:
            self.set_result(done.result())
        else:
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> str | None:
        self._sent.is_observed = True
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._sent.is_observed = True
        return super().exception(timeout)


class Megaphone:
    """A client of the broker. Use it as a context manager, or call `close`."""

    def __init__(self, make: Callable[[], aio.Megaphone]) -> None:
        """Use `from_url`."""
        self._make = make
        self._thread: LoopThread | None = None
        self._client = make()

    @classmethod
    def from_url(
        cls,
        url: str | None = None,
        *,
        timeout_s: float = 30.0,
        token: Token | None = None,
        headers: Headers | None = None,
        ssl: SSLContext | None = None,
        ca: AnyPath | None = None,
        certificate: Certificate | None = None,
        trust_env: bool = False,
        idempotent: bool = True,
    ) -> Self:
        """Return a client for a URL, as `megaphone_client.Megaphone.from_url` does. A function for
        `token` or `headers` is not asynchronous, and is called in a thread of its own."""

        def make() -> aio.Megaphone:
            return aio.Megaphone.from_url(
                url,
                timeout_s=timeout_s,
                token=in_thread(token) if callable(token) else token,
                headers=in_thread(headers) if callable(headers) else headers,
                ssl=ssl,
                ca=ca,
                certificate=certificate,
                trust_env=trust_env,
                idempotent=idempotent,
            )

        return cls(make)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all reads, with their last acknowledgements, and close the connections."""
        client, thread = self._here()
        thread.run(client.aclose())

    def _here(self) -> tuple[aio.Megaphone, LoopThread]:
        """Return the client and the thread of this process, which may be a fork."""
        thread = loop_thread()
        if self._thread is not thread:
            if self._thread is not None:
                _of_parents.append(self._client)
                self._client = self._make()
            self._thread = thread
        return self._client, thread

    # -- Writing

    def create(
        self,
        protocols: Sequence[str] = (),
        *,
        ttl_s: float | None = None,
        capacity: int | None = None,
        label: str | None = None,
    ) -> Channel:
        """Create a channel."""
        client, thread = self._here()
        return thread.run(client.create(protocols, ttl_s=ttl_s, capacity=capacity, label=label))

    def write(
        self,
        producer: str,
        stream: str,
        body: object,
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Write one event. Returns its id, when the broker has it."""
        client, thread = self._here()
        return thread.run(
            client.write(
                producer, stream, body, key=key, timeout_s=timeout_s, traceparent=traceparent
            )
        )

    def write_batch(
        self,
        producers: Iterable[str],
        messages: Iterable[tuple[str, object]],
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> list[Failure]:
        """Write the same events to many channels. Returns which channel did not take which."""
        client, thread = self._here()
        return thread.run(
            client.write_batch(
                producers, messages, key=key, timeout_s=timeout_s, traceparent=traceparent
            )
        )

    @contextmanager
    def publisher(
        self,
        *,
        linger_s: float = 0.005,
        max_batch: int = 100,
        max_bytes: int = 262_144,
        max_pending: int = 1_000,
    ) -> Iterator[Publisher]:
        """Return a context in which many events are written in batches."""
        client, thread = self._here()
        publisher = client.publisher(
            linger_s=linger_s, max_batch=max_batch, max_bytes=max_bytes, max_pending=max_pending
        )
        opened = thread.run(publisher.__aenter__())
        try:
            yield Publisher(opened, thread)
        except BaseException as error:
            thread.run(publisher.__aexit__(type(error), error, None))
            raise
        thread.run(publisher.__aexit__(None, None, None))

    # -- Reading

    @overload
    def read(
        self,
        consumer: str,
        *,
        decode: Callable[[bytes], T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        consumer: str,
        *,
        type: type[T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        consumer: str,
        *,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]: ...
    def read(
        self,
        consumer: str,
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: str | None = None,
        limit: int | None = None,
        take_over: bool = False,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]:
        """Return the events of a channel. `on_gap` is called in the thread of the app."""
        client, thread = self._here()
        reader = cast("Any", client).read(
            consumer,
            type=type,
            decode=decode,
            streams=streams,
            ack=ack,
            after=after,
            limit=limit,
            take_over=take_over,
            heartbeat_s=heartbeat_s,
            trace=trace,
        )
        return Reader(reader, thread, on_gap)

    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        decode: Callable[[bytes], T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        type: type[T],
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[T]: ...
    @overload
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]: ...
    def read_many(
        self,
        consumers: Iterable[str],
        *,
        type: Any = Any,
        decode: Callable[[bytes], Any] | None = None,
        streams: Iterable[str] | None = None,
        ack: Ack = "auto",
        after: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
    ) -> Reader[Any]:
        """Return the events of many channels, in order for each of them."""
        client, thread = self._here()
        reader = cast("Any", client).read_many(
            consumers,
            type=type,
            decode=decode,
            streams=streams,
            ack=ack,
            after=after,
            heartbeat_s=heartbeat_s,
            trace=trace,
        )
        return Reader(reader, thread, on_gap)

    @contextmanager
    def subscribe(
        self,
        consumer: str,
        *,
        ack: Ack = "auto",
        after: str | None = None,
        on_gap: OnGap | None = None,
        heartbeat_s: float = 10.0,
        trace: bool = False,
        renew: Renew | None = None,
    ) -> Iterator[Subscriptions]:
        """Read a channel within this context, each of its streams by a reader of its own. `renew`
        is called in a thread of its own."""
        client, thread = self._here()
        context = client.subscribe(
            consumer,
            ack=ack,
            after=after,
            heartbeat_s=heartbeat_s,
            trace=trace,
            renew=None if renew is None else in_thread(renew),
        )
        subscriptions = thread.run(context.__aenter__())
        try:
            yield Subscriptions(subscriptions, thread, on_gap)
        finally:
            thread.run(context.__aexit__(None, None, None))

    # -- Asking and acknowledging

    def exists(self, addresses: Iterable[str]) -> dict[str, bool]:
        """Return for each producer or consumer address whether its channel exists."""
        client, thread = self._here()
        return thread.run(client.exists(addresses))

    def ack(self, consumer: str, event_id: str) -> int:
        """Acknowledge an event and all before it in its channel."""
        client, thread = self._here()
        return thread.run(client.ack(consumer, event_id))

    def dispose(self, producer: str) -> bool:
        """Remove a channel with all its events now. Returns whether it was still there."""
        client, thread = self._here()
        return thread.run(client.dispose(producer))


def in_thread(function: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Return an asynchronous function that calls one of the app, which may take its time."""

    async def call(*arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    return call
