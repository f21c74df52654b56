"""Whoever has the producer address of a channel removes it, through either face."""

import asyncio

import pytest

from megaphone.app import App
from megaphone.errors import BadRequest, ChannelNotFound, PermissionDenied
from megaphone.model import ReadOptions
from tests.support.faces import Face, read_all
from tests.support.scenes import UNKNOWN_ADDRESS, eventually, write_numbers, writers_wait

pytestmark = pytest.mark.timeout(30)


async def test_a_channel_that_was_disposed_of_is_gone(writer: Face, reader: Face) -> None:
    channel, other = await writer.create(), await writer.create()
    await write_numbers(writer, channel, range(3))
    await writer.dispose(channel.producer)
    assert await reader.exists([channel.consumer, other.consumer]) == {
        channel.consumer: False,
        other.consumer: True,
    }
    for call in (
        read_all(reader, channel.consumer),
        write_numbers(reader, channel, [4]),
        reader.dispose(channel.producer),
    ):
        with pytest.raises(ChannelNotFound):
            await call


async def test_its_open_read_ends_cleanly(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with reader.read(channel.consumer) as read:
        await writer.dispose(channel.producer)
        async with asyncio.timeout(5):
            assert [event async for event in read] == []


@pytest.mark.settings(buffer_capacity=1)
async def test_its_waiting_writers_learn_of_it(app: App, writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    waiting = asyncio.create_task(write_numbers(writer, channel, [1]))
    await eventually(writers_wait(app, 1))
    await reader.dispose(channel.producer)
    with pytest.raises(ChannelNotFound):
        await waiting


async def test_other_addresses_dispose_of_nothing(face: Face) -> None:
    channel = await face.create()
    agent, _, sealed = channel.producer.partition(".")
    altered = f"{agent}.{sealed[:-2]}{'A' if sealed[-2] != 'A' else 'B'}{sealed[-1]}"
    for address, error in {
        channel.consumer: PermissionDenied,
        UNKNOWN_ADDRESS: ChannelNotFound,
        altered: BadRequest,
        "nonsense": BadRequest,
    }.items():
        with pytest.raises(error):
            await face.dispose(address)
    assert await read_all(face, channel.consumer, ReadOptions(wait_s=0)) == []
