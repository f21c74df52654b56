"""A refused event is freed at once. An idle process collects no garbage, so what refers to itself
would keep the memory of large events until the next calls come."""

import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.broker import Broker
from megaphone.core.content import CHECKED_AT_ONCE
from megaphone.core.writing import Write
from megaphone.errors import MegaphoneError
from megaphone.model import NewEvent
from tests.core.node import WARM, Node

pytestmark = pytest.mark.looptime

LARGE = b'"' + b"x" * CHECKED_AT_ONCE + b'"'
Try: TypeAlias = Callable[[Broker, str, NewEvent], Awaitable[object]]


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def all_nowait(broker: Broker, address: str, new: NewEvent) -> object:
    return broker.write_all_nowait([Write(ANYONE, address, new)])


async def write(broker: Broker, address: str, new: NewEvent) -> object:
    return await broker.write(ANYONE, address, new)


async def each(broker: Broker, address: str, new: NewEvent) -> object:
    return await broker.write_each(ANYONE, [(address, new)])


async def batch(broker: Broker, address: str, new: NewEvent) -> object:
    return await broker.write_batch(ANYONE, [address], [new])


@pytest.mark.parametrize("way", [all_nowait, write, each, batch])
@pytest.mark.parametrize("body", [b'"small"', LARGE], ids=["small", "large"])
@pytest.mark.parametrize("is_there", [True, False], ids=["full", "gone"])
async def test_a_refused_event_is_freed(way: Try, body: bytes, is_there: bool) -> None:
    node = Node(replace(WARM, buffer_capacity=1))
    channel = await node.broker.create(ANYONE)
    if is_there:
        await node.write(channel, 1)
    else:
        await node.admin.dispose(channel.consumer_address)
    body = bytes(bytearray(body))  # to which nothing else refers
    references = sys.getrefcount(body)
    with suppress(MegaphoneError):
        await way(node.broker, channel.producer_address, NewEvent("s", body))
    assert sys.getrefcount(body) == references
