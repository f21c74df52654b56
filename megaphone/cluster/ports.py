"""What replication needs of a store. Only a store that keeps channels in memory implements it.

Nodes that share a store do not need replication, because each of them can use all channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from megaphone.model import ChannelChange, ChannelState, HistoryChange


class Changes(Protocol):
    """The changes of the channels of one agent, to be sent to one target.

    There is no queue of changes. For each channel the store remembers how much of its log `take`
    has returned, and the next `take` reads the rest from the log. So a slow target costs no memory,
    and a target that reconnects gets what it has missed.
    """

    async def take(self, limit: int, *, wait: bool = True) -> Sequence[ChannelChange]:
        """Return the next changes, at most about `limit`. Changes of one channel keep their order.

        With `wait` the call waits for a change. Without it, the call returns an empty sequence if
        there is none. A call that is cancelled has taken no change.
        """

    @property
    def backlog(self) -> int:
        """How many channels may have changes that `take` has not returned yet."""

    def restart(self, *, with_read: bool) -> None:
        """Start again: from now on `take` returns every channel with all its content.

        With `with_read` the content includes delivered events that the log still has, the progress
        of readers, and idempotency keys. Without it, it is only the undelivered events.
        """

    def close(self) -> None:
        """Stop following the channels. A second call changes nothing."""


class IncomingPipe(Protocol):
    """What another node sends about one agent."""

    async def apply(self, change: ChannelChange) -> None:
        """Apply a change. Raises: BadRequest; LimitExceeded, when there is no memory for it."""

    def end(self) -> None:
        """Note that the source has moved the agent here, so that this node owns it now."""

    def close(self) -> None:
        """Note that nothing more comes."""


class Usage(NamedTuple):
    """How channels are used on this node, as the answer to the question of a source."""

    in_use: list[str]
    """The consumer addresses of channels that are read here, or were read less than a TTL ago."""
    cursors: dict[str, str]
    """The cursor at which the next read starts: an event id, or START. By consumer address, only
    for channels of which a reader of this node has taken or acknowledged events."""


class Incoming(Protocol):
    """What the face for nodes needs of a node, so that other nodes can replicate agents to it."""

    async def open(self, agent: str, key: bytes, source_id: str) -> IncomingPipe:
        """Open a pipe that replicates an agent to this node. The caller must close the pipe.

        Raises: BadRequest; WrongMode; ShuttingDown; LimitExceeded.
        """

    def forget_sources(self, agent: str) -> None:
        """Forget which events other nodes have sent of an agent, because it was removed here."""

    async def usage(self, addresses: Sequence[str]) -> Usage:
        """Return how the channels with these consumer addresses are used here.

        Raises: BadRequest, when a text is not a consumer address.
        """


class Replicable(Protocol):
    """A store whose channels can be replicated to another node.

    A call that is cancelled has taken effect completely or not at all.
    """

    # -- For the targets of this node

    def follow(self, agent: str) -> Changes:
        """Return the changes of all channels of an agent, including channels created later.

        A follower with `with_read` (`Changes.restart`) is for a target that tells this node which
        events its readers got. The caller passes that on with `advance`, which frees places.

        A follower without `with_read` is for a target that cannot tell it. If an agent has only
        such followers, and a channel has not been read here for some seconds, then no writer waits
        in the full channel: the store evicts the oldest event, once every follower has taken it.
        """

    async def blocked(self, agent: str) -> Sequence[str]:
        """Return the consumer addresses of the channels of an agent in which writers wait."""

    async def advance(self, channel_id: bytes, event_id: str) -> None:
        """Deliver all events up to this one, because a reader got them on another node.

        Does nothing if the log does not have the event, or while the channel is read here.

        Raises: ChannelNotFound.
        """

    async def refuse_writers(self, agent: str) -> None:
        """Refuse the waiting writers of all channels of an agent, with AgentMoved."""

    async def release(self, channel_id: bytes) -> None:
        """Delete a channel here, because another node owns it. This does not count as a removal.

        Raises: ChannelNotFound.
        """

    async def largest_capacity(self, agent: str) -> int:
        """Return the largest capacity among the channels of an agent; 0 if it has no channel."""

    # -- For the sources of this node

    async def apply(self, channel_id: bytes, change: HistoryChange) -> int:
        """Apply a change that the source of the channel has sent.

        An event that the log does not have is appended with its idempotency key. The call never
        waits for a place: if the channel is full, it evicts the oldest event. If the source sends
        offsets, it also sends how far its readers are. A channel of such a source counts as full
        here only when it holds far more events than it may hold at the source.

        Once a reader of this node has taken or acknowledged events of the channel, the progress of
        the source's readers moves the cuts of the log forward, but not back.

        Returns: how many events were lost, because they were evicted before a reader got them.
        Raises: ChannelNotFound; LimitExceeded, when there is no memory for the event.
        """

    async def state(self, channel_id: bytes) -> ChannelState | None:
        """Return how a channel is used on this node; None if the channel is not here."""

    # -- Expiry, which the source decides while a pipe is connected

    def keep_alive(self, agent: str) -> AbstractContextManager[None]:
        """Let no channel of an agent expire within this context.

        When the last such context of the agent ends, each channel lives for at least one more TTL.
        """

    async def expired_but_kept(self, agent: str, limit: int) -> Sequence[str]:
        """Return consumer addresses of channels that are past their deadline and that only
        `keep_alive` keeps.

        Returns at most `limit` addresses, and each of them at most once per TTL.
        """

    async def expire(self, channel_id: bytes) -> None:
        """Remove a channel, if it is past its deadline and only `keep_alive` keeps it."""

    async def allow_expiry(self, channel_id: bytes) -> None:
        """Let a channel expire although its agent is kept alive.

        Raises: ChannelNotFound.
        """
