"""Servers and links for the tests of the store in Redis. Each test runs on both event loops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
import uvloop

from megaphone.store.redis.link import Greet, Link
from megaphone.store.redis.url import StoreUrl
from tests.support.redis_fixtures import own_server, running_server, server

__all__ = ["own_server", "running_server", "server"]


class MakeLink(Protocol):
    async def __call__(
        self,
        url: StoreUrl,
        *,
        greet: Greet | None = None,
        **bounds: Any,
    ) -> Link:
        """Start a link, which is closed after the test."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def make_link() -> AsyncIterator[MakeLink]:
    """Makes links. What goes wrong in a callback, which asyncio only logs, fails the test."""
    unnoticed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: unnoticed.append(what))
    async with AsyncExitStack() as stack:

        async def make(url: StoreUrl, **options: Any) -> Link:
            link = Link(url, name="test", **options)
            stack.push_async_callback(link.aclose)
            await link.start()
            return link

        yield make
    assert unnoticed == []
