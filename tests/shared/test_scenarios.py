"""The scenarios of both faces, with two nodes that share a store in Redis."""

import pytest

from megaphone.errors import LimitExceeded
from tests.parity.test_scenarios import *  # noqa: F403
from tests.support.faces import Face
from tests.support.scenes import eventually, gone

del test_node_takes_no_more_channels_than_it_may  # noqa: F821 - the next test is its counterpart


@pytest.mark.settings(max_channels=2, channel_ttl_secs=3)
async def test_nodes_take_no_more_channels_than_they_may(face: Face) -> None:
    """Each node counts all channels once a second, so they may take a few more."""
    made = [await face.create() for _ in range(2)]

    async def is_full() -> bool:
        try:
            made.append(await face.create())
        except LimitExceeded:
            return True
        return False

    await eventually(is_full)
    for channel in made:
        await eventually(gone(face, channel))

    async def has_room() -> bool:
        return not await is_full()

    await eventually(has_room)
