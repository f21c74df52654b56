"""Fixtures with Redis and Valkey servers. A conftest.py imports those that its tests want."""

import atexit
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.redis_cluster import RedisCluster, redis_cluster
from tests.support.redis_server import KINDS, RedisServer, any_kind, redis_server


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


_servers: dict[str, RedisServer] = {}
_clusters: dict[str, RedisCluster] = {}


@functools.cache
def shared() -> ExitStack:
    """Return what ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack


@contextmanager
def shared_server(kind: str | None = None) -> Iterator[RedisServer]:
    """A server of a kind, or of any, the same for all tests of this process. Tests must tidy up
    first. Skips the test if the kind is not installed."""
    kind = kind or any_kind()
    if kind not in _servers:
        _servers[kind] = shared().enter_context(redis_server(kind))
    yield _servers[kind]


@contextmanager
def shared_cluster(kind: str | None = None) -> Iterator[RedisCluster]:
    """A cluster of such servers, the same for all tests of this process. Tests must tidy up first.
    Skips the test if the kind is not installed."""
    kind = kind or any_kind()
    if kind not in _clusters:
        _clusters[kind] = shared().enter_context(redis_cluster(kind))
    yield _clusters[kind]
