"""Large events for one reader: how fast it reads a backlog, in wall time.

Only our broker takes part; the goal is a rate.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from statistics import median

from bench.contestants import OURS, Contestant, our_broker
from bench.http import CREATED, Channel, Connection, post
from bench.processes import BenchError, output_of
from bench.report import MEGABYTES_PER_SECOND, Figure, Target
from bench.rounds import Plan, Watch, progress
from bench.servers import Broker

EVENTS = 100
BODY = b'"' + b"x" * 499_998 + b'"'
BYTES = EVENTS * len(BODY)
GOAL_BYTES_PER_S = 200_000_000


async def measure_http(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    return [await measure(plan, "http-large", "http", "one HTTP reader of 500 kB events")]


async def measure_grpc(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    return [await measure(plan, "grpc-large", "grpc", "one gRPC reader of 500 kB events")]


async def measure(plan: Plan, name: str, kind: str, what: str) -> Figure:
    rates, busy, busy_readers = [], [], []
    async with our_broker() as ours:
        port = ours.http_port if kind == "http" else ours.grpc_port
        for number in range(plan.rounds):
            channel = await asyncio.to_thread(filled_channel, ours)
            watch = Watch(ours.pid)
            read = await read_once(kind, port, channel)
            computed_s = watch.sample(EVENTS).core_seconds
            rates.append(BYTES / read["seconds"])
            busy.append(BYTES / computed_s)
            busy_readers.append(read["core_seconds"] / read["seconds"])
            progress(f"{name}: round {number + 1} of {plan.rounds}, {rates[-1] / 1e6:.0f} MB/s")
    return Figure(
        name=name,
        what=what,
        unit=MEGABYTES_PER_SECOND,
        rounds={OURS: rates},
        target=Target(GOAL_BYTES_PER_S),
        notes=(
            f"by the clock, from connecting to the end: {min(rates) / 1e6:,.0f} to"
            f" {max(rates) / 1e6:,.0f} MB/s; per second of computing of the server"
            f" {median(busy) / 1e6:,.0f} MB/s; the reader was busy {median(busy_readers):.0%}",
        ),
    )


def filled_channel(ours: Broker) -> Channel:
    """Create a channel and fill it with events."""
    [channel] = ours.make_channels(1)
    connection = Connection(ours.http_port)
    try:
        for _ in range(EVENTS):
            connection.ask(post(f"/write/{channel.producer}/large", BODY), CREATED)
    finally:
        connection.close()
    return channel


async def read_once(kind: str, port: int, channel: Channel) -> dict[str, float]:
    command = (sys.executable, "-m", "bench.large_reader", kind, str(port), channel.consumer)
    read: dict[str, float] = json.loads(await output_of(command))
    if read["bytes"] < BYTES:
        raise BenchError(f"{BYTES - read['bytes']:.0f} bytes of {BYTES} never came")
    return read
