"""Events of hundreds of kilobytes, in backlogs that no single message could hold."""

import pytest

from megaphone.model import START, ReadOptions
from tests.support.faces import Face, read_all

BODIES = [b'"' + b"%03d" % number + b"x" * 500_000 + b'"' for number in range(24)]


@pytest.mark.parametrize(
    "options", [ReadOptions(), ReadOptions(acknowledge=True), ReadOptions(cursor=START)]
)
async def test_a_backlog_of_large_events_is_read_in_one_read_without_waiting(
    face: Face, options: ReadOptions
) -> None:
    channel = await face.create()
    for body in BODIES:
        await face.write(channel.producer, "s", body)
    options = ReadOptions(options.cursor, acknowledge=options.acknowledge, wait_s=0)
    events = await read_all(face, channel.consumer, options)
    assert [event.body for event in events] == BODIES
