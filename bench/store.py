"""How long each call of a store in memory, and of its replication, holds the event loop.

`python -m bench.store COUNT` makes a store with so many channels, makes each call, and prints how
long each one held the loop at most between two turns of another task.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace

from bench.contestants import OURS, Contestant
from bench.processes import output_of, server_cores
from bench.report import MILLISECONDS, Figure, Target
from bench.rounds import Plan, progress
from megaphone.cli.serve import new_event_loop
from megaphone.cluster.ports import Changes
from megaphone.core.budget import Budget
from megaphone.core.ports import Append
from megaphone.model import (
    START,
    Event,
    EventAdded,
    Progress,
    ProgressMade,
    ReadOptions,
)
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore

CHANNELS = 100_000
BLOCKED = 20_000
"""How many of the channels have a writer that waits for room."""
LIMIT = Target(1.0, at_most=True)
CAPACITY = 3
TTL_S = 8.0
AT_ONCE = 42
"""How many events the broker appends in one call."""
SETTLE_S = 0.2
NOTES = (
    "the longest that the loop's thread computed between two turns of another task, the least of"
    f" all rounds; {CHANNELS:,} channels of one agent",
)


class Turns:
    """A task that takes every turn it gets, and notes how long it waited for one at most."""

    def __init__(self) -> None:
        self.held: dict[str, float] = {}

    @asynccontextmanager
    async def during(self, name: str) -> AsyncIterator[None]:
        """Note how long the loop is held within this context, under a name."""
        longest = 0.0

        async def take() -> None:
            nonlocal longest
            before = time.thread_time()
            while True:
                await asyncio.sleep(0)
                now = time.thread_time()
                longest = max(longest, now - before)
                before = now

        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        longest = 0.0
        yield
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self.held[name] = max(self.held.get(name, 0.0), longest * 1000)

    async def call(self, name: str, call: Callable[[], object]) -> object:
        """Make a call, a coroutine or not, and note how long it holds the loop."""
        async with self.during(name):
            result = call()
            if isinstance(result, Awaitable):
                result = await result
        return result


def channel_id(number: int) -> bytes:
    """Return an id whose bytes are as even as those of a real one, which is a hash."""
    return (number * 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835 % 2**128).to_bytes(16, "little")


def event(number: int) -> Event:
    return Event(f"{number:023}", "s", 0, b"{}")


def append(number: int) -> Append:
    return Append(channel_id(number), event(number))


async def run(count: int) -> dict[str, float]:
    store = MemoryStore(
        limits=replace(Settings().channel_limits(), capacity=CAPACITY, ttl_s=TTL_S),
        max_channels=count + 1,
        write_timeout_s=3_600.0,
        budget=Budget(),
    )
    addresses = [f"agent.{number:050}.1" for number in range(count)]
    replication, turns = store.replication, Turns()
    with ExitStack() as kept:
        kept.enter_context(replication.keep_alive("agent"))
        for number, address in enumerate(addresses):
            await store.create(channel_id(number), address)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(TTL_S + SETTLE_S)  # for all to be past their deadlines
        await of_clients(store, addresses, turns)
        await of_replication(store, addresses, turns)
        await turns.call("keep_alive, its end", kept.close)
    async with turns.during("expiry of half of the channels"):
        for number in range(count // 2):
            with suppress(Exception):
                await replication.allow_expiry(channel_id(number))
            if number % 100 == 0:
                await asyncio.sleep(0)
    await turns.call("quiesce", store.quiesce)
    async with turns.during("aclose"):
        await store.aclose()
        await asyncio.sleep(SETTLE_S)
    return turns.held


async def of_clients(store: MemoryStore, addresses: list[str], turns: Turns) -> None:
    last = len(addresses) - 1
    await turns.call("check_room", store.check_room)
    await turns.call("create", lambda: store.create(b"another", "agent.another.1"))
    await turns.call("remove", lambda: store.remove(b"another"))
    await turns.call("count", lambda: store.count("agent"))
    await turns.call("exists, 64", lambda: store.exists([channel_id(n) for n in range(64)]))
    await turns.call("list, the first 50", lambda: store.list("agent", 0, 50))
    await turns.call("list, the last 50", lambda: store.list("agent", last - 50, 50))
    await turns.call("list, the last 50 of all", lambda: store.list(None, last - 50, 50))
    await turns.call("list, all", lambda: store.list(None, 0, len(addresses)))
    writes = [append(number) for number in range(AT_ONCE)]
    await turns.call(f"append, {AT_ONCE}", lambda: store.append(writes, wait=False))
    await turns.call("append_nowait", lambda: store.append_nowait(append(0)))
    options = ReadOptions(acknowledge=True)
    lease = await store.open(channel_id(0), addresses[0], options)
    await turns.call("take", lambda: lease.take(100, 65_536, 0.0))
    await turns.call(
        "acknowledge", lambda: store.acknowledge(channel_id(0), addresses[0], f"{0:023}")
    )
    await turns.call("release of a lease", lambda: lease.release(clean=True, now=0.0))


async def of_replication(store: MemoryStore, addresses: list[str], turns: Turns) -> None:
    replication = store.replication
    changes = replication.follow("agent")
    await turns.call("follow", lambda: replication.follow("agent").close())
    await turns.call("Changes.restart", lambda: changes.restart(with_read=True))
    async with turns.during("Changes.take, everything"):
        await take_all(changes)
    async with turns.during("Changes.restart, after everything"):
        changes.restart(with_read=True)
        await asyncio.sleep(SETTLE_S)
    await take_all(changes)
    await turns.call("state", lambda: replication.state(channel_id(0)))
    added = EventAdded(addresses[1], event(-1), 1)
    await turns.call("apply, an event", lambda: replication.apply(channel_id(1), added))
    progressed = ProgressMade(addresses[1], Progress(START, START))
    await turns.call("apply, progress", lambda: replication.apply(channel_id(1), progressed))
    await turns.call("largest_capacity", lambda: replication.largest_capacity("agent"))
    async with turns.during("expired_but_kept, all in hundreds"):
        some: Sequence[str] = ("any",)
        while some:
            some = await replication.expired_but_kept("agent", 100)
            await asyncio.sleep(0)
    await turns.call("expire", lambda: replication.expire(channel_id(2)))
    await turns.call("release of a channel", lambda: replication.release(channel_id(3)))
    writers = await block(store, min(BLOCKED, len(addresses) // 2))
    await turns.call(f"blocked, {len(writers):,}", lambda: replication.blocked("agent"))
    await turns.call("advance", lambda: replication.advance(channel_id(5), f"{5:023}"))
    async with turns.during(f"refuse_writers, {len(writers):,}"):
        await replication.refuse_writers("agent")
    await asyncio.sleep(SETTLE_S)
    async with turns.during("Changes.close"):
        changes.close()
        await asyncio.sleep(SETTLE_S)


async def take_all(changes: Changes) -> None:
    more: Sequence[object] = (None,)
    while more:
        more = await changes.take(100, wait=False)
        await asyncio.sleep(0)


async def block(store: MemoryStore, count: int) -> list[asyncio.Task[object]]:
    """Have a writer wait for room in each of some channels."""
    writers: list[asyncio.Task[object]] = []
    for number in range(5, 5 + count):
        await store.append([append(number) for _ in range(CAPACITY)], wait=False)
        writers.append(asyncio.ensure_future(store.append([append(number)], wait=True)))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return writers


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    progress(f"store: making {CHANNELS:,} channels, {plan.store_rounds} times")
    rounds: list[dict[str, float]] = []
    for _ in range(plan.store_rounds):
        command = [sys.executable, "-m", "bench.store", str(CHANNELS)]
        rounds.append(json.loads(await output_of(command, server_cores())))
    return [
        Figure(
            name="store",
            what=f"held by {name}",
            unit=MILLISECONDS,
            rounds={OURS: [min(one[name] for one in rounds)]},
            target=LIMIT,
            notes=() if number else NOTES,
        )
        for number, name in enumerate(rounds[0])
    ]


if __name__ == "__main__":
    gc.disable()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(json.dumps(runner.run(run(int(sys.argv[1])))))
