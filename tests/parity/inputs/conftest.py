"""Tests of what may be put in share brokers, because nothing that they do outlasts their channels.

All tests of a module run in one event loop. The first that needs a broker with certain settings
starts it, and it serves until the module ends. Each test has connections of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from megaphone.app import App, running
from megaphone.settings import Settings
from tests.support.faces import FACES, Face, GrpcFace, HttpFace, grpc_face, http_face

HERE = Path(__file__).parent
BrokerWith = Callable[[Settings], Awaitable[App]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    one_loop = pytest.mark.asyncio(loop_scope="module")
    for item in items:
        if item.path.is_relative_to(HERE) and pytest_asyncio.is_async_test(item):
            item.add_marker(one_loop, append=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker_with() -> AsyncIterator[BrokerWith]:
    async with AsyncExitStack() as stack:
        brokers: list[tuple[Settings, App]] = []

        async def find_or_start(settings: Settings) -> App:
            for known, app in brokers:
                if known == settings:
                    return app
            app = await stack.enter_async_context(running(settings))
            brokers.append((settings, app))
            return app

        yield find_or_start


@pytest_asyncio.fixture(loop_scope="module")
async def app(settings: Settings, broker_with: BrokerWith) -> App:
    return await broker_with(settings)


@pytest_asyncio.fixture(loop_scope="module")
async def http(app: App) -> AsyncIterator[HttpFace]:
    async with http_face(app) as face:
        yield face


@pytest_asyncio.fixture(loop_scope="module")
async def grpc(app: App) -> AsyncIterator[GrpcFace]:
    async with grpc_face(app) as face:
        yield face


@pytest_asyncio.fixture(loop_scope="module", params=[f"write-{name}" for name in FACES])
async def writer(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    async with FACES[request.param.removeprefix("write-")](app) as face:
        yield face


@pytest_asyncio.fixture(loop_scope="module", params=[f"read-{name}" for name in FACES])
async def reader(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    async with FACES[request.param.removeprefix("read-")](app) as face:
        yield face
