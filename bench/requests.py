"""W1 and C1: one request after the other on several connections at once."""

import select
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from bench.contestants import BROKERS, NCHAN, NGINX
from bench.events import BODY
from bench.http import CREATED, OK, Connection, Read, open_reads, post
from bench.processes import BenchError
from bench.rounds import Sample, Watch
from bench.scenario import RateScenario
from bench.servers import Server, WriteServer

CONNECTIONS = 32
READS = 64

AfterEach: TypeAlias = Callable[[Iterable[int]], None]
Repeat: TypeAlias = Callable[[Sequence[Connection], Sequence[bytes], bytes, float, AfterEach], int]
"""Sends the requests in turn for a time. See `repeat`."""


def repeat(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    expected: bytes,
    seconds: float,
    after_each: AfterEach,
) -> int:
    """Send the requests in turn, on each connection as soon as it is answered.

    The connections are served in a fixed order. A server of one process never waits, because the
    requests of all the others are with it meanwhile. `after_each` is called after each turn of all
    connections with the numbers of the requests that were answered.

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


def repeat_as_answered(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    expected: bytes,
    seconds: float,
    after_each: AfterEach,
) -> int:
    """Do the same, with the connections in the order in which they are answered. So a process of
    the server that is done does not wait until another one is."""
    count, end = 0, time.monotonic() + seconds
    by_file = {one.fileno(): one for one in connections}
    open_requests: dict[int, int] = {}
    with select.epoll() as answered:
        for file, connection in by_file.items():
            answered.register(file, select.EPOLLIN)
            connection.send(requests[count % len(requests)])
            open_requests[file] = count
            count += 1
        while time.monotonic() < end:
            done = []
            for file, _ in answered.poll():
                connection = by_file[file]
                connection.answer(expected)
                connection.send(requests[count % len(requests)])
                done.append(open_requests[file])
                open_requests[file] = count
                count += 1
            after_each(done)
    for connection in connections:
        connection.answer(expected)
    return count


def connect(port: int, count: int, stack: ExitStack) -> list[Connection]:
    connections = [Connection(port) for _ in range(count)]
    for connection in connections:
        stack.callback(connection.close)
    return connections


# -- W1


def prepare_writes(
    server: WriteServer,
    stack: ExitStack,
    *,
    times: int = 1,
    repeat: Repeat = repeat,
) -> Callable[[float], Sample]:
    """`times` is how many times as many connections and reads there are."""
    routes = server.routes(READS * times)
    reads = open_reads(server.http_port, [route.read for route in routes if route.read])
    for read in reads:
        stack.callback(read.close)
    connections = connect(server.http_port, CONNECTIONS * times, stack)
    requests = [route.write for route in routes]

    def take_what_came(numbers: Iterable[int]) -> None:
        if not reads:
            return
        for number in numbers:
            reads[number % len(reads)].take_what_came()

    def write(seconds: float) -> Sample:
        watch = Watch(*server.pids)
        written = repeat(connections, requests, CREATED, seconds, take_what_came)
        take_all(reads, written)
        return watch.sample(written)

    return write


def take_all(reads: Sequence[Read], written: int) -> None:
    """Wait until each read has its share of what was written to all in turn."""
    for number, read in enumerate(reads):
        read.take(written // len(reads) + (number < written % len(reads)))
        if read.has_more:
            raise BenchError("a read got more events than were written")


# -- C1


def prepare_creates(server: Server, stack: ExitStack) -> Callable[[float], Sample]:
    connections = connect(server.http_port, CONNECTIONS, stack)
    request = [post("/create", b"")]

    def create(seconds: float) -> Sample:
        watch = Watch(*server.pids)
        return watch.sample(repeat(connections, request, OK, seconds, do_nothing))

    return create


def do_nothing(_numbers: Iterable[int]) -> None:
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
