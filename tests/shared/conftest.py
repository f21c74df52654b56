"""Two nodes with one store in Redis. Each call goes to one of them, at random."""

import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from megaphone.app import App, running
from megaphone.settings import Settings
from tests.support.faces import FACES, Face
from tests.support.redis_fixtures import shared_server

STOPS_WITHIN_S = 0.5
"""How long a node that stops waits for its clients to go; in the scenarios some do not go."""
PREFIXES = (f"test-{number}" for number in itertools.count())


class Nodes:
    """Two nodes, with those attributes of an `App` that the tests use."""

    def __init__(self, apps: Sequence[App]) -> None:
        self.apps = apps
        self.admin = apps[0].admin
        self.metrics = SummedMetrics(apps)


class SummedMetrics:
    """The metrics of two nodes together."""

    def __init__(self, apps: Sequence[App]) -> None:
        self._apps = apps

    def __getattr__(self, name: str) -> Any:
        return sum(getattr(app.metrics, name) for app in self._apps)


class AnyFace:
    """The same face of several nodes. Each call goes to any of them."""

    def __init__(self, faces: Sequence[Face]) -> None:
        self._faces = faces
        self._random = random.Random(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._random.choice(self._faces), name)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    with shared_server() as server:
        return replace(
            settings,
            store=server.text_url,
            store_prefix=next(PREFIXES),
            drain_timeout_secs=STOPS_WITHIN_S,
        )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Nodes]:
    async with running(settings) as one, running(settings) as other:
        yield Nodes([one, other])


async def any_face(name: str, nodes: Nodes) -> AsyncIterator[AnyFace]:
    async with AsyncExitStack() as stack:
        faces = [await stack.enter_async_context(FACES[name](app)) for app in nodes.apps]
        yield AnyFace(faces)


@pytest.fixture(params=FACES)
async def face(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param, app):
        yield face


@pytest.fixture(params=[f"write-{name}" for name in FACES])
async def writer(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param.removeprefix("write-"), app):
        yield face


@pytest.fixture(params=[f"read-{name}" for name in FACES])
async def reader(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param.removeprefix("read-"), app):
        yield face
