"""Fixtures for tests that call a whole broker over real sockets.

A test says what it wants otherwise with `@pytest.mark.settings(buffer_capacity=3)`. Its broker runs
in this process as it does in production, with the same runners.
"""

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

import hypothesis
import pytest

from megaphone.app import App, running
from megaphone.settings import Settings
from tests.support import leaks
from tests.support.build import refuse_another_build
from tests.support.faces import FACES, Face, GrpcFace, HttpFace, grpc_face, http_face
from tests.support.settings import IS_LONG, fast_settings

pytest_plugins = ["tests.support.runners"]

# How long an example takes says more about the machine's other work than about our code.
hypothesis.settings.register_profile(
    "megaphone",
    max_examples=100 if IS_LONG else 30,  # each run has others
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("megaphone")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**changes): settings of the test's broker")
    # looptime asks for the event loop before each test; without this, asking would make one for
    # tests that have none, and nobody would close it.
    asyncio.set_event_loop(None)
    leaks.watch_logs()
    refuse_another_build()


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.integers())
def use_hypothesis(_: int) -> None:
    """Let hypothesis read all modules for constants, as it does for the first test."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let hypothesis read them once, and not in each process that runs tests."""
    if session.config.option.runners and not session.config.option.collectonly:
        use_hypothesis()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fail a test if a secret got into a log record of any level."""
    yield
    if leaked := leaks.LOGGED.take():
        pytest.fail(f"a secret was logged: {leaked}", pytrace=False)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    changes: dict[str, Any] = {}
    for marker in request.node.iter_markers("settings"):
        changes = marker.kwargs | changes  # the nearest marker comes first, and wins
    return fast_settings(**changes)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[App]:
    async with running(settings) as app:
        yield app
        leaks.check(app.metrics.render().decode(), "the metrics")


@pytest.fixture
async def http(app: App) -> AsyncIterator[HttpFace]:
    async with http_face(app) as face:
        yield face


@pytest.fixture
async def grpc(app: App) -> AsyncIterator[GrpcFace]:
    async with grpc_face(app) as face:
        yield face


@pytest.fixture(params=FACES)
async def face(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    """Each face in turn."""
    async with FACES[request.param](app) as face:
        yield face


@pytest.fixture(params=[f"write-{name}" for name in FACES])
async def writer(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    """Each face in turn; with `reader` beside it, all pairs of faces."""
    async with FACES[request.param.removeprefix("write-")](app) as face:
        yield face


@pytest.fixture(params=[f"read-{name}" for name in FACES])
async def reader(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    async with FACES[request.param.removeprefix("read-")](app) as face:
        yield face
