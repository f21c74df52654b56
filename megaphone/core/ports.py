"""What the core needs of the world: the contracts that stores and observers fulfil.

Nothing here may assume that a channel lives in this process: a store may be across a network.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

from megaphone.core.log import Batch
from megaphone.errors import MegaphoneError
from megaphone.model import DrainProgress, Event, ReadOptions

OnRemoved = Callable[[str, float, int], None]
"""Called when a channel has expired or was removed, with its consumer address, its age in seconds,
and the number of events that no reader was ever sent. Must not raise or wait."""


class WouldBlock(Exception):
    """The call can do nothing without waiting, and has changed nothing. Clients never see it."""


class Append(NamedTuple):
    """An event that is to be added to a channel."""

    channel_id: bytes
    event: Event
    request_id: str | None = None


class Stored(NamedTuple):
    """The event is in the buffer of its channel."""

    event_id: str
    """Its id; that of an earlier event if the write repeats the request id of that one."""
    is_new: bool
    """Whether it was not there before."""


AppendResult = Stored | MegaphoneError | WouldBlock
"""What became of one write of several. Errors are returned as values."""


class Lease(Protocol):
    """An open read of one channel. See `megaphone.core.channel.Lease` for the rules."""

    on_ready: Callable[[], None] | None
    """Called when `take_nowait` may have something new to return. May be called too often."""

    @property
    def cursor(self) -> str:
        """The event before the first one of this read, or START: a reader that resumes after it
        misses nothing."""

    @property
    def recovered(self) -> bool | None:
        """Whether the event to resume after was still known; None when none was named."""

    @property
    def ready(self) -> int:
        """How many events could be taken now."""

    async def take(self, limit: int, max_bytes: int, until: float) -> Batch | None:
        """Confirm the events that were taken before, and return the next events in order.

        Returns at once if events are ready, else waits for one. Returns up to `limit` events, and
        up to `max_bytes` of bodies and overhead, but one at least, however large.

        The call says that the connection has all bytes of the events taken before. Until then they
        do not count as sent: if the read breaks, they come again, however long ago they were taken.
        Returns None when the loop's clock reaches `until`, and when the lease is over.

        The events follow each other in the log of the channel. The batch names the epoch of the
        log and the first offset: a store that lost data has another epoch afterwards, so that an
        offset of before is not taken for one of the new log.
        Atomic with respect to cancellation: if it is cancelled, none was taken.
        """

    def take_nowait(self, limit: int, max_bytes: int) -> Batch | None:
        """Do what `take` does, without waiting. Returns: None when the lease is over.

        Raises: WouldBlock, when no event is ready. A remote store may always raise it.
        """

    @property
    def is_over(self) -> bool:
        """Whether no more events will come: interrupted, taken over, or the channel has gone."""

    def interrupt(self) -> None:
        """Make every `take` from now on, and the one that waits, return None."""

    def release(self, *, clean: bool) -> None:
        """End the read now, without waiting. Repeating it changes nothing.

        A clean end confirms the events that were taken.
        """


class Store(Protocol):
    """Channels by their id: where events live between writer and reader.

    A call may be cancelled at any point; it has then taken effect wholly or not at all.
    """

    async def create(
        self, channel_id: bytes, consumer_address: str, capacity: int | None = None
    ) -> None:
        """Add an empty channel, which holds as many events as others here, or `capacity`.

        Raises: LimitExceeded, when the store holds as many as it may, or has no memory for it.
        """

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        """Add events, each at the end of its channel. Writes of one channel keep their order.

        Where a channel is full, and `wait` is set, the call waits for room, first come first
        served, for at most the write timeout for each event. Without `wait` the result is
        WouldBlock. If a write is refused or would block, the later writes of its channel in the
        call are not tried and have the same result.

        A call that is cancelled while it waits leaves nothing in the channel, or returns as if it
        had not been cancelled, because the event had just got in.

        Returns: a result for each write, in their order: Stored; WouldBlock; or an error, and then
            the event is not in the channel: ChannelNotFound; LimitExceeded, when there is no memory
            for it, or as many writers wait as may; WriteTimeout; AgentMoved; ShuttingDown.
        """

    def append_nowait(self, write: Append) -> Stored:
        """Do what `append` does, without waiting.

        Raises: WouldBlock, when the channel is full. A remote store may always raise it. Else the
            errors of `append`.
        """

    async def open(self, channel_id: bytes, consumer_address: str, options: ReadOptions) -> Lease:
        """Start to read a channel. The caller must release the lease.

        Raises: ChannelNotFound, also when `consumer_address` is not exactly that of the channel;
            ReaderBusy, when it is read and that read is not to be taken over.
        """

    async def acknowledge(self, channel_id: bytes, consumer_address: str, event_id: str) -> int:
        """Count an event and all before it as delivered.

        Returns: how many were not yet.
        Raises: ChannelNotFound.
        """

    async def exists(self, channel_ids: Sequence[bytes]) -> set[bytes]:
        """Return those of some channels that live."""

    async def remove(self, channel_id: bytes) -> None:
        """End a channel now: its read ends, and its writers get ChannelNotFound.

        Raises: ChannelNotFound.
        """

    async def list(self, agent: str | None, skip: int, limit: int) -> Sequence[str]:
        """Return the consumer addresses of channels, or of those of one agent, oldest first."""

    async def count(self, agent: str) -> int:
        """Return how many channels of an agent there are."""

    # -- Life cycle

    async def check_room(self) -> None:
        """Raises: LimitExceeded, when `create` would now."""

    async def quiesce(self) -> None:
        """From now on answer writers that wait, or would, with ShuttingDown."""

    async def aclose(self) -> None:
        """Drop everything that this node holds. Nothing else may be called after it."""


class Drains(Protocol):
    """Moves agents to other nodes."""

    def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        """Move every agent of this node to another, and end when nothing is left to move.

        Tells how far it is, at the start, from time to time, and at the end. What has not moved
        when it is closed, or raises, is as it was before.

        Raises: BadRequest, when the target is not a URL such as http://host:3001; WrongMode, while
            another drain runs, or when the target refuses an agent; Unauthenticated, when the two
            nodes do not have the same secret; TargetUnavailable.
        """


class Pipes(Protocol):
    """Forwards agents to other nodes."""

    async def pipe(self, agent: str, target: str) -> None:
        """Begin to forward an agent, until this node stops. Returns once the target has taken it.

        Raises: AgentNotFound; BadRequest, when the target is not a URL such as http://host:3001;
            WrongMode; Unauthenticated, when the two nodes do not have the same secret;
            TargetUnavailable.
        """


class Observer(Protocol):
    """Is told what happens to channels and events, at once and once. Must not raise or wait."""

    def channel_created(self) -> None: ...

    def channel_removed(self, age_s: float, lost: int) -> None:
        """A channel expired or was disposed of, with `lost` events that no reader was sent. None
        are lost with the copy of a channel for which another node answers."""

    def events_written(self, count: int) -> None: ...

    def events_read(self, count: int, redelivered: int) -> None:
        """`count` events were handed to a reader; `redelivered` of them not for the first time."""

    def channel_fed(self) -> None:
        """A channel came from another node."""

    def channel_forgotten(self) -> None:
        """A channel was let go of: it lives, or has ended, on another node."""

    def events_fed(self, count: int) -> None:
        """Events came from another node."""

    def events_forwarded(self, count: int) -> None:
        """Events were handed to another node, each counted for each node."""

    def events_lost(self, count: int) -> None:
        """Events were evicted before any reader had them, or refused when another node sent
        them."""

    def writer_waits(self) -> None:
        """A writer found a channel full and waits for room."""

    def writer_waited(self) -> None:
        """A writer that waited has its answer, or has left."""

    def events_unroutable(self, count: int) -> None:
        """Events were written to a channel that does not exist."""

    def read_started(self) -> None: ...

    def read_ended(self) -> None: ...
