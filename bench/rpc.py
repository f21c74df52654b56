"""G1 to G4: events over gRPC. The Rust broker has no such face, so a bare server is the ceiling.

The clients are Python with grpc.aio like the servers, and take about as much time. So a server may
not be busy all the time, and only the rates per second of its CPU time count.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import grpc

from bench.bare import Bare
from bench.contestants import BARE, BEFORE, COMPILED, OURS, Contestant
from bench.events import BODIES, BODY, STREAM_ID
from bench.http import Channel
from bench.latency import CHANNELS, PER_SECOND, Latencies, alternate_latencies, figures
from bench.processes import HOST, BenchError, resident_bytes
from bench.report import BYTES, Figure, rate
from bench.rounds import Measure, Plan, Sample, Watch, alternate, progress
from bench.servers import Broker
from megaphone_api.v1 import channels_pb2 as pb

WHO = frozenset({OURS, COMPILED, BEFORE, BARE})
SERVICE = "/megaphone.v1.ChannelService"
BATCHES = (10, 50, 100)
PUBLISHERS = 4
CALLERS = 32
READS = 64
STREAMS = 100
"""The number of idle reads that share a connection."""
ARRIVES_WITHIN_S = 15
NOTE = f"{BARE} is a bare server that sends messages made beforehand"

Server: TypeAlias = Broker | Bare
ReadCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.ReadRequest, pb.ReadResponse]"
Arrived = Callable[[int], None]
"""Is called with the number of events that came."""


# -- Clients


class Client:
    """Two connections to a server: one to write, one to read."""

    def __init__(self, stack: AsyncExitStack, server: Server) -> None:
        self.server = server
        self._stack = stack
        self._target = f"{HOST}:{server.grpc_port}"

    @classmethod
    async def connected(cls, stack: AsyncExitStack, server: Server) -> "Client":
        client = cls(stack, server)
        await client._connect()
        return client

    async def read_by_another_connection(self) -> None:
        # Otherwise all would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        connection = grpc.aio.insecure_channel(self._target, options)
        self._to_read = await self._stack.enter_async_context(connection)

    async def _connect(self) -> None:
        await self.read_by_another_connection()
        self._to_write = await self._stack.enter_async_context(
            grpc.aio.insecure_channel(self._target)
        )
        self.write: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        self.write = self._to_write.unary_unary(f"{SERVICE}/Write")

    async def read(self, channel: Channel, arrived: Arrived) -> None:
        """Open a read. Return when it has begun."""
        read: grpc.aio.UnaryStreamMultiCallable[pb.ReadRequest, pb.ReadResponse]
        read = self._to_read.unary_stream(
            f"{SERVICE}/Read",
            request_serializer=pb.ReadRequest.SerializeToString,
            response_deserializer=pb.ReadResponse.FromString,
        )
        call = read(pb.ReadRequest(consumer_address=channel.consumer))
        self._stack.callback(call.cancel)
        await call.initial_metadata()

        async def take() -> None:
            async for response in call:
                arrived(len(response.events))

        self._stack.callback(asyncio.create_task(take()).cancel)

    def publisher(self, channel: Channel, batch: int) -> Callable[[], Awaitable[None]]:
        """Return a function that publishes a batch and waits for the answer."""
        publish: grpc.aio.StreamStreamMultiCallable[bytes, pb.PublishResponse]
        publish = self._to_write.stream_stream(
            f"{SERVICE}/Publish", response_deserializer=pb.PublishResponse.FromString
        )
        call = publish()
        self._stack.callback(call.cancel)
        events = [
            pb.WriteRequest(producer_address=channel.producer, stream_id=STREAM_ID, body=body)
            for body in BODIES[:batch]
        ]
        request = pb.PublishRequest(events=events).SerializeToString()

        async def send() -> None:
            await call.write(request)
            answer = await call.read()
            if not isinstance(answer, pb.PublishResponse):
                raise BenchError("the server ended a stream of batches")
            if not all(result.event_id for result in answer.results):
                raise BenchError("events of a batch were refused")

        return send


def write_request(channel: Channel) -> bytes:
    request = pb.WriteRequest(producer_address=channel.producer, stream_id=STREAM_ID, body=BODY)
    return request.SerializeToString()


class Arrivals:
    """Counts the events that came."""

    def __init__(self) -> None:
        self._count = 0
        self._wanted = 0
        self._all_came = asyncio.Event()

    def add(self, events: int) -> None:
        self._count += events
        if self._count >= self._wanted:
            self._all_came.set()

    async def wait_for(self, events: int) -> None:
        """Wait until so many more have come than were waited for. Raises: BenchError."""
        self._wanted += events
        if self._count < self._wanted:
            self._all_came.clear()
            try:
                async with asyncio.timeout(ARRIVES_WITHIN_S):
                    await self._all_came.wait()
            except TimeoutError:
                raise BenchError(f"{self._wanted - self._count} events never came") from None
        if self._count > self._wanted:
            raise BenchError("more events came than were written")


@asynccontextmanager
async def running(contestants: Sequence[Contestant]) -> AsyncIterator[dict[str, Client]]:
    """Start those who take part, and connect to them."""
    async with AsyncExitStack() as servers, AsyncExitStack() as connections:
        clients = {}
        for contestant in contestants:
            if contestant.name in WHO:
                server = await servers.enter_async_context(contestant.start())
                assert isinstance(server, Broker | Bare)
                clients[contestant.name] = await Client.connected(connections, server)
        yield clients


async def channels(client: Client, count: int) -> list[Channel]:
    return await asyncio.to_thread(client.server.make_channels, count)


# -- G1


async def measure_batches(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    return [await measure_batch(contestants, plan, batch) for batch in BATCHES]


async def measure_batch(contestants: Sequence[Contestant], plan: Plan, batch: int) -> Figure:
    async with running(contestants) as clients:
        sides = {name: await publishing(client, batch) for name, client in clients.items()}
        samples = await alternate(f"G1 {batch}", plan, sides)
    what = f"Publish and Read in batches of {batch}, events"
    return rate(f"G1 {batch}", what, samples, [f"{PUBLISHERS} writers and readers; {NOTE}"])


async def publishing(client: Client, batch: int) -> Measure:
    arrivals, publishers = Arrivals(), []
    for channel in await channels(client, PUBLISHERS):
        await client.read(channel, arrivals.add)
        publishers.append(client.publisher(channel, batch))
    return repeating(client.server.pid, publishers, batch, arrivals)


def repeating(
    pid: int, sends: Sequence[Callable[[], Awaitable[None]]], events: int, arrivals: Arrivals
) -> Measure:
    """Return a measurement in which each sends again as soon as it is answered."""

    async def measure(seconds: float) -> Sample:
        watch, count = Watch(pid), 0

        async def repeat(send: Callable[[], Awaitable[None]]) -> None:
            nonlocal count
            while time.monotonic() < watch.began + seconds:
                await send()
                count += events

        async with asyncio.TaskGroup() as group:
            for send in sends:
                group.create_task(repeat(send))
        await arrivals.wait_for(count)
        return watch.sample(count)

    return measure


# -- G2


async def measure_writes(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    async with running(contestants) as clients:
        sides = {name: await writing(client) for name, client in clients.items()}
        samples = await alternate("G2", plan, sides)
    notes = [f"{CALLERS} calls at once to {READS} open reads; {NOTE}"]
    return [rate("G2", "unary Write, writes", samples, notes)]


async def writing(client: Client) -> Measure:
    arrivals, turn = Arrivals(), 0
    made = await channels(client, READS)
    for channel in made:
        await client.read(channel, arrivals.add)
    requests = [write_request(channel) for channel in made]

    async def send() -> None:
        nonlocal turn
        turn += 1
        await client.write(requests[turn % READS])

    return repeating(client.server.pid, [send] * CALLERS, 1, arrivals)


# -- G3


async def measure_latency(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    async with running(contestants) as clients:
        flows = {name: await flow(client) for name, client in clients.items()}
        rounds = await alternate_latencies("G3", plan, flows)
    what = f"{PER_SECOND} unary writes a second over {CHANNELS} channels"
    return figures("G3", what, rounds, ["with the time of the client, which is in Python too"])


async def flow(client: Client) -> Callable[[float], Awaitable[Latencies]]:
    """Return a measurement that writes steadily and takes the time until each event is read."""
    made, arrivals = await channels(client, CHANNELS), Arrivals()
    requests = [write_request(channel) for channel in made]
    sent: list[deque[float]] = [deque() for _ in made]
    times: list[float] = []

    async def open_read(number: int) -> None:
        def arrived(events: int) -> None:
            now = time.perf_counter()
            times.extend(now - sent[number].popleft() for _ in range(events))
            arrivals.add(events)

        await client.read(made[number], arrived)

    for number in range(CHANNELS):
        await open_read(number)

    async def measure(seconds: float) -> Latencies:
        watch = Watch(client.server.pid)
        times.clear()
        total, began = int(seconds * PER_SECOND), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for count in range(total):
                await asyncio.sleep(max(0.0, began + count / PER_SECOND - time.perf_counter()))
                sent[count % CHANNELS].append(time.perf_counter())
                group.create_task(call(requests[count % CHANNELS]))
        await arrivals.wait_for(total)
        return Latencies(times.copy(), watch.sample(total))

    async def call(request: bytes) -> None:
        await client.write(request)

    return measure


# -- G4


async def measure_idle_reads(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    """Measure each contestant once, because the memory hardly depends on other processes."""
    count, grown = plan.open_rpc_reads, {}
    async with running(contestants) as clients:
        for name, client in clients.items():
            grown[name] = [await growth_by_reads(client, count)]
            progress(f"G4: {name} {grown[name][0]:,.0f} B")
    notes = [f"what the process grew by for {count:,}, {STREAMS} to a connection"]
    return [Figure(name="G4", what="idle gRPC read", unit=BYTES, rounds=grown, notes=notes)]


async def growth_by_reads(client: Client, count: int) -> float:
    """Return by how many bytes the process grows for each of so many reads."""
    made = await channels(client, STREAMS + count)
    before = 0
    for start in range(0, len(made), STREAMS):
        await client.read_by_another_connection()
        await asyncio.gather(
            *(client.read(channel, ignore) for channel in made[start : start + STREAMS])
        )
        # The first ones do not count, because they need some memory only once.
        before = before or resident_bytes(client.server.pid)
    return (resident_bytes(client.server.pid) - before) / count


def ignore(_events: int) -> None:
    """Nothing comes."""
