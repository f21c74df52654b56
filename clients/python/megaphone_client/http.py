"""The calls of a client over HTTP/1.1, with aiohttp. Each read has a connection of its own."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from megaphone_client.bodies import encode
from megaphone_client.encryption import Encryption
from megaphone_client.errors import (
    BadRequest,
    ConnectionFailed,
    MegaphoneError,
    OutcomeUnknown,
    ProtocolError,
    error_of,
    may_be_done,
)
from megaphone_client.events import Arrived, Channel, Failure
from megaphone_client.lines import Splitter, events_of, parts_of
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
)
from megaphone_client.urls import Target

T = TypeVar("T")
JSON: Final = {"Content-Type": "application/json"}
NDJSON: Final = {"Accept": "application/x-ndjson"}
BUFFER_BYTES: Final = 262_144
NO_LIMIT: Final = aiohttp.ClientTimeout(total=None)
NO_ROUTE: Final = "NO_ROUTE"
"""The client's own code for what a broker answers for a path that it does not know."""
NO_ROUTE_CODE: Final = "NOT_FOUND"
NO_ROUTE_MESSAGE: Final = "no such route"
"""That answer. Its code is also that of a channel that has gone, so this text never changes."""
NOT_OFFERED: Final = frozenset({NO_ROUTE, "HTTP_404", "HTTP_405"})
"""With these, a broker or a proxy refuses a call that it does not know."""
SERVER_ERROR: Final = 500


class Told(msgspec.Struct):
    """The error of an answer."""

    code: str
    message: str = ""


class Created(msgspec.Struct, rename="camel"):
    producer_address: str
    consumer_address: str
    protocols: tuple[str, ...] = ()


class Written(msgspec.Struct):
    eid: str


class OneFailure(msgspec.Struct):
    channel: str
    index: int
    reason: str


class BatchWritten(msgspec.Struct):
    failures: list[OneFailure]
    eids: list[str | None] | None = None


class Acknowledged(msgspec.Struct):
    acknowledged: int


class Existing(msgspec.Struct):
    channels: dict[str, bool]


class HttpTransport:
    """A broker over HTTP."""

    def __init__(
        self, target: Target, headers: Headers | None, encryption: Encryption, *, trust_env: bool
    ) -> None:
        scheme = "https" if target.is_encrypted else "http"
        self._base = f"{scheme}://{target.endpoint}{target.prefix}"
        self._authorization = (
            {} if target.authorization is None else {"Authorization": target.authorization}
        )
        self._headers = headers
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=encryption.for_http()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_LIMIT,
            trust_env=trust_env,
            read_bufsize=BUFFER_BYTES,
        )

    batch_has_one_trace = True

    def lane_of(self, producer: str) -> str:
        return producer  # a request of `/write-batch` has one list of events for all its channels

    @property
    def connection(self) -> object:
        return None  # each read has a connection of its own, which ends with it

    def distrust(self, connection: object) -> None:
        pass

    async def create(self, request: Create, timeout_s: float) -> Channel:
        # Only options that are set are sent, because older brokers refuse members they do not know.
        options = {"ttlSecs": request.ttl_s, "capacity": request.capacity, "label": request.label}
        chosen = {name: value for name, value in options.items() if value is not None}
        body = encode({"protocols": list(request.protocols)} | chosen)
        created = parsed(await self._post("/create", body, timeout_s), Created)
        return Channel(created.producer_address, created.consumer_address, created.protocols)

    async def write(self, message: Message, timeout_s: float) -> str:
        path = f"/write/{address(message.producer)}/{stream_id(message.stream)}"
        answer = await self._post(path, message.body, timeout_s, message.key, trace=message.trace)
        return parsed(answer, Written).eid

    async def write_batch(
        self,
        producers: Sequence[str],
        messages: Sequence[tuple[str, bytes]],
        key: str | None,
        timeout_s: float,
        trace: str | None,
    ) -> list[Failure]:
        return failures_of(await self._write_batch(producers, messages, key, timeout_s, trace))

    async def publish(
        self, messages: Sequence[Message], timeout_s: float, *, is_apart: bool = False
    ) -> list[str | MegaphoneError | None]:
        first = messages[0]
        answer = await self._write_batch(
            [first.producer],
            [(one.stream, one.body) for one in messages],
            first.key,
            timeout_s,
            first.trace,
        )
        ids: list[str | None] = [None] * len(messages)
        if answer.eids is not None and len(answer.eids) == len(messages):
            ids = list(answer.eids)
        results: list[str | MegaphoneError | None] = [*ids]
        for failure in answer.failures:
            if not 0 <= failure.index < len(messages):
                raise ProtocolError("an answer names an event that the request does not have")
            error = refusal(failure.reason)
            # The key of a batch covers an event by its place, which it will not have in another.
            results[failure.index] = OutcomeUnknown(str(error)) if may_be_done(error) else error
        return results

    async def _write_batch(
        self,
        producers: Sequence[str],
        messages: Sequence[tuple[str, bytes]],
        key: str | None,
        timeout_s: float,
        trace: str | None,
    ) -> BatchWritten:
        rendered = [
            b'{"streamId":%b,"body":%b}' % (encode(stream), body) for stream, body in messages
        ]
        channels = encode(list(producers))
        body = b'{"channels":%b,"messages":[%b]}' % (channels, b",".join(rendered))
        agent = agent_of(producers[0]) if producers else ""
        answer = await self._post("/write-batch", body, timeout_s, key, agent, trace)
        return parsed(answer, BatchWritten)

    async def acknowledge(self, consumer: str, event_id: str, timeout_s: float) -> int:
        body = encode({"eid": event_id})
        answer = await self._post(f"/ack/{address(consumer)}", body, timeout_s)
        return parsed(answer, Acknowledged).acknowledged

    async def exists(self, addresses: Sequence[str], timeout_s: float) -> dict[str, bool]:
        body = encode({"channels": list(addresses)})
        agent = agent_of(addresses[0]) if addresses else ""
        answer = await self._post("/channelsExists", body, timeout_s, agent=agent)
        return parsed(answer, Existing).channels

    async def dispose(self, producer: str, timeout_s: float) -> None:
        await self._send("DELETE", f"/channel/{address(producer)}", {}, None, timeout_s)

    async def _post(
        self,
        path: str,
        body: bytes,
        timeout_s: float,
        key: str | None = None,
        agent: str = "",
        trace: str | None = None,
    ) -> bytes:
        """`agent` is for calls whose path has no address by which a proxy could route."""
        headers = JSON if key is None else JSON | {"Idempotency-Key": key}
        if agent:
            headers = headers | {"Megaphone-Agent": agent}
        if trace is not None:
            headers = headers | {HEADER: trace}
        # aiohttp warns about more than a megabyte of bytes; it sends a file of any size.
        data = body if len(body) < BUFFER_BYTES else BytesIO(body)
        return await self._send("POST", path, headers, data, timeout_s)

    async def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: bytes | BytesIO | None,
        timeout_s: float,
    ) -> bytes:
        """Return the body of the answer. Raises: the error of the broker."""
        until = asyncio.get_running_loop().time() + timeout_s
        all_headers = await self._all_headers(headers, timeout_s)
        with failing_by_code():
            async with (
                asyncio.timeout_at(until),
                self._session.request(
                    method,
                    URL(self._base + path, encoded=True),
                    data=data,
                    headers=all_headers,
                    allow_redirects=False,
                ) as response,
            ):
                content = await received(response.read())
                if response.status >= 300:
                    raise refused(response.status, content, response.headers)
                return content

    async def read(self, ask: Ask) -> "HttpRead":
        path = f"/read/{address(ask.consumer)}?{query_of(ask)}"
        return HttpRead(await self._open("GET", path, NDJSON))

    async def read_many(self, asks: Sequence[Ask]) -> "HttpReadOfMany":
        headers = NDJSON | JSON
        if agent := agent_of(asks[0].consumer):
            headers |= {"Megaphone-Agent": agent}
        try:
            return HttpReadOfMany(await self._open("POST", "/read", headers, body_of(asks)))
        except MegaphoneError as error:
            if error.code in NOT_OFFERED:
                raise NotOffered from None
            raise

    async def _open(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """Return an answer whose body is still to come. Raises: the error of the broker."""
        all_headers = await self._all_headers(headers)
        with failing_by_code():
            response = await self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=body,
                headers=all_headers,
                allow_redirects=False,
            )
            try:
                if response.status != 200:
                    content = await received(response.read())
                    raise refused(response.status, content, response.headers)
            except BaseException:
                response.close()
                raise
        return response

    async def aclose(self) -> None:
        await self._session.close()

    async def _all_headers(
        self, headers: Mapping[str, str], timeout_s: float | None = None
    ) -> dict[str, str]:
        more = await headers_now(self._headers, timeout_s)
        return {**self._authorization, **headers, **more}


class HttpReadOfMany:
    """A read of many channels that has begun."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._splitter = Splitter()

    async def next(self) -> Sequence[Part] | None:
        with failing_by_code():
            piece = await received(self._response.content.readany())
        if not piece:
            return None
        lines = self._splitter.whole_lines(piece)
        return parts_of(lines) if lines else ()

    def close(self) -> None:
        self._response.close()


class HttpRead:
    """A read that has begun."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        recovered = response.headers.get("Megaphone-Recovered")
        self.recovered = None if recovered is None else recovered == "true"
        self.position = response.headers.get("Megaphone-Position")
        self._response = response
        self._content = response.content
        self._splitter = Splitter()

    async def next(self) -> Sequence[Arrived] | None:
        with failing_by_code():
            piece = await received(self._content.readany())
        if not piece:
            return None
        lines = self._splitter.whole_lines(piece)
        return events_of(lines) if lines else ()

    def close(self) -> None:
        self._response.close()


@contextmanager
def failing_by_code() -> Iterator[None]:
    """Raises ConnectionFailed in place of the errors of aiohttp."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise ConnectionFailed(
            f"cannot connect: {reason_of(error)}", may_have_arrived=False
        ) from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ConnectionFailed(f"the connection broke: {type(error).__name__}") from None
    except TimeoutError:
        raise ConnectionFailed("no answer in time") from None


async def received(coming: Awaitable[bytes]) -> bytes:
    """Return what comes. Raises: what aiohttp raises; ConnectionFailed, if the connection had ended
    before, which aiohttp takes for a mistake of its caller."""
    try:
        return await coming
    except RuntimeError:
        raise ConnectionFailed("the connection broke") from None


def address(text: str) -> str:
    """Return the part of a path for an address. Raises: BadRequest, if it is empty."""
    return segment(
        text, "not an address: expected a producer or consumer address as POST /create returns it"
    )


def stream_id(text: str) -> str:
    """Return the part of a path for a stream id. Raises: BadRequest, if it is empty."""
    return segment(text, "the stream id is empty: name a stream")


def segment(text: str, if_empty: str) -> str:
    if not text:  # the path would be that of another route, so it is not sent
        raise BadRequest("BAD_REQUEST", if_empty)
    return quote(text, safe="")


def query_of(ask: Ask) -> str:
    query = [("heartbeat_ms", str(heartbeat_ms(ask)))]
    if ask.after is not None:
        query.append(("after", ask.after))
    if ask.acknowledges:
        query.append(("ack", "explicit"))
    if ask.takes_over:
        query.append(("takeover", "true"))
    if ask.reader:
        query.append(("reader", ask.reader))
    if ask.returns:
        query.append(("returning", "true"))
    if ask.limit is not None:
        query.append(("limit", str(ask.limit)))
    if ask.trace:
        query.append(("trace", "true"))
    query += [("stream", stream) for stream in ask.streams]
    return urlencode(query)


def body_of(asks: Sequence[Ask]) -> bytes:
    """Return the request for a read of many channels, which are all asked in the same way."""
    first = asks[0]
    channels = [
        {"address": ask.consumer} | ({} if ask.after is None else {"after": ask.after})
        for ask in asks
    ]
    return encode(
        {
            "channels": channels,
            "ack": "explicit" if first.acknowledges else "none",
            "takeover": first.takes_over,
            "reader": first.reader,
            "returning": first.returns,
            "heartbeat_ms": heartbeat_ms(first),
            "stream": first.streams,
        }
        # Only if it is set, because older brokers refuse members they do not know.
        | ({"trace": True} if first.trace else {})
    )


def heartbeat_ms(ask: Ask) -> int:
    return max(1, round(ask.heartbeat_s * 1000))


def parsed(content: bytes, kind: type[T]) -> T:
    """Return an answer. Raises: ProtocolError."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError(f"an answer of {len(content)} bytes is not that of a broker") from None


def refused(status: int, content: bytes, headers: Mapping[str, str]) -> MegaphoneError:
    """Return the error of an answer, which may come from a proxy."""
    try:
        told = msgspec.json.decode(content, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = Told(f"HTTP_{status}", f"HTTP answer {status} without an error of the broker")
    if (told.code, told.message) == (NO_ROUTE_CODE, NO_ROUTE_MESSAGE):
        return MegaphoneError(NO_ROUTE, "there is no broker at the path of this URL")
    retry_after = headers.get("Retry-After", "")
    return error_of(
        told.code,
        told.message,
        is_unavailable=status >= SERVER_ERROR or status in (408, 429),
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
    )


def refusal(reason: str) -> MegaphoneError:
    """Return the error of one event of a batch."""
    return error_of(reason, f"the event was refused: {reason}", is_unavailable=False)


def failures_of(answer: BatchWritten) -> list[Failure]:
    return [Failure(one.channel, one.index, one.reason) for one in answer.failures]


def reason_of(error: aiohttp.ClientConnectorError) -> str:
    cause: OSError | None = getattr(error, "os_error", None)  # a bad certificate has none
    return (cause and cause.strerror) or type(error).__name__
