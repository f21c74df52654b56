"""The bare servers beside which the broker is measured. They use the same libraries.

`python -m bench.bare KIND` serves on a free port, prints the port, and ends when its standard input
ends.

    write       an aiohttp route that reads a body and sends the same answer as the broker
    http-relay  an aiohttp route that sends prepared lines to a read for each batch
    grpc-relay  a grpc.aio stream that sends a prepared message to a read for each batch
    sockets     an asyncio protocol that writes one line to all open reads for each request
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
from aiohttp import web

from bench.events import EVENTS, LINES
from bench.processes import HOST
from megaphone.cli.serve import new_event_loop
from megaphone.wire import json, protobuf
from megaphone_api.v1 import channels_pb2 as pb

BACKLOG = 1_024
SERVICE = "megaphone.v1.ChannelService"

keep: list[object] = []
"""References to the servers, because a server without a reference stops."""


# -- write

WRITTEN = json.written(EVENTS[0].id)


async def write(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=201, content_type="application/json", body=WRITTEN)


async def serve_write() -> int:
    app = web.Application()
    app.router.add_post("/write/{producer}/{stream}", write)
    return await serve_http(app)


async def serve_http(app: web.Application) -> int:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0, backlog=BACKLOG).start()
    return int(runner.addresses[0][1])


# -- http-relay

BATCH_WRITTEN = b"".join(json.batch_written([]))


class HttpRelay:
    """For each read, by its name: the function that makes a batch arrive."""

    def __init__(self) -> None:
        self._reads: dict[str, web.StreamResponse] = {}

    async def read(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self._reads[request.match_info["name"]] = response
        await asyncio.Event().wait()
        return response

    async def write_batch(self, request: web.Request) -> web.Response:
        await request.read()
        await self._reads[request.match_info["name"]].write(LINES)
        return web.Response(status=201, content_type="application/json", body=BATCH_WRITTEN)


async def serve_http_relay() -> int:
    relay = HttpRelay()
    app = web.Application()
    app.router.add_post("/write-batch/{name}", relay.write_batch)
    app.router.add_get("/read/{name}", relay.read)
    return await serve_http(app)


# -- grpc-relay

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcRelay:
    """For each read, by its address: the function that makes a batch arrive."""

    def __init__(self) -> None:
        self._reads: dict[str, Context] = {}

    async def read(self, request: pb.ReadRequest, context: Context) -> None:
        self._reads[request.consumer_address] = context
        await context.send_initial_metadata(())
        await asyncio.Event().wait()

    async def publish(
        self, requests: AsyncIterator[pb.PublishRequest], context: Context
    ) -> AsyncIterator[pb.PublishResponse]:
        message = protobuf.events(EVENTS)
        pieces = protobuf.published([event.id for event in EVENTS])
        answer = pb.PublishResponse.FromString(b"".join(pieces))
        async for request in requests:
            await self._reads[request.events[0].producer_address].write(message)
            yield answer


async def serve_grpc_relay() -> int:
    relay = GrpcRelay()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Read": grpc.unary_stream_rpc_method_handler(
            relay.read, pb.ReadRequest.FromString, pb.ReadResponse.SerializeToString
        ),
        "Publish": grpc.stream_stream_rpc_method_handler(
            relay.publish, pb.PublishRequest.FromString, pb.PublishResponse.SerializeToString
        ),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    keep.append(server)
    return port


# -- sockets

READ_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = json.event_line(EVENTS[0])
CHUNK = b"%x\r\n%b\r\n" % (len(LINE), LINE)
ANSWER = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BATCH_WRITTEN),
    BATCH_WRITTEN,
)


class Socket(asyncio.Protocol):
    """A GET opens a read. A POST without a body writes to all reads."""

    def __init__(self, reads: list[asyncio.Transport]) -> None:
        self._reads = reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self._reads.append(self._transport)
            self._transport.write(READ_HEAD)
            return
        for read in self._reads:
            read.write(CHUNK)
        self._transport.write(ANSWER)


async def serve_sockets() -> int:
    reads: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Socket(reads), HOST, 0, backlog=BACKLOG
    )
    keep.append(server)
    return int(server.sockets[0].getsockname()[1])


# -- All of them

KINDS: dict[str, Callable[[], Awaitable[int]]] = {
    "write": serve_write,
    "http-relay": serve_http_relay,
    "grpc-relay": serve_grpc_relay,
    "sockets": serve_sockets,
}


async def serve(kind: str) -> None:
    print(await KINDS[kind](), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
