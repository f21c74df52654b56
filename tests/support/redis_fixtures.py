"""Fixtures with Redis and Valkey servers. A conftest.py imports those that its tests want."""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.redis_server import KINDS, RedisServer, redis_server


@pytest.fixture(scope="session", params=KINDS)
def running_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of each kind in turn, for the whole session: tests must leave it as it was."""
    with redis_server(request.param) as server:
        yield server


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    """The same, empty."""
    running_server.flush()
    return running_server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server of any kind for one test, which may do with it what it likes."""
    with redis_server() as server:
        yield server


_shared = ExitStack()
_servers: list[RedisServer] = []


@contextmanager
def shared_server() -> Iterator[RedisServer]:
    """A server of any kind, the same for all tests of this process. Tests must tidy up first."""
    if not _servers:
        atexit.register(_shared.close)
        _servers.append(_shared.enter_context(redis_server()))
    yield _servers[0]
