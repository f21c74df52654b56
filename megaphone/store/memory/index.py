"""The channels of a store, by channel id and by agent.

No operation looks at more channels than it returns. A walk over the channels of an agent may pause
while channels are added and removed, because the channels form a linked list.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import merge
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from megaphone.core.budget import CHANNEL_BYTES, ENTRY_BYTES, EVENT_BYTES, Budget
from megaphone.core.channel import Channel
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.model import ChannelLimits
from megaphone.store.memory.parts import Parts

if TYPE_CHECKING:
    import asyncio

    from megaphone.store.memory.changes import MemoryChanges


class StoredChannel(Channel):
    """A channel with its address and its links in the index."""

    __slots__ = ("consumer_address", "home", "label", "may_expire", "newer", "older", "tenant")

    def __init__(
        self,
        channel_id: bytes,
        consumer_address: str,
        home: "AgentChannels",
        limits: ChannelLimits,
        now: float,
        budget: Budget,
        epoch: int,
        label: str = "",
        tenant: Tenant = DEFAULT,
    ) -> None:
        super().__init__(limits, now, budget, epoch=epoch, channel_id=channel_id)
        self.consumer_address = consumer_address
        self.log.listener = home.on_changed
        self.home = home
        """The channels of its agent. The attribute stays when the channel is removed."""
        self.label = label
        """As in `ChannelOptions`."""
        self.tenant = tenant
        self.may_expire = False
        """Whether the channel may expire although its agent is kept alive."""
        self.newer: StoredChannel | None = None
        """The next channel of the agent. A removed channel keeps this link, because a walk may be
        paused at it."""
        self.older: StoredChannel | None = None

    @property
    def channel_id(self) -> bytes:
        return self.log.channel_id

    def is_of(self, tenant: Tenant | None) -> bool:
        """Return whether the channel belongs to a tenant; None stands for any."""
        return tenant is None or tenant is self.tenant or tenant.name == self.tenant.name

    # -- A look at it

    @property
    def depth(self) -> int:
        """How many events occupy a place."""
        return self.log.held

    @property
    def in_flight(self) -> int:
        return self.log.sent - self.log.delivered

    @property
    def accepted(self) -> int:
        """How many events the channel has accepted."""
        return self.log.end

    @property
    def size(self) -> int:
        """How many bytes the channel and its events take. An event that other channels have too
        counts in each of them."""
        log = self.log
        _, events = log.after(log.dropped, log.end - log.dropped)
        bodies = sum([len(event.body) for event in events])
        return CHANNEL_BYTES + (EVENT_BYTES + ENTRY_BYTES) * len(events) + bodies

    @property
    def tenant_name(self) -> str:
        return self.tenant.name

    @property
    def oldest_us(self) -> int | None:
        """The timestamp of the oldest event that occupies a place; None if there is none."""
        _, events = self.log.after(self.log.freed, 1)
        return events[0].timestamp_us if events else None

    # -- Its end

    @property
    def is_kept_alive(self) -> bool:
        return self.home.keepers > 0 and not self.may_expire

    @property
    def expires_at(self) -> float | None:
        """When the channel expires if its agent is not kept alive: its deadline, or a TTL after
        `kept_until` of its agent if that is later. None while the channel is read."""
        if self.deadline is None:
            return None
        return max(self.deadline, self.home.kept_until + self.log.limits.ttl_s)

    def is_past_deadline(self, now: float) -> bool:
        """Return whether the channel has expired or would have, if it were not kept alive."""
        expires_at = self.expires_at
        return expires_at is not None and now >= expires_at

    def is_expired(self, now: float) -> bool:
        """Return whether the channel has expired, so that no call may use it any more."""
        return self.is_past_deadline(now) and not self.is_kept_alive

    def is_kept_past_deadline(self, now: float) -> bool:
        """Return whether the channel is past its deadline, and exists only because its agent is
        kept alive."""
        return self.is_past_deadline(now) and self.is_kept_alive


class AgentChannels:
    """The channels of one agent, oldest first, and the state that they share."""

    __slots__ = (
        "blocked",
        "capacities",
        "count",
        "followers",
        "keepers",
        "kept",
        "kept_until",
        "name",
        "newest",
        "oldest",
        "on_changed",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_changed = self._notify_followers
        """The listener of the logs of all these channels: one object, to save memory."""
        self.oldest: StoredChannel | None = None
        self.newest: StoredChannel | None = None
        self.count = 0
        """How many channels the agent has."""
        self.capacities: Counter[int] = Counter()
        """How many channels have each capacity."""
        self.keepers = 0
        """How many contexts keep the agent alive. While there is one, its channels do not
        expire."""
        self.kept_until = -inf
        """Until when the agent was kept alive. No channel expires within its TTL after this time.
        It is one number for all channels, because to change each of very many channels would take
        long."""
        self.kept = Parts[StoredChannel]()
        """The channels that were past their deadline at their last check, but were kept alive."""
        self.followers: tuple[MemoryChanges, ...] = ()
        self.waiting: OrderedDict[asyncio.Future[None], StoredChannel] = OrderedDict()
        """The future of each waiting writer, and the channel in which it waits."""
        self.blocked: OrderedDict[StoredChannel, None] = OrderedDict()
        """The channels in which writers wait."""

    def __iter__(self) -> Iterator[StoredChannel]:
        """Walk from the oldest channel to the newest. The walk may pause while channels are added
        and removed.

        A walk may also yield channels that were removed during a pause.
        """
        channel = self.oldest
        while channel is not None:
            yield channel
            channel = channel.newer

    @property
    def is_unused(self) -> bool:
        """Whether the entry has nothing to remember, so that the index may remove it."""
        return not (self.oldest or self.keepers or self.followers or self.waiting)

    def add(self, channel: StoredChannel) -> None:
        self.count += 1
        self.capacities[channel.capacity] += 1
        channel.older = self.newest
        if self.newest is None:
            self.oldest = channel
        else:
            self.newest.newer = channel
        self.newest = channel

    def remove(self, channel: StoredChannel) -> None:
        self.count -= 1
        self.capacities[channel.capacity] -= 1
        if not self.capacities[channel.capacity]:
            del self.capacities[channel.capacity]
        older, newer = channel.older, channel.newer
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self.newest = older
        else:
            newer.older = older
        channel.older = None
        self.kept.pop(channel.channel_id)

    # -- Followers

    def _notify_followers(self, channel_id: bytes) -> None:
        for follower in self.followers:
            follower.channel_changed(channel_id)

    @property
    def may_evict(self) -> bool:
        """Whether the agent has followers, and no target tells this node what its readers got."""
        return bool(self.followers) and not any(f.with_read for f in self.followers)

    def is_taken_by_all(self, channel: StoredChannel, offset: int) -> bool:
        """Return whether every follower has taken the event of a channel at an offset."""
        return all(follower.has_taken(channel, offset) for follower in self.followers)


class Index:
    """All channels of a store."""

    __slots__ = ("_agents", "_channels", "get")

    def __init__(self) -> None:
        self._channels = Parts[StoredChannel]()
        self.get = self._channels.get
        """Returns the channel with a channel id; None if there is none."""
        self._agents: dict[str, AgentChannels] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def holds(self, channel: StoredChannel) -> bool:
        """Return whether a channel is in the index, that is, was not removed."""
        return self._channels.get(channel.channel_id) is channel

    def add(self, channel: StoredChannel) -> None:
        self._channels[channel.channel_id] = channel
        channel.home.add(channel)
        channel.tenant.channels += 1

    def remove(self, channel: StoredChannel) -> None:
        self._channels.pop(channel.channel_id)
        channel.home.remove(channel)
        channel.tenant.channels -= 1
        self.tidy(channel.home)

    def agent(self, name: str) -> AgentChannels:
        """Return the channels of an agent. Makes an empty entry if the agent has none.

        A caller that takes something out of the entry, such as a follower, must call `tidy` then.
        """
        home = self._agents.get(name)
        if home is None:
            home = self._agents[name] = AgentChannels(name)
        return home

    def tidy(self, home: AgentChannels) -> None:
        """Remove the entry of an agent that has no channels, followers or waiting writers here, and
        that is not kept alive."""
        if home.is_unused and self._agents.get(home.name) is home:
            del self._agents[home.name]

    def find_agent(self, name: str) -> AgentChannels | None:
        """Return the channels of an agent; None if the index has no entry for it."""
        return self._agents.get(name)

    def agents(self) -> list[AgentChannels]:
        return list(self._agents.values())

    def walk(self, agent: str | None) -> Iterator[StoredChannel]:
        """Walk over the channels of an agent, or of all agents, from the oldest to the newest."""
        if agent is None:
            return merge(*self._agents.values(), key=attrgetter("created_at"))
        return iter(self._agents.get(agent, ()))
