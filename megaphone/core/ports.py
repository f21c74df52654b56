"""What the core needs of the world: the contracts that stores and observers fulfil.

Nothing here may assume that a channel lives in this process: a store may be across a network.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from megaphone.model import ChannelChange, DrainProgress, Event, KeyOf, Progress, ReadOptions

Append = Callable[[bytes, Event, str | None], Awaitable[str | None]]
"""`Store.append` or `Store.append_now`."""


class ChannelLease(Protocol):
    """An open read of one channel. See `megaphone.core.channel.Lease` for the rules."""

    @property
    def position(self) -> str:
        """The event before the first one of this read, or START: what to resume after."""

    @property
    def recovered(self) -> bool | None:
        """Whether the event to resume after was still known; None when none was named."""

    @property
    def ready(self) -> int:
        """How many events could be taken now."""

    async def take(self, limit: int, max_bytes: int, until: float) -> list[Event]:
        """Confirm what was taken before, and return the next events in order.

        At once what is ready, else the next to come: up to `limit`, and up to `max_bytes` of
        bodies and overhead, but one at least, however large.

        The call says that the connection has all bytes of what was taken before. Until then that
        does not count as sent: if the read breaks, it comes again, however long ago it was taken.
        Returns none when the loop's clock reaches `until` without one, and when the lease is over.
        Atomic with respect to cancellation: if it is cancelled, none was taken.
        """

    @property
    def is_over(self) -> bool:
        """Whether no more events will come: interrupted, taken over, or the channel has gone."""

    def interrupt(self) -> None:
        """Make every `take` from now on, and the one that waits, return none."""

    def release(self, *, clean: bool) -> None:
        """End the read, now, without waiting for anything. Repeating it changes nothing.

        A clean end confirms what was taken.
        """


class ChannelChanges(Protocol):
    """What happens to the channels of one agent, told so that another node can have the same.

    Nothing is queued: it is known of each channel how far it was told, and the rest is looked up
    when it is asked for. So whoever is slow costs no memory, and whoever comes back catches up.
    """

    async def take(self, limit: int) -> Sequence[ChannelChange]:
        """Return the next changes, waiting for one: those of a channel in their order.

        About `limit` at most. Atomic with respect to cancellation.
        """

    @property
    def are_pending(self) -> bool:
        """Whether `take` would return at once."""

    @property
    def untold(self) -> int:
        """How many channels are to be looked at; each may have something to tell."""

    def restart(self, *, with_read: bool) -> None:
        """Tell everything from the start: each channel and what it holds.

        `with_read` tells events that were read too, as far as they are kept, and how far each
        channel was read; otherwise only what is yet to be read is told.
        """

    def close(self) -> None:
        """Stop to follow the channels."""


class Store(Protocol):
    """Channels by their id: where events live between writer and reader.

    A call may be cancelled at any point; it then has taken effect wholly or not at all.
    """

    async def create(
        self, channel_id: bytes, consumer_address: str, capacity: int | None = None
    ) -> None:
        """Add an empty channel, which holds as many events as others here, or `capacity`.

        Raises: LimitExceeded, when the store holds as many as it may, or has no memory for it.
        """

    async def check_room(self) -> None:
        """Raises: LimitExceeded, when `create` would now."""

    async def append(self, channel_id: bytes, event: Event, request_id: str | None) -> str:
        """Add an event at the end, waiting for room, first come first served.

        When this returns the event is in the channel's buffer; when it raises it is not.

        Returns: the id under which the event is stored: that of an earlier event if `request_id`
            repeats the one it was written with.
        Raises: ChannelNotFound; LimitExceeded, when there is no memory for the event, or as many
            writers wait as may; WriteTimeout; AgentMoved; ShuttingDown.
        """

    async def append_now(
        self, channel_id: bytes, event: Event, request_id: str | None
    ) -> str | None:
        """Add an event as `append` does, but only if there is room now.

        Returns: None, and adds nothing, where `append` would wait.
        """

    async def lease(
        self, channel_id: bytes, consumer_address: str, options: ReadOptions
    ) -> ChannelLease:
        """Start to read a channel.

        Raises: ChannelNotFound, also when `consumer_address` is not exactly that of the channel;
            ReaderBusy, when it is read and that read is not to be taken over.
        """

    async def acknowledge(self, channel_id: bytes, consumer_address: str, event_id: str) -> int:
        """Count an event and all before it as delivered.

        Returns: how many were not yet.
        Raises: ChannelNotFound.
        """

    async def exists(self, channel_id: bytes) -> bool:
        """Tell whether the channel lives."""

    async def remove(self, channel_id: bytes) -> None:
        """End a channel now; its reader and its writers are told.

        Raises: ChannelNotFound.
        """

    async def addresses(self, skip: int, limit: int, agent: str | None = None) -> Sequence[str]:
        """Return the consumer addresses of channels, or of those of one agent, oldest first."""

    async def count(self, agent: str) -> int:
        """Return how many channels of an agent there are."""

    async def largest_capacity(self, agent: str) -> int:
        """Return how many events that channel of an agent holds that holds most; 0 without any."""

    def follow(self, agent: str) -> ChannelChanges:
        """Follow what happens to the channels of an agent, present and future ones.

        Meanwhile, if all who follow ask for what is unread only (`ChannelChanges.restart`), a
        writer does not wait for room in a channel that has not been read here for some seconds:
        the oldest event that all were told of is evicted. Others say how far it is read elsewhere
        (`advance`), which makes room.
        """

    def hold(self, agent: str) -> None:
        """Let no channel of an agent expire until `unhold`, as often as it was held."""

    def unhold(self, agent: str) -> None:
        """Let channels expire again; those that are not read have their whole life before them."""

    def pop_overdue(self, agent: str) -> Sequence[str]:
        """Return the consumer addresses of channels that live on only since they are held.

        Each of them again and again, but only once in a channel's life.
        """

    async def expire(self, channel_id: bytes) -> None:
        """End a channel that lives on only since it is held; otherwise do nothing."""

    async def exempt(self, channel_id: bytes) -> None:
        """Let a channel expire though its agent is held.

        Raises: ChannelNotFound.
        """

    async def push(
        self,
        channel_id: bytes,
        event: Event,
        key: KeyOf | None = None,
        *,
        is_followed: bool = False,
    ) -> None:
        """Add an event that another node took, without waiting; one that is there stays once.

        Its key is remembered in the same step. In a full channel the oldest event is evicted; where
        `is_followed` says that the source tells how far it is read, a channel is full only when it
        holds far more than the source may.

        Raises: ChannelNotFound; LimitExceeded, when there is no memory for it.
        """

    async def learn_key(self, channel_id: bytes, event_id: str, key: KeyOf) -> None:
        """Remember the key of an event that another node took.

        Raises: ChannelNotFound.
        """

    async def follow_progress(self, channel_id: bytes, progress: Progress) -> None:
        """Take over how far a channel was read on the node that feeds it.

        Once readers have come here, only forward.

        Raises: ChannelNotFound.
        """

    async def skip_to(self, channel_id: bytes, event_id: str) -> None:
        """Forget the events of a channel, because they were read, up to this one, on the node that
        feeds it. Without effect once readers have come here.

        Raises: ChannelNotFound.
        """

    async def blocked(self, agent: str) -> Sequence[str]:
        """Return the consumer addresses of channels of an agent where writers wait for room."""

    async def read_here(self, channel_id: bytes) -> str | None:
        """Return the event after which the next read starts, or START; None if no reader has come
        here, or the channel is not here."""

    async def advance(self, channel_id: bytes, event_id: str) -> None:
        """Count all up to an event as delivered, because a reader got them on another node.

        Without effect if the event is not known here, and while the channel is read here.

        Raises: ChannelNotFound.
        """

    async def is_copy(self, channel_id: bytes) -> bool:
        """Tell whether a channel is here, and nobody has read it, or written to it, here."""

    async def is_read(self, channel_id: bytes) -> bool:
        """Tell whether a channel is read now."""

    async def is_in_use(self, channel_id: bytes) -> bool:
        """Tell whether a channel is read, or was until less than its life ago, held or not."""

    async def forget(self, channel_id: bytes) -> None:
        """Let go of a channel that lives, or has ended, on another node, which answers for it.

        Raises: ChannelNotFound.
        """

    async def dismiss_writers(self, agent: str) -> None:
        """Answer those who wait for room in channels of an agent with AgentMoved."""

    async def refuse_writers(self) -> None:
        """From now on answer writers that wait, or would, with ShuttingDown."""

    async def aclose(self) -> None:
        """Let go of everything. Nothing else may be called after it."""


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

    def channel_removed(self, consumer_address: str, age_s: float, lost: int) -> None:
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
