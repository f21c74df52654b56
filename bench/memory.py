"""M1 to M4: by how many bytes the process grows for what it only has to keep."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.contestants import BROKERS, Contestant
from bench.events import BODY
from bench.http import CREATED, Connection, open_reads
from bench.processes import most_connections, resident_bytes
from bench.report import BYTES, Figure
from bench.requests import CONNECTIONS
from bench.rounds import Plan, progress
from bench.servers import Broker, read_request, write_request

WARM = 500
"""The number of things made before, so that memory that is needed only once does not count."""
CAPACITY = 100
"""How many events the default channel holds, and that of the Rust broker."""

Make = Callable[[int], None]
"""Makes so many more of the things that are measured."""
Prepare = Callable[[Broker, int, ExitStack], Make]
"""Makes what that many things need, and the function that makes them."""


def idle_channels(server: Broker, _count: int, _stack: ExitStack) -> Make:
    def make(count: int) -> None:
        server.make_channels(count)

    return make


def idle_reads(server: Broker, count: int, stack: ExitStack) -> Make:
    unread = iter(server.make_channels(count))

    def make(count: int) -> None:
        requests = [read_request(next(unread)) for _ in range(count)]
        for read in open_reads(server.http_port, requests):
            stack.callback(read.close)

    return make


def idle_connections(server: Broker, _count: int, stack: ExitStack) -> Make:
    """Each connection writes once, to a channel that is read, so that no events stay."""
    [route] = server.routes(1)
    assert route.read is not None
    [read] = open_reads(server.http_port, [route.read])
    stack.callback(read.close)

    def make(count: int) -> None:
        for _ in range(count):
            connection = Connection(server.http_port)
            stack.callback(connection.close)
            connection.ask(route.write, CREATED)
            read.take(1)

    return make


def buffered_events(server: Broker, count: int, stack: ExitStack) -> Make:
    """Each event is written by a request of its own, so that none shares memory with another."""
    channels = server.make_channels(count // CAPACITY)
    connections = [Connection(server.http_port) for _ in range(CONNECTIONS)]
    for connection in connections:
        stack.callback(connection.close)
    unsent = iter([write_request(channel) for channel in channels] * CAPACITY)

    def make(count: int) -> None:
        for start in range(0, count, CONNECTIONS):
            some = connections[: count - start]
            for connection in some:
                connection.send(next(unsent))
            for connection in some:
                connection.answer(CREATED)

    return make


@dataclass(frozen=True, slots=True)
class MemoryScenario:
    name: str
    what: str
    prepare: Prepare
    count: Callable[[Plan], int]

    async def measure(self, contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
        """Measure each contestant once, because the memory hardly depends on other processes."""
        count, grown = self.count(plan), {}
        for contestant in contestants:
            if contestant.name in BROKERS:
                async with contestant.start() as server:
                    assert isinstance(server, Broker)
                    bytes_each = await asyncio.to_thread(self._growth, server, count)
                grown[contestant.name] = [bytes_each]
                progress(f"{self.name}: {contestant.name} {bytes_each:,.0f} B")
        notes = [f"what the process grew by for {count:,}"]
        return [Figure(name=self.name, what=self.what, unit=BYTES, rounds=grown, notes=notes)]

    def _growth(self, server: Broker, count: int) -> float:
        """Return by how many bytes the process grows for each of so many."""
        with ExitStack() as stack:
            make = self.prepare(server, WARM + count, stack)
            make(WARM)
            before = resident_bytes(server.pid)
            make(count)
            return (resident_bytes(server.pid) - before) / count


def most_open(plan: Plan) -> int:
    return min(plan.open_reads, most_connections() - WARM)


CHANNEL = MemoryScenario("M1", "idle channel", idle_channels, lambda plan: plan.idle_channels)
READ = MemoryScenario("M2", "idle open read", idle_reads, most_open)
EVENT = MemoryScenario(
    "M3",
    f"buffered event of {len(BODY)} bytes",
    buffered_events,
    lambda plan: plan.buffered_events,
)
CONNECTION = MemoryScenario(
    "M4", "idle keep-alive connection of a writer", idle_connections, most_open
)
