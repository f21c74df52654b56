"""The calls of a client over gRPC, with grpc.aio. All reads and writes share one connection.

Needs the extra `grpc` of the distribution.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

try:
    import grpc
    from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
    from google.rpc.status_pb2 import Status

    from megaphone_api.v1 import channels_pb2 as pb
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "grpc:// needs more packages: pip install 'megaphone-client[grpc]'"
    ) from error

from megaphone_client.encryption import Encryption
from megaphone_client.errors import ConnectionFailed, MegaphoneError, ProtocolError, error_of
from megaphone_client.events import Arrived, Channel, Failure
from megaphone_client.state import Ask
from megaphone_client.tracing import HEADER
from megaphone_client.transport import (
    Create,
    Headers,
    Message,
    NotOffered,
    Part,
    agent_of,
    headers_now,
    is_end_for_a_new_token,
)
from megaphone_client.urls import Target

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

DETAILS_KEY: Final = "grpc-status-details-bin"
AGENT_KEY: Final = "megaphone-agent"
RECOVERED_KEY: Final = "megaphone-recovered"
POSITION_KEY: Final = "megaphone-position"
NO_CONNECTION: Final = "failed to connect"
"""What grpc says if a request was never sent."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # the client repeats calls itself, with one rule for both protocols
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # or a new connection would be the former one again
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
FORMER_S: Final = 60.0
"""How long the calls of a connection that is not trusted any more may take to end."""
BROKEN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The statuses with which grpc itself, or a proxy, reports that a call broke."""

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]


class GrpcTransport:
    """A broker over gRPC."""

    def __init__(
        self,
        target: Target,
        headers: Headers | None,
        encryption: Encryption,
        *,
        trust_env: bool,
    ) -> None:
        self._target = target.endpoint
        self._options = (*OPTIONS, ("grpc.enable_http_proxy", int(trust_env)))
        self._credentials: grpc.ChannelCredentials | None = None
        if target.is_encrypted:
            self._credentials = grpc.ssl_channel_credentials(*encryption.for_grpc())
        self._former: dict[grpc.aio.Channel, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._connect()
        self._authorization: Metadata = ()
        if target.authorization is not None:
            self._authorization = (("authorization", target.authorization),)
        self._headers = headers
        self._publishing: dict[str, Any] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def _connect(self) -> None:
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self._target, self._options)
        else:
            self._channel = grpc.aio.secure_channel(self._target, self._credentials, self._options)
        self._stub: ChannelServiceAsyncStub = ChannelServiceStub(self._channel)

    @property
    def connection(self) -> object:
        return self._channel

    def distrust(self, connection: object) -> None:
        if connection is not self._channel:
            return
        former, loop = self._channel, asyncio.get_running_loop()
        self._former[former] = loop.call_later(FORMER_S, self._close_former, former)
        for lane, call in list(self._publishing.items()):
            if not self._turns[lane].locked():  # otherwise its own time limit ends it
                del self._publishing[lane]
                call.cancel()
        self._connect()

    def _close_former(self, former: grpc.aio.Channel) -> None:
        del self._former[former]
        closing = asyncio.create_task(former.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    batch_has_one_trace = False

    def lane_of(self, producer: str) -> str:
        return agent_of(producer)  # a proxy routes a stream of events by its agent

    async def create(self, request: Create, timeout_s: float) -> Channel:
        message = pb.CreateChannelRequest(
            protocols=request.protocols,
            ttl_secs=request.ttl_s,
            capacity=request.capacity,
            label=request.label or "",
        )
        answer = await self._call(self._stub.CreateChannel, message, timeout_s)
        return Channel(answer.producer_address, answer.consumer_address, tuple(answer.protocols))

    async def write(self, message: Message, timeout_s: float) -> str:
        request = write_request(message)
        answer = await self._call(self._stub.Write, request, timeout_s, message.producer)
        return answer.event_id

    async def write_batch(
        self,
        producers: Sequence[str],
        messages: Sequence[tuple[str, bytes]],
        key: str | None,
        timeout_s: float,
        trace: str | None,
    ) -> list[Failure]:
        request = pb.WriteBatchRequest(
            channels=producers,
            messages=[
                pb.WriteBatchRequest.Message(stream_id=stream, body=body)
                for stream, body in messages
            ],
            request_id=key or "",
        )
        answer = await self._call(
            self._stub.WriteBatch, request, timeout_s, *producers[:1], trace=trace
        )
        return [Failure(one.channel, one.index, one.reason) for one in answer.failures]

    async def publish(
        self, messages: Sequence[Message], timeout_s: float, *, is_apart: bool = False
    ) -> list[str | MegaphoneError | None]:
        producer = messages[0].producer
        lane = self.lane_of(producer)
        request = pb.PublishRequest(events=[write_request(message) for message in messages])
        until = asyncio.get_running_loop().time() + timeout_s
        if is_apart:
            return await self._publish_apart(request, producer, until)
        async with self._turn(lane, until):
            call = self._publishing.get(lane)
            try:
                if call is None:
                    left_s = until - asyncio.get_running_loop().time()
                    metadata = await self._metadata(producer, timeout_s=left_s)
                    call = self._publishing[lane] = self._stub.Publish(metadata=metadata)
                with failing_by_code():
                    async with asyncio.timeout_at(until):
                        await call.write(request)
                        answer: Any = await call.read()
                if answer is grpc.aio.EOF:
                    raise ConnectionFailed("the broker ended the stream of events")
            except BaseException:
                self._publishing.pop(lane, None)
                if call is not None:
                    call.cancel()
                raise
        return [result_of(one) for one in whole(answer).results]

    async def _publish_apart(
        self, request: pb.PublishRequest, producer: str, until: float
    ) -> list[str | MegaphoneError | None]:
        """Write events by a stream of their own."""
        left_s = until - asyncio.get_running_loop().time()
        metadata = await self._metadata(producer, timeout_s=left_s)
        call = self._stub.Publish(metadata=metadata)
        try:
            with failing_by_code():
                async with asyncio.timeout_at(until):
                    await call.write(request)
                    answer: Any = await call.read()
            if answer is grpc.aio.EOF:
                raise ConnectionFailed("the broker ended the stream of events")
        finally:
            call.cancel()
        return [result_of(one) for one in whole(answer).results]

    @asynccontextmanager
    async def _turn(self, lane: str, until: float) -> AsyncIterator[None]:
        """Hold the stream of events of a lane. Raises: ConnectionFailed, if another publisher does
        so until a time."""
        try:
            async with asyncio.timeout_at(until):
                await self._turns[lane].acquire()
        except TimeoutError:
            raise ConnectionFailed("no turn in time", may_have_arrived=False) from None
        try:
            yield
        finally:
            self._turns[lane].release()

    async def acknowledge(self, consumer: str, event_id: str, timeout_s: float) -> int:
        request = pb.AcknowledgeRequest(consumer_address=consumer, event_id=event_id)
        answer = await self._call(self._stub.Acknowledge, request, timeout_s, consumer)
        return answer.acknowledged

    async def exists(self, addresses: Sequence[str], timeout_s: float) -> dict[str, bool]:
        request = pb.ChannelsExistRequest(channels=addresses)
        answer = await self._call(self._stub.ChannelsExist, request, timeout_s, *addresses[:1])
        return dict(answer.channels)

    async def read(self, ask: Ask) -> "GrpcRead":
        call = self._stub.Read(read_request(ask), metadata=await self._metadata(ask.consumer))
        try:
            with failing_by_code():
                metadata = dict(await call.initial_metadata() or ())
                first = None
                if not metadata.keys() & {POSITION_KEY, RECOVERED_KEY}:
                    # The call was refused or broke, or an older broker has nothing to say yet.
                    first = whole(await call.read())
        except BaseException:
            call.cancel()
            raise
        return GrpcRead(call, metadata, first)

    async def read_many(self, asks: Sequence[Ask]) -> "GrpcReadOfMany":
        first = asks[0]
        request = pb.ReadManyRequest(
            channels=[
                pb.ReadManyRequest.Channel(
                    consumer_address=ask.consumer, after_event_id=ask.after or ""
                )
                for ask in asks
            ],
            acknowledge=first.acknowledges,
            take_over=first.takes_over,
            reader=first.reader,
            returning=first.returns,
            heartbeat_ms=max(1, round(first.heartbeat_s * 1000)),
            streams=first.streams,
            trace=first.trace,
        )
        metadata = await self._metadata(first.consumer)
        return GrpcReadOfMany(self._stub.ReadMany(request, metadata=metadata))

    async def aclose(self) -> None:
        for call in self._publishing.values():
            call.cancel()
        for former, timer in self._former.items():
            timer.cancel()
            await former.close()
        if self._closing:
            await asyncio.wait(self._closing)
        await self._channel.close()

    async def dispose(self, producer: str, timeout_s: float) -> None:
        request = pb.ChannelServiceDisposeChannelRequest(producer_address=producer)
        await self._call(self._stub.DisposeChannel, request, timeout_s, producer)

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        request: object,
        timeout_s: float,
        *addresses: str,
        trace: str | None = None,
    ) -> T:
        """Return the answer to a call for the channel of the first address."""
        now = asyncio.get_running_loop().time
        until = now() + timeout_s
        metadata = await self._metadata(*addresses, timeout_s=timeout_s)
        if trace is not None:
            metadata = (*metadata, (HEADER, trace))
        with failing_by_code():
            return whole(await method(request, timeout=max(0.0, until - now()), metadata=metadata))

    async def _metadata(self, *addresses: str, timeout_s: float | None = None) -> Metadata:
        """Return the metadata of a call for the channel of the first address."""
        agents = tuple((AGENT_KEY, agent) for agent in map(agent_of, addresses[:1]) if agent)
        more = await headers_now(self._headers, timeout_s)
        return (*self._authorization, *agents, *((key.lower(), more[key]) for key in more))


class GrpcReadOfMany:
    """A read of many channels that has begun."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def next(self) -> Sequence[Part] | None:
        try:
            with failing_by_code():
                response = await self._call.read()
        except MegaphoneError as error:
            if error.code == "GRPC_UNIMPLEMENTED":
                raise NotOffered from None
            raise
        if response is grpc.aio.EOF:
            return None
        return [part_of(part) for part in whole(response).parts]

    def close(self) -> None:
        self._call.cancel()


class GrpcRead:
    """A read that has begun."""

    def __init__(self, call: Any, metadata: dict[str, Any], first: Any | None) -> None:
        recovered = metadata.get(RECOVERED_KEY)
        self.recovered = None if recovered is None else recovered == "true"
        position = metadata.get(POSITION_KEY)
        self.position = None if position is None else str(position)
        self._call = call
        self._first = first

    async def next(self) -> Sequence[Arrived] | None:
        response, self._first = self._first, None
        if response is None:
            try:
                with failing_by_code():
                    response = await self._call.read()
            except MegaphoneError as error:
                if is_end_for_a_new_token(error):
                    return None
                raise
        if response is grpc.aio.EOF:
            return None
        return [arrived(event) for event in whole(response).events]

    def close(self) -> None:
        self._call.cancel()


def write_request(message: Message) -> pb.WriteRequest:
    return pb.WriteRequest(
        producer_address=message.producer,
        stream_id=message.stream,
        body=message.body,
        request_id=message.key or "",
        traceparent=message.trace or "",
    )


def read_request(ask: Ask) -> pb.ReadRequest:
    return pb.ReadRequest(
        consumer_address=ask.consumer,
        after_event_id=ask.after or "",
        acknowledge=ask.acknowledges,
        take_over=ask.takes_over,
        reader=ask.reader,
        returning=ask.returns,
        limit=ask.limit or 0,
        heartbeat_ms=max(1, round(ask.heartbeat_s * 1000)),
        streams=ask.streams,
        trace=ask.trace,
    )


def result_of(result: pb.PublishResponse.Result) -> str | MegaphoneError:
    if not result.reason:
        return result.event_id
    return error_of(result.reason, result.message or result.reason, is_unavailable=False)


def arrived(event: pb.Event) -> Arrived:
    at_us = event.timestamp.seconds * 1_000_000 + event.timestamp.nanos // 1_000
    return event.stream_id, event.event_id, at_us, event.body, event.traceparent or None


def part_of(part: pb.ReadManyResponse.Part) -> Part:
    result = Part(part.channel, [arrived(event) for event in part.events])
    if part.HasField("begun"):
        result.has_begun = True
        result.position = part.begun.position
        result.recovered = part.begun.recovered if part.begun.HasField("recovered") else None
    if part.HasField("done"):
        done = part.done
        result.is_done = True
        if done.code:
            delay_s = (
                done.retry_delay.ToNanoseconds() / 1e9 if done.HasField("retry_delay") else None
            )
            error = error_of(done.code, done.message, is_unavailable=True, retry_after_s=delay_s)
            result.error = None if is_end_for_a_new_token(error) else error
    return result


def whole(answer: T | None) -> T:
    """Return an answer. Raises: ProtocolError, if it is none, as grpc has it for what it cannot
    decode."""
    if answer is None:
        raise ProtocolError("an answer is not that of a broker")
    return answer


@contextmanager
def failing_by_code() -> Iterator[None]:
    """Raises the error of the broker in place of that of grpc."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of_call(error) from None
    except TimeoutError:
        raise ConnectionFailed("no answer in time") from None
    except asyncio.InvalidStateError:  # from writing to a stream that has ended meanwhile
        raise ConnectionFailed("the call broke") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # The call was cancelled, not the task: its connection was closed.
        raise ConnectionFailed("the call broke: CANCELLED") from None


def error_of_call(error: grpc.aio.AioRpcError) -> MegaphoneError:
    details = dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
    if details is not None:
        return error_of_status(error.code(), Status.FromString(details))
    if error.code() in BROKEN:
        text = error.details() or ""
        kind = "cannot connect" if NO_CONNECTION in text else "the call broke"
        return ConnectionFailed(
            f"{kind}: {error.code().name}", may_have_arrived=NO_CONNECTION not in text
        )
    return MegaphoneError(f"GRPC_{error.code().name}", f"gRPC answer {error.code().name}")


def error_of_status(code: grpc.StatusCode, status: Status) -> MegaphoneError:
    info, retry = ErrorInfo(), RetryInfo()
    retry_after_s = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    is_unavailable = code is grpc.StatusCode.UNAVAILABLE
    return error_of(
        info.reason or f"GRPC_{code.name}",
        status.message,
        is_unavailable=is_unavailable,
        retry_after_s=retry_after_s,
    )
