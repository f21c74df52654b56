"""How long the worst requests hold the event loop, so that nobody else is served.

`python -m bench.hold` runs a broker with a heartbeat in the same event loop. It prints its ports.
For each line on standard input, it prints the longest hold since the last line.
"""

import asyncio
import gzip
import json
import random
import sys
import tempfile
import time
import zlib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from bench.contestants import OURS, Contestant
from bench.http import Channel, make_channels
from bench.processes import HOST, START_TIMEOUT_S, BenchError, running, server_cores
from bench.report import MILLISECONDS, Figure, Target
from bench.rounds import Plan, progress
from megaphone import app
from megaphone.cli.serve import new_event_loop
from megaphone.model import AgentMode
from megaphone.process.garbage import Freezer
from megaphone.process.memory import allowed_bytes
from megaphone.settings import Settings
from megaphone_api.v1 import channels_pb2 as pb

LIMIT = Target(20, at_most=True)
NOTES = (
    "the longest that the loop's thread computed between two beats; the node has 10,000 channels,"
    " and the largest requests have 1 MiB",
)
BEAT_S = 0.001
MAX_BODY = 1_048_576
CHANNELS = 10_000
ANSWER_TIMEOUT_S = 30.0
WRITE_TIMEOUT_MILLIS = 200
"""A short time, because some of the requests wait for a place that nobody frees."""
CHUNKED = "Transfer-Encoding: chunked"
SERVICE = "/megaphone.v1.ChannelService"


# -- The broker, with a heartbeat


class Heartbeat:
    """A timer that fires every millisecond and records the longest time the loop was held.

    It measures the CPU time of the thread between two beats. The wall time would be longer if the
    machine does other work.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest_s = 0.0
        self._computed_s = time.thread_time()
        self._beat()

    def take_longest_ms(self) -> float:
        self._longest_s, longest_s = 0.0, self._longest_s
        return longest_s * 1000

    def _beat(self) -> None:
        computed_s = time.thread_time()
        self._longest_s = max(self._longest_s, computed_s - self._computed_s)
        self._computed_s = computed_s
        self._loop.call_later(BEAT_S, self._beat)


async def serve(socket_path: str) -> None:
    settings = Settings(
        address=f"{HOST}:0",
        grpc_address=f"{HOST}:0",
        agent={"bench": AgentMode.MASTER},
        agent_warmup_secs=0,
        mng_socket_path=socket_path,
        write_timeout_millis=WRITE_TIMEOUT_MILLIS,
        channel_ttl_secs=3_600,
    )
    async with app.running(settings) as broker:
        print(json.dumps([broker.http_port, broker.grpc_port]), flush=True)
        heartbeat = Heartbeat()
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(
            sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.buffer.readline())
        )
        while await lines.get():
            print(heartbeat.take_longest_ms(), flush=True)


@dataclass(frozen=True, slots=True)
class Node:
    """The broker, with the connections of its clients and the reports of the heartbeat."""

    process: Process
    http_port: int
    grpc_port: int
    socket_path: str

    async def longest_ms(self) -> float:
        """Return the longest time the loop was held since the last call."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return float(await line_of(self.process))


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    with tempfile.TemporaryDirectory(prefix="megaphone-bench-") as folder:
        path = str(Path(folder, "manage.sock"))
        command = [sys.executable, "-m", "bench.hold", path]
        async with running(command, on_cores=server_cores(), stdin=PIPE, stdout=PIPE) as process:
            http_port, grpc_port = json.loads(await line_of(process))
            yield Node(process, http_port, grpc_port, path)


async def line_of(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        raise BenchError("the broker has ended")
    return line


# -- Requests


Send = Callable[[Node], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    send: Send


async def exchange(node: Node, request: bytes, *, managed: bool = False) -> bytes:
    """Send a request that closes its connection, and return the whole answer."""
    if managed:
        reader, writer = await asyncio.open_unix_connection(node.socket_path)
    else:
        reader, writer = await asyncio.open_connection(HOST, node.http_port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def http(
    method: str,
    path: str,
    status: int,
    body: bytes = b"",
    *,
    more: str = "",
    managed: bool = False,
) -> Send:
    request = request_of(method, path, body, more)

    async def send(node: Node) -> None:
        answer = await exchange(node, request, managed=managed)
        if answer[9:12] != b"%d" % status:
            raise BenchError(f"{path.partition('?')[0]:.20} was answered with {answer[:200]!r}")

    return send


def http_left(path: str, body: bytes) -> Send:
    """Return a function that sends a request and leaves before the answer comes."""
    request = request_of("POST", path, body)

    async def send(node: Node) -> None:
        _, writer = await asyncio.open_connection(HOST, node.http_port)
        writer.write(request)
        await asyncio.sleep(WRITE_TIMEOUT_MILLIS / 1000 / 2)
        writer.transport.abort()
        await asyncio.sleep(0.05)

    return send


def request_of(method: str, path: str, body: bytes, more: str = "") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {HOST}",
        "Connection: close",
        "Content-Type: application/json",
        more or "X-Nothing: more",
    ]
    if more != CHUNKED:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def rpc(method: str, message: bytes, status: grpc.StatusCode = grpc.StatusCode.OK) -> Send:
    async def send(node: Node) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"{HOST}:{node.grpc_port}", options) as channel:
            call: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            call = channel.stream_stream(f"{SERVICE}/{method}")
            try:
                async for _ in call(iter([message])):
                    pass
                told = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                told = error.code()
        if told is not status:
            raise BenchError(f"{method} was answered with {told.name}")

    return send


def filled(value: bytes, around: tuple[bytes, bytes] = (b"[", b"]")) -> bytes:
    """Return as many values as fit into a request body."""
    begin, end = around
    count = (MAX_BODY - len(begin) - len(end) + 1) // (len(value) + 1)
    return begin + b",".join([value] * count) + end


def strings(texts: list[str]) -> bytes:
    return json.dumps(texts, separators=(",", ":")).encode()


def bad_addresses(count: int) -> list[str]:
    """Return well-formed addresses that no key can decrypt."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    return [f"bench.{''.join(rng.choices(letters, k=58))}A" for _ in range(count)]


def lookups() -> Iterator[Case]:
    path = "/channelsExists"
    begin = b'{"channels":['
    for name, address in (("empty", b'""'), ("short", b'"a"'), ("other", '"é"'.encode())):
        body = filled(address, (begin, b"]}"))
        yield Case(f"{path}, a body of {name} addresses", http("POST", path, 413, body))
    asked = bad_addresses(10_000)
    body = b'{"channels":%b}' % strings(asked)
    yield Case(f"{path}, 10,000 bad addresses", http("POST", path, 200, body))
    body = b'{"channels":%b}' % strings(["bench." + "a" * 104_000] * 10)
    yield Case(f"{path}, long addresses", http("POST", path, 200, body))
    empty = b"\n\x00" * (MAX_BODY // 2)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    yield Case("ChannelsExist, a message of empty addresses", rpc("ChannelsExist", empty, refused))
    message = pb.ChannelsExistRequest(channels=asked).SerializeToString()
    yield Case("ChannelsExist, 10,000 bad addresses", rpc("ChannelsExist", message))
    message = pb.ChannelsExistRequest(channels=["a" * MAX_BODY]).SerializeToString()
    yield Case("ChannelsExist, an address of 1 MiB", rpc("ChannelsExist", message))


BODIES = {
    "empty lists": filled(b"[]"),
    "empty objects": filled(b"{}"),
    "deep lists": filled(b"[" * 126 + b"]" * 126),
    "deep objects": filled(b'{"a":' * 126 + b"1" + b"}" * 126),
    "a list too deep": filled(b"[" * 128 + b"]" * 128),
    "a list far too deep": b"[" * (MAX_BODY // 2) + b"]" * (MAX_BODY // 2),
    "numbers near the largest": filled(b"1.7976931348623157e308"),
    "numbers near the smallest": filled(b"2.2250738585072011e-308"),
    "numbers of 300 digits": filled(b"9" * 300),
    "one number": b"0." + b"3" * (MAX_BODY - 2),
    "keys": filled(b'"a":0', (b"{", b"}")),
    "strings of brackets": filled(rb'"[\"{[{"'),
    "one string of brackets": b"[" * 127 + b'"' + rb"\"[" * 349_000 + b'"' + b"]" * 127,
    "escapes": b'"' + rb"\ud83d\ude00" * 87_000 + b'"',
    "letters beyond ASCII": filled('"é"'.encode()),
    "line breaks": b"\n" * (MAX_BODY - 1) + b"1",
    "not JSON at its end": filled(b"[]")[:-1] + b"}",
}


def writes(channel: Channel) -> Iterator[Case]:
    path = f"/write/{channel.producer}/s"
    for name, body in BODIES.items():
        is_refused = name in ("not JSON at its end", "a list too deep", "a list far too deep")
        yield Case(f"/write, {name}", http("POST", path, 400 if is_refused else 201, body))
    body = BODIES["empty lists"]
    message = pb.WriteRequest(producer_address=channel.producer, stream_id="s", body=body)
    yield Case("Write, empty lists", rpc("Write", message.SerializeToString()))
    message = pb.WriteRequest(producer_address="bench." + "a" * MAX_BODY, stream_id="s", body=b"1")
    status = grpc.StatusCode.INVALID_ARGUMENT
    yield Case("Write, an address of 1 MiB", rpc("Write", message.SerializeToString(), status))


def batches(channels: list[Channel]) -> Iterator[Case]:
    path = "/write-batch"
    small = b'{"streamId":"s","body":1}'

    def body(addresses: list[str], message: bytes, count: int) -> bytes:
        messages = b",".join([message] * count)
        return b'{"channels":%b,"messages":[%b]}' % (strings(addresses), messages)

    bad, good = bad_addresses(10_000), [channel.producer for channel in channels]
    for name, sent in (
        ("10,000 bad addresses with 10 messages", body(bad, small, 10)),
        ("1,000 channels with 20 messages", body(good[:1_000], small, 20)),
        ("5,000 channels with 20 messages", body(good[1_000:6_000], small, 20)),
        ("a channel with 40,000 messages, most find no room", body(good[:1], small, 40_000)),
        ("10 long bad addresses with 10,000 messages", body(["a" * 400] * 10, small, 10_000)),
        ("40,000 messages to nobody", body([], small, 40_000)),
    ):
        yield Case(f"{path}, {name}", http("POST", path, 201, sent))
    hostile = b'{"streamId":"s","body":[%b]}' % b",".join([b"[]"] * 340_000)
    sent = body(good[6_000:6_010], hostile, 1)
    yield Case(f"{path}, a message of empty lists", http("POST", path, 201, sent))
    sent = body(good[6_000:6_010], b'{"streamId":"s","body":[%b[]]}' % (b"[]," * 400), 800)
    yield Case(f"{path}, messages of empty lists", http("POST", path, 201, sent))
    sent = filled(small, (b'{"channels":%b,"messages":[' % strings(bad[:100]), b"]}"))
    yield Case(f"{path}, events too many", http("POST", path, 413, sent))

    one = pb.WriteBatchRequest.Message(stream_id="s", body=b"1")
    for name, addresses in (("10,000 bad addresses", bad), ("5,000 channels", good[1_000:6_000])):
        count = 100_000 // len(addresses)
        message = pb.WriteBatchRequest(channels=addresses, messages=[one] * count)
        case = f"WriteBatch, {name} with {count} messages"
        yield Case(case, rpc("WriteBatch", message.SerializeToString()))
    full = body(good[1_000:6_000], small, 20)
    name = "5,000 full channels, whose writers all time out"
    yield Case(f"{path}, {name}", http("POST", path, 201, full))
    name = "5,000 full channels, whose client leaves"
    yield Case(f"{path}, {name}", http_left(path, full))
    empty, refused = b"\x12\x00" * (MAX_BODY // 2), grpc.StatusCode.RESOURCE_EXHAUSTED
    yield Case("WriteBatch, a message of empty messages", rpc("WriteBatch", empty, refused))
    yield Case(
        "Publish, 10,000 events to a channel, most find no room",
        rpc("Publish", published([good[7_000]] * 10_000)),
    )
    yield Case(
        "Publish, 10,000 events to 2,500 channels",
        rpc("Publish", published(good[7_001:9_501] * 4)),
    )
    empty = b"\n\x00" * 100_000
    yield Case("Publish, 100,000 empty events", rpc("Publish", empty))
    empty = b"\n\x00" * (MAX_BODY // 2)
    yield Case("Publish, a message of empty events", rpc("Publish", empty, refused))


def published(addresses: list[str]) -> bytes:
    events = [
        pb.WriteRequest(producer_address=address, stream_id="s", body=b"1") for address in addresses
    ]
    return pb.PublishRequest(events=events).SerializeToString()


def inflations() -> Iterator[Case]:
    path = "/channelsExists"
    encoded = "Content-Encoding: gzip"
    bomb = gzip.compress(b'{"channels":[%b""]}' % (b'"",' * 340_000))
    yield Case("gzip, a bomb", http("POST", path, 413, bomb, more=encoded))
    members = gzip.compress(b"") * 50_000
    yield Case("gzip, 50,000 empty members", http("POST", path, 400, members, more=encoded))
    rng = random.Random(1)
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    letters = bytes(range(97, 123)) + bytes(range(65, 91))
    blocks = b"".join(
        deflate.compress(bytes(rng.choices(letters, k=90))) + deflate.flush(zlib.Z_FULL_FLUSH)
        for _ in range(10_000)
    )
    deflated = "Content-Encoding: deflate"
    yield Case("deflate, many code tables", http("POST", path, 400, blocks, more=deflated))


def others() -> Iterator[Case]:
    body = b'{"protocols":[%b""]}' % (b'"",' * 349_000)
    yield Case("/create, a body of empty protocols", http("POST", "/create", 413, body))
    message = b"\n\x00" * (MAX_BODY // 2)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    yield Case("CreateChannel, empty protocols", rpc("CreateChannel", message, refused))
    body = filled(b"[]", (b'{"x":[', b'],"eid":1}'))
    yield Case("/ack, a body of empty lists", http("POST", "/ack/a", 400, body))
    body = b'{"%b":1}' % (b"a" * (MAX_BODY - 6))
    yield Case("/ack, an unknown member of 1 MiB", http("POST", "/ack/a", 400, body))
    name = b"` - at `$[" * ((MAX_BODY - 6) // 10)
    body = b'{"%b":1}' % name
    yield Case("/ack, an unknown member like paths", http("POST", "/ack/a", 400, body))
    chunks = b"1\r\n \r\n" * 170_000 + b"2\r\n{}\r\n0\r\n\r\n"
    yield Case("/create, chunks of a byte", http("POST", "/create", 200, chunks, more=CHUNKED))
    query = "&".join(["after=x", *["a"] * 3_000])
    yield Case("/read, a long query", http("GET", f"/read/x?{query}", 400))
    yield Case("/metrics", http("GET", "/metrics", 200))
    listing = "/channel/list?limit=100000"
    yield Case("/channel/list of all channels", http("GET", listing, 200, managed=True))
    yield Case("/vagent/list", http("GET", "/vagent/list", 200, managed=True))


# -- Measuring


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    progress(f"hold: making {CHANNELS:,} channels")
    async with node() as ours:
        channels = await asyncio.to_thread(make_channels, ours.http_port, CHANNELS)
        cases = [
            *lookups(),
            *writes(channels[-1]),
            *batches(channels),
            *inflations(),
            *others(),
        ]
        first, *rest = [await longest_hold(ours, case, plan.hold_rounds) for case in cases]
    return [replace(first, notes=NOTES), *rest]


async def longest_hold(node: Node, case: Case, rounds: int) -> Figure:
    times = []
    for _ in range(rounds):
        await node.longest_ms()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await case.send(node)
        times.append(await node.longest_ms())
    progress(f"hold: {case.name}: {', '.join(f'{time:.1f}' for time in times)} ms")
    return Figure(
        name="hold",
        what=f"held by {case.name}",
        unit=MILLISECONDS,
        rounds={OURS: times},
        target=LIMIT,
    )


if __name__ == "__main__":
    with Freezer(allowed_bytes()), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
