"""A read that does not wait gets all that is ready, however many answers of the store it takes."""

import pytest

from megaphone.model import ReadOptions
from tests.support.faces import Face, read_all

EVENTS = 30
BODY = b'"' + b"x" * 50_000 + b'"'


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_a_read_that_does_not_wait_gets_all_that_is_ready(
    face: Face, acknowledge: bool
) -> None:
    channel = await face.create()
    for _ in range(EVENTS):
        await face.write(channel.producer, "s", BODY)
    options = ReadOptions(acknowledge=acknowledge, in_flight=EVENTS, wait_s=0)
    assert len(await read_all(face, channel.consumer, options)) == EVENTS
