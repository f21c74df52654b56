"""The channels of a store, by their id and by their agent.

No operation looks at more channels than it returns. A walk over the channels of an agent may pause
anywhere, and goes on however many channels came and went meanwhile: that is why they are linked
instead of listed.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel
from megaphone.model import ChannelLimits
from megaphone.store.memory.parts import Parts

if TYPE_CHECKING:
    import asyncio

    from megaphone.store.memory.changes import MemoryChanges


class StoredChannel(Channel):
    """A channel with its identity and its place in the index."""

    __slots__ = ("consumer_address", "home", "is_exempt", "newer", "older")

    def __init__(
        self,
        channel_id: bytes,
        consumer_address: str,
        home: "AgentChannels",
        limits: ChannelLimits,
        now: float,
        budget: Budget,
        epoch: int,
    ) -> None:
        super().__init__(limits, now, budget, epoch=epoch, channel_id=channel_id)
        self.consumer_address = consumer_address
        self.log.listener = home.on_changed
        self.home = home
        """The channels of its agent. It is known also after the channel has left them."""
        self.is_exempt = False
        """Whether it may expire while its agent is kept alive."""
        self.newer: StoredChannel | None = None
        """The next channel of the agent. A channel that has left keeps this link, for the walk
        that stands at it."""
        self.older: StoredChannel | None = None

    @property
    def channel_id(self) -> bytes:
        return self.log.channel_id

    # -- Its end

    @property
    def is_kept_alive(self) -> bool:
        return self.home.keepers > 0 and not self.is_exempt

    @property
    def dies_at(self) -> float | None:
        """The deadline, or that of all channels of the agent if it is later; None while read."""
        return None if self.deadline is None else max(self.deadline, self.home.alive_until)

    def is_past_deadline(self, now: float) -> bool:
        return self.deadline is not None and now >= max(self.deadline, self.home.alive_until)

    def is_dead(self, now: float) -> bool:
        """Whether it has expired: nobody may use it any more."""
        return self.is_past_deadline(now) and not self.is_kept_alive

    def is_kept_past_deadline(self, now: float) -> bool:
        """Whether it would have expired if its agent were not kept alive."""
        return self.is_past_deadline(now) and self.is_kept_alive


class AgentChannels:
    """The channels of one agent, oldest first, and what holds for all of them."""

    __slots__ = (
        "alive_until",
        "blocked",
        "capacities",
        "count",
        "followers",
        "keepers",
        "kept",
        "name",
        "newest",
        "oldest",
        "on_changed",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_changed = self._tell_followers
        """The listener of its channels: one object for all of them."""
        self.oldest: StoredChannel | None = None
        self.newest: StoredChannel | None = None
        self.count = 0
        """How many channels there are."""
        self.capacities: Counter[int] = Counter()
        """How many channels have a capacity."""
        self.keepers = 0
        """How many keep the agent alive: meanwhile its channels do not expire."""
        self.alive_until = 0.0
        """Before this time no channel expires. One time stands for all, because writing it into
        each of very many channels would take long."""
        self.kept = Parts[StoredChannel]()
        """The channels that were past their deadline when they were last looked at, and live on."""
        self.followers: tuple[MemoryChanges, ...] = ()
        self.waiting: OrderedDict[asyncio.Future[None], StoredChannel] = OrderedDict()
        """What writers wait for, and at which channel."""
        self.blocked: OrderedDict[StoredChannel, None] = OrderedDict()
        """The channels at which writers wait."""

    def __iter__(self) -> Iterator[StoredChannel]:
        """Walk from the oldest channel to the newest, whatever comes and goes meanwhile.

        Also yields a channel that left while the walk stood at it.
        """
        channel = self.oldest
        while channel is not None:
            yield channel
            channel = channel.newer

    @property
    def is_unused(self) -> bool:
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

    def _tell_followers(self, channel_id: bytes) -> None:
        for follower in self.followers:
            follower.channel_changed(channel_id)

    @property
    def may_evict(self) -> bool:
        """Whether it is followed only by those that cannot say how far it is read elsewhere."""
        return bool(self.followers) and not any(f.with_read for f in self.followers)

    def is_taken_by_all(self, channel: StoredChannel, offset: int) -> bool:
        """Whether every follower has taken the event of a offset."""
        return all(follower.has_taken(channel, offset) for follower in self.followers)


class Index:
    """All channels of a store."""

    __slots__ = ("_agents", "_channels", "get")

    def __init__(self) -> None:
        self._channels = Parts[StoredChannel]()
        self.get = self._channels.get
        """Returns the channel of an id; None if there is none."""
        self._agents: dict[str, AgentChannels] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def holds(self, channel: StoredChannel) -> bool:
        """Tell whether a channel has not left."""
        return self._channels.get(channel.channel_id) is channel

    def add(self, channel: StoredChannel) -> None:
        self._channels[channel.channel_id] = channel
        channel.home.add(channel)

    def remove(self, channel: StoredChannel) -> None:
        self._channels.pop(channel.channel_id)
        channel.home.remove(channel)
        self.tidy(channel.home)

    def agent(self, name: str) -> AgentChannels:
        """Return the channels of an agent; if it has none, a place for them.

        Whoever changes the place calls `tidy` once it has changed it back.
        """
        home = self._agents.get(name)
        if home is None:
            home = self._agents[name] = AgentChannels(name)
        return home

    def tidy(self, home: AgentChannels) -> None:
        """Forget the place of an agent that is of no use any more."""
        if home.is_unused and self._agents.get(home.name) is home:
            del self._agents[home.name]

    def find_agent(self, name: str) -> AgentChannels | None:
        return self._agents.get(name)

    def agents(self) -> list[AgentChannels]:
        return list(self._agents.values())

    def walk(self, agent: str | None) -> Iterator[StoredChannel]:
        """Walk the channels of an agent, or of all agents, oldest first."""
        if agent is None:
            return merge(*self._agents.values(), key=attrgetter("created_at"))
        return iter(self._agents.get(agent, ()))
