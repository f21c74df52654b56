"""L1: how long an event takes from the write to the reader, at a load that leaves time."""

import asyncio
import select
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from bench.contestants import BROKERS, NCHAN, Contestant
from bench.http import CREATED, Connection, Read, open_reads
from bench.processes import BenchError
from bench.report import MILLISECONDS, Figure
from bench.rounds import Plan, progress, rotated
from bench.scenario import running
from bench.servers import Server

CHANNELS = 100
PER_SECOND = 500
LAST_WAIT_S = 10
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


class Flow:
    """Writes to channels in turn at a steady rate, and takes the time until each event is read.

    A write is sent when it is due, whether or not those before it have been answered. So a server
    that stands still makes all the writes of that time late.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        routes = server.routes(CHANNELS)
        reads = open_reads(server.http_port, [route.read for route in routes if route.read])
        self._reads: dict[int, tuple[Read, deque[float]]] = {
            read.fileno(): (read, deque()) for read in reads
        }
        self._poll = select.epoll()
        stack.callback(self._poll.close)
        self._writers: list[tuple[Connection, bytes, deque[float]]] = []
        for route, (read, sent) in zip(routes, self._reads.values(), strict=True):
            self._poll.register(read.fileno(), select.EPOLLIN)
            stack.callback(read.close)
            connection = Connection(server.http_port)
            stack.callback(connection.close)
            self._writers.append((connection, route.write, sent))
        self.unanswered: set[Connection] = set()

    def measure(self, seconds: float) -> list[float]:
        """Return the time of each event, in seconds."""
        times: list[float] = []
        count, began = 0, time.perf_counter()
        total = int(seconds * PER_SECOND)
        while len(times) < total:
            due = began + count / PER_SECOND
            if count < total and time.perf_counter() >= due:
                self._write(count)
                count += 1
                continue
            wait_s = max(0.0, due - time.perf_counter()) if count < total else LAST_WAIT_S
            ready = self._poll.poll(wait_s)
            if not ready and count == total:
                raise BenchError(f"{total - len(times)} of {total} events never came")
            for descriptor, _ in ready:
                read, sent = self._reads[descriptor]
                arrived = time.perf_counter()
                times += [arrived - sent.popleft() for _ in range(read.take_what_came())]
        for connection, _, _ in self._writers:
            self._take_answer(connection)
        return times

    def _write(self, number: int) -> None:
        connection, request, sent = self._writers[number % CHANNELS]
        self._take_answer(connection)
        sent.append(time.perf_counter())
        connection.send(request)
        self.unanswered.add(connection)

    def _take_answer(self, connection: Connection) -> None:
        if connection in self.unanswered:
            connection.answer(CREATED)
            self.unanswered.discard(connection)


def percentile(times: Sequence[float], share: float) -> float:
    """Return the time that so large a share of the times does not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    async with running(contestants, BROKERS | {NCHAN}, Server, Flow) as sides:
        for side in sides.values():
            await asyncio.to_thread(side.measure, plan.warm_up_s)
        rounds: dict[str, list[list[float]]] = {name: [] for name in sides}
        for number in range(plan.latency_rounds):
            for name in rotated(list(sides), number):
                times = await asyncio.to_thread(sides[name].measure, plan.latency_s)
                rounds[name].append([one * 1000 for one in times])
                progress(
                    f"L1: round {number + 1}, {name}: {percentile(rounds[name][-1], 0.5):.2f} ms"
                )
    return [
        Figure(
            name=f"L1 {name}",
            what=f"{PER_SECOND} writes a second over {CHANNELS} channels, {name}",
            unit=MILLISECONDS,
            rounds={
                side: [percentile(times, share) for times in all_] for side, all_ in rounds.items()
            },
        )
        for name, share in PERCENTILES.items()
    ]
