"""What the creator of a channel asks for is the same through both faces."""

import asyncio
import math

import pytest

from megaphone.errors import BadRequest, WriteTimeout
from megaphone.model import ChannelOptions, NewEvent
from tests.support.faces import Face
from tests.support.scenes import eventually, gone, write_numbers

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.settings(
        buffer_capacity=3,
        max_buffer_capacity=5,
        channel_ttl_secs=10.0,
        max_channel_ttl_secs=20.0,
        write_timeout_millis=1,
    ),
]


@pytest.mark.parametrize("capacity", [1, 5])
async def test_a_channel_has_the_capacity_that_its_creator_asks_for(
    face: Face, capacity: int
) -> None:
    channel = await face.create((), ChannelOptions(capacity=capacity, label="orders of 5"))
    await write_numbers(face, channel, range(capacity))
    with pytest.raises(WriteTimeout):
        await write_numbers(face, channel, [capacity])
    messages = [NewEvent("s", b"0")]
    assert [one.reason for one in await face.write_batch([channel.producer], messages)] == [
        "TIMEOUT"
    ]


async def test_a_channel_lives_as_long_as_its_creator_asks_for(face: Face) -> None:
    short = await face.create((), ChannelOptions(ttl_s=0.2))
    other = await face.create()
    await eventually(gone(face, short))
    assert await face.exists([other.producer]) == {other.producer: True}


async def test_a_read_gives_a_channel_its_own_ttl_again(face: Face) -> None:
    channel = await face.create((), ChannelOptions(ttl_s=0.3))
    async with face.read(channel.consumer):
        await asyncio.sleep(0.5)
        assert await face.exists([channel.consumer]) == {channel.consumer: True}
    await eventually(gone(face, channel))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            ChannelOptions(capacity=6),
            "the capacity must be 1 to 5 events, not 6 (max_buffer_capacity)",
        ),
        (
            ChannelOptions(capacity=0),
            "the capacity must be 1 to 5 events, not 0 (max_buffer_capacity)",
        ),
        (
            ChannelOptions(ttl_s=20.5),
            "the TTL must be 0.001 to 20 seconds, not 20.5 (max_channel_ttl_secs)",
        ),
        (
            ChannelOptions(ttl_s=0),
            "the TTL must be 0.001 to 20 seconds, not 0 (max_channel_ttl_secs)",
        ),
        (
            ChannelOptions(ttl_s=-1),
            "the TTL must be 0.001 to 20 seconds, not -1 (max_channel_ttl_secs)",
        ),
        (
            ChannelOptions(label="x" * 65),
            "the label must be at most 64 visible ASCII characters and spaces",
        ),
        (
            ChannelOptions(label="a\nb"),
            "the label must be at most 64 visible ASCII characters and spaces",
        ),
        (
            ChannelOptions(label="\N{SNOWMAN}"),
            "the label must be at most 64 visible ASCII characters and spaces",
        ),
    ],
    ids=str,
)
async def test_a_channel_that_asks_for_too_much_is_refused(
    face: Face, options: ChannelOptions, what: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        await face.create((), options)
    assert str(refused.value) == what


@pytest.mark.parametrize("ttl_s", [math.nan, math.inf, -math.inf])
async def test_a_ttl_that_is_no_number_is_refused(face: Face, ttl_s: float) -> None:
    with pytest.raises(BadRequest):
        await face.create((), ChannelOptions(ttl_s=ttl_s))
