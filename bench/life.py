"""X1: the whole life of a channel: it is created, read, written to ten times, and disposed of."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from bench.http import CREATED, OK, Connection, Read, channel_of, delete, post
from bench.rounds import Sample, Watch
from bench.scenario import RateScenario
from bench.servers import Broker, read_request, write_request

LIVES = 32
"""How many channels live at once, step by step."""
WRITES = 10


class Lives:
    """Connections by which channels are created, written to and disposed of."""

    def __init__(self, server: Broker, stack: ExitStack) -> None:
        self._port = server.http_port
        self._clients = [Connection(server.http_port) for _ in range(LIVES)]
        self._operators = [Connection(server.socket_path) for _ in range(LIVES)]
        for connection in (*self._clients, *self._operators):
            stack.callback(connection.close)

    def live(self) -> None:
        """Let channels live, all at the same step. Raises: BenchError."""
        for client in self._clients:
            client.send(post("/create", b""))
        channels = [channel_of(client.answer(OK)) for client in self._clients]
        reads = [Read(self._port, read_request(channel)) for channel in channels]
        for read in reads:
            read.begin()
        requests = [write_request(channel) for channel in channels]
        for _ in range(WRITES):
            for client, request in zip(self._clients, requests, strict=True):
                client.send(request)
            for client in self._clients:
                client.answer(CREATED)
        for read in reads:
            read.take(WRITES)
        for operator, channel in zip(self._operators, channels, strict=True):
            operator.send(delete(f"/channel/{channel.consumer}"))
        for operator, read in zip(self._operators, reads, strict=True):
            operator.answer(OK)
            read.wait_for_end()
            read.close()


def prepare(server: Broker, stack: ExitStack) -> Callable[[float], Sample]:
    lives = Lives(server, stack)

    def live(seconds: float) -> Sample:
        watch, count = Watch(server.pid), 0
        while time.monotonic() < watch.began + seconds:
            lives.live()
            count += LIVES
        return watch.sample(count)

    return live


LIFE = RateScenario(
    "X1",
    "whole life of a channel, channels",
    Broker,
    prepare,
    notes=[
        f"one create, one read over a connection of its own, {WRITES} writes, one disposal;"
        f" {LIVES} at once"
    ],
)
