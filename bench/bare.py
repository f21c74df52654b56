"""A bare gRPC server, the ceiling of what is written in Python with grpc.aio.

It sends messages that were made beforehand to the read of the channel that is written to, and has
no rules. `python -m bench.bare` serves on a free port, prints the port, and ends when its standard
input ends.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from bench.events import BODIES, STREAM_ID
from bench.http import Channel
from bench.processes import HOST, START_TIMEOUT_S, BenchError, running, server_cores
from bench.servers import Server
from megaphone.cli.serve import new_event_loop
from megaphone_api.v1 import channels_pb2 as pb

SERVICE = "megaphone.v1.ChannelService"
EVENT_ID = "bench" + "0" * 18
TIMESTAMP = Timestamp(seconds=1_700_000_000, nanos=123_456_000)

Context = grpc.aio.ServicerContext[Any, Any]


# -- As a contestant


@dataclass(frozen=True, slots=True)
class Bare(Server):
    grpc_port: int

    def make_channels(self, count: int) -> list[Channel]:
        """Name channels. Here both addresses of a channel are the same."""
        names = [f"bench.{number:058}" for number in range(count)]
        return [Channel(name, name) for name in names]


@asynccontextmanager
async def started() -> AsyncIterator[Bare]:
    """Start it. It ends with its standard input, and so with this process."""
    command = [sys.executable, "-m", "bench.bare"]
    async with running(command, on_cores=server_cores(), stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line.strip().isdigit():
            raise BenchError("the bare gRPC server did not start")
        yield Bare(process.pid, 0, int(line))


# -- Inside


class Relay:
    """For each read, by its address: the function that sends to it."""

    def __init__(self) -> None:
        self._reads: dict[str, Context] = {}

    async def read(self, request: pb.ReadRequest, context: Context) -> None:
        self._reads[request.consumer_address] = context
        await context.send_initial_metadata(())
        await asyncio.Event().wait()

    async def write(self, request: pb.WriteRequest, _context: Context) -> pb.WriteResponse:
        await self._reads[request.producer_address].write(message(1))
        return pb.WriteResponse(event_id=EVENT_ID)

    async def publish(
        self, requests: AsyncIterator[pb.PublishRequest], _context: Context
    ) -> AsyncIterator[pb.PublishResponse]:
        async for request in requests:
            count = len(request.events)
            await self._reads[request.events[0].producer_address].write(message(count))
            yield answer(count)


@lru_cache
def message(events: int) -> pb.ReadResponse:
    return pb.ReadResponse(
        events=[
            pb.Event(event_id=EVENT_ID, stream_id=STREAM_ID, timestamp=TIMESTAMP, body=body)
            for body in BODIES[:events]
        ]
    )


@lru_cache
def answer(events: int) -> pb.PublishResponse:
    return pb.PublishResponse(
        results=[pb.PublishResponse.Result(event_id=EVENT_ID) for _ in range(events)]
    )


async def serve() -> None:
    relay = Relay()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Read": grpc.unary_stream_rpc_method_handler(
            relay.read, pb.ReadRequest.FromString, pb.ReadResponse.SerializeToString
        ),
        "Write": grpc.unary_unary_rpc_method_handler(
            relay.write, pb.WriteRequest.FromString, pb.WriteResponse.SerializeToString
        ),
        "Publish": grpc.stream_stream_rpc_method_handler(
            relay.publish, pb.PublishRequest.FromString, pb.PublishResponse.SerializeToString
        ),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    print(port, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())
