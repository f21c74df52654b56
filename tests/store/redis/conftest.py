"""Servers and links for the tests of the store in Redis.

They run on the event loop of a node. Those of what is next to the sockets run on that of asyncio
too, which a node in a test has; with MEGAPHONE_TESTED_LONG all of them do.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeAlias

import pytest
import uvloop

from megaphone.store.redis.link import Greet, Link
from megaphone.store.redis.url import StoreUrl
from tests.support.redis_fixtures import own_server, running_server, server
from tests.support.settings import IS_LONG

__all__ = ["own_server", "running_server", "server"]

LoopFactories: TypeAlias = dict[str, Callable[[], asyncio.AbstractEventLoop]]
NEXT_TO_SOCKETS = ("test_link", "test_subscription", "test_tls")
"""The modules whose tests see what an event loop does to a connection."""


class MakeLink(Protocol):
    async def __call__(
        self,
        url: StoreUrl,
        *,
        greet: Greet | None = None,
        **bounds: Any,
    ) -> Link:
        """Start a link, which is closed after the test."""


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> LoopFactories:
    of_node: LoopFactories = {"uvloop": uvloop.new_event_loop}
    if IS_LONG or item.path.stem in NEXT_TO_SOCKETS:
        return {"asyncio": asyncio.SelectorEventLoop, **of_node}
    return of_node


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
