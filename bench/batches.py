"""W2, R1 and R2: batches of events, and reads that get them."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from bench.contestants import BROKERS, NCHAN
from bench.events import BODIES
from bench.http import CREATED, HEAD_END, Connection, open_reads
from bench.processes import BenchError
from bench.rounds import Sample, Watch
from bench.scenario import RateScenario
from bench.servers import FanOutServer

Prepare = Callable[[FanOutServer, ExitStack], Callable[[float], Sample]]


def batches(channels: int, events: int) -> Prepare:
    """Return a preparation: each batch writes the same events to all channels."""

    def prepare(server: FanOutServer, stack: ExitStack) -> Callable[[float], Sample]:
        fan_out = server.fan_out(channels, BODIES[:events])
        reads = open_reads(server.http_port, fan_out.reads)
        for read in reads:
            stack.callback(read.close)
        connection = Connection(server.http_port)
        stack.callback(connection.close)

        def deliver(seconds: float) -> Sample:
            """Send a batch when the last one is answered, and take that one meanwhile."""
            watch, sent = Watch(server.pid), 1
            end = watch.began + seconds
            connection.send(fan_out.write)
            while True:
                take_answer(connection, fan_out.accepted)
                is_last = time.monotonic() >= end
                if not is_last:
                    connection.send(fan_out.write)
                    sent += 1
                for read in reads:
                    read.take(events)
                if is_last:
                    break
            if any(read.has_more for read in reads):
                raise BenchError("a read got more events than were written")
            return watch.sample(sent * events * channels)

        return deliver

    return prepare


def take_answer(connection: Connection, accepted: bytes) -> None:
    """Raises: BenchError, if an event of the batch was refused."""
    answer = connection.answer(CREATED)
    if accepted not in answer:
        raise BenchError(f"events were refused: {answer.partition(HEAD_END)[2][:200]!r}")


ONE_TO_MANY = RateScenario(
    "W2",
    "one event to 1,000 open reads, deliveries",
    FanOutServer,
    batches(channels=1_000, events=1),
    who=BROKERS | {NCHAN},
    notes=["nchan: one channel with 1,000 readers"],
)
TEN_TO_MANY = RateScenario(
    "R1",
    "ten events to 1,000 open reads, deliveries",
    FanOutServer,
    batches(channels=1_000, events=10),
)
FIFTY_TO_ONE = RateScenario(
    "R2", "batches of 50 to one open read, events", FanOutServer, batches(channels=1, events=50)
)
