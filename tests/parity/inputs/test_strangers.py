"""What somebody without an address, or with a wrong one, learns and costs: very little."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc as grpcio
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from megaphone.core.addresses import AddressKey, ConsumerAddress
from megaphone.errors import MegaphoneError
from tests.support import leaks
from tests.support.faces import Created, Face, GrpcFace, HttpFace
from tests.support.raw_http import JSON, request_of

REPEATED = 20
PAGES = ("/", "/docs", "/openapi.json")
PROBES = ("/livez", "/readyz", "/readyz/create", "/metrics", "/agents", "/agents/node")
AMPLIFIED = 6
"""How many times as large as a refused request its answer may be, with the size of its head."""
HEAD_BYTES = 700


def altered(text: str) -> Iterator[str]:
    """Yield texts that differ from an address in one character after its agent."""
    start = text.index(".") + 1
    for at in range(start, len(text) - 2, 3):
        other = "B" if text[at] != "B" else "C"
        yield text[:at] + other + text[at + 1 :]


async def told_by(call: Awaitable[object]) -> tuple[str, str]:
    """Return the code and the text of the error that a call ends with."""
    with pytest.raises(MegaphoneError) as raised:
        await call
    return raised.value.code, str(raised.value)


async def test_every_wrong_producer_address_gets_the_same_answer(writer: Face) -> None:
    """So nobody finds a right one bit by bit."""
    channel = await writer.create()
    answers = {await told_by(writer.write(one, "s", b"1")) for one in altered(channel.producer)}
    assert answers == {("BAD_REQUEST", next(iter(answers))[1])}


async def test_every_wrong_consumer_address_gets_the_answer_of_a_channel_that_has_gone(
    writer: Face,
) -> None:
    channel = await writer.create()
    wrong = list(altered(channel.consumer))
    answers = {await told_by(writer.acknowledge(one, "x" * 23)) for one in wrong}
    answers |= {await told_by(read_once(writer, one)) for one in wrong}
    assert answers == {("NOT_FOUND", next(iter(answers))[1])}
    assert set((await writer.exists(wrong)).values()) == {False}


async def read_once(face: Face, address: str) -> None:
    async with face.read(address) as read:
        await read.begun()


def calls_of(work: Callable[[], object]) -> int:
    """Return how many calls of functions some work makes, which decides how long it takes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_wrong_address_takes_the_same_work_wherever_it_is_wrong() -> None:
    """AES-GCM compares its tag in constant time, and channels are found by a hash."""
    key = AddressKey(bytes(32))
    consumer = ConsumerAddress("node", "a" * 50)
    sealed = key.seal(consumer.channel_id)

    def opens(text: str) -> Callable[[], object]:
        def work() -> None:
            with pytest.raises(MegaphoneError):
                key.open(text)

        return work

    wrong = [one.removeprefix("x.") for one in altered(f"x.{sealed}")]
    opens(wrong.pop())()  # loads what is loaded once
    assert len({calls_of(opens(one)) for one in wrong}) == 1
    ids = [ConsumerAddress.parse(one).channel_id for one in altered(str(consumer))]
    assert len(set(ids)) == len(ids)


async def test_no_page_and_no_probe_shows_a_secret(http: HttpFace, grpc: GrpcFace) -> None:
    channel = await http.create()
    await http.write(channel.producer, "s", b'"x"', "key")
    with pytest.raises(MegaphoneError):
        await http.write(channel.consumer, "s", b"1")
    key = str(http.port)
    for path in (*PAGES, *PROBES, "/nothing", f"/agents/{key}"):
        async with http.session.get(http.url(path)) as response:
            text = f"{response.headers}{await response.text()}"
        leaks.check(text, path)
        for secret in (channel.producer, channel.consumer):
            assert secret not in text


def refused_requests(channel: Created) -> Iterator[bytes]:
    """Yield requests that are as large as they can be, and that are refused."""
    long = "x" * 7_000
    yield request_of("GET", f"/{long}")
    yield request_of("GET", f"/read/{long}")
    yield request_of("GET", f"/read/{channel.consumer}?{long}=1")
    yield request_of("GET", f"/read/{channel.consumer}?limit={long}")
    yield request_of("GET", f"/read/{channel.consumer}?stream=%00")
    yield request_of("POST", f"/write/{channel.producer}/{long}", b"1", JSON)
    yield request_of("POST", f"/write/{channel.producer}/s", b"[" + b"x" * 100_000, JSON)
    yield request_of("POST", "/create", b'{"%b":1}' % long.encode(), JSON)
    yield request_of("POST", "/channelsExists", b'{"%b":1}' % long.encode(), JSON)
    yield request_of("POST", "/write-batch", b'{"channels":["%b"]}' % long.encode(), JSON)
    yield request_of("POST", f"/ack/{channel.consumer}", b'{"eid":"%b"}' % long.encode(), JSON)
    yield request_of("POST", "/create", b"x", JSON | {"Content-Encoding": long})
    yield request_of("X" * 20, "/create")
    yield b"GET /" + b"x" * 70_000
    yield b"\x00" * 1_000


async def test_a_refusal_is_small_however_large_the_request(http: HttpFace) -> None:
    channel = await http.create()
    for request in refused_requests(channel):
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            try:
                writer.write(request.replace(b"Host:", b"Connection: close\r\nHost:", 1))
                answer = await reader.read()
            finally:
                writer.close()
        assert answer[:7] + answer[8:10] == b"HTTP/1. 4", request[:80]
        assert len(answer) < HEAD_BYTES, request[:80]
        leaks.check(answer.decode("latin-1"), "a refusal")


async def test_questions_are_not_amplified(http: HttpFace) -> None:
    """The answer grows with the request, and a repeated address is answered once."""
    channel = await http.create()
    for addresses in ([channel.consumer] * 1_000, ["node." + "a" * 50 + ".1"], ["x"] * 1_000):
        body = b'{"channels":["%b"]}' % '","'.join(addresses).encode()
        async with http.session.post(
            http.url("/channelsExists"), data=body, headers=JSON
        ) as response:
            answer = await response.read()
        assert len(answer) <= AMPLIFIED * len(body) + HEAD_BYTES


@pytest.mark.parametrize("size", [20_000, 100_000])
async def test_large_metadata_is_refused_and_the_node_serves_on(grpc: GrpcFace, size: int) -> None:
    channel = await grpc.create()
    raw: Any = grpc.channel.unary_unary("/megaphone.v1.ChannelService/CreateChannel")
    with pytest.raises(grpcio.aio.AioRpcError) as raised:
        await raw(b"", metadata=(("x-large", "x" * size),), timeout=10)
    assert raised.value.code() is grpcio.StatusCode.RESOURCE_EXHAUSTED
    assert await grpc.exists([channel.consumer]) == {channel.consumer: True}


@pytest.mark.settings(grpc_reflection=True)
async def test_reflection_tells_the_schema_and_nothing_of_the_node(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    connection: Any = grpc.channel
    stub: Any = ServerReflectionStub(connection)
    ask = reflection_pb2.ServerReflectionRequest
    names = [ask(list_services=""), ask(file_containing_symbol="megaphone.v1.ChannelService")]
    requests = [*names, ask(file_by_filename=channel.consumer)]
    answers = [one async for one in stub.ServerReflectionInfo(iter(requests))]
    assert len(answers) == len(requests)
    assert "AdminService" not in str(answers[0])
    assert answers[2].HasField("error_response")
    for answer in answers[:2]:
        leaks.check(str(answer), "reflection")
