"""What replication needs of a store: only one that keeps channels in memory fulfils it.

A store that several nodes share needs none of this, because each of them has all channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from megaphone.model import ChannelChange, ChannelState, HistoryChange


class Changes(Protocol):
    """The changes of the channels of one agent, for another node that is to have the same.

    Nothing is queued. The store knows of each channel how far its changes were taken, and looks the
    rest up in the channel when it is asked for. So a slow target costs no memory, and a target that
    was away catches up.
    """

    async def take(self, limit: int, *, wait: bool = True) -> Sequence[ChannelChange]:
        """Return the next changes, about `limit` at most; those of a channel in their order.

        Waits for a change. Without `wait`, returns none if nothing has changed.
        Atomic with respect to cancellation: if it is cancelled, none was taken.
        """

    @property
    def backlog(self) -> int:
        """How many channels may have changes that were not taken yet."""

    def restart(self, *, with_read: bool) -> None:
        """Begin anew: `take` returns each channel and what it holds, whatever was taken before.

        `with_read` includes events that were read, as far as they are kept, how far each channel
        was read, and idempotency keys. Without it only unread events are included.
        """

    def close(self) -> None:
        """Stop following. Repeating it changes nothing."""


class Replicable(Protocol):
    """Channels that can be copied to another node and kept the same there.

    A call may be cancelled at any point; it has then taken effect wholly or not at all.
    """

    # -- For the targets of this node

    def follow(self, agent: str) -> Changes:
        """Follow the channels of an agent, present and future ones.

        While all followers of an agent ask for unread events only (`Changes.restart`), a writer
        does not wait for room in a channel that has not been read here for some seconds: the store
        evicts the oldest event if every follower has taken it. Followers that ask for more say how
        far it is read at the target (`advance`), which makes room.
        """

    async def blocked(self, agent: str) -> Sequence[str]:
        """Return the consumer addresses of channels of an agent where writers wait for room."""

    async def advance(self, channel_id: bytes, event_id: str) -> None:
        """Count all events up to this one as delivered, because a reader got them on another node.

        Does nothing if the event is not known here, or while the channel is read here.

        Raises: ChannelNotFound.
        """

    async def dismiss_writers(self, agent: str) -> None:
        """Answer writers that wait for room in channels of an agent with AgentMoved."""

    async def release(self, channel_id: bytes) -> None:
        """Drop a channel that lives, or has ended, on another node. It does not count as removed.

        Raises: ChannelNotFound.
        """

    async def largest_capacity(self, agent: str) -> int:
        """Return the largest capacity of a channel of an agent; 0 if it has no channel."""

    # -- For the sources of this node

    async def apply(self, channel_id: bytes, change: HistoryChange) -> int:
        """Make a change here that has happened to the channel on its source.

        An event is added without waiting, with its key, and only if it is not there yet. In a full
        channel the oldest event is evicted. If the source numbers its events, it also says how far
        they were read; its channels are full only when they hold far more than the source may.
        Progress counts forward only, once a reader has come here.

        Returns: how many events were lost, because they were evicted before any reader had them.
        Raises: ChannelNotFound; LimitExceeded, when there is no memory for the event.
        """

    async def state(self, channel_id: bytes) -> ChannelState | None:
        """Return how a channel is used here; None if it is not here."""

    # -- Expiry, of which the source decides while a pipe is connected

    def keep_alive(self, agent: str) -> AbstractContextManager[None]:
        """Let no channel of an agent expire within this context.

        When the last such context ends, each channel that is not read has a whole time to live.
        """

    async def expired_but_kept(self, agent: str, limit: int) -> Sequence[str]:
        """Return the consumer addresses of channels that only `keep_alive` keeps from expiring.

        Returns at most `limit`. Each channel is returned at most once per time to live.
        """

    async def expire(self, channel_id: bytes) -> None:
        """Remove a channel that only `keep_alive` keeps from expiring; leave any other alone."""

    async def allow_expiry(self, channel_id: bytes) -> None:
        """Let one channel expire even while its agent is kept alive.

        Raises: ChannelNotFound.
        """
