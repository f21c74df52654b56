"""A read of one channel: its batches and its end. `core.open_read` has the client's side of it."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from megaphone.core.access import Caller
from megaphone.core.alarms import Alarms
from megaphone.core.log import EVENT_OVERHEAD_BYTES
from megaphone.core.open_read import BATCH_EVENTS, Client, OpenRead
from megaphone.core.ports import Lease, Observer, Receiving, Tracing
from megaphone.core.tenants import Tenant
from megaphone.errors import AgentMoved, MegaphoneError, TokenExpired
from megaphone.model import Event, ReadEnd, ReadOptions

if TYPE_CHECKING:
    from asyncio import Future

PASSED_AT_ONCE: Final = 20
"""How many batches without a wanted event a reader passes over before other tasks get a turn."""
FETCH_S: Final = 5.0
"""How long after its read time a read waits for events that were ready when it began, and that a
remote store still fetches."""


class Reader(OpenRead[Event]):
    """A read that has the lease of a channel, until `close` releases it."""

    __slots__ = (
        "_expires_first",
        "_is_closed",
        "_kind",
        "_last_wanted",
        "_lease",
        "_left",
        "_on_close",
        "_ready",
        "_receiving",
        "_short_id",
        "_streams",
        "_tracing",
        "_until",
        "agent",
        "caller",
        "tenant",
    )

    def __init__(
        self,
        lease: Lease,
        options: ReadOptions,
        *,
        caller: Caller,
        tenant: Tenant | None,
        agent: str,
        time_s: float,
        observer: Observer,
        alarms: Alarms,
        on_close: Callable[["Reader"], None],
        expires_s: float = math.inf,
        tracing: Tracing | None = None,
        short_id: str = "",
    ) -> None:
        """`time_s` is the read time in seconds. After `expires_s` the caller may not read any
        more. Without `tracing`, the batches have no spans; with it, they name the channel by
        `short_id`."""
        super().__init__(options.heartbeat_s, observer, alarms)
        self._lease = lease
        self._left = sys.maxsize if options.limit is None else options.limit
        self._ready = lease.ready
        """How many events were ready when the read began and were not returned yet. They are
        returned even if the read time is over."""
        self._streams = options.streams
        """The streams whose events the client wants; None if it wants all."""
        self._last_wanted = 0
        """The offset of the last wanted event."""
        self.caller = caller
        """Who reads."""
        self.tenant = tenant
        """The tenant to whose channels the caller was limited when the read began, if to any."""
        self.agent = agent
        """The agent of the channel."""
        self._expires_first = expires_s < time_s
        self._until = self._loop.time() + min(time_s, expires_s)
        self._on_close = on_close
        self._is_closed = False
        self._tracing = tracing
        self._short_id = short_id
        self._receiving: Receiving | None = None
        """The span of the last batch, until the connection has all its bytes."""
        self._kind = options.kind
        observer.read_started(self._kind, lease.recovered)

    def attach(self, client: Client | None, on_ready: Callable[[], None]) -> None:
        self._client = client
        self._lease.on_ready = on_ready

    @property
    def cursor(self) -> str:
        """The cursor before the first event of this read: an event id, or START."""
        return self._lease.cursor

    @property
    def recovered(self) -> bool | None:
        """Whether the cursor that the reader named was still known. If the reader named none: False
        if the channel has a gap, else None."""
        return self._lease.recovered

    @property
    def channel_id(self) -> bytes:
        return self._lease.channel_id

    @property
    def backlog(self) -> int:
        """How many events the reader could take now, if its client let it."""
        return self._lease.ready

    @property
    def taken_at(self) -> float | None:
        """When it took events last; None if it has taken none."""
        return self._lease.taken_at

    @property
    def streams(self) -> frozenset[str] | None:
        """The streams whose events the client wants; None if it wants all."""
        return self._streams

    # -- Batches

    def next(self) -> list[Event] | None:
        """Do what `OpenRead.next` says. Events of streams that the client does not want are left
        out.

        The read is over when the read time is over, when `limit` events were returned, when the
        channel was removed, when another reader has taken over, and after `end`.
        """
        now = self._loop.time()
        if self._is_waiting or self._more_is_ready:
            self._note_taken(now)
        return self._batch(now, BATCH_EVENTS, self._batch_bytes)

    def next_within(self, limit: int, max_bytes: int) -> list[Event] | None:
        """Do the same as `next` for a batch of at most so many events, and of at most so many bytes
        or one event. For a read that somebody else serves, who watches the client."""
        return self._batch(self._loop.time(), limit, max_bytes)

    def size_of(self, batch: list[Event]) -> int:
        return bytes_of(batch)

    def _batch(self, now: float, limit: int, max_bytes: int) -> list[Event] | None:
        lease, left = self._lease, self._left
        if self._receiving is not None:
            self._end_span(is_sent=True)
        for _ in range(PASSED_AT_ONCE):
            if left <= 0 or (self._ready <= 0 and now >= self._until):
                self._finish(ReadEnd.WINDOW if left > 0 else ReadEnd.LIMIT)
                return None
            batch = lease.take(min(limit, left), max_bytes, now)
            if batch is None:
                is_due = self._may_be_due(now) or now >= self._until
                if not (is_due or lease.is_over):
                    return None  # the rule
                return self._nothing(now)
            _, first_offset, events, redelivered = batch
            count = len(events)
            written_us = events[redelivered].timestamp_us if redelivered < count else 0
            self._observer.events_read(count, redelivered, written_us)
            self._ready -= count
            self._more_is_ready = lease.ready > 0
            if self._streams is not None:
                events = self._wanted(first_offset, events, now)
            if events:
                self._left = left - len(events)
                self._heartbeat_at = now + self._heartbeat_s
                if self._tracing is not None:
                    self._receiving = self._tracing.receive(events, self._short_id)
                return events
        self._loop.call_soon(self._wake)
        return self._heartbeat(now)

    def _wanted(self, first_offset: int, events: list[Event], now: float) -> list[Event]:
        """Return those of the events taken that the client wants.

        An acknowledging client cannot acknowledge an event that it does not get. So once all that
        it got is acknowledged, the unwanted events behind it must not keep their places.
        """
        assert self._streams is not None
        wanted: list[Event] = []
        for offset, event in enumerate(events, first_offset):
            if event.stream_id in self._streams:
                wanted.append(event)
                self._last_wanted = offset
        last = first_offset + len(events) - 1
        if last > self._last_wanted:
            self._lease.pass_over(self._last_wanted, last, now)
        return wanted

    def _nothing(self, now: float) -> list[Event] | None:
        """Return a heartbeat, if one is due; otherwise see to it that `on_ready` is called in
        time."""
        until = self._until
        if self._ready > 0 and self._lease.is_fetching:
            until += FETCH_S
        if self._lease.is_over:
            self._finish(self._lease.ended_by or ReadEnd.SHUTDOWN)
            return None
        if now >= until:
            self._finish(ReadEnd.WINDOW)
            return None
        if (heartbeat := self._heartbeat(now)) is None:
            self._wake_at(min(until, self._heartbeat_at))
        return heartbeat

    def _end_span(self, *, is_sent: bool) -> None:
        if self._receiving is not None:
            self._receiving.end(is_sent=is_sent)
            self._receiving = None

    def _wake(self) -> None:
        if self._lease.on_ready is not None:
            self._lease.on_ready()

    # -- The end

    def _finish(self, end: ReadEnd) -> None:
        """The read is over."""
        self.is_over = True
        if end is ReadEnd.WINDOW and self._expires_first:
            end = ReadEnd.TOKEN_EXPIRED
            self.refusal = TokenExpired()
        self.note_end(end)

    def end(self, why: ReadEnd) -> None:
        self.note_end(why)
        self._lease.interrupt()

    def refuse(self, error: MegaphoneError) -> None:
        """Do the same as `end`, because of an error: the caller may not read any more."""
        self.refusal = error
        is_expired = isinstance(error, TokenExpired)
        self.end(ReadEnd.TOKEN_EXPIRED if is_expired else ReadEnd.REVOKED)

    def abort(self) -> None:
        """End the read now, as broken, although bytes may still wait for the client."""
        self.note_end(ReadEnd.MOVED)
        self._lease.interrupt()
        self._lease.release(clean=False, now=self._loop.time())
        self._break(AgentMoved(f"agent {self.agent} moves to another node"))

    def settle(self) -> "Future[bool] | None":
        return self._lease.settle(self._loop.time())

    def close(self, *, clean: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._end_span(is_sent=clean)
        self._forget_client()
        self._lease.release(clean=clean, now=self._loop.time())
        ended_by = self.ended_by or self._lease.ended_by or ReadEnd.CLIENT_GONE
        self._observer.read_ended(self._kind, ended_by)
        self._on_close(self)


def bytes_of(events: list[Event]) -> int:
    """Return how many bytes a batch counts: its bodies, and an overhead for each event."""
    return sum(len(event.body) + EVENT_OVERHEAD_BYTES for event in events)
