"""A broker with its store and its operators, without any face."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from megaphone.cluster.incoming import IncomingPipes
from megaphone.cluster.moves import Drains
from megaphone.cluster.outgoing import OutgoingPipes
from megaphone.core.access import ANYONE
from megaphone.core.admin import Admin
from megaphone.core.agents import AgentDirectory, Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.reader import Reader
from megaphone.core.reading import Reading
from megaphone.core.tenants import Tenants
from megaphone.model import AgentMode, NewChannel, NewEvent, ReadOptions
from megaphone.observe.metrics import Metrics
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore


class Node:
    """A broker with the default settings, or some of them changed.

    It is made when it is first used: virtual time begins with the test, not with its fixtures.
    """

    def __init__(
        self,
        settings: Settings,
        mode: AgentMode = AgentMode.MASTER,
        directory: AgentDirectory | None = None,
        let_others_have: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """With a directory the node has only the agents that a test introduces."""
        self._let_others_have = let_others_have
        self.metrics = Metrics()
        self._directory = directory
        self._settings = settings
        self._mode = mode

    @cached_property
    def broker(self) -> Broker:
        return Broker(
            store=self.store, agents=self.agents, settings=self._settings, observer=self.metrics
        )

    @cached_property
    def admin(self) -> Admin:
        parts: Any = {"agents": self.agents, "store": self.store}
        more = parts | {"replication": self.store.replication}
        pipes = OutgoingPipes(**more, observer=self.metrics, nodes=Settings().nodes)
        incoming = IncomingPipes(
            **more, settings=Settings(), observer=self.metrics, tenants=Tenants()
        )
        drains = Drains(
            **more, broker=self.broker, incoming=incoming, pipes=pipes, observer=self.metrics
        )
        return Admin(
            **parts,
            pipes=pipes,
            drains=drains,
            counts=self.metrics,
            let_others_have=self._let_others_have,
        )

    @cached_property
    def store(self) -> MemoryStore:
        settings = self._settings
        return MemoryStore(
            limits=settings.channel_limits(),
            max_channels=settings.max_channels,
            write_timeout_s=settings.write_timeout_millis / 1000,
            budget=Budget(self._settings.max_buffered_bytes or sys.maxsize),
            on_removed=lambda _, age_s, lost: self.metrics.channel_removed(age_s, lost),
            on_evicted=self.metrics.events_lost,
        )

    @cached_property
    def agents(self) -> Agents:
        agents = Agents(self._settings.agent_warmup_secs, directory=self._directory)
        if self._directory is None:
            agents.add("node", self._mode, now())
        return agents

    async def write(self, channel: NewChannel, *numbers: int) -> None:
        for number in numbers:
            await self.broker.write(
                ANYONE, channel.producer_address, NewEvent("s", str(number).encode())
            )

    def open(self, channel: NewChannel, options: ReadOptions | None = None) -> Reading[Reader]:
        return self.broker.read(ANYONE, channel.consumer_address, options)

    async def read(self, channel: NewChannel, options: ReadOptions | None = None) -> list[int]:
        """Read to the clean end."""
        async with self.open(channel, options) as reader:
            return [int(event.body) async for batch in reader for event in batch]


def now() -> float:
    return asyncio.get_running_loop().time()


WARM = Settings(agent_warmup_secs=0)
