"""Other nodes bring so many agents and no more; those that nobody needs go. Under virtual time."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megaphone.cluster.incoming import SOURCES_REMEMBERED, IncomingPipe, IncomingPipes
from megaphone.core.access import ANYONE
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.tenants import Tenants
from megaphone.errors import LimitExceeded, WrongMode
from megaphone.model import AgentMode, ChannelAdded, Event, EventAdded, ReadOptions
from megaphone.observe.metrics import Metrics
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore

pytestmark = pytest.mark.looptime

KEY = bytes(32)
OTHER_KEY = bytes(range(32))
A_WHILE_S = 121.0
"""By then an agent that nobody needs is gone: it is looked for once a minute, twice."""


class Node:
    def __init__(self, settings: Settings) -> None:
        metrics = Metrics()
        self.agents = Agents(0.0)
        for name, mode in settings.agent.items():
            self.agents.add(name, mode, 0.0)
        self.store = MemoryStore(
            limits=settings.channel_limits(),
            max_channels=settings.max_channels,
            write_timeout_s=1.0,
            budget=Budget(),
        )
        parts = {"store": self.store, "agents": self.agents, "settings": settings}
        self.incoming = IncomingPipes(
            replication=self.store.replication,
            observer=metrics,
            tenants=Tenants(),
            **parts,  # type: ignore[arg-type]
        )
        self.broker = Broker(**parts, observer=metrics)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        return [agent.name for agent in self.agents]

    async def replicate(self, agent: str, *channels: str, end: bool = False) -> None:
        """Replicate an agent to this node, and break the pipe off or end it."""
        pipe = await self.incoming.open(agent, KEY, "")
        await add(pipe, agent, *channels)
        if end:
            pipe.end()
        pipe.close()

    async def read(self, agent: str) -> list[bytes]:
        """Read what is ready in the first channel of an agent."""
        async with self.broker.read(ANYONE, address(agent), ReadOptions(wait_s=0.0)) as reader:
            return [event.body async for batch in reader for event in batch]


@asynccontextmanager
async def running(own: AgentMode | None = AgentMode.MASTER, limit: int = 2) -> AsyncIterator[Node]:
    agents = {} if own is None else {"own": own}
    node = Node(Settings(agent=agents, max_replicas=limit))
    try:
        yield node
    finally:
        await node.incoming.aclose()
        await node.store.aclose()


def address(agent: str, channel: str = "x") -> str:
    return str(ConsumerAddress(agent, channel * 50, "1"))


def event(number: int) -> Event:
    return Event(event_id=str(number), stream_id="s", timestamp_us=0, body=b"%d" % number)


async def add(pipe: IncomingPipe, agent: str, *channels: str) -> None:
    for channel in channels:
        await pipe.apply(ChannelAdded(address(agent, channel)))


async def test_other_nodes_bring_so_many_agents_and_no_more() -> None:
    async with running() as node:
        pipes = [await node.incoming.open(name, KEY, "") for name in ("a", "b")]
        with pytest.raises(LimitExceeded, match="have brought 2 agents to this one"):
            await node.incoming.open("c", KEY, "")
        assert node.names() == ["own", "a", "b"]
        await node.incoming.open("a", KEY, "")  # one that is here may have a second source
        pipes[1].close()
        await node.incoming.open("c", KEY, "")
        assert node.names() == ["own", "a", "c"]


async def test_an_agent_with_channels_keeps_its_place_while_they_live() -> None:
    async with running(limit=1) as node:
        await node.replicate("a", "x")
        with pytest.raises(LimitExceeded):
            await node.incoming.open("b", KEY, "")
        await asyncio.sleep(61)
        await node.incoming.open("b", KEY, "")
        assert node.names() == ["own", "b"]


@pytest.mark.parametrize("end", [True, False], ids=["promoted", "broken off"])
async def test_strangers_cannot_pile_up_agents(end: bool) -> None:
    async with running(limit=5) as node:
        for number in range(50):
            await node.replicate(f"a{number}", end=end)
        assert len(node.names()) == 6


async def test_replicas_of_the_configuration_do_not_count_and_stay() -> None:
    async with running(AgentMode.REPLICA, limit=1) as node:
        await node.replicate("own")
        await node.incoming.open("a", KEY, "")
        await asyncio.sleep(A_WHILE_S)
        assert node.names() == ["own", "a"]


@pytest.mark.parametrize("end", [True, False], ids=["promoted", "broken off"])
async def test_an_agent_that_nobody_needs_goes_after_a_while(end: bool) -> None:
    async with running() as node:
        await node.replicate("a", "x", "y", end=end)
        await asyncio.sleep(100)  # its channels have died meanwhile
        assert node.names() == ["own", "a"]
        await asyncio.sleep(A_WHILE_S)
        assert node.names() == ["own"]


async def test_an_agent_stays_while_it_has_an_incoming_pipe() -> None:
    async with running() as node:
        pipe = await node.incoming.open("a", KEY, "")
        await asyncio.sleep(10 * A_WHILE_S)
        assert node.names() == ["own", "a"]
        pipe.close()
        await asyncio.sleep(A_WHILE_S)
        assert node.names() == ["own"]


async def test_an_agent_stays_while_it_is_replicated_now_and_then() -> None:
    async with running() as node:
        await node.replicate("a")
        agent = node.agents.named("a")
        for _ in range(10):
            await asyncio.sleep(59)
            await node.replicate("a")
        assert node.agents.named("a") is agent


async def test_an_agent_stays_while_its_channels_are_read() -> None:
    async with running() as node:
        await node.replicate("a", "x")
        for _ in range(20):
            await node.read("a")
            await asyncio.sleep(30)
        assert node.names() == ["own", "a"]


async def test_an_agent_stays_that_is_forwarded_or_moves() -> None:
    async with running() as node:
        for name in ("a", "b"):
            await node.replicate(name)
        node.agents.pipe("a")
        with node.agents.moving("b"):
            await asyncio.sleep(A_WHILE_S)
            assert node.names() == ["own", "a", "b"]
        node.agents.take_back("a")
        await asyncio.sleep(A_WHILE_S)
        assert node.names() == ["own"]


async def test_the_only_master_stays_because_it_takes_new_channels() -> None:
    async with running(own=None) as node:
        await node.replicate("a", end=True)
        await node.replicate("b")
        await asyncio.sleep(A_WHILE_S)
        assert node.names() == ["a"]
        await node.broker.create(ANYONE)


async def test_what_is_known_of_sources_is_bounded() -> None:
    async with running() as node:
        first = await node.incoming.open("a", KEY, "source-0")
        await add(first, "a", "x")
        await first.apply(EventAdded(address("a"), event(1), 1))
        first.close()
        over = weakref.ref(first)
        del first
        assert over() is None
        assert await node.read("a") == [b"1"]
        again = await node.incoming.open("a", KEY, "source-0")
        await again.apply(EventAdded(address("a"), event(2), 1))
        assert await node.read("a") == []  # the source has sent its first event before
        again.close()
        for number in range(1, SOURCES_REMEMBERED + 1):
            (await node.incoming.open("a", KEY, f"source-{number}")).close()
        again = await node.incoming.open("a", KEY, "source-0")
        await again.apply(EventAdded(address("a"), event(2), 1))
        assert await node.read("a") == [b"2"]


async def test_an_agent_that_went_may_come_back_as_any_other() -> None:
    async with running() as node:
        pipe = await node.incoming.open("a", KEY, "source")
        await add(pipe, "a", "x")
        await pipe.apply(EventAdded(address("a"), event(1), 1))
        with pytest.raises(WrongMode, match="another key"):
            await node.incoming.open("a", OTHER_KEY, "")
        pipe.close()
        await asyncio.sleep(60 + A_WHILE_S)
        assert node.names() == ["own"]
        pipe = await node.incoming.open("a", OTHER_KEY, "source")
        await add(pipe, "a", "x")
        await pipe.apply(EventAdded(address("a"), event(1), 1))
        assert await node.read("a") == [b"1"]
