"""What a write costs more because somebody asks who writes, and how much that tenant may.

`python -m bench.shares` writes events to a broker in this process, each by one call and without
sockets: on a node that knows no callers, by a caller with a token, and by one whose tenant has
limits. It prints the CPU time of a write, and what the others cost more than the first.
"""

import asyncio
import time
from collections.abc import Mapping
from statistics import median
from typing import Final

from megaphone.cli.serve import new_event_loop
from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.pace import loop_time
from megaphone.core.tenants import Tenant, Tenants
from megaphone.model import AgentMode, NewEvent, ReadOptions
from megaphone.observe.metrics import Metrics
from megaphone.settings import Settings, TenantLimits
from megaphone.store.memory import MemoryStore

WRITES: Final = 2_000
"""How many events are written in one measurement."""
ROUNDS: Final = 15
CAPACITY: Final = WRITES
BODY: Final = b'{"hello":"world"}'
LIMIT_US: Final = 1.0
"""How much more a write may cost."""
LIMITS: Final = TenantLimits(
    creates_per_s=1e6,
    channels=1_000_000,
    reads=1_000_000,
    writes_per_s=1e9,
    bytes_per_s=1e12,
    buffered_bytes=1 << 40,
)


def callers(tenants: Tenants) -> Mapping[str, Caller]:
    """Return those who write, by what they are."""

    def with_token(tenant: Tenant) -> Caller:
        grants = [Grant(frozenset(Action))]
        return Caller("token", tenant, grants, required=tuple(Action))

    return {
        "no callers": ANYONE,
        "a token": with_token(tenants.named("plain")),
        "a token and limits": with_token(tenants.named("limited")),
    }


async def measured(writes: int = WRITES, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the CPU time of a write in microseconds, by who writes."""
    settings = Settings(agent={"node": AgentMode.MASTER}, buffer_capacity=CAPACITY)
    agents = Agents(0.0)
    agents.add("node", AgentMode.MASTER, loop_time())
    store = MemoryStore(
        limits=settings.channel_limits(),
        max_channels=1_000,
        write_timeout_s=1.0,
        budget=Budget(),
    )
    tenants = Tenants({"plain": TenantLimits(), "limited": LIMITS})
    broker = Broker(
        store=store, agents=agents, settings=settings, observer=Metrics(), tenants=tenants
    )
    costs: dict[str, list[float]] = {}
    for _ in range(rounds):
        # In turn, so that what else the machine does falls on all alike.
        for name, caller in callers(tenants).items():
            costs.setdefault(name, []).append(await one_round(broker, caller, writes))
    await store.aclose()
    return {name: min(each) for name, each in costs.items()}


async def one_round(broker: Broker, caller: Caller, writes: int) -> float:
    """Return the CPU time of a write in microseconds, in one channel of the caller."""
    channel = await broker.create(caller)
    new, address, write = NewEvent("s", BODY), channel.producer_address, broker.write_nowait
    samples = []
    for _ in range(4):
        begun = time.thread_time_ns()
        for _ in range(writes // 4):
            write(caller, address, new)
        samples.append((time.thread_time_ns() - begun) / 1_000 / (writes // 4))
    async with broker.read(caller, channel.consumer_address, ReadOptions(wait_s=0)) as reader:
        async for _ in reader:
            pass
    return median(samples)


def main() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        costs = runner.run(measured())
    least = costs["no callers"]
    for name, cost in costs.items():
        print(f"{name:<20} {cost:6.2f} us a write, {cost - least:+.2f} us")


if __name__ == "__main__":
    main()
