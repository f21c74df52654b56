"""Many calls at once are all served, even if they come faster than handlers can begin."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from megaphone.app import App, running
from megaphone.listen.sockets import grpc_path
from megaphone_api.v1 import admin_pb2, channels_pb2
from megaphone_api.v1.admin_pb2_grpc import AdminServiceStub
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.settings import fast_settings

AT_ONCE = 5_000

pytestmark = pytest.mark.timeout(60)


async def outcomes(call: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Make many calls at once. Returns: the number of calls that ended with each status."""

    async def outcome() -> str:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    return Counter(await asyncio.gather(*(outcome() for _ in range(AT_ONCE))))


async def test_no_call_of_a_flood_is_cancelled(app: App) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
        stub = ChannelServiceStub(connection)
        request = channels_pb2.ChannelsExistRequest(channels=["x.y.z"])
        assert await outcomes(lambda: stub.ChannelsExist(request)) == {"OK": AT_ONCE}


async def test_no_call_of_an_operator_is_cancelled(tmp_path: Path) -> None:
    socket = str(tmp_path / "m.sock")
    async with (
        running(fast_settings(mng_socket_path=socket)),
        grpc.aio.insecure_channel(f"unix:{grpc_path(socket)}") as connection,
    ):
        stub = AdminServiceStub(connection)
        request = admin_pb2.ListAgentsRequest()
        assert await outcomes(lambda: stub.ListAgents(request)) == {"OK": AT_ONCE}
