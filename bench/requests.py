"""W1 and C1: one request after the other on several connections at once."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.contestants import BROKERS, NCHAN, NGINX
from bench.events import BODY
from bench.http import CREATED, OK, Connection, Read, open_reads, post
from bench.processes import BenchError
from bench.rounds import Sample, Watch
from bench.scenario import RateScenario
from bench.servers import Server, WriteServer

CONNECTIONS = 32
READS = 64


def repeat(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    expected: bytes,
    seconds: float,
    after_each: Callable[[range], None],
) -> int:
    """Send the requests in turn, on each connection as soon as it is answered.

    The connections are served in a fixed order. The server never waits, because the requests of
    all the others are with it meanwhile. `after_each` is called after each turn of all connections
    with the numbers of the requests that were answered.

    Returns: how many requests were answered.
    """
    count, end = 0, time.monotonic() + seconds
    for connection in connections:
        connection.send(requests[count % len(requests)])
        count += 1
    while time.monotonic() < end:
        for connection in connections:
            connection.answer(expected)
            connection.send(requests[count % len(requests)])
            count += 1
        after_each(range(count - 2 * len(connections), count - len(connections)))
    for connection in connections:
        connection.answer(expected)
    return count


def connect(port: int, stack: ExitStack) -> list[Connection]:
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    for connection in connections:
        stack.callback(connection.close)
    return connections


# -- W1


def prepare_writes(server: WriteServer, stack: ExitStack) -> Callable[[float], Sample]:
    routes = server.routes(READS)
    reads = open_reads(server.http_port, [route.read for route in routes if route.read])
    for read in reads:
        stack.callback(read.close)
    connections = connect(server.http_port, stack)
    requests = [route.write for route in routes]

    def take_what_came(numbers: range) -> None:
        if not reads:
            return
        for number in numbers:
            reads[number % READS].take_what_came()

    def write(seconds: float) -> Sample:
        watch = Watch(*server.pids)
        count = repeat(connections, requests, CREATED, seconds, take_what_came)
        take_all(reads, count)
        return watch.sample(count)

    return write


def take_all(reads: Sequence[Read], written: int) -> None:
    """Wait until each read has its share of what was written to all in turn."""
    for number, read in enumerate(reads):
        read.take(written // len(reads) + (number < written % len(reads)))
        if read.has_more:
            raise BenchError("a read got more events than were written")


# -- C1


def prepare_creates(server: Server, stack: ExitStack) -> Callable[[float], Sample]:
    connections = connect(server.http_port, stack)
    request = [post("/create", b"")]

    def create(seconds: float) -> Sample:
        watch = Watch(*server.pids)
        return watch.sample(repeat(connections, request, OK, seconds, do_nothing))

    return create


def do_nothing(_numbers: range) -> None:
    """Nobody reads what is created."""


WRITE = RateScenario(
    "W1",
    "one write a request, writes",
    WriteServer,
    prepare_writes,
    who=BROKERS | {NGINX, NCHAN},
    notes=[
        f"{CONNECTIONS} connections write {len(BODY)} bytes each to {READS} open reads;"
        " nginx only answers",
    ],
)
CREATE = RateScenario(
    "C1",
    "creation of a channel, channels",
    Server,
    prepare_creates,
    who=BROKERS | {NGINX},
    notes=[f"over {CONNECTIONS} connections; nginx only answers"],
)
