"""What the gRPC face counts when the broker itself fails, and what of a stream of messages."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from megaphone.app import running
from megaphone.observe.calls import FaceCalls
from megaphone.rpc.errors import SERVICE, ErrorInterceptor
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.settings import fast_settings


async def fails(request: bytes, context: Any) -> bytes:
    raise RuntimeError("a bug")


async def fails_behind_an_answer(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request
        raise RuntimeError("a bug")


HANDLERS = grpc.method_handlers_generic_handler(
    SERVICE.strip("/"),
    {
        "Acknowledge": grpc.unary_unary_rpc_method_handler(fails, bytes, bytes),
        "Publish": grpc.stream_stream_rpc_method_handler(fails_behind_an_answer, bytes, bytes),
    },
)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


async def test_a_fault_is_counted_as_one_of_its_method() -> None:
    calls = FaceCalls()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(calls=calls)])
    server.add_generic_rpc_handlers((HANDLERS,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            unary: Any = channel.unary_unary(f"{SERVICE}Acknowledge")
            assert await code_of(unary(b"")) is grpc.StatusCode.INTERNAL
            stream: Any = channel.stream_stream(f"{SERVICE}Publish")
            call = stream(iter([b"1"]))
            assert await call.read() == b"1"
            assert await code_of(call.read()) is grpc.StatusCode.INTERNAL
    finally:
        await server.stop(0)
    assert {
        (one.method, code): count
        for one in calls.by_method.values()
        for code, count in one.failed.items()
        if count
    } == {("ack", "INTERNAL_SERVER_ERROR"): 1, ("publish", "INTERNAL_SERVER_ERROR"): 1}


async def test_each_message_of_a_stream_counts_and_the_stream_does_not() -> None:
    async with running(fast_settings()) as app:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
            stream: Any = channel.stream_stream(f"{SERVICE}Publish")
            silent = stream()
            await silent.wait_for_connection()
            await silent.done_writing()
            assert await silent.code() is grpc.StatusCode.OK
            call = stream()
            await call.write(pb.PublishRequest().SerializeToString())
            assert await call.read() == b""
            await call.write(b"\xff")  # no message of protobuf
            assert await code_of(call.read()) is grpc.StatusCode.INVALID_ARGUMENT
        counts = app.metrics.grpc.by_method["publish"]
        assert counts.ok == 1
        assert {code: count for code, count in counts.failed.items() if count} == {"BAD_REQUEST": 1}
