"""What a measured server can do, and how a broker is started."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.events import BODY, STREAM_ID, batch_body
from bench.http import Channel, get, make_channels, post
from bench.processes import (
    HOST,
    answers,
    clean_environment,
    environment_of,
    opened,
    running,
    server_cores,
)
from tests.support.ports import free_ports

LONG_POLL_MILLIS = 600_000
"""Longer than any measurement, because measured reads must not end."""


@dataclass(frozen=True, slots=True)
class Route:
    """The request that writes an event, and that of the read that gets it, if there is one."""

    write: bytes
    read: bytes | None


@dataclass(frozen=True, slots=True)
class FanOut:
    """The request by which all of some reads get the same events, and those of these reads."""

    write: bytes
    reads: Sequence[bytes]
    accepted: bytes
    """What the answer contains if no event was refused."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    pid: int
    http_port: int

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes whose work counts."""
        return (self.pid,)


class WriteServer(Server, ABC):
    """A running server that takes events over HTTP."""

    __slots__ = ()

    @abstractmethod
    def routes(self, count: int) -> list[Route]:
        """Return so many routes that do not depend on each other."""


class FanOutServer(WriteServer):
    """A running server by which one request reaches many reads."""

    __slots__ = ()

    @abstractmethod
    def fan_out(self, count: int, bodies: Sequence[bytes]) -> FanOut:
        """Return a request that reaches so many reads."""


@dataclass(frozen=True, slots=True)
class Broker(FanOutServer):
    """Ours or the Rust broker."""

    grpc_port: int
    socket_path: Path

    def routes(self, count: int) -> list[Route]:
        return [
            Route(write_request(channel), read_request(channel))
            for channel in self.make_channels(count)
        ]

    def fan_out(self, count: int, bodies: Sequence[bytes]) -> FanOut:
        channels = self.make_channels(count)
        body = batch_body([channel.producer for channel in channels], bodies)
        reads = [read_request(channel) for channel in channels]
        return FanOut(post("/write-batch", body), reads, b'"failures":[]')

    def make_channels(self, count: int) -> list[Channel]:
        return make_channels(self.http_port, count)


def write_request(channel: Channel) -> bytes:
    return post(f"/write/{channel.producer}/{STREAM_ID}", BODY)


def read_request(channel: Channel) -> bytes:
    return get(f"/read/{channel.consumer}")


@asynccontextmanager
async def broker(program: Sequence[str], settings: Mapping[str, object]) -> AsyncIterator[Broker]:
    """Start a broker as its users do, but with long reads."""
    http_port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="megaphone-bench-") as folder:
        log, socket_path = Path(folder, "log"), Path(folder, "manage.sock")
        values = {
            "address": f"{HOST}:{http_port}",
            "grpc_address": f"{HOST}:{grpc_port}",
            "mng_socket_path": socket_path,
            "poll_duration_millis": LONG_POLL_MILLIS,
            "agent_warmup_secs": 0,
            **settings,
        }
        with opened(log) as sink:
            async with running(
                program,
                on_cores=server_cores(),
                stdout=sink,
                stderr=sink,
                environment=clean_environment() | environment_of(values),
                folder=folder,
            ) as process:
                for port in (http_port, grpc_port):
                    await answers(process, port, log)
                yield Broker(process.pid, http_port, grpc_port, socket_path)
