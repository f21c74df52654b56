"""The scenarios of both faces, with two nodes that share a cluster.

With a single server they run through each face; here only `MEGAPHONE_TESTED_LONG=1` does that,
since a face knows nothing of the store.
"""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from megaphone.settings import Settings
from tests.shared.conftest import STOPS_WITHIN_S, AnyFace, Nodes, any_face
from tests.shared.test_scenarios import *  # noqa: F403
from tests.support.faces import FACES
from tests.support.redis_fixtures import shared_cluster
from tests.support.settings import IS_LONG


@pytest.fixture
def settings(settings: Settings) -> Settings:
    with shared_cluster() as cluster:
        return replace(settings, store=cluster.text_url, drain_timeout_secs=STOPS_WITHIN_S)


@pytest.fixture(params=FACES if IS_LONG else ["grpc"])
async def face(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param, app):
        yield face


@pytest.fixture(params=FACES if IS_LONG else ["http"])
async def writer(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param, app):
        yield face


@pytest.fixture(params=FACES if IS_LONG else ["grpc"])
async def reader(app: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[AnyFace]:
    async for face in any_face(request.param, app):
        yield face
