"""Proves that bad input is answered by its documented code through both faces: never as a bug of
the broker's, never with a trace or an address in the text, never late, and never for good."""

import asyncio
import gzip
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import grpc as grpcio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megaphone.app import App
from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    PayloadTooLarge,
    PermissionDenied,
    ReaderBusy,
    UnsupportedMediaType,
)
from megaphone.model import BatchFailure, NewEvent, ReadOptions
from tests.support.faces import (
    FACES,
    JSON,
    Created,
    Face,
    GrpcFace,
    HttpFace,
    grpc_error,
    http_error,
    read_request,
    read_some,
    write_request,
)
from tests.support.scenes import UNKNOWN_ADDRESS, altered

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("no_bug_is_logged")]

Call = Callable[[Face, Created], Awaitable[object]]
BOTH = ("http", "grpc")
HTTP = ("http",)
GRPC = ("grpc",)

SERVICE = "/megaphone.v1.ChannelService"
MAX_BODY = 1_048_576
DEEP_ARRAYS = b"[" * 5_000 + b"]" * 5_000
DEEP_OBJECTS = b'{"a":' * 5_000 + b"1" + b"}" * 5_000


@dataclass(frozen=True, slots=True)
class Case:
    """One call. Without an error, the call is to be taken."""

    name: str
    call: Call
    error: type[MegaphoneError] | None
    faces: tuple[str, ...] = BOTH


# -- Calls


def writes(body: bytes, stream_id: str = "s", request_id: str | None = None) -> Call:
    return lambda face, channel: face.write(channel.producer, stream_id, body, request_id)


def writes_to(address_of: Callable[[Created], str]) -> Call:
    return lambda face, channel: face.write(address_of(channel), "s", b"1")


def batches(body: bytes = b"1", *, stream_id: str = "s", request_id: str | None = None) -> Call:
    messages = [NewEvent("s", b"0"), NewEvent(stream_id, body)]
    return lambda face, channel: face.write_batch([channel.producer], messages, request_id)


def batches_of(channels: int, messages: int) -> Call:
    """Write a batch of which nothing can be taken, since its addresses are none."""

    async def call(face: Face, channel: Created) -> None:
        batch = [NewEvent("s", b"1")] * messages
        failures = await face.write_batch([f"{number:x}" for number in range(channels)], batch)
        assert len(failures) == channels * messages

    return call


def batches_to(address: str) -> Call:
    async def call(face: Face, channel: Created) -> None:
        failures = await face.write_batch([channel.producer, address], [NewEvent("s", b"1")])
        assert failures == [BatchFailure(address, 0, BadRequest.code)]

    return call


def asks_about(count: int) -> Call:
    async def call(face: Face, channel: Created) -> None:
        alive = await face.exists([channel.producer] + [""] * (count - 1))
        assert alive == {channel.producer: True, "": False}

    return call


def creates_for(protocols: int) -> Call:
    return lambda face, _: face.create(["GRPC_STREAM_V1"] * protocols)


def reads(options: ReadOptions) -> Call:
    async def call(face: Face, channel: Created) -> None:
        await face.write(channel.producer, "s", b"1")
        await read_some(face, channel.consumer, 1, options)

    return call


def reads_from(address_of: Callable[[Created], str]) -> Call:
    return lambda face, channel: read_some(face, address_of(channel), 1)


async def reads_twice(face: Face, channel: Created) -> None:
    async with face.read(channel.consumer):
        await read_some(face, channel.consumer, 1)


def acknowledges(event_id: str) -> Call:
    return lambda face, channel: face.acknowledge(channel.consumer, event_id)


def acknowledges_on(address_of: Callable[[Created], str]) -> Call:
    return lambda face, channel: face.acknowledge(address_of(channel), "x")


def posts(
    path: str, body: bytes | str, content_type: str | None = JSON["Content-Type"], **headers: str
) -> Call:
    """Post over HTTP; `{producer}` and `{consumer}` in the path stand for the channel's own."""

    async def call(face: Face, channel: Created) -> None:
        assert isinstance(face, HttpFace)
        url = face.url(path.format(producer=channel.producer, consumer=channel.consumer))
        kind = {} if content_type is None else {"Content-Type": content_type}
        sent = body.encode() if isinstance(body, str) else body
        async with face.session.post(
            url, data=sent, headers=kind | headers, skip_auto_headers=["Content-Type"]
        ) as response:
            if response.status >= 400:
                raise await http_error(response)

    return call


def gets(query: str) -> Call:
    """Read over HTTP with a query."""

    async def call(face: Face, channel: Created) -> None:
        assert isinstance(face, HttpFace)
        url = face.url(f"/read/{channel.consumer}?{query}")
        async with face.session.get(url) as response:
            if response.status >= 400:
                raise await http_error(response)

    return call


# -- The table


def body_cases() -> Iterator[Case]:
    refused = {
        "nothing": b"",
        "white space": b" ",
        "a word": b"not JSON",
        "an open object": b'{"a": 1',
        "two values": b"1 2",
        "a comma too many in an array": b"[1,]",
        "a comma too many in an object": b'{"a":1,}',
        "single quotes": b"{'a':1}",
        "a key that is no string": b"{1:2}",
        "a comment": b"// one\n1",
        "a leading zero": b"01",
        "a plus": b"+1",
        "no digit before the point": b".5",
        "no digit after the point": b"1.",
        "a hexadecimal number": b"0x10",
        "NaN": b"NaN",
        "Infinity": b"[Infinity]",
        "minus Infinity": b"-Infinity",
        "a number beyond every reader": b"1e999",
        "a negative number beyond every reader": b'{"a":-1E400}',
        "an integer beyond every reader": b"9" * 400,
        "a control character in a string": b'"\x00"',
        "a line break in a string": b'"a\nb"',
        "a tab in a string": b'"a\tb"',
        "half a surrogate pair": rb'"\ud800"',
        "a surrogate pair the wrong way round": rb'"\udc00\ud800"',
        "an unknown escape": rb'"\x41"',
        "invalid UTF-8": b'"\xff"',
        "invalid UTF-8 in a key": b'{"\xff":1}',
        "a surrogate in UTF-8": b'"\xed\xa0\x80"',
        "an overlong zero": b'"\xc0\x80"',
        "UTF-16": '"a"'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf1",
        "128 levels": b"[" * 128 + b"]" * 128,
        "128 levels under a key that is repeated": b'{"a":%b,"a":1}' % (b"[" * 127 + b"]" * 127),
        "5,000 arrays deep": DEEP_ARRAYS,
        "5,000 objects deep": DEEP_OBJECTS,
        "5,000 levels that are not closed": b"[" * 5_000,
    }
    for name, body in refused.items():
        yield Case(f"body: {name}", writes(body), BadRequest)
        yield Case(f"body in a batch: {name}", batches(body), BadRequest)
    yield Case("body: 5,000 digits", writes(b"9" * 5_000), BadRequest)
    yield Case("body: 127 levels", writes(b"[" * 127 + b"]" * 127), None)
    yield Case("body: brackets in a string", writes(b'["%b"]' % (rb"[\"" * 200)), None)
    yield Case("body: all bytes allowed", writes(text_of(MAX_BODY)), None)
    yield Case("body: a byte too many", writes(text_of(MAX_BODY + 1)), PayloadTooLarge)
    yield Case("body in a batch: a byte too many", batches(text_of(MAX_BODY + 1)), PayloadTooLarge)
    yield Case("body: 20 MB", writes(text_of(20_000_000)), PayloadTooLarge, HTTP)


def batch_cases() -> Iterator[Case]:
    yield Case("batch: empty", batches_of(0, 0), None)
    yield Case("batch: no messages", batches_of(3, 0), None)
    yield Case("batch: no channels", batches_of(0, 3), None)
    yield Case("batch: as many events as allowed", batches_of(1_000, 100), None)
    yield Case("batch: an event too many", batches_of(11, 9_091), PayloadTooLarge)
    yield Case("batch: as many channels as allowed", batches_of(10_000, 1), None)
    yield Case("batch: a channel too many", batches_of(10_001, 1), PayloadTooLarge)
    yield Case("batch: the longest address", batches_to("a" * 400), None)
    yield Case("batch: an address too long", batches_to("a" * 401), BadRequest)
    yield Case("lookup: as many addresses as allowed", asks_about(10_000), None)
    yield Case("lookup: an address too many", asks_about(10_001), PayloadTooLarge)
    yield Case("create: as many protocols as allowed", creates_for(100), None)
    yield Case("create: a protocol too many", creates_for(101), PayloadTooLarge)
    shapes = {
        "nothing": "",
        "a word": "word",
        "null": "null",
        "an array": "[]",
        "an empty object": "{}",
        "no messages": '{"channels":[]}',
        "no channels": '{"messages":[]}',
        "channels are a text": '{"channels":"a","messages":[]}',
        "channels are null": '{"channels":null,"messages":[]}',
        "a channel is a number": '{"channels":[1],"messages":[]}',
        "a channel is half a surrogate pair": '{"channels":["\\ud800"],"messages":[]}',
        "messages are an object": '{"channels":[],"messages":{}}',
        "a message is a number": '{"channels":[],"messages":[1]}',
        "a message is empty": '{"channels":[],"messages":[{}]}',
        "no body": '{"channels":[],"messages":[{"streamId":"s"}]}',
        "no stream id": '{"channels":[],"messages":[{"body":1}]}',
        "a stream id is a number": '{"channels":[],"messages":[{"streamId":1,"body":1}]}',
        "a stream id is half a surrogate pair": (
            '{"channels":[],"messages":[{"streamId":"\\ud800","body":1}]}'
        ),
        "an array that is 5,000 deep": DEEP_ARRAYS.decode(),
        "an unknown field that is 5,000 deep": f'{{"x":{DEEP_ARRAYS.decode()}}}',
    }
    for name, body in shapes.items():
        yield Case(f"shape of a batch: {name}", posts("/write-batch", body), BadRequest, HTTP)
    for unknown in (
        '{"x":1,"channels":[],"messages":[]}',
        '{"channels":[],"messages":[{"streamId":"s","body":1,"x":[{}]}]}',
    ):
        call = posts("/write-batch", unknown)
        yield Case(f"shape of a batch: unknown members {unknown}", call, BadRequest, HTTP)


def shape_cases() -> Iterator[Case]:
    for path, fields in {
        "/channelsExists": ['{"channels":1}', '{"channels":[1]}', '{"channels":["\\ud800"]}', "{}"],
        "/ack/{consumer}": ['{"eid":1}', '{"eid":null}', '{"eid":"\\ud800"}', "{}"],
        "/create": ['{"protocols":1}', '{"protocols":[1]}', '{"protocols":null}'],
    }.items():
        nested = f'{{"x":{DEEP_ARRAYS.decode()}}}'
        for body in [*fields, "word", "[]", "null", '"\\ud800"', '{"x":NaN}', "[" * 5_000, nested]:
            yield Case(f"{path}: {body:.30}", posts(path, body), BadRequest, HTTP)
        for name in ("` - at `$[", "` - at `$.x", "` - at `$.eid"):
            body = json.dumps({name: 1})
            yield Case(
                f"{path}: the name of a member is {name}", posts(path, body), BadRequest, HTTP
            )
    for path, body in {
        "/create": '{"x":[1]}',
        "/ack/{consumer}": '{"x":1,"eid":"x"}',
        "/channelsExists": '{"x":1,"channels":[]}',
        "/read": '{"x":1,"channels":[{"address":"a"}]}',
    }.items():
        yield Case(f"{path}: an unknown member", posts(path, body), BadRequest, HTTP)


def content_cases() -> Iterator[Case]:
    kinds = [None, "", "text/plain", "application/jsonx", "json", "multipart/form-data", "/;;,"]
    for path, body in {
        "/write/{producer}/s": "1",
        "/write-batch": '{"channels":[],"messages":[]}',
        "/ack/{consumer}": '{"eid":"x"}',
        "/channelsExists": '{"channels":[]}',
    }.items():
        for kind in kinds:
            yield Case(f"{path} as {kind!r}", posts(path, body, kind), UnsupportedMediaType, HTTP)
    write = "/write/{producer}/s"
    zipped = {"Content-Encoding": "gzip"}
    yield Case("gzip: well", posts(write, gzip.compress(b"1"), **zipped), None, HTTP)
    yield Case("gzip: not at all", posts(write, b"no gzip", **zipped), BadRequest, HTTP)
    bomb = gzip.compress(b"1" * 50_000_000, 1)  # each process that collects tests makes it
    yield Case("gzip: a bomb", posts(write, bomb, **zipped), PayloadTooLarge, HTTP)


def address_cases() -> Iterator[Case]:
    secret = "a" * 50
    channel_addresses: dict[str, tuple[Callable[[Created], str], type[MegaphoneError]]] = {
        "a word": (lambda _: "word", BadRequest),
        "a dot": (lambda _: ".", BadRequest),
        "two dots": (lambda _: "..", BadRequest),
        "a zero byte": (lambda _: "\x00", BadRequest),
        "a consumer address with a line break": (lambda c: f"{c.consumer}\n", BadRequest),
        "a producer address with a line break": (lambda c: f"{c.producer}\n", BadRequest),
        "an unknown agent's": (lambda _: f"elsewhere.{secret}.1", ChannelNotFound),
        "nobody's": (lambda _: f"node.{secret}.1", ChannelNotFound),
        "200 letters": (lambda _: "a" * 200, BadRequest),
        "5,000 letters": (lambda _: "a" * 5_000, BadRequest),
        "not ASCII": (lambda _: f"nöde.{secret}.1", BadRequest),
    }
    for name, (address_of, error) in channel_addresses.items():
        yield Case(f"read from {name}", reads_from(address_of), error)
        yield Case(f"acknowledge on {name}", acknowledges_on(address_of), error)
        refused = PermissionDenied if error is ChannelNotFound else error
        yield Case(f"write to {name}", writes_to(address_of), refused)
    producer_address: Callable[[Created], str] = lambda c: c.producer  # noqa: E731
    yield Case("read from a producer address", reads_from(producer_address), BadRequest)
    yield Case("acknowledge on a producer address", acknowledges_on(producer_address), BadRequest)
    yield Case("write to a consumer address", writes_to(lambda c: c.consumer), PermissionDenied)
    yield Case("write to an altered address", writes_to(lambda c: altered(c.producer)), BadRequest)
    yield Case("write to an address that is cut", writes_to(lambda c: c.producer[:-1]), BadRequest)
    yield Case("write to an unknown agent", writes_to(lambda _: UNKNOWN_ADDRESS), ChannelNotFound)
    yield Case("read other features", reads_from(lambda c: c.consumer[:-1] + "2"), ChannelNotFound)
    yield Case("read bad features", reads_from(lambda c: c.consumer[:-1] + "01"), BadRequest)
    yield Case("write to nothing", writes_to(lambda _: ""), BadRequest, GRPC)
    yield Case("read from nothing", reads_from(lambda _: ""), BadRequest, GRPC)
    yield Case("acknowledge on nothing", acknowledges_on(lambda _: ""), BadRequest, GRPC)
    yield Case("read while another does", reads_twice, ReaderBusy)


def id_cases() -> Iterator[Case]:
    stream_ids = {
        "a zero byte": "a\x00",
        "a line break": "a\nb",
        "a tab": "\t",
        "delete": "a\x7f",
        "a control character of Latin-1": "\x85",
        "1,025 bytes": "a" * 1_025,
        "1,026 bytes of 513 letters": "é" * 513,
    }
    for name, stream_id in stream_ids.items():
        yield Case(f"stream id: {name}", writes(b"1", stream_id), BadRequest)
        yield Case(f"stream id in a batch: {name}", batches(stream_id=stream_id), BadRequest)
    yield Case("stream id in a batch: empty", batches(stream_id=""), BadRequest)
    yield Case("stream id: empty", writes(b"1", ""), BadRequest, GRPC)
    yield Case("stream id: 1,024 bytes", writes(b"1", "a" * 1_024), None)
    yield Case("stream id: slashes", writes(b"1", "/a//b/"), None)
    for name, bad in {
        "201 letters": "a" * 201,
        "not ASCII": "é",
        "a tab": "a\tb",
        "two words": "a b",
    }.items():
        yield Case(f"request id: {name}", writes(b"1", request_id=bad), BadRequest)
        yield Case(f"request id of a batch: {name}", batches(request_id=bad), BadRequest)
        yield Case(f"event id to acknowledge: {name}", acknowledges(bad), BadRequest)
        yield Case(f"event id to resume: {name}", reads(ReadOptions(bad)), BadRequest)
    yield Case("request id: a space", writes(b"1", request_id=" "), BadRequest)
    yield Case("request id: empty", writes(b"1", request_id=""), BadRequest, HTTP)
    yield Case("request id of a batch: empty", batches(request_id=""), BadRequest, HTTP)
    yield Case("request id: a line break", writes(b"1", request_id="a\nb"), BadRequest, GRPC)
    yield Case("request id: 200 letters", writes(b"1", request_id="a" * 200), None)
    yield Case("event id to acknowledge: empty", acknowledges(""), BadRequest)
    yield Case("event id to acknowledge: a zero byte", acknowledges("\x00"), BadRequest)
    yield Case("event id to acknowledge: unknown", acknowledges("a" * 200), None)
    yield Case("event id to resume: a zero byte", reads(ReadOptions("\x00")), BadRequest)
    yield Case("event id to resume: empty", gets("after="), BadRequest, HTTP)
    yield Case("event id to resume: not UTF-8", gets("after=%ff&wait_ms=0"), BadRequest, HTTP)
    yield Case("event id to resume: unknown", reads(ReadOptions("a" * 200)), None)


def option_cases() -> Iterator[Case]:
    windows = {"the largest": 100_000, "one": 1}
    for name, window in windows.items():
        yield Case(f"window: {name}", reads(ReadOptions(acknowledge=True, in_flight=window)), None)
    for window in (100_001, 2**32 - 1):
        options = ReadOptions(acknowledge=True, in_flight=window)
        yield Case(f"window: {window}", reads(options), BadRequest)
    yield Case("window of a plain read: too large", reads(ReadOptions(in_flight=10**6)), BadRequest)
    for name in ("a b", "ä", "x" * 65):
        yield Case(f"reader: {name}", reads(ReadOptions(reader=name)), BadRequest)
    yield Case("reader: long", reads(ReadOptions(reader="x" * 64)), None)
    yield Case("returning without a name", reads(ReadOptions(returning=True)), BadRequest)
    yield Case("heartbeat: too often", reads(ReadOptions(heartbeat_s=0.05)), BadRequest)
    yield Case("heartbeat: often", reads(ReadOptions(heartbeat_s=0.1)), None)
    for name in ("window", "limit", "wait_ms", "heartbeat_ms"):
        for value in ("-1", "", "x", "1.5", "1e3", "0x1", "%20", "+1", "%d9%a3", "9" * 30, "%ff"):
            yield Case(f"query: {name}={value}", gets(f"{name}={value}"), BadRequest, HTTP)
    for query in (
        "window=0",
        "limit=0",
        "heartbeat_ms=0",
        "ack=maybe",
        "ack=",
        "takeover=maybe",
        "returning=yes",
    ):
        yield Case(f"query: {query}", gets(query), BadRequest, HTTP)
    yield Case("query: well", gets("wait_ms=0&&limit=1"), None, HTTP)
    for query in ("x=1&wait_ms=0", "%ff=%ff&wait_ms=0", "=&wait_ms=0", "wait_ms=0&WAIT_MS=0"):
        yield Case(f"query: an unknown name in {query}", gets(query), BadRequest, HTTP)
    for path, body in {
        "/create": "{}",
        "/write/{producer}/s": "1",
        "/write-batch": '{"channels":[],"messages":[]}',
        "/read": '{"channels":[{"address":"a"}]}',
        "/ack/{consumer}": '{"eid":"x"}',
        "/channelsExists": '{"channels":[]}',
    }.items():
        yield Case(f"{path}: a query", posts(f"{path}?x=1", body), BadRequest, HTTP)


def text_of(size: int) -> bytes:
    """Return a JSON text of a size in bytes."""
    return b'"%b"' % (b"x" * (size - 2))


CASES = [
    *body_cases(),
    *batch_cases(),
    *shape_cases(),
    *content_cases(),
    *address_cases(),
    *id_cases(),
    *option_cases(),
]


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(face, case, id=f"{face}: {case.name}") for case in CASES for face in case.faces],
)
async def test_input_is_answered_by_its_code(app: App, name: str, case: Case) -> None:
    async with FACES[name](app) as face, asyncio.timeout(10):
        channel = await face.create()
        if case.error is None:
            await case.call(face, channel)
        else:
            with pytest.raises(MegaphoneError) as told:
                await case.call(face, channel)
            assert type(told.value) is case.error
            assert_discreet(str(told.value), channel)
        await assert_serves(face)


# -- Any bytes as an address


@settings(
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # one broker for all examples
        HealthCheck.too_slow,
    ],
)
@example(b"\x00")
@example(b"\n")
@example(b"/")
@example(b"%2F%80")
@example(b"\x80")
@example(b"\xff" * 200)
@example(b"{}")
@example(b"..")
@example(b"node." + b"a" * 50 + b".1\n")
@given(st.binary(max_size=200))
async def test_any_bytes_may_stand_for_an_address(
    http: HttpFace, grpc: GrpcFace, address: bytes
) -> None:
    path = "".join(f"%{byte:02x}" for byte in address)
    error = BadRequest if address else ChannelNotFound  # no address is no route
    async with asyncio.timeout(10):
        for call in (
            posts(f"/write/{path}/s", b"1"),
            posts(f"/ack/{path}", '{"eid":"x"}'),
            lambda face, _: http_read(face, path),
        ):
            with pytest.raises(error):
                await call(http, Created("", "", []))
        await assert_refused_as_text(grpc, address)
        await assert_serves(http)


async def http_read(face: Face, path: str) -> None:
    assert isinstance(face, HttpFace)
    async with face.session.get(face.url(f"/read/{path}")) as response:
        raise await http_error(response)


async def assert_refused_as_text(face: Face, address: bytes) -> None:
    """Use an address where it can only be a text, if it is one."""
    try:
        text = address.decode()
    except UnicodeDecodeError:
        return
    for use in (face.write(text, "s", b"1"), read_some(face, text, 1), face.acknowledge(text, "x")):
        with pytest.raises(BadRequest):
            await use
    assert await face.exists([text]) == {text: False}


# -- HTTP alone


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/read/{consumer}?limt=1",
            None,
            "the query has the unknown parameter `limt`, did you mean `limit`? allowed are `after`,"
            " `ack`, `window`, `takeover`, `reader`, `returning`, `limit`, `wait_ms`,"
            " `heartbeat_ms`, `stream`, `trace`",
        ),
        (
            "/channelsExists?pretty=1",
            '{"channels":[]}',
            "the query has the unknown parameter `pretty`; no parameter is allowed here",
        ),
        (
            "/write-batch",
            '{"channels":[],"messages":[{"streamID":"s","body":1}]}',
            "the body does not fit: it has the unknown member `streamID`, did you mean `streamId`?"
            " allowed are `streamId`, `body`",
        ),
        (
            "/ack/{consumer}",
            '{"event":"x"}',
            "the body does not fit: it has the unknown member `event`; allowed are `eid`",
        ),
        (
            "/ack/{consumer}",
            '{"%s":"x"}' % ("secret" * 10),
            "the body does not fit: it has an unknown member; allowed are `eid`",
        ),
        (
            "/read",
            '{"channels":[{"address":"a","afer":"-"}]}',
            "the body does not fit: it has the unknown member `afer`, did you mean `after`?"
            " allowed are `address`, `after`",
        ),
    ],
)
async def test_a_misspelling_is_refused_with_what_is_allowed(
    http: HttpFace, path: str, body: str | None, message: str
) -> None:
    channel = await http.create()
    call = gets(path.partition("?")[2]) if body is None else posts(path, body)
    with pytest.raises(BadRequest) as refused:
        await call(http, channel)
    assert str(refused.value) == message


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz/create", "/metrics"])
async def test_probes_may_ask_for_the_head_only(http: HttpFace, path: str) -> None:
    async with http.session.head(http.url(path)) as response:
        assert (response.status, await response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 0
    async with http.session.get(http.url(f"{path}?any=1")) as response:
        assert response.status == 200, "the parameters of scrapers do no harm"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
        ("POST", "/create/", 404),
        ("POST", "//create", 404),
        ("POST", "/Create", 404),
        ("POST", "/write", 404),
        ("POST", "/write/a", 404),
        ("POST", "/write/a/", 404),
        ("POST", "/write/a/b/c", 404),
        ("GET", "/read/", 404),
        ("GET", "/read/a/b", 404),
        ("GET", "/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/%00", 404),
        ("GET", "/%ff", 404),
        ("GET", "/create", 405),
        ("PUT", "/write/a/b", 405),
        ("DELETE", "/read/a", 405),
        ("HEAD", "/read/a", 405),
        ("POST", "/read/a", 405),
        ("POST", "/metrics", 405),
        ("PATCH", "/write-batch", 405),
    ],
)
async def test_unknown_routes_and_methods_are_refused(
    http: HttpFace, method: str, path: str, status: int
) -> None:
    async with http.session.request(method, http.url(path)) as response:
        body = await response.read()
    assert response.status == status
    assert response.content_type == "application/json"
    assert ("Allow" in response.headers) == (status == 405)
    if method != "HEAD":
        told = json.loads(body)
        assert told["code"] == ("NOT_FOUND" if status == 404 else "BAD_REQUEST")
        assert told["status"] == status
    await assert_serves(http)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"\x00\x01\x02garbage\r\n\r\n", id="garbage"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 64, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01\r\n\r\n", id="pipelined"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: x\r\n"
            + b"".join(b"X-%d: 1\r\n" % number for number in range(200))
            + b"\r\n",
            id="200 headers",
        ),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
            id="9,000 bytes of header",
        ),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"BREW /create HTTP/1.1\r\nHost: x\r\n\r\n", id="unknown method"),
        pytest.param(b"GET /read/\x80 HTTP/1.1\r\nHost: x\r\n\r\n", id="raw bytes in the path"),
        pytest.param(b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", id="no path"),
        pytest.param(b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n", id="bad URL"),
        pytest.param(
            b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="bad length"
        ),
        pytest.param(
            b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two lengths",
        ),
        pytest.param(
            b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            id="bad chunk",
        ),
    ],
)
async def test_what_is_not_http_is_refused(http: HttpFace, request_bytes: bytes) -> None:
    answer = await exchange(http.port, request_bytes)
    *_, status = re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)
    assert status == b"400"
    assert b"Traceback" not in answer
    await assert_serves(http)


@pytest.mark.parametrize(
    ("request_bytes", "status", "message"),
    [
        pytest.param(
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
            405,
            "CONNECT is not allowed here; allowed is DELETE, GET, HEAD, POST",
            id="CONNECT",
        ),
        pytest.param(
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01 and so on",
            405,
            "CONNECT is not allowed here; allowed is DELETE, GET, HEAD, POST",
            id="CONNECT with what is for the tunnel",
        ),
        pytest.param(
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            405,
            "OPTIONS is not allowed here; allowed is DELETE, GET, HEAD, POST",
            id="OPTIONS *",
        ),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: more\r\nConnection: close\r\n\r\n",
            417,
            "Expectation Failed",
            id="Expect",
        ),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\nConnection: close\r\n\r\n",
            417,
            "Expectation Failed",
            id="Expect what is not text",
        ),
        pytest.param(
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\nConnection: close\r\n\r\n",
            417,
            "Expectation Failed",
            id="Expect what is not text of no route",
        ),
    ],
)
async def test_what_has_no_route_is_refused_in_our_form(
    http: HttpFace, request_bytes: bytes, status: int, message: str
) -> None:
    answer = await exchange(http.port, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nAllow: DELETE,GET,HEAD,POST" in head) == (status == 405)
    told = json.loads(body)
    assert (told["code"], told["message"]) == ("BAD_REQUEST", message)
    await assert_serves(http)


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /livez",
        "GET /metrics",
        "GET /nothing",
        "POST /create",
        "DELETE /create",
        "OPTIONS *",
        "CONNECT x:1",
        "not HTTP",
        "GET /agents/node",
        "OPTIONS /read/x",
        "GET /read/{consumer}?wait_ms=0",
        "POST /write/{producer}/s",
        "POST /write/x/s",
    ],
)
@pytest.mark.settings(cors_allow_origin=("*",))
async def test_no_answer_names_the_server(http: HttpFace, request_line: str) -> None:
    channel = await http.create()
    line = request_line.format(consumer=channel.consumer, producer=channel.producer)
    headers = "Host: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 1"
    answer = await exchange(http.port, f"{line} HTTP/1.1\r\n{headers}\r\n\r\n1".encode())
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.")
    assert b"\r\ndate:" in head
    assert b"server" not in head
    assert b"aiohttp" not in answer.lower()


async def test_refusal_of_a_bad_path_does_not_repeat_the_address(http: HttpFace) -> None:
    channel = await http.create()
    path = f"/write/{channel.producer}/".encode() + b"\xc3\xa9"
    answer = await exchange(http.port, b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 400 " in answer
    assert_discreet(answer.decode(), channel)


async def test_what_follows_a_read_is_not_answered(http: HttpFace) -> None:
    channel = await http.create()
    head = f"GET /read/{channel.consumer}?limit=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    try:
        async with asyncio.timeout(5):
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\x00garbage\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()
            await http.write(channel.producer, "s", b"1")
            answer += await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b'"body":1}\n\r\n0\r\n\r\n')


async def test_body_that_breaks_off_leaves_nothing_behind(http: HttpFace) -> None:
    channel = await http.create()
    _, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(
        f"POST /write/{channel.producer}/s HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n1".encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await http.write(channel.producer, "s", b"2")
    (event,) = await read_some(http, channel.consumer, 1)
    assert event.body == b"2"


# -- gRPC alone


async def test_message_over_the_limit_is_refused(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await grpc.stub.Write(write_request(channel.producer, "s", text_of(20_000_000)))
    assert told.value.code() is grpcio.StatusCode.RESOURCE_EXHAUSTED
    await assert_serves(grpc)


@pytest.mark.parametrize(
    "method", ["/megaphone.v1.ChannelService/Nothing", "/megaphone.v9.Nothing/Write", "/x", "/"]
)
async def test_unknown_rpc_is_unimplemented(grpc: GrpcFace, method: str) -> None:
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await raw_call(grpc, method)(b"", timeout=5)
    assert told.value.code() is grpcio.StatusCode.UNIMPLEMENTED
    await assert_serves(grpc)


@pytest.mark.parametrize("request_bytes", [b"\xff\xff\xff", b"\n\x02\xff\xfe", b"\n\x7fa"])
@pytest.mark.parametrize(
    "method", ["CreateChannel", "Write", "WriteBatch", "Acknowledge", "ChannelsExist"]
)
async def test_request_that_cannot_be_decoded_is_refused(
    grpc: GrpcFace, method: str, request_bytes: bytes
) -> None:
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await raw_call(grpc, f"{SERVICE}/{method}")(request_bytes, timeout=5)
    await assert_refused_as_undecodable(grpc, told.value)


async def test_read_request_that_cannot_be_decoded_is_refused(grpc: GrpcFace) -> None:
    call: grpcio.aio.UnaryStreamMultiCallable[bytes, bytes]
    call = grpc.channel.unary_stream(f"{SERVICE}/Read")
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await anext(aiter(call(b"\xff\xff\xff", timeout=5)))
    await assert_refused_as_undecodable(grpc, told.value)


async def test_published_batch_that_cannot_be_decoded_is_refused(grpc: GrpcFace) -> None:
    call: grpcio.aio.StreamStreamMultiCallable[bytes, bytes]
    call = grpc.channel.stream_stream(f"{SERVICE}/Publish")
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await anext(aiter(call(iter([b"\xff\xff\xff"]), timeout=5)))
    await assert_refused_as_undecodable(grpc, told.value)


def raw_call(face: GrpcFace, method: str) -> "grpcio.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    """Return a call whose request and response are bytes as they are."""
    return face.channel.unary_unary(method)


async def assert_refused_as_undecodable(face: GrpcFace, told: grpcio.aio.AioRpcError) -> None:
    assert told.code() is grpcio.StatusCode.INVALID_ARGUMENT
    assert type(grpc_error(told)) is BadRequest
    await assert_serves(face)


@pytest.mark.parametrize("method", ["CreateChannel", "WriteBatch", "ChannelsExist"])
@pytest.mark.parametrize("member", [b"\n\x00", b"\x12\x00"])
async def test_a_message_with_very_many_members_is_refused(
    grpc: GrpcFace, method: str, member: bytes
) -> None:
    with pytest.raises(grpcio.aio.AioRpcError) as told:
        await raw_call(grpc, f"{SERVICE}/{method}")(member * 500_000, timeout=5)
    error = grpc_error(told.value)
    assert type(error) is PayloadTooLarge
    assert str(error) == "the request lists more than 100000 things; no call takes so many"
    await assert_serves(grpc)


async def test_unknown_fields_are_ignored(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    request = write_request(channel.producer, "s", b"1").SerializeToString()
    unknown = b"\xfa\x7f\x03abc"  # field 2047, three bytes
    await raw_call(grpc, f"{SERVICE}/Write")(request + unknown)
    (event,) = await read_some(grpc, channel.consumer, 1)
    assert event.body == b"1"


async def test_two_readers_at_once_leave_one(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    request = read_request(channel.consumer, ReadOptions(wait_s=0.3))
    reads = [grpc.stub.Read(request) for _ in range(2)]
    codes = await asyncio.gather(*(read.code() for read in reads))
    assert set(codes) == {grpcio.StatusCode.OK, grpcio.StatusCode.ABORTED}


# -- What holds after each


@pytest.fixture
def no_bug_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The broker logs an error only for what it takes for a bug of its own."""
    yield
    assert [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name.startswith("megaphone") and record.levelno >= logging.ERROR
    ] == []


def assert_discreet(text: str, channel: Created) -> None:
    assert "Traceback" not in text
    assert 'File "' not in text
    for address in (channel.producer, channel.consumer):
        _, secret, *_ = address.split(".")
        assert secret not in text


async def assert_serves(face: Face) -> None:
    channel = await face.create()
    event_id = await face.write(channel.producer, "s", b"1")
    (event,) = await read_some(face, channel.consumer, 1)
    assert event.event_id == event_id


async def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the broker closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(5):
            writer.write(request)
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
