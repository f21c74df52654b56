"""Long answers are made and sent piece by piece, and say the same as short ones."""

import asyncio

import pytest

from megaphone.model import BatchFailure, NewEvent
from tests.support.faces import (
    JSON,
    Face,
    GrpcFace,
    HttpFace,
    batch_body,
    read_some,
    write_request,
)

pytestmark = pytest.mark.timeout(30)

MESSAGES = [NewEvent("s", b"1"), NewEvent("s", b"2"), NewEvent("s", b"3")]


@pytest.mark.parametrize("count", [0, 1, 166, 167, 334, 3_000])
async def test_the_answer_to_a_batch_names_all_that_was_not_taken(face: Face, count: int) -> None:
    channel = await face.create()
    bad = [f"node.{number}" for number in range(count)]
    answer = await face.batch([*bad, channel.producer], MESSAGES)
    assert None not in answer.event_ids
    assert answer.failures == [
        BatchFailure(address, index, "BAD_REQUEST") for address in bad for index in range(3)
    ]


@pytest.mark.settings(buffer_capacity=2_000)
@pytest.mark.parametrize("count", [0, 1, 500, 501, 2_000])
async def test_the_answer_to_a_batch_has_an_id_for_each_message(face: Face, count: int) -> None:
    channel = await face.create()
    answer = await face.batch([channel.producer], [NewEvent("s", b"1")] * count)
    assert answer.failures == []
    read = await read_some(face, channel.consumer, count)
    assert [event.event_id for event in read] == answer.event_ids


@pytest.mark.parametrize("count", [0, 1, 500, 501, 2_000])
async def test_the_answer_to_published_events_has_a_result_for_each(
    grpc: GrpcFace, count: int
) -> None:
    writes = [write_request("nonsense", "s", b"1")] * count
    (answer,) = await grpc.publish(writes)
    assert [result.reason for result in answer.results] == ["BAD_REQUEST"] * count


async def test_a_client_of_http_1_0_gets_a_long_answer_too(http: HttpFace) -> None:
    body = batch_body([f"node.{number}" for number in range(3_000)], MESSAGES)
    head = f"POST /write-batch HTTP/1.0\r\nContent-Type: {JSON['Content-Type']}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.0 201 ")
    assert b"chunked" not in answer
    assert answer.endswith(b'"reason":"BAD_REQUEST"}],"eids":[null,null,null]}')


async def test_who_leaves_in_the_middle_of_a_long_answer_disturbs_nobody(http: HttpFace) -> None:
    body = batch_body([f"node.{'a' * 200}{number}" for number in range(4_000)], MESSAGES)
    head = f"POST /write-batch HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON['Content-Type']}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert await reader.read(1) == b"H"
    writer.transport.abort()
    assert await http.exists(["x"]) == {"x": False}
