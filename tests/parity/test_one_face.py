"""Proves what only one of the faces can do: streams of writes, deadlines, health and reflection
over gRPC; spellings of the older wire, and whole lines, over HTTP."""

import asyncio
import json
from contextlib import AsyncExitStack

import grpc as grpcio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from megaphone.app import running
from megaphone.model import ReadOptions
from megaphone.settings import Settings
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.faces import (
    Created,
    Face,
    GrpcFace,
    HttpFace,
    grpc_face,
    read_all,
    read_request,
    read_some,
    take,
    write_request,
)
from tests.support.scenes import (
    UNKNOWN_ADDRESS,
    altered,
    now,
    numbers,
    traffic,
    write_numbers,
)
from tests.support.settings import fast_settings

pytestmark = pytest.mark.timeout(30)

CHANNEL_SERVICE = "megaphone.v1.ChannelService"
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"


# -- gRPC: Publish


async def test_published_events_are_answered_one_by_one_in_order(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    events = [
        write_request(channel.producer, "s", b"0"),
        write_request("no address", "s", b"1"),
        write_request(UNKNOWN_ADDRESS, "s", b"2"),
        write_request(channel.consumer, "s", b"3"),
        write_request(altered(channel.producer), "s", b"4"),
        write_request(channel.producer, "", b"5"),
        write_request(channel.producer, "s", b"not JSON"),
        write_request(channel.producer, "s", b"8"),
    ]
    answer, later = await grpc.publish(events, [write_request(channel.producer, "s", b"9")])
    assert [result.reason for result in answer.results] == [
        "",
        "BAD_REQUEST",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "",
    ]
    for result in answer.results:
        assert bool(result.event_id) != bool(result.reason)
        assert bool(result.message) == bool(result.reason)
    read = await read_some(grpc, channel.consumer, 3)
    taken = [answer.results[0], answer.results[-1], later.results[0]]
    assert [event.event_id for event in read] == [result.event_id for result in taken]
    assert numbers(read) == [0, 8, 9]


@pytest.mark.settings(buffer_capacity=300)
async def test_published_events_keep_their_order(grpc: GrpcFace, reader: Face) -> None:
    one, other = await grpc.create(), await grpc.create()
    batches = [
        [
            write_request(channel.producer, "s", b"%d" % number)
            for number in range(first, first + 30)
            for channel in (one, other)
        ]
        for first in range(0, 300, 30)
    ]
    answers = await grpc.publish(*batches)
    assert [len(answer.results) for answer in answers] == [60] * 10
    for channel in (one, other):
        assert numbers(await read_some(reader, channel.consumer, 300)) == list(range(300))


async def test_empty_publish_is_answered(grpc: GrpcFace) -> None:
    assert await grpc.publish() == []
    assert await grpc.publish([], []) == [pb.PublishResponse(), pb.PublishResponse()]


@pytest.mark.settings(buffer_capacity=2, poll_duration_millis=150)
async def test_full_channel_holds_the_stream_back_and_not_its_neighbours(
    grpc: GrpcFace, reader: Face
) -> None:
    full, roomy, later = [await grpc.create() for _ in range(3)]
    await write_numbers(grpc, full, [0, 1])
    publishing = asyncio.create_task(
        grpc.publish(
            [
                write_request(full.producer, "s", b"2"),
                write_request(roomy.producer, "s", b"3"),
            ],
            [write_request(later.producer, "s", b"4")],
        )
    )
    assert numbers(await read_some(reader, roomy.consumer, 1)) == [3]
    assert await read_all(reader, later.consumer) == []
    assert not publishing.done()
    assert numbers(await read_some(reader, full.consumer, 3)) == [0, 1, 2]
    assert [reasons(answer) for answer in await publishing] == [["", ""], [""]]
    assert numbers(await read_some(reader, later.consumer, 1)) == [4]


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=100)
async def test_published_event_that_finds_no_room_is_refused(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    (answer,) = await grpc.publish(
        [write_request(channel.producer, "s", b"%d" % number) for number in range(4)]
    )
    assert reasons(answer) == ["", "TIMEOUT", "SKIPPED", "SKIPPED"]
    assert all(bool(result.message) == bool(result.reason) for result in answer.results)


@pytest.mark.settings(max_buffered_bytes=1_048_576, poll_duration_millis=150)
async def test_no_published_event_overtakes_one_that_found_no_memory(
    grpc: GrpcFace, reader: Face
) -> None:
    channel, other = await grpc.create(), await grpc.create()
    large = b'"' + b"x" * 100_000 + b'"'
    for _ in range(7):
        await grpc.write(other.producer, "s", large)
    bodies = (b"0", large, b"2", b"3")  # the request counts as well, while it is served
    (answer,) = await grpc.publish([write_request(channel.producer, "s", body) for body in bodies])
    assert reasons(answer) == ["", "LIMIT_EXCEEDED", "SKIPPED", "SKIPPED"]
    assert numbers(await read_all(reader, channel.consumer)) == [0]


@pytest.mark.settings(poll_duration_millis=150)
async def test_published_event_that_repeats_a_request_id_is_stored_once(
    grpc: GrpcFace, reader: Face
) -> None:
    channel = await reader.create()
    first = await reader.write(channel.producer, "s", b"1", "id")
    repeat = write_request(channel.producer, "s", b"1", "id")
    (answer, again) = await grpc.publish([repeat, repeat], [repeat])
    assert {result.event_id for result in (*answer.results, *again.results)} == {first}
    assert numbers(await read_all(reader, channel.consumer)) == [1]


# -- gRPC: deadlines


async def test_read_ends_with_ok_before_the_deadline_of_its_caller(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    async with traffic(grpc, channel):
        began = now()
        read = await read_within(grpc, channel, 1.5)  # which would fail after that time
        assert now() - began > 0.9
    assert read == list(range(len(read)))
    assert read


@pytest.mark.settings(poll_duration_millis=200)
async def test_late_deadline_does_not_prolong_a_read(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    began = now()
    assert await read_within(grpc, channel, 60) == []
    assert now() - began < 5


# -- gRPC: health and reflection


@pytest.mark.parametrize("service", ["", CHANNEL_SERVICE])
async def test_health_says_serving(grpc: GrpcFace, service: str) -> None:
    answer = await check_health(grpc, service)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_an_unknown_service_is_not_found(grpc: GrpcFace) -> None:
    with pytest.raises(grpcio.aio.AioRpcError) as failed:
        await check_health(grpc, "megaphone.v9.Nothing")
    assert failed.value.code() is grpcio.StatusCode.NOT_FOUND


async def test_health_says_not_serving_once_the_node_stops(settings: Settings) -> None:
    async with AsyncExitStack() as clients:
        async with running(settings) as app:
            face = await clients.enter_async_context(grpc_face(app))
            call = watch_health(face)
            clients.callback(call.cancel)
            assert await next_status(call) == health_pb2.HealthCheckResponse.SERVING
        assert await next_status(call) == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    "settings",
    [fast_settings(grpc_reflection=False), fast_settings(grpc_address="0.0.0.0:0")],
    ids=["switched off", "other machines can reach it"],
)
async def test_there_is_no_reflection(grpc: GrpcFace) -> None:
    # One request, not a stream of them: writing to a call that is refused may fail first.
    reflect: grpcio.aio.UnaryUnaryMultiCallable[bytes, bytes]
    reflect = grpc.channel.unary_unary(f"/{REFLECTION_SERVICE}/ServerReflectionInfo")
    with pytest.raises(grpcio.aio.AioRpcError) as failed:
        await reflect(b"", timeout=5)
    assert failed.value.code() is grpcio.StatusCode.UNIMPLEMENTED


# -- HTTP


@pytest.mark.settings(poll_duration_millis=150)
async def test_last_event_id_resumes_as_after_does(http: HttpFace) -> None:
    channel = await http.create()
    first, second = await write_numbers(http, channel, [0, 1])
    await read_all(http, channel.consumer, ReadOptions(limit=2))
    url = http.url(f"/read/{channel.consumer}")
    async with http.session.get(url, headers={"Last-Event-ID": first}) as response:
        assert response.headers["Megaphone-Recovered"] == "true"
        (line,) = (await response.read()).splitlines()
    assert json.loads(line)["eid"] == second


async def test_older_spelling_of_channels_is_accepted(http: HttpFace) -> None:
    channel = await http.create()
    addresses = {"channelIds": [channel.producer]}
    batch = addresses | {"messages": [{"streamId": "s", "body": 1}]}
    answer = await http.post("/write-batch", json.dumps(batch).encode(), status=201)
    assert answer["failures"] == []
    answer = await http.post("/channelsExists", json.dumps(addresses).encode(), status=200)
    assert answer == {"channels": {channel.producer: True}}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", "application/json"), (b"", "text/plain"), (b"no JSON", "text/plain"), (b"{}", None)],
)
async def test_create_without_json_has_no_preference(
    http: HttpFace, body: bytes, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await http.post("/create", body, headers, status=200)
    assert answer["protocols"] == ["HTTP_STREAM_NDJSON_V1"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"],
)
async def test_kinds_of_json_are_json(http: HttpFace, content_type: str) -> None:
    channel = await http.create()
    path = f"/write/{channel.producer}/s"
    answer = await http.post(path, b"1", {"Content-Type": content_type}, status=201)
    assert answer["status"] == "OK"


async def test_lines_are_never_split_over_chunks(http: HttpFace) -> None:
    channel = await http.create()
    body = b'"%b"' % (b"x" * 200_000)
    async with http.read(channel.consumer) as read:
        for _ in range(5):
            await http.write(channel.producer, "s", body)
            (event,) = await take(read, 1)  # the face checks that each chunk is whole lines
            assert event.body == body


# -- Calls


def reasons(answer: pb.PublishResponse) -> list[str]:
    return [result.reason for result in answer.results]


async def read_within(face: GrpcFace, channel: Created, deadline_s: float) -> list[int]:
    """Return the numbers that a read with a deadline gets; it must end with OK."""
    call = face.stub.Read(read_request(channel.consumer), timeout=deadline_s)
    try:
        read = [int(event.body) async for message in call for event in message.events]
        assert await call.code() is grpcio.StatusCode.OK
        return read
    finally:
        call.cancel()


async def check_health(face: GrpcFace, service: str) -> health_pb2.HealthCheckResponse:
    check = face.channel.unary_unary(
        f"/{HEALTH_SERVICE}/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return await check(health_pb2.HealthCheckRequest(service=service))


HealthCall = grpcio.aio.UnaryStreamCall[Message, health_pb2.HealthCheckResponse]


def watch_health(face: GrpcFace) -> HealthCall:
    watch = face.channel.unary_stream(
        f"/{HEALTH_SERVICE}/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return watch(health_pb2.HealthCheckRequest(service=CHANNEL_SERVICE))


async def next_status(call: HealthCall) -> int:
    answer = await call.read()
    assert isinstance(answer, health_pb2.HealthCheckResponse)
    return answer.status
