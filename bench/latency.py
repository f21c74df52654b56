"""L1: how long an event takes from the write to the reader, at a load that leaves time."""

import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.contestants import BROKERS, NCHAN, Contestant
from bench.http import CREATED, Connection, Read, open_reads
from bench.processes import BenchError
from bench.report import MILLISECONDS, Figure, medians, waiting_notes
from bench.rounds import Plan, Sample, Watch, in_thread, progress, rotated
from bench.scenario import running
from bench.servers import WriteServer

CHANNELS = 100
PER_SECOND = 500
LAST_WAIT_S = 10
TIMER_S = 0.002
"""How late the timer of the load may be, which is no fault of the server."""
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Latencies:
    """The time of each event of a round, in seconds, and the work of the server in that round."""

    times: Sequence[float]
    sample: Sample

    def percentile_ms(self, share: float) -> float:
        """Return the milliseconds that so large a share of the events does not exceed."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Flow:
    """Writes to channels in turn at a steady rate, and takes the time until each event is read.

    Each channel is written to five times a second, over a connection of its own. If an answer takes
    longer than that, it holds up all that follow, and these count from when they were due. So a
    server that stands still makes all the writes of that time late.
    """

    def __init__(self, server: WriteServer, stack: ExitStack) -> None:
        self._pid = server.pid
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
        self._unanswered: set[Connection] = set()

    def measure(self, seconds: float) -> Latencies:
        watch, times = Watch(self._pid), list[float]()
        count, began = 0, time.perf_counter()
        total = int(seconds * PER_SECOND)
        while len(times) < total:
            due = began + count / PER_SECOND
            if count < total and time.perf_counter() >= due:
                self._write(count, due)
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
        return Latencies(times, watch.sample(total))

    def _write(self, number: int, due: float) -> None:
        connection, request, sent = self._writers[number % CHANNELS]
        self._take_answer(connection)
        now = time.perf_counter()
        sent.append(now if now < due + TIMER_S else due)
        connection.send(request)
        self._unanswered.add(connection)

    def _take_answer(self, connection: Connection) -> None:
        if connection in self._unanswered:
            connection.answer(CREATED)
            self._unanswered.discard(connection)


async def measure(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    async with running(contestants, BROKERS | {NCHAN}, WriteServer, Flow) as sides:
        flows = {name: in_thread(side.measure) for name, side in sides.items()}
        rounds = await alternate_latencies("L1", plan, flows)
    return figures("L1", f"{PER_SECOND} writes a second over {CHANNELS} channels", rounds)


async def alternate_latencies(
    name: str, plan: Plan, sides: Mapping[str, Callable[[float], Awaitable[Latencies]]]
) -> dict[str, list[Latencies]]:
    """Measure all sides several times, each time beginning with another one."""
    for measure in sides.values():
        await measure(plan.warm_up_s)
    rounds: dict[str, list[Latencies]] = {side: [] for side in sides}
    for number in range(plan.latency_rounds):
        for side in rotated(list(sides), number):
            latencies = await sides[side](plan.latency_s)
            rounds[side].append(latencies)
            half = latencies.percentile_ms(0.5)
            progress(f"{name}: round {number + 1} of {plan.latency_rounds}: {side} {half:.2f} ms")
    return rounds


def figures(
    name: str, what: str, rounds: Mapping[str, Sequence[Latencies]], notes: Sequence[str] = ()
) -> list[Figure]:
    samples = {side: [one.sample for one in all_] for side, all_ in rounds.items()}
    return [
        Figure(
            name=f"{name} {rank}",
            what=f"{what}, {rank}",
            unit=MILLISECONDS,
            rounds={
                side: [one.percentile_ms(share) for one in all_] for side, all_ in rounds.items()
            },
            busy=medians(samples, "busy"),
            load_busy=medians(samples, "load_busy"),
            notes=(*notes, *waiting_notes(samples)),
        )
        for rank, share in PERCENTILES.items()
    ]
