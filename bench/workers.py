"""P1: two workers beside one, with their channels in a Redis whose CPU time counts apart.

The workers of a broker share one core here, as every measured server does, so the figures are per
second of their CPU time: with a core for each, two workers do twice as much as the figure says.

The more requests a worker finds whenever it looks, the less each of them takes. So each worker has
as many clients in both brokers, and two workers have twice as many as one. A client writes again as
soon as it is answered, whichever worker answers first.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.contestants import OUR_SETTINGS, OURS, Contestant, missing_redis
from bench.processes import START_TIMEOUT_S, BenchError, children_of
from bench.report import Figure, rate
from bench.requests import prepare_writes, repeat_as_answered
from bench.rounds import Plan, Sample, alternate, core_seconds, in_thread
from bench.servers import Broker, broker
from tests.support.redis_server import redis_server

ONE = "one worker"
CROWD = 2
"""How many times as many connections as in W1 each worker has."""
SERVES = "serves HTTP on"


@dataclass(frozen=True, slots=True)
class Workers(Broker):
    """A broker with several workers."""

    workers: tuple[int, ...]

    @property
    def pids(self) -> tuple[int, ...]:
        """The supervisor computes nothing while clients write."""
        return self.workers


class Side:
    """The writes to one broker, and what they take of its Redis."""

    def __init__(self, write: Callable[[float], Sample], redis_pid: int) -> None:
        self._write = write
        self._redis_pid = redis_pid
        self.of_redis: list[Sample] = []

    def write(self, seconds: float) -> Sample:
        before = core_seconds(self._redis_pid)
        sample = self._write(seconds)
        took = core_seconds(self._redis_pid) - before
        self.of_redis.append(replace(sample, core_seconds=took))
        return sample


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    """Raises: BenchError, if there is no Redis."""
    if (why := missing_redis()) is not None:
        raise BenchError(why)
    async with AsyncExitStack() as servers:
        with ExitStack() as connections:
            sides: dict[str, Side] = {}
            for name, count in ((OURS, 2), (ONE, 1)):
                redis = servers.enter_context(redis_server())
                started = await servers.enter_async_context(with_workers(count, redis.text_url))
                write = await asyncio.to_thread(
                    prepare_writes,
                    started,
                    connections,
                    times=CROWD * count,
                    repeat=repeat_as_answered,
                )
                sides[name] = Side(write, redis.pid)
            samples = await alternate(
                "P1", plan, {name: in_thread(side.write) for name, side in sides.items()}
            )
    of_redis = {name: side.of_redis[-plan.rounds :] for name, side in sides.items()}
    return [
        rate("P1 workers", "one write a request, writes per CPU of the workers", samples),
        rate("P1 Redis", "the same writes per CPU of Redis", of_redis),
    ]


@asynccontextmanager
async def with_workers(count: int, store: str) -> AsyncIterator[Broker]:
    program = Path(sys.executable).with_name("megaphone")
    command = [str(program), "serve", "--workers", str(count)]
    async with broker(command, {**OUR_SETTINGS, "store": store}) as started:
        if count == 1:
            yield started
            return
        await all_serve(started.socket_path.with_name("log"))
        workers = await children_of(started.pid, count)
        yield Workers(
            started.pid, started.http_port, started.grpc_port, started.socket_path, workers
        )


async def all_serve(log: Path) -> None:
    """Wait until all workers serve, because connections stay with the worker that accepts them."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            if SERVES in log.read_text():
                return
            await asyncio.sleep(0.05)
