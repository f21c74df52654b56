"""The memory of an idle channel, and of an open read without events.

`python -m bench.memory WAY COUNT` creates idle channels and prints how many bytes each takes,
measured by the resident memory of the process (`resident`) or by Python's allocations (`traced`).
"""

import asyncio
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc

from bench.fanout import open_reads
from bench.processes import HOST, broker, output_of, resident_bytes, server_cores
from bench.raw import Tally, make_channels
from bench.report import BYTES, Result, Target
from bench.rounds import Plan, progress
from bench.streams import read_call
from megaphone.cli.serve import new_event_loop
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.model import AgentMode
from megaphone.observe.metrics import Metrics
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore

IDLE_CHANNEL = Target(1_500, at_most=True)
IDLE_HTTP_READ = Target(16_000, at_most=True)
WARM = 100
"""The number of channels made before, so that allocations that happen only once do not count."""
STREAMS_PER_CONNECTION = 100


# -- Channels


async def measure_channels(plan: Plan) -> list[Result]:
    progress(f"idle-channel: making {plan.idle_channels:,} channels, twice")
    resident, traced = await asyncio.gather(
        bytes_per_channel("resident", plan.idle_channels, None),
        bytes_per_channel("traced", plan.idle_channels, server_cores()),
    )
    return [
        Result(
            name=f"idle-channel-{way}",
            what=f"idle channel, {way} memory",
            unit=BYTES,
            ours=value,
            target=IDLE_CHANNEL,
            notes=[f"of {plan.idle_channels:,} channels in one process; {how}"],
        )
        for way, value, how in (
            ("resident", resident, "what the process grew by"),
            ("traced", traced, "what Python allocated, by tracemalloc"),
        )
    ]


async def bytes_per_channel(way: str, count: int, on_cores: set[int] | None) -> float:
    command = [sys.executable, "-m", "bench.memory", way, str(count)]
    return float(await output_of(command, on_cores))


def resident_here() -> int:
    return resident_bytes(os.getpid())


def traced_here() -> int:
    return tracemalloc.get_traced_memory()[0]


async def grow(count: int, used: Callable[[], int]) -> float:
    """Create channels. Returns: by how many bytes each of them made `used` grow."""
    observer = Metrics()
    settings = Settings(max_channels=count + WARM)
    store = MemoryStore(
        limits=settings.channel_limits(),
        max_channels=settings.max_channels,
        write_timeout_s=settings.write_timeout_millis / 1000,
        budget=Budget(),
    )
    agents = Agents(warmup_s=0)
    agents.add("bench", AgentMode.MASTER, asyncio.get_running_loop().time())
    owner = Broker(store=store, agents=agents, settings=settings, observer=observer)
    for _ in range(WARM):
        await owner.create()
    gc.collect()
    before = used()
    for _ in range(count):
        await owner.create()
    gc.collect()
    return (used() - before) / count


# -- Reads


async def measure_http_reads(plan: Plan) -> list[Result]:
    count = plan.open_reads
    progress(f"idle-http-read: opening {count:,} reads")
    tally = Tally()
    async with broker() as ours:
        channels = await make_channels(ours.http_port, WARM + count)
        paths = [f"/read/{channel.consumer}" for channel in channels]
        reads = await open_reads(ours.http_port, paths[:WARM], tally)
        before = resident_bytes(ours.pid)
        reads += await open_reads(ours.http_port, paths[WARM:], tally)
        after = resident_bytes(ours.pid)
        for read in reads:
            read.close()
    return [
        Result(
            name="idle-http-read",
            what="idle HTTP read, resident memory",
            unit=BYTES,
            ours=(after - before) / count,
            target=IDLE_HTTP_READ,
            notes=[f"of {count:,} open reads, each a connection of its own"],
        )
    ]


async def measure_grpc_reads(plan: Plan) -> list[Result]:
    count = plan.open_reads
    progress(f"idle-grpc-read: opening {count:,} reads")
    async with broker() as ours, AsyncExitStack() as stack:
        channels = await make_channels(ours.http_port, WARM + count)
        consumers = [channel.consumer for channel in channels]
        target = f"{HOST}:{ours.grpc_port}"
        await open_grpc_reads(stack, target, consumers[:WARM])
        before = resident_bytes(ours.pid)
        await open_grpc_reads(stack, target, consumers[WARM:])
        after = resident_bytes(ours.pid)
    return [
        Result(
            name="idle-grpc-read",
            what="idle gRPC read, resident memory",
            unit=BYTES,
            ours=(after - before) / count,
            notes=[f"of {count:,} open reads, {STREAMS_PER_CONNECTION} to a connection"],
        )
    ]


async def open_grpc_reads(stack: AsyncExitStack, target: str, consumers: list[str]) -> None:
    """Open reads that stay open until the stack ends. Return when all have begun."""
    for start in range(0, len(consumers), STREAMS_PER_CONNECTION):
        options = [
            ("grpc.use_local_subchannel_pool", 1)
        ]  # otherwise all would share one connection
        connection = await stack.enter_async_context(grpc.aio.insecure_channel(target, options))
        calls = [
            read_call(connection, consumer)
            for consumer in consumers[start : start + STREAMS_PER_CONNECTION]
        ]
        for call in calls:
            stack.callback(call.cancel)
        await asyncio.gather(*(call.initial_metadata() for call in calls))


if __name__ == "__main__":
    way, count = sys.argv[1], int(sys.argv[2])
    if way == "traced":
        tracemalloc.start()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(runner.run(grow(count, traced_here if way == "traced" else resident_here)))
