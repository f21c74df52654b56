"""The names of everything that the store has in Redis."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable

REMEMBERED = 5_000
"""Of how many channels the keys are remembered, because most channels are used again."""
KEYS_OF_A_CHANNEL = 7
KNOWN = 10**15
"""The score of a channel that exists, among those of its tenant: later than any time."""
SHARDS = 64
"""In how many parts the deadlines of the channels are kept, so that nodes can share the work."""


class Names:
    """The names of keys and inboxes, all of which begin with the prefix of the store.

    The keys that one function uses together have one hash tag, so that they are in one slot of a
    cluster. All others may be anywhere.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes = f"{prefix}:{{all}}:nodes"
        """HASH: when each node last showed that it lives."""
        self.meta = f"{prefix}:{{all}}:meta"
        """HASH: the epoch, the reigns of servers that the store knows, and its clock."""
        self.agents = f"{prefix}:agents"
        """HASH: the address key of each agent."""
        self.agents_with_channels = f"{prefix}:agents:used"
        """SET: the agents that have or had channels."""
        self.tenants = f"{prefix}:tenants"
        """SET: the tenants whose channels are or were counted."""
        self.channel: Callable[[bytes], tuple[str, ...]] = lru_cache(REMEMBERED)(self._channel)
        """Return the keys of a channel, in the order in which the functions expect them."""

    def _channel(self, channel_id: bytes) -> tuple[str, ...]:
        state = f"{self.prefix}:{{{tag_of(channel_id)}}}"
        return (
            state,
            f"{state}:e",
            f"{state}:i",
            f"{state}:k",
            f"{state}:a",
            f"{state}:q",
            f"{state}:w",
        )

    def confirmed(self, tag: str) -> str:
        """STRING: written so that replicas can confirm what was written before it. The hash tag is
        one of those that the master has."""
        return f"{self.prefix}:{{{tag}}}:confirmed"

    def of_agent(self, agent: str) -> str:
        """ZSET: the tags of the channels of an agent, by the times of their creation."""
        return f"{self.prefix}:agent:{agent}"

    def of_tenant(self, tenant: str) -> tuple[str, str]:
        """Return the keys of what is counted of a tenant. ZSET: the tags of its channels, each with
        `KNOWN`, or while it is being created with the time at which that began. HASH: the rate of
        creations."""
        counted = f"{self.prefix}:{{tenant:{tenant}}}"
        return f"{counted}:channels", f"{counted}:creates"

    @staticmethod
    def shard_of(channel_id: bytes) -> int:
        return crc32(channel_id) % SHARDS

    def due(self, shard: int) -> str:
        """ZSET: the tags of channels, by the times at which to see whether they have expired."""
        return f"{self.prefix}:due:{shard}"

    def inbox(self, node: str) -> str:
        """The Pub/Sub channel of a node."""
        return f"{self.prefix}:in:{node}"

    def node_of(self, inbox: str) -> str:
        """Return the node with an inbox."""
        return inbox.removeprefix(self.inbox(""))


def tag_of(channel_id: bytes) -> str:
    """Return a channel id in the characters that keys may have."""
    return urlsafe_b64encode(channel_id).rstrip(b"=").decode()


def id_of(tag: str) -> bytes:
    """Return the channel id in a tag."""
    return urlsafe_b64decode(tag + "=" * (-len(tag) % 4))
