"""The way of calls between a client and a broker, over each protocol.

A gate passes calls on to a broker, except those in trouble: `Plan` decides. It knows the protocol
and nothing of what the calls mean.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Never, Protocol

import grpc

from megaphone.wire import json as wire_json
from megaphone.wire.protobuf import error_status
from tests.clients.troubles import Garbage, Late, LostAnswer, Plan, Refusal
from tests.support.links import PIECE_BYTES
from tests.support.proxy import reset

REFUSED = "refused by the test"
FOR_PAGES = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After"}
"""What every answer of a gate has, because otherwise a page of another origin would not see it."""
LARGEST_HEAD = 65_536
SERVICE = "/megaphone.v1.ChannelService/"
DETAILS_KEY = "grpc-status-details-bin"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))


class Gate(Protocol):
    port: int
    to_port: int
    """The port of the broker; connections that are open stay where they are."""
    plan: Plan

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


# -- HTTP


@dataclass(frozen=True, slots=True)
class Request:
    head: bytes
    body: bytes

    @property
    def call(self) -> str:
        """Return the name of the call."""
        path = self.head.split(b" ", 2)[1].partition(b"?")[0].decode()
        first = path.strip("/").partition("/")[0]
        return {"write-batch": "batch", "channelsExists": "exists"}.get(first, first)

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks if a page may make a call; the client knows nothing of this."""
        return self.head.startswith(b"OPTIONS ")


class HttpGate:
    """Passes on requests over HTTP/1.1 of clients that do not send the next request of a connection
    before they have the answer to the last."""

    def __init__(self, to_port: int, plan: Plan) -> None:
        self.port = 0
        self.to_port = to_port
        self.plan = plan
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, limit=LARGEST_HEAD
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _connected(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(HttpConnection(self, requests, client).serve())
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)


class HttpConnection:
    """The connection of a client, and that to the broker behind it."""

    def __init__(
        self, gate: HttpGate, requests: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        self._gate = gate
        self._requests = requests
        self._client = client
        self._broker: asyncio.StreamWriter | None = None
        self._answering: asyncio.Task[None] | None = None
        self._loses_answer = False

    async def serve(self) -> None:
        try:
            while (request := await self._next()) is not None:
                if not await self._serve(request):
                    return
        except OSError:
            reset(self._client)
        finally:
            if self._answering is not None:
                self._answering.cancel()
            for end in (self._client, self._broker):
                if end is not None:
                    end.close()

    async def _next(self) -> Request | None:
        """Return the next request; None if the client has left."""
        try:
            head = await self._requests.readuntil(b"\r\n\r\n")
            return Request(head, await self._requests.readexactly(body_bytes(head)))
        except asyncio.IncompleteReadError:
            return None

    async def _serve(self, request: Request) -> bool:
        """Serve a request. Returns: whether the connection lives on."""
        match None if request.is_preflight else self._gate.plan.decide(request.call):
            case Refusal() as refusal:
                await self._send(refused(refusal))
                return True
            case Garbage(http=answer):
                status, _, rest = answer.partition(b"\r\n")
                await self._send(b"\r\n".join([status, *rendered(FOR_PAGES), rest]))
                return False
            case LostAnswer():
                self._loses_answer = True
            case Late(by_s):
                await asyncio.sleep(by_s)
        await self._pass_on(request)
        return True

    async def _send(self, answer: bytes) -> None:
        self._client.write(answer)
        await self._client.drain()

    async def _pass_on(self, request: Request) -> None:
        if self._broker is None:
            answers, self._broker = await asyncio.open_connection("127.0.0.1", self._gate.to_port)
            self._answering = asyncio.create_task(self._pass_answers(answers))
        self._broker.write(request.head + request.body)
        await self._broker.drain()

    async def _pass_answers(self, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await answers.read(PIECE_BYTES):
                if self._loses_answer:
                    break
                await self._send(data)
            else:
                self._client.close()
                return
        reset(self._client)


def body_bytes(head: bytes) -> int:
    """Return how long the body of a request is."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        assert name != b"transfer-encoding", "the gate knows no bodies without a length"
        if name == b"content-length":
            return int(value)
    return 0


def refused(refusal: Refusal) -> bytes:
    """Render the answer of a broker, or a proxy, that refuses a request."""
    if refusal.code is None:
        media_type, body = "text/html", b"<h1>Bad gateway</h1>"
    else:
        media_type = "application/json"
        body = wire_json.error(refusal.code, REFUSED, refusal.http_status)
    head = [
        f"HTTP/1.1 {refusal.http_status} Refused",
        f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
    ]
    if refusal.retry_after_s is not None:
        head.append(f"Retry-After: {refusal.retry_after_s:g}")
    lines = [line.encode() for line in head] + rendered(FOR_PAGES)
    return b"\r\n".join([*lines, b"", b""]) + body


def rendered(headers: Mapping[str, str]) -> list[bytes]:
    return [f"{name}: {value}".encode() for name, value in headers.items()]


# -- gRPC

Context = grpc.aio.ServicerContext[bytes, bytes]
GRPC_CALLS = {
    "CreateChannel": "create",
    "Write": "write",
    "WriteBatch": "batch",
    "Publish": "publish",
    "Read": "read",
    "ReadMany": "read",
    "Acknowledge": "ack",
    "ChannelsExist": "exists",
}


class GrpcGate(grpc.GenericRpcHandler):
    """Passes on calls over gRPC, byte for byte."""

    def __init__(self, to_port: int, plan: Plan) -> None:
        self.port = 0
        self.to_port = to_port
        self.plan = plan
        self._server = grpc.aio.server(options=UNLIMITED)
        self._brokers: dict[int, grpc.aio.Channel] = {}

    async def start(self) -> None:
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def aclose(self) -> None:
        await self._server.stop(None)
        for broker in self._brokers.values():
            await broker.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        name = method.removeprefix(SERVICE)
        call = Passing(self, method, GRPC_CALLS.get(name, name))
        match name:
            case "Read" | "ReadMany":
                return grpc.unary_stream_rpc_method_handler(call.stream)
            case "Publish":
                return grpc.stream_stream_rpc_method_handler(call.stream)
            case _:
                return grpc.unary_unary_rpc_method_handler(call.answer)

    @property
    def broker(self) -> grpc.aio.Channel:
        if self.to_port not in self._brokers:
            target = f"127.0.0.1:{self.to_port}"
            self._brokers[self.to_port] = grpc.aio.insecure_channel(target, options=UNLIMITED)
        return self._brokers[self.to_port]


class Passing:
    """One call on its way through a gate."""

    def __init__(self, gate: GrpcGate, method: str, name: str) -> None:
        self._gate = gate
        self._method = method
        self._name = name

    async def answer(self, request: bytes, context: Context) -> bytes:
        async def passed_on() -> bytes:
            call: Any = self._gate.broker.unary_unary(self._method)
            return bytes(await call(request, metadata=metadata_of(context)))

        return await self._through_trouble(context, passed_on)

    async def stream(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        """Pass on a call with a stream of answers; `request` is one message or a stream."""
        trouble = self._gate.plan.decide(self._name)
        if isinstance(trouble, Garbage):
            yield trouble.grpc
            return
        await self._refuse_or_wait(trouble, context)
        kind = "unary_stream" if isinstance(request, bytes) else "stream_stream"
        call: Any = getattr(self._gate.broker, kind)(self._method)(
            request, metadata=metadata_of(context)
        )
        try:
            initial = await call.initial_metadata()
            await context.send_initial_metadata(tuple(initial))
            async for answer in call:
                if isinstance(trouble, LostAnswer):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                yield bytes(answer)
        except grpc.aio.AioRpcError as failed:
            await abort_as(failed, context)
        finally:
            call.cancel()

    async def _through_trouble(
        self, context: Context, passed_on: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        trouble = self._gate.plan.decide(self._name)
        if isinstance(trouble, Garbage):
            return trouble.grpc
        await self._refuse_or_wait(trouble, context)
        try:
            answer = await passed_on()
        except grpc.aio.AioRpcError as failed:
            await abort_as(failed, context)
        if isinstance(trouble, LostAnswer):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return answer

    async def _refuse_or_wait(self, trouble: object, context: Context) -> None:
        match trouble:
            case Refusal() as refusal:
                status = grpc.StatusCode[refusal.grpc_status]
                await context.abort(status, REFUSED, details_of(refusal, status))
            case Late(by_s):
                await asyncio.sleep(by_s)


def details_of(refusal: Refusal, status: grpc.StatusCode) -> tuple[tuple[str, bytes], ...]:
    if refusal.code is None:
        return ()
    details = error_status(status.value[0], refusal.code, REFUSED, refusal.retry_after_s)
    return ((DETAILS_KEY, details),)


def metadata_of(context: Context) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key.startswith("megaphone")
    )


async def abort_as(failed: grpc.aio.AioRpcError, context: Context) -> Never:
    await context.abort(
        failed.code(), failed.details() or "", tuple(failed.trailing_metadata() or ())
    )
