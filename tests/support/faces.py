"""One interface to call the broker through either face, so that a test can run through both.

The adapters use ordinary clients over real sockets. On every call they also check what no test
should have to repeat: answers have the documented form, and the status of an error and its
retry delay agree with the table in `megaphone.wire.errors`.
"""

import json
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote, urlencode

import aiohttp
import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from yarl import URL

from megaphone.app import App
from megaphone.core.agents import AGENT_NAME
from megaphone.errors import MegaphoneError
from megaphone.model import (
    DEFAULT_IN_FLIGHT,
    NO_OPTIONS,
    BatchFailure,
    ChannelOptions,
    NewEvent,
    ReadOptions,
)
from megaphone.wire.errors import DOMAIN, error_from, row_of
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support import leaks
from tests.support.settings import certificates

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

PLAIN = ReadOptions()
JSON = {"Content-Type": "application/json"}
HEARTBEAT_LINE = b"\n"
LINE = re.compile(
    rb'\{"sid":("(?:[^"\\]|\\.)*"),"eid":"([A-Za-z0-9]{23})","ts":"([^"]+)","body":(.*?)'
    rb'(?:,"traceparent":"([^"]*)")?\}',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to the creator of a channel."""

    producer: str
    consumer: str
    protocols: list[str]


@dataclass(frozen=True, slots=True)
class ReadEvent:
    """An event, as a reader got it. The body is byte for byte as on the wire."""

    event_id: str
    stream_id: str
    timestamp: datetime
    body: bytes
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The answer to a batch."""

    event_ids: list[str | None]
    failures: list[BatchFailure]


class OpenRead:
    """An open read. Iterating over it yields events, until the broker ends the read cleanly.

    `next_batch` returns the events that came together, an empty list for a heartbeat, or None at
    the end.
    """

    def __init__(
        self,
        position: str,
        recovered: str | None,
        next_batch: Callable[[], Awaitable[list[ReadEvent] | None]],
    ) -> None:
        self.position = position
        self.recovered = {"true": True, "false": False, None: None}[recovered]
        self.heartbeats = 0
        self._next_batch = next_batch
        self._ready: deque[ReadEvent] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReadEvent:
        await self.begun()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def begun(self) -> None:
        """Wait for the next event, without consuming it, or for the end."""
        while not self._ready:
            batch = await self._next_batch()
            if batch is None:
                break
            self.heartbeats += not batch
            self._ready.extend(batch)


@dataclass(frozen=True, slots=True)
class Begun:
    """The read of one of many channels begins."""

    channel: int
    position: str
    recovered: bool | None


@dataclass(frozen=True, slots=True)
class Done:
    """The read of one of many channels is over. `code` is empty after a clean end."""

    channel: int
    code: str = ""


ManyPart = Begun | Done | tuple[int, ReadEvent]
"""A part of a read of many channels. An event has the index of its channel."""


class OpenMany:
    """An open read of many channels. Iterating over it yields its parts, one event after the other,
    until the broker ends the read cleanly."""

    def __init__(self, next_parts: Callable[[], Awaitable[list[ManyPart] | None]]) -> None:
        self.heartbeats = 0
        self._next_parts = next_parts
        self._ready: deque[ManyPart] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ManyPart:
        while not self._ready:
            parts = await self._next_parts()
            if parts is None:
                raise StopAsyncIteration
            self.heartbeats += not parts
            self._ready.extend(parts)
        return self._ready.popleft()


class Face(Protocol):
    """A client of one face. Every method raises the error of the broker as an instance of its
    class."""

    name: str

    def authorized(self, proof: str | None) -> "Face":
        """Return the same client with a value of `Authorization`; None is for no such header."""

    def traced(self, traceparent: str) -> "Face":
        """Return the same client with a trace context."""

    async def create(
        self, protocols: Sequence[str] = (), options: ChannelOptions = NO_OPTIONS
    ) -> Created: ...

    async def write(
        self, address: str, stream_id: str, body: bytes, request_id: str | None = None
    ) -> str:
        """Returns: the id of the event."""

    async def write_batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> list[BatchFailure]:
        """Returns: what was not accepted."""

    async def batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> BatchAnswer:
        """Do the same as `write_batch`, and return the whole answer."""

    def read(
        self, address: str, options: ReadOptions = PLAIN
    ) -> AbstractAsyncContextManager[OpenRead]:
        """Read within this context. Leaving the context before the read has ended cuts the
        connection.

        A refusal is raised on entering the context, or instead of the first event.
        """

    def read_many(
        self,
        addresses: Sequence[str],
        options: ReadOptions = PLAIN,
        *,
        after: Mapping[str, str] = {},
    ) -> AbstractAsyncContextManager[OpenMany]:
        """Read many channels within this context. `after` has the cursors, by address."""

    async def acknowledge(self, address: str, event_id: str) -> int: ...

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]: ...

    async def dispose(self, address: str) -> None: ...


async def take(read: OpenRead, count: int) -> list[ReadEvent]:
    """Return the next events of a read. Fails if the read ends first."""
    return [await anext(read) for _ in range(count)]


async def read_all(face: Face, address: str, options: ReadOptions = PLAIN) -> list[ReadEvent]:
    """Return all events until the broker ends the read."""
    async with face.read(address, options) as read:
        return [event async for event in read]


async def read_some(
    face: Face, address: str, count: int, options: ReadOptions = PLAIN
) -> list[ReadEvent]:
    """Read a number of events, and then cut the connection."""
    async with face.read(address, options) as read:
        return await take(read, count)


# -- HTTP


@asynccontextmanager
async def http_face(app: App) -> AsyncIterator["HttpFace"]:
    connector, scheme = None, "http"
    if app.reloader.settings.tls.certificate is not None:
        trusting = ssl.create_default_context(cafile=certificates().authority)
        connector, scheme = aiohttp.TCPConnector(ssl=trusting), "https"
    async with aiohttp.ClientSession(connector=connector) as session:
        yield HttpFace(session, app.http_port, scheme)


class HttpFace:
    name = "http"

    def __init__(
        self,
        session: aiohttp.ClientSession,
        port: int,
        scheme: str = "http",
        more: Mapping[str, str] = {},
    ) -> None:
        """`more` are further headers of each request."""
        self.session = session
        self.port = port
        self.scheme = scheme
        self.more = more

    def authorized(self, proof: str | None) -> "HttpFace":
        more = {} if proof is None else {"Authorization": proof}
        return HttpFace(self.session, self.port, self.scheme, more)

    def traced(self, traceparent: str) -> "HttpFace":
        more = {**self.more, "traceparent": traceparent}
        return HttpFace(self.session, self.port, self.scheme, more)

    def url(self, path: str) -> URL:
        """Return the URL of a path that is already percent-encoded."""
        return URL(f"{self.scheme}://127.0.0.1:{self.port}{path}", encoded=True)

    async def create(
        self, protocols: Sequence[str] = (), options: ChannelOptions = NO_OPTIONS
    ) -> Created:
        chosen = {"ttlSecs": options.ttl_s, "capacity": options.capacity, "label": options.label}
        request = json.dumps(
            {"protocols": list(protocols)}
            | {name: one for name, one in chosen.items() if one not in (None, "")}
        ).encode()
        answer = await self.post("/create", request, status=200)
        assert answer["channelId"] == answer["consumerAddress"]
        assert answer["agentName"] == answer["consumerAddress"].partition(".")[0]
        return Created(
            answer["producerAddress"], answer["consumerAddress"], list(answer["protocols"])
        )

    async def write(
        self, address: str, stream_id: str, body: bytes, request_id: str | None = None
    ) -> str:
        path = f"/write/{segment(address)}/{segment(stream_id)}"
        answer = await self.post(path, body, keyed(request_id), status=201)
        assert answer["status"] == "OK"
        return str(answer["eid"])

    async def write_batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> list[BatchFailure]:
        return (await self.batch(addresses, messages, request_id)).failures

    async def batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> BatchAnswer:
        answer = await self.post(
            "/write-batch", batch_body(addresses, messages), keyed(request_id), status=201
        )
        failures = [BatchFailure(**failure) for failure in answer["failures"]]
        assert len(answer["eids"]) == len(messages)
        return BatchAnswer(answer["eids"], failures)

    @asynccontextmanager
    async def read(self, address: str, options: ReadOptions = PLAIN) -> AsyncIterator[OpenRead]:
        url = self.url(f"/read/{segment(address)}{query_of(options)}")
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(url, timeout=timeout, headers=self.more) as response:
            if response.status != 200:
                raise await http_error(response)
            assert response.headers["Content-Type"] == "application/x-ndjson"
            try:
                recovered = response.headers.get("Megaphone-Recovered")
                position = response.headers["Megaphone-Position"]
                yield OpenRead(position, recovered, lambda: next_lines(response))
            finally:
                response.close()

    @asynccontextmanager
    async def read_many(
        self,
        addresses: Sequence[str],
        options: ReadOptions = PLAIN,
        *,
        after: Mapping[str, str] = {},
    ) -> AsyncIterator[OpenMany]:
        body = json.dumps(many_body(addresses, options, after)).encode()
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.post(
            self.url("/read"), data=body, headers={**JSON, **self.more}, timeout=timeout
        ) as response:
            if response.status != 200:
                raise await http_error(response)
            assert response.headers["Content-Type"] == "application/x-ndjson"
            try:
                yield OpenMany(lambda: next_part_lines(response))
            finally:
                response.close()

    async def acknowledge(self, address: str, event_id: str) -> int:
        request = json.dumps({"eid": event_id}).encode()
        answer = await self.post(f"/ack/{segment(address)}", request, status=200)
        assert answer["status"] == "OK"
        return int(answer["acknowledged"])

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]:
        request = json.dumps({"channels": list(addresses)}).encode()
        answer = await self.post("/channelsExists", request, status=200)
        return dict(answer["channels"])

    async def dispose(self, address: str) -> None:
        url = self.url(f"/channel/{segment(address)}")
        async with self.session.delete(url, headers=self.more) as response:
            if response.status != 200:
                raise await http_error(response)
            assert await response.json() == {"status": "OK"}

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str] = JSON, *, status: int
    ) -> dict[str, Any]:
        data = BytesIO(body)  # aiohttp warns about more than a megabyte of bytes
        headers = {**headers, **self.more}
        async with self.session.post(self.url(path), data=data, headers=headers) as response:
            if response.status >= 400:
                raise await http_error(response)
            assert response.status == status
            assert response.headers["Content-Type"].partition(";")[0] == "application/json"
            answer: dict[str, Any] = json.loads(await response.read())
            return answer


def segment(text: str) -> str:
    return quote(text, safe="")


def keyed(request_id: str | None) -> dict[str, str]:
    return JSON if request_id is None else JSON | {"Idempotency-Key": request_id}


def batch_body(addresses: Sequence[str], messages: Sequence[NewEvent]) -> bytes:
    """Render a batch with its bodies as they are, even if they are not JSON."""
    rendered = [
        b'{"streamId":%b,"body":%b}' % (json.dumps(message.stream_id).encode(), message.body)
        for message in messages
    ]
    channels = json.dumps(list(addresses)).encode()
    return b'{"channels":%b,"messages":[%b]}' % (channels, b",".join(rendered))


def query_of(options: ReadOptions) -> str:
    asked: dict[str, str | list[str]] = {}
    if options.cursor is not None:
        asked["after"] = options.cursor
    if options.acknowledge:
        asked["ack"] = "explicit"
    if options.in_flight != DEFAULT_IN_FLIGHT:
        asked["window"] = str(options.in_flight)
    if options.take_over:
        asked["takeover"] = "true"
    if options.reader:
        asked["reader"] = options.reader
    if options.returning:
        asked["returning"] = "true"
    if options.limit is not None:
        asked["limit"] = str(options.limit)
    if options.wait_s is not None:
        asked["wait_ms"] = str(milliseconds(options.wait_s))
    if options.heartbeat_s is not None:
        asked["heartbeat_ms"] = str(milliseconds(options.heartbeat_s))
    if options.streams is not None:
        asked["stream"] = sorted(options.streams)
    if options.trace:
        asked["trace"] = "true"
    return f"?{urlencode(asked, doseq=True)}" if asked else ""


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def many_body(
    addresses: Sequence[str], options: ReadOptions, after: Mapping[str, str]
) -> dict[str, Any]:
    channels = [
        {"address": one, "after": after[one]} if one in after else {"address": one}
        for one in addresses
    ]
    body: dict[str, Any] = {"channels": channels}
    if options.acknowledge:
        body["ack"] = "explicit"
    if options.in_flight != DEFAULT_IN_FLIGHT:
        body["window"] = options.in_flight
    if options.take_over:
        body["takeover"] = True
    if options.reader:
        body |= {"reader": options.reader, "returning": options.returning}
    if options.limit is not None:
        body["limit"] = options.limit
    if options.wait_s is not None:
        body["wait_ms"] = milliseconds(options.wait_s)
    if options.heartbeat_s is not None:
        body["heartbeat_ms"] = milliseconds(options.heartbeat_s)
    if options.streams is not None:
        body["stream"] = sorted(options.streams)
    if options.trace:
        body["trace"] = True
    return body


async def next_part_lines(response: aiohttp.ClientResponse) -> list[ManyPart] | None:
    lines = await next_chunk(response)
    return None if lines is None else [part_of_line(line) for line in lines]


def part_of_line(line: bytes) -> ManyPart:
    said = json.loads(line)
    if said.get("begun"):
        return Begun(said["channel"], said["position"], said.get("recovered"))
    if said.get("done"):
        return Done(said["channel"], said.get("code", ""))
    begin, _, event = line.partition(b",")
    number = begin.removeprefix(b'{"channel":')
    return int(number), event_of_line(b"{" + event)


async def next_lines(response: aiohttp.ClientResponse) -> list[ReadEvent] | None:
    """Return the events of the next chunk, which contains whole lines."""
    lines = await next_chunk(response)
    return None if lines is None else [event_of_line(line) for line in lines]


async def next_chunk(response: aiohttp.ClientResponse) -> list[bytes] | None:
    """Return the lines of the next chunk."""
    chunk = b""
    async for data, is_whole in response.content.iter_chunks():
        chunk += data
        if is_whole and chunk:
            break
    if not chunk:
        return None
    if chunk == HEARTBEAT_LINE:
        return []
    assert chunk.endswith(b"\n"), "a line was split over two chunks"
    return chunk[:-1].split(b"\n")


def event_of_line(line: bytes) -> ReadEvent:
    parts = LINE.fullmatch(line)
    assert parts is not None, f"not the line of an event: {line!r}"
    stream_id, event_id, timestamp, body, traceparent = parts.groups()
    return ReadEvent(
        event_id.decode(),
        json.loads(stream_id),
        datetime.fromisoformat(timestamp.decode()),
        body,
        None if traceparent is None else traceparent.decode(),
    )


async def http_error(response: aiohttp.ClientResponse) -> MegaphoneError:
    told = json.loads(await response.read())
    leaks.check(told["message"], "an error over HTTP")
    error = error_from(told["code"], told["message"])
    assert error is not None, f"not an error of ours: {told}"
    assert response.status == told["status"] == row_of(error).http_status
    assert told["detail"] == told["message"]
    assert ("Retry-After" in response.headers) == (error.retry_after_s is not None)
    assert "WWW-Authenticate" in response.headers or response.status != 401
    return error


# -- gRPC


@asynccontextmanager
async def grpc_face(app: App) -> AsyncIterator["GrpcFace"]:
    async with grpc_channel(app) as channel:
        yield GrpcFace(channel)


def grpc_channel(app: App) -> grpc.aio.Channel:
    target = f"127.0.0.1:{app.grpc_port}"
    if app.reloader.settings.tls.certificate is None:
        return grpc.aio.insecure_channel(target)
    authority = certificates().authority.read_bytes()
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(authority))


def agent_of(*addresses: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata by which a proxy routes: the agent of the first address."""
    names = [address.partition(".")[0] for address in addresses]
    return tuple(("megaphone-agent", name) for name in names[:1] if AGENT_NAME.fullmatch(name))


class GrpcFace:
    name = "grpc"

    def __init__(self, channel: grpc.aio.Channel, more: tuple[tuple[str, str], ...] = ()) -> None:
        """`more` is further metadata of each call."""
        self.channel = channel
        self.more = more
        self.stub: ChannelServiceAsyncStub = ChannelServiceStub(channel)

    def authorized(self, proof: str | None) -> "GrpcFace":
        return GrpcFace(self.channel, () if proof is None else (("authorization", proof),))

    def traced(self, traceparent: str) -> "GrpcFace":
        return GrpcFace(self.channel, (*self.more, ("traceparent", traceparent)))

    def metadata(self, *addresses: str) -> tuple[tuple[str, str], ...]:
        return (*agent_of(*addresses), *self.more)

    async def create(
        self, protocols: Sequence[str] = (), options: ChannelOptions = NO_OPTIONS
    ) -> Created:
        request = pb.CreateChannelRequest(
            protocols=protocols,
            ttl_secs=options.ttl_s,
            capacity=options.capacity,
            label=options.label,
        )
        with telling_errors():
            answer = await self.stub.CreateChannel(request, metadata=self.metadata())
        return Created(answer.producer_address, answer.consumer_address, list(answer.protocols))

    async def write(
        self, address: str, stream_id: str, body: bytes, request_id: str | None = None
    ) -> str:
        with telling_errors():
            answer = await self.stub.Write(
                write_request(address, stream_id, body, request_id), metadata=self.metadata(address)
            )
        return answer.event_id

    async def write_batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> list[BatchFailure]:
        return (await self.batch(addresses, messages, request_id)).failures

    async def batch(
        self, addresses: Sequence[str], messages: Sequence[NewEvent], request_id: str | None = None
    ) -> BatchAnswer:
        request = pb.WriteBatchRequest(
            channels=addresses,
            messages=[
                pb.WriteBatchRequest.Message(stream_id=message.stream_id, body=message.body)
                for message in messages
            ],
            request_id=request_id or "",
        )
        with telling_errors():
            answer = await self.stub.WriteBatch(request, metadata=self.metadata(*addresses))
        failures = [BatchFailure(one.channel, one.index, one.reason) for one in answer.failures]
        assert len(answer.event_ids) == len(messages)
        return BatchAnswer([event_id or None for event_id in answer.event_ids], failures)

    @asynccontextmanager
    async def read(self, address: str, options: ReadOptions = PLAIN) -> AsyncIterator[OpenRead]:
        call = self.stub.Read(read_request(address, options), metadata=self.metadata(address))
        try:
            metadata = await call.initial_metadata()
            recovered = metadata.get("megaphone-recovered")
            yield OpenRead(
                str(metadata.get("megaphone-position")),
                recovered if recovered is None else str(recovered),
                lambda: next_message(call),
            )
        finally:
            call.cancel()

    @asynccontextmanager
    async def read_many(
        self,
        addresses: Sequence[str],
        options: ReadOptions = PLAIN,
        *,
        after: Mapping[str, str] = {},
    ) -> AsyncIterator[OpenMany]:
        request = pb.ReadManyRequest(
            channels=[
                pb.ReadManyRequest.Channel(consumer_address=one, after_event_id=after.get(one, ""))
                for one in addresses
            ],
            acknowledge=options.acknowledge,
            window=options.in_flight,
            take_over=options.take_over,
            reader=options.reader,
            returning=options.returning,
            limit=options.limit or 0,
            wait_ms=None if options.wait_s is None else milliseconds(options.wait_s),
            heartbeat_ms=milliseconds(options.heartbeat_s or 0),
            streams=sorted(options.streams or ()),
            trace=options.trace,
        )
        call = self.stub.ReadMany(request, metadata=self.metadata(*addresses))
        try:
            await call.initial_metadata()
            yield OpenMany(lambda: next_parts(call))
        finally:
            call.cancel()

    async def acknowledge(self, address: str, event_id: str) -> int:
        request = pb.AcknowledgeRequest(consumer_address=address, event_id=event_id)
        with telling_errors():
            answer = await self.stub.Acknowledge(request, metadata=self.metadata(address))
        return answer.acknowledged

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]:
        with telling_errors():
            answer = await self.stub.ChannelsExist(
                pb.ChannelsExistRequest(channels=addresses), metadata=self.metadata(*addresses)
            )
        return dict(answer.channels)

    async def dispose(self, address: str) -> None:
        request = pb.ChannelServiceDisposeChannelRequest(producer_address=address)
        with telling_errors():
            await self.stub.DisposeChannel(request, metadata=self.metadata(address))

    async def publish(self, *batches: Sequence[pb.WriteRequest]) -> list[pb.PublishResponse]:
        """Send batches as one stream without pauses. Returns: one answer for each batch."""
        call = self.stub.Publish(
            (pb.PublishRequest(events=batch) for batch in batches), metadata=self.metadata()
        )
        try:
            with telling_errors():
                return [answer async for answer in call]
        finally:
            call.cancel()


def write_request(
    address: str, stream_id: str, body: bytes, request_id: str | None = None
) -> pb.WriteRequest:
    return pb.WriteRequest(
        producer_address=address, stream_id=stream_id, body=body, request_id=request_id or ""
    )


def read_request(address: str, options: ReadOptions = PLAIN) -> pb.ReadRequest:
    return pb.ReadRequest(
        consumer_address=address,
        after_event_id=options.cursor or "",
        acknowledge=options.acknowledge,
        window=options.in_flight,
        take_over=options.take_over,
        reader=options.reader,
        returning=options.returning,
        limit=options.limit or 0,
        wait_ms=None if options.wait_s is None else milliseconds(options.wait_s),
        heartbeat_ms=milliseconds(options.heartbeat_s or 0),
        streams=sorted(options.streams or ()),
        trace=options.trace,
    )


async def next_message(
    call: "grpc.aio.UnaryStreamCall[pb.ReadRequest, pb.ReadResponse]",
) -> list[ReadEvent] | None:
    """Return the events of the next message."""
    with telling_errors():
        message = await call.read()
    if not isinstance(message, pb.ReadResponse):
        return None
    return [event_of_message(event) for event in message.events]


async def next_parts(
    call: "grpc.aio.UnaryStreamCall[pb.ReadManyRequest, pb.ReadManyResponse]",
) -> list[ManyPart] | None:
    with telling_errors():
        message = await call.read()
    if not isinstance(message, pb.ReadManyResponse):
        return None
    parts: list[ManyPart] = []
    for part in message.parts:
        if part.HasField("begun"):
            recovered = part.begun.recovered if part.begun.HasField("recovered") else None
            parts.append(Begun(part.channel, part.begun.position, recovered))
        parts += [(part.channel, event_of_message(event)) for event in part.events]
        if part.HasField("done"):
            parts.append(Done(part.channel, part.done.code))
    return parts


def event_of_message(event: pb.Event) -> ReadEvent:
    return ReadEvent(
        event.event_id,
        event.stream_id,
        event.timestamp.ToDatetime(tzinfo=UTC),
        event.body,
        event.traceparent or None,
    )


WRITE_FAILED = 'Failed "execute_batch"'
"""What a client of grpc.aio says, in place of the answer, of a write to a call that has ended."""


@contextmanager
def telling_errors() -> Iterator[None]:
    """Raise the error of the broker in place of that of grpc, unless the client has lost it."""
    try:
        yield
    except grpc.aio.AioRpcError as failed:
        if WRITE_FAILED in (failed.debug_error_string() or ""):
            raise
        raise grpc_error(failed) from failed


def grpc_error(failed: grpc.aio.AioRpcError) -> MegaphoneError:
    trailers = dict(failed.trailing_metadata())
    assert "grpc-status-details-bin" in trailers, f"an error without details: {failed}"
    status = Status.FromString(trailers["grpc-status-details-bin"])
    details = {detail.TypeName(): detail for detail in status.details}
    info = ErrorInfo()
    assert details[ErrorInfo.DESCRIPTOR.full_name].Unpack(info)
    assert info.domain == DOMAIN
    leaks.check(status.message, "an error over gRPC")
    error = error_from(info.reason, status.message)
    assert error is not None, f"not an error of ours: {failed}"
    assert failed.code() is grpc.StatusCode[row_of(error).grpc_status]
    assert (status.code, status.message) == (failed.code().value[0], failed.details())
    assert (RetryInfo.DESCRIPTOR.full_name in details) == (error.retry_after_s is not None)
    return error


FACES: Mapping[str, Callable[[App], AbstractAsyncContextManager[Face]]] = {
    "http": http_face,
    "grpc": grpc_face,
}
