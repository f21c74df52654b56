"""One HTTP write per request, beside a bare aiohttp handler that answers the same bytes.

Nobody reads meanwhile, because a read would use the server's core, and the bare handler has no
reads. No write waits for a place, because every round writes to new channels whose capacity is
larger than the number of writes in a round.
"""

from bench.events import STREAM_ID
from bench.load import Load
from bench.processes import bare, broker
from bench.raw import make_channels
from bench.report import Result, Target, compared
from bench.rounds import Plan, Sample, Watch, alternate

CHANNELS = 8
CAPACITY = 100_000
TARGET = Target(0.8)


async def measure(plan: Plan) -> list[Result]:
    load = Load.chosen(plan.load)
    async with broker(buffer_capacity=CAPACITY) as ours, bare("write") as baseline:

        async def write(pid: int, port: int, seconds: float) -> Sample:
            channels = await make_channels(ours.http_port, CHANNELS)
            paths = [f"/write/{channel.producer}/{STREAM_ID}" for channel in channels]
            watch = Watch(pid)
            return watch.sample(*await load.write(port, paths, seconds))

        rounds = await alternate(
            "write",
            plan,
            lambda seconds: write(ours.pid, ours.http_port, seconds),
            lambda seconds: write(baseline.pid, baseline.port, seconds),
        )
    result = compared(
        "write",
        "HTTP writes, one per request",
        rounds,
        against="a bare aiohttp route that reads the body and answers the same",
        target=TARGET,
        notes=[f"load: {load.name}; nobody reads meanwhile, and no buffer gets full"],
    )
    return [result]
