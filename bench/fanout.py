"""One event to 1,000 channels, each with an open HTTP read, until all reads have the event."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench.events import BODIES, STREAM_ID
from bench.processes import bare, broker
from bench.raw import (
    Exchange,
    OpenRead,
    Tally,
    ask_batch,
    batch_body,
    make_channels,
    post,
)
from bench.report import Result, compared
from bench.rounds import Measure, Plan, Sample, Watch, alternate

AT_ONCE = 100
"""Connections that are opened at the same time."""


async def measure(plan: Plan) -> list[Result]:
    count = plan.open_reads
    async with broker() as ours, bare("sockets") as baseline:
        channels = await make_channels(ours.http_port, count)
        producers = [channel.producer for channel in channels]
        with ExitStack() as stack:
            rounds = await alternate(
                "fan-out",
                plan,
                await side(
                    stack,
                    ours.pid,
                    ours.http_port,
                    [f"/read/{channel.consumer}" for channel in channels],
                    post("/write-batch", batch_body(producers, BODIES[:1], STREAM_ID)),
                ),
                await side(
                    stack, baseline.pid, baseline.port, ["/read"] * count, post("/write", b"")
                ),
            )
    return [
        compared(
            "fan-out",
            f"one event to {count:,} HTTP reads, deliveries",
            rounds,
            against="transport.write of the same bytes to as many sockets",
        )
    ]


async def side(
    stack: ExitStack, pid: int, port: int, paths: Sequence[str], request: bytes
) -> Measure:
    tally = Tally()
    for read in await open_reads(port, paths, tally):
        stack.callback(read.close)
    exchange = await Exchange.connect(port)
    stack.callback(exchange.close)
    return deliverer(pid, exchange, request, tally, len(paths))


async def open_reads(port: int, paths: Sequence[str], tally: Tally) -> list[OpenRead]:
    reads = []
    for start in range(0, len(paths), AT_ONCE):
        some = [OpenRead.connect(port, path, tally) for path in paths[start : start + AT_ONCE]]
        reads += await asyncio.gather(*some)
    return reads


def deliverer(pid: int, exchange: Exchange, request: bytes, tally: Tally, reads: int) -> Measure:
    """Return a function that sends one event after the other, each when the last has arrived."""

    async def deliver(seconds: float) -> Sample:
        watch, before, sent = Watch(pid), tally.count, 0
        while time.monotonic() < watch.began + seconds:
            sent += reads
            await ask_batch(exchange, request)
            await tally.reach(before + sent)
        return watch.sample(sent)

    return deliver
