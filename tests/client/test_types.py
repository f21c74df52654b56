"""The types that an app's type checker sees: `make check` checks these assertions by mypy."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

import msgspec

from megaphone_client import Channel, Event, Failure, Megaphone, Reader


@dataclass
class Order:
    number: int


class Measured(msgspec.Struct):
    degrees: float


class Person(TypedDict):
    name: str


def parse(raw: bytes) -> Order:
    return Order(int(raw))


async def test_readers_have_the_type_of_their_bodies(
    megaphone: Megaphone, channel: Channel
) -> None:
    consumer = channel.consumer
    assert_type(megaphone.read(consumer), Reader[Any])
    assert_type(megaphone.read(consumer, type=Order), Reader[Order])
    assert_type(megaphone.read(consumer, type=Measured), Reader[Measured])
    assert_type(megaphone.read(consumer, type=Person), Reader[Person])
    assert_type(megaphone.read(consumer, type=list[int]), Reader[list[int]])
    assert_type(megaphone.read(consumer, decode=parse), Reader[Order])
    assert_type(megaphone.read_many([consumer], type=Order), Reader[Order])
    async with megaphone.subscribe(consumer) as streams:
        assert_type(streams.stream("a", type=Order), Reader[Order])
        assert_type(streams.stream("b", decode=parse), Reader[Order])
        assert_type(streams.stream("c"), Reader[Any])


async def test_what_calls_return(megaphone: Megaphone, channel: Channel) -> None:
    assert_type(await megaphone.write(channel.producer, "orders", Order(7)), str)
    assert_type(await megaphone.write_batch([channel.producer], [("s", 1)]), list[Failure])
    assert_type(await megaphone.exists([channel.consumer]), dict[str, bool])
    async with megaphone.publisher() as publisher:
        assert_type(await publisher.send(channel.producer, "s", 1), Awaitable[str | None])
    async with megaphone.read(channel.consumer, type=Order) as orders:
        event = await anext(orders)
        assert_type(event, Event[Order])
        assert_type(event.body.number, int)
        assert event.body == Order(7)
        assert_type(await orders.batch(), list[Event[Order]])
    async with megaphone.subscribe(channel.consumer) as streams:
        await megaphone.write(channel.producer, "orders", Order(8))
        assert_type(await streams.first("orders", type=Order), Order)
