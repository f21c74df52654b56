"""The use cases of operators: manage the agents of a node, and list and remove its channels.

Both faces call these methods with unchecked arguments, as they do with `core.broker`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

from megaphone.core.addresses import ConsumerAddress
from megaphone.core.agents import Agents
from megaphone.core.audit import audit
from megaphone.core.listing import Asked, Listing, is_beginning_of_id
from megaphone.core.pace import loop_time
from megaphone.core.ports import Counts, Drains, Pipes, Store
from megaphone.core.watching import Watching, asked
from megaphone.errors import BadRequest, ChannelNotFound, WrongMode
from megaphone.model import (
    AgentInfo,
    AgentMode,
    ChannelInfo,
    DrainProgress,
    NodeView,
    short_id,
)

DEFAULT_LIMIT = 50
"""How many channels a list has if the operator gives no number."""
REMOVED_AT_ONCE = 50
"""How many channels of an agent end before other tasks get a turn."""
SHOWN_IDS = 5
"""How many ids an error names."""


class Admin:
    """The use cases of operators, one method each."""

    def __init__(
        self,
        *,
        store: Store,
        agents: Agents,
        pipes: Pipes,
        drains: Drains,
        counts: Counts,
        let_others_have: Callable[[str], Awaitable[None]] | None = None,
        let_others_drop: Callable[[str], None] | None = None,
        on_agent_removed: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`let_others_have` gives an agent to the other workers, if this node is one of several,
        and `let_others_drop` takes it from them. `on_agent_removed` is called before the channels
        of an agent end that was removed."""
        self._let_others_have = let_others_have
        self._let_others_drop = let_others_drop
        self._on_agent_removed = on_agent_removed
        self._store = store
        self._agents = agents
        self._pipes = pipes
        self._drains = drains
        self._watching = Watching(
            store=store, pipes=pipes, drains=drains, counts=counts, list_agents=self.list_agents
        )

    # -- The node

    def watch(
        self,
        interval_s: float | None = None,
        limit: int | None = None,
        sort: str | None = None,
    ) -> AsyncGenerator[NodeView, None]:
        """Watch the node: see `Watching.watch`. `sort` says by what the first `limit` channels are
        chosen: by `depth`, `waiting`, `age` or `rate`.

        Raises: BadRequest. The generator raises StoreUnavailable.
        """
        return self._watching.watch(asked(interval_s, limit, sort))

    # -- Agents

    async def list_agents(self) -> list[AgentInfo]:
        """Return the agents of this node, oldest first."""
        now = loop_time()
        infos = []
        for agent in list(self._agents):  # a copy, because agents may be added meanwhile
            infos.append(
                AgentInfo(
                    name=agent.name,
                    mode=agent.mode,
                    since=agent.since,
                    warming_up=agent.is_warming_up(now),
                    channels=await self._store.count(agent.name),
                )
            )
            await asyncio.sleep(0)
        return infos

    async def add_agent(self, name: str) -> None:
        """Add a MASTER agent, which warms up first; to all workers, if there are several.

        Raises: BadRequest, if the name is not allowed or is in use; StoreUnavailable;
            TargetUnavailable, if another worker does not have the agent.
        """
        self._agents.check_new(name)
        if self._let_others_have is not None:
            await self._let_others_have(name)
        await self._agents.introduce(name, AgentMode.MASTER, loop_time())
        audit.info("an agent was added", extra={"agent": name})

    async def remove_agent(self, name: str, *, force: bool = False) -> None:
        """Remove an agent from this node; from all workers, if there are several.

        If the channels of this node live in its memory, those of the agent end: that needs `force`.
        In a shared store they live on, and other nodes serve them; this node only makes no new
        channels under the agent. Without `force` the last agent that takes new channels stays too.

        Raises: BadRequest; AgentNotFound; WrongMode, if the agent is replicated to this node or
            from it, if a drain runs, or if the removal needs `force`.
        """
        self._refuse_during_drain()
        self._agents.check_removable(name)
        if any(pipe.agent == name for pipe in self._pipes.described()):
            raise WrongMode(f"agent {name} is replicated to another node: close its pipes first")
        is_remote = self._store.is_remote
        channels = 0 if is_remote else await self._store.count(name)
        if channels and not force:
            raise WrongMode(
                f"agent {name} has {channels} channels, which would end with all their events:"
                " drain this node instead, or use `force`"
            )
        if not force and self._agents.alone_takes_channels(name):
            raise WrongMode(
                f"agent {name} is the only one of this node that takes new channels: add another"
                " one before, or use `force`"
            )
        self._agents.dismiss(name)
        fields = {"agent": name, "channels": channels, "force": force}
        audit.info("an agent was removed", extra=fields)
        if is_remote:
            if self._let_others_drop is not None:
                self._let_others_drop(name)
        else:
            self._on_agent_removed(name)
            await self._remove_channels(name)

    async def _remove_channels(self, agent: str) -> None:
        """Remove all channels of an agent, in slices."""
        while addresses := await self._store.list(agent, 0, REMOVED_AT_ONCE):
            for address in addresses:
                with suppress(ChannelNotFound):  # it has expired
                    await self._store.remove(ConsumerAddress.parse(address).channel_id)
            await asyncio.sleep(0)

    def _refuse_during_drain(self) -> None:
        if self._drains.progress is not None:
            raise WrongMode("this node is being drained")

    def promote_agent(self, name: str) -> None:
        """Make a REPLICA a MASTER, or take back a PIPED agent whose pipe is not connected.

        Raises: BadRequest; AgentNotFound; WrongMode, if the agent is a MASTER already, or if its
            pipe is connected.
        """
        self._agents.promote(name, loop_time())
        audit.info("an agent was promoted", extra={"agent": name})

    async def pipe_agent(self, name: str, target: str) -> None:
        """Replicate the channels of an agent to another node, until this node stops.

        Returns when the target has accepted the agent. The agent takes no new channels any more.

        Raises: BadRequest, also if the target is not a URL such as http://host:3001 or
            https://host:3002; AgentNotFound; WrongMode; Unauthenticated, if the two nodes do not
            have the same secret; TargetUnavailable.
        """
        await self._pipes.pipe(name, target)
        audit.info("an agent is replicated", extra={"agent": name, "target": target})

    async def unpipe_agent(
        self, name: str, target: str | None = None, *, force: bool = False
    ) -> None:
        """Stop replicating an agent to one target, or to all: see `core.ports.Pipes.unpipe`.

        Raises: BadRequest; AgentNotFound; WrongMode, also while a drain runs.
        """
        self._refuse_during_drain()
        await self._pipes.unpipe(name, target, force=force)
        fields = {"agent": name, "target": target or "all", "force": force}
        audit.info("an agent is not replicated any more", extra=fields)

    async def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        """Move all agents of this node to another one: see `core.ports.Drains`.

        The drain runs only while the caller iterates over its progress.
        """
        progress: DrainProgress | None = None
        try:
            async with aclosing(self._drains.drain(target)) as steps:
                async for step in steps:
                    if progress is None:
                        audit.info("a drain has begun", extra={"target": target})
                    progress = step
                    yield step
        finally:
            if progress is not None:
                fields = {
                    "target": target,
                    "agents": progress.agents_moved,
                    "channels": progress.channels_moved,
                    "agents_left": progress.agents_left,
                }
                audit.info("a drain is over", extra=fields)

    # -- Channels

    async def list_channels(
        self, skip: int = 0, limit: int | None = None, agent: str | None = None
    ) -> Sequence[str]:
        """Return consumer addresses, oldest channel first: of one agent, or of all agents.

        Raises: BadRequest; AgentNotFound; StoreUnavailable.
        """
        if agent is not None:
            self._agents.named(agent)
        return await self._store.list(agent, skip, DEFAULT_LIMIT if limit is None else limit)

    async def show_channels(self, asked: Asked) -> Sequence[ChannelInfo]:
        """Return the first channels by what is asked for, with all that may be seen of them.

        Looks at all channels, so this takes a while if there are many; calls of clients go on.

        Raises: BadRequest; AgentNotFound; StoreUnavailable.
        """
        asked.check()
        if asked.agent is not None:
            self._agents.named(asked.agent)
        return await Listing(self._store).first(asked)

    async def show_channel(self, name: str) -> ChannelInfo:
        """Return all that may be seen of a channel. `name` is its consumer address, or the
        beginning of its id, at least `SHORT_ID_DIGITS` hexadecimal digits.

        Raises: BadRequest, also if the ids of several channels begin so; ChannelNotFound;
            AgentMoved; StoreUnavailable.
        """
        if not is_beginning_of_id(name):
            consumer = ConsumerAddress.parse(name)
            await self._agents.settled(consumer.agent)
            self._agents.served(consumer.agent)
            info = await self._store.info(consumer.channel_id)
            if info.address != name:
                raise ChannelNotFound
            return info
        found = await self._store.find(name.lower())
        if not found:
            raise ChannelNotFound(f"no channel has an id that begins with {name}")
        if len(found) > 1:
            raise BadRequest(
                f"the ids of {len(found)} channels begin with {name}: give more digits; the"
                " ids are " + ", ".join(one.hex() for one in found[:SHOWN_IDS])
            )
        return await self._store.info(found[0])

    async def dispose(self, address: str) -> None:
        """Remove a channel, with all its events, now.

        Raises: BadRequest; ChannelNotFound.
        """
        consumer = ConsumerAddress.parse(address)
        await self._agents.settled(consumer.agent)
        self._agents.served(consumer.agent)
        await self._store.remove(consumer.channel_id)
        fields = {"agent": consumer.agent, "channel": short_id(consumer.channel_id)}
        audit.info("an operator disposed of a channel", extra=fields)
